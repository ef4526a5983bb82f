"""The control groups of a cluster: one folder per node in every hierarchy that the kernel has mounted."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy: version 1 has one per controller, version 2 has one in all."""

    mount_point: Path
    unified: bool
    controllers: frozenset[str]


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """Read the hierarchies from /proc/self/mountinfo; one that is mounted twice counts once."""
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        kind, _, options = after.split(maxsplit=2)
        if kind in {"cgroup", "cgroup2"}:
            hierarchy = Hierarchy(Path(fields[4]), kind == "cgroup2", frozenset(options.split(",")))
            found.setdefault(fields[2], hierarchy)
    return list(found.values())


def mounted() -> list[Hierarchy]:
    """Return the hierarchies of this machine."""
    return hierarchies(Path("/proc/self/mountinfo").read_text())


def probe() -> None:
    """Try to make a control group in every hierarchy.

    Raises:
        ClusterError: the kernel has no hierarchy mounted, or not writable.
    """
    name = f"ebbtide-probe-{os.getpid()}"
    create(name, ("",))
    for hierarchy in mounted():
        (hierarchy.mount_point / name).rmdir()


def create(cgroup: str, nodes: tuple[str, ...]) -> None:
    """Make the folders that the kubelets and containers of a cluster live in.

    Raises:
        ClusterError: the kernel has no hierarchy mounted, or not writable.
    """
    found = mounted()
    if not found:
        raise ClusterError("no control groups are mounted under /sys/fs/cgroup; containers need them")
    for hierarchy in found:
        try:
            for node in nodes:
                _create_path(hierarchy, Path(cgroup) / node)
        except OSError as error:
            raise ClusterError(
                f"making a control group in {hierarchy.mount_point}: {error}; in a container this needs --privileged"
            ) from error


def _create_path(hierarchy: Hierarchy, path: Path) -> None:
    parent = hierarchy.mount_point
    for part in path.parts:
        folder = parent / part
        if hierarchy.unified:
            # A controller reaches a folder only where its parent hands it down.
            available = (parent / "cgroup.controllers").read_text().split()
            (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in available))
        folder.mkdir(exist_ok=True)
        if "cpuset" in hierarchy.controllers and not hierarchy.unified:
            # A version 1 cpuset starts empty, and an empty one takes no process.
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if not (folder / setting).read_text().strip():
                    (folder / setting).write_text((parent / setting).read_text())
        parent = folder


def processes(cgroup: str) -> Iterator[int]:
    """Yield the ids of all processes in a cluster's control groups."""
    for top in existing(cgroup):
        for folder, _, _ in os.walk(top):
            try:
                listed = Path(folder, "cgroup.procs").read_text()
            except OSError:  # the folder has gone meanwhile, or is a threaded one
                continue
            # A process of a namespace that this one does not see is listed as 0.
            yield from (int(line) for line in listed.split() if line != "0")


def thaw(cgroup: str) -> None:
    """Let paused containers go on: a frozen process takes no signal, not even the last one."""
    for top in existing(cgroup):
        for folder, _, files in os.walk(top):
            for file, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if file in files:
                    Path(folder, file).write_text(value)


def existing(cgroup: str) -> list[Path]:
    """Return the folders of a cluster that exist."""
    return [path for hierarchy in mounted() if (path := hierarchy.mount_point / cgroup).is_dir()]


def remove(cgroup: str, *, within_s: float = 10) -> None:
    """Remove a cluster's folders, the innermost first.

    Raises:
        ClusterError: a folder is still busy after that time.
    """
    deadline = time.monotonic() + within_s
    for top in existing(cgroup):
        for folder, _, _ in os.walk(top, topdown=False):
            _remove_folder(Path(folder), deadline)


def _remove_folder(folder: Path, deadline: float) -> None:
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # The kernel lets go of a dead process's folder some milliseconds after the process.
            if time.monotonic() > deadline:
                raise ClusterError(f"control group {folder} can't be removed: {error}") from error
            time.sleep(0.05)
        else:
            return
