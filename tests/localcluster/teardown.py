"""Takes a local cluster down, whatever is left of it, and looks whether anything remained."""

import shutil
import subprocess
import time
from pathlib import Path

from tests.localcluster import cgroups, network, processes, sandbox, slots
from tests.localcluster.errors import ClusterError
from tests.localcluster.layout import Layout, Network, read_record


def leftovers(layout: Layout) -> list[str]:
    """Return what exists of a cluster on this machine, in words; empty where there is nothing."""
    found = [f"process {pid} ({processes.command_line(pid)})" for pid in _processes(layout)]
    found += [f"mount {path}" for path in _mounts(layout)]
    for owned in _networks(layout):
        found += [f"control group {path}" for path in cgroups.existing(owned.cgroup)]
        if network.exists(owned):
            found.append(f"network device {owned.device}")
    found += [f"slot {slot}" for slot in slots.held(layout)]
    if layout.root.exists():
        found.append(f"folder {layout.root}")
    return found


def tear_down(layout: Layout) -> None:
    """End all processes of a cluster and remove its mounts, control groups, devices and files.

    Works on a running cluster, on a half-started one, on one with dead parts, and on what a reboot or a deleted state
    folder left.

    Raises:
        ClusterError: something could not be removed; the message names it.
    """
    networks = _networks(layout)
    for owned in networks:
        cgroups.thaw(owned.cgroup)  # a frozen process does not die
    _end_processes(layout)
    for owned in networks:
        network.disconnect(owned)
        cgroups.remove(owned.cgroup)
    for path in _mounts(layout):
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)
    if (mounts := _mounts(layout)) and layout.root.exists():
        # Deleting through a mount would delete what is mounted there.
        raise ClusterError(
            f"still mounted: {', '.join(map(str, mounts))}; unmount it, then take the cluster down again"
        )
    if layout.root.exists():
        shutil.rmtree(layout.root)
    slots.release(layout)
    if remaining := leftovers(layout):
        raise ClusterError(f"not everything could be removed: {'; '.join(remaining)}")


def _networks(layout: Layout) -> list[Network]:
    record = read_record(layout)
    found = {slot: Network(slot) for slot in slots.held(layout)}
    if record is not None:
        # Without a claim (a reboot empties them) the number may be another cluster's by now.
        others = slots.held_by_others(layout)
        if record.network.slot not in others:
            found[record.network.slot] = record.network
    return list(found.values())


def _processes(layout: Layout) -> set[int]:
    recorded = {process.pid for process in processes.recorded(layout.processes).values() if process.alive()}
    grouped = {pid for owned in _networks(layout) for pid in cgroups.processes(owned.cgroup)}
    found = recorded | set(processes.marked(str(layout.root))) | grouped
    return {pid for pid in found if processes.start_time(pid) is not None}


def _end_processes(layout: Layout) -> None:
    # The sandboxes first: the kernel ends all that is in them.
    processes.kill({process.pid: process.start for process in sandbox.pids(layout).values()})
    deadline = time.monotonic() + 20
    while found := {pid: start for pid in _processes(layout) if (start := processes.start_time(pid)) is not None}:
        if time.monotonic() > deadline:
            raise ClusterError(f"processes that do not end: {', '.join(map(str, found))}")
        processes.kill(found)


def _mounts(layout: Layout) -> list[Path]:
    """Return the mounts of this mount namespace inside the state folder, the innermost first."""
    root = layout.root.resolve()
    points = [
        Path(line.split()[4].replace("\\040", " ")) for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return sorted((point for point in points if point.is_relative_to(root)), key=lambda point: -len(point.parts))
