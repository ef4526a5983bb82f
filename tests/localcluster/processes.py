"""The processes that we started: which they are, whether they live, and how they end.

A process id alone is no identity, since the kernel gives it out again. A process is ours where its id *and* its start
time match the record, or where its environment carries the mark of the cluster.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.localcluster.errors import ClusterError

MARK = "EBBTIDE_LOCAL_CLUSTER"
_LAUNCHER = Path(__file__).with_name("launch.py")


@dataclass(frozen=True)
class Process:
    """One process that we started.

    Attributes:
        start: clock ticks from boot to its start (field 22 of /proc/PID/stat).
        request: what the launcher was asked for, so that the process can be started again.
    """

    component: str
    pid: int
    start: int
    request: dict[str, Any]

    def alive(self) -> bool:
        return start_time(self.pid) == self.start

    @property
    def log(self) -> Path:
        return Path(self.request["log"])


def boot_id() -> str:
    """Name the present run of the kernel: process ids from before mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses and may hold spaces and parentheses itself.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def marked(mark: str) -> Iterator[int]:
    """Yield every process whose environment carries the mark of a cluster."""
    wanted = f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
        except OSError:  # it ended, or it is another user's
            continue
        if wanted in environment.split(b"\0") and start_time(int(entry.name)) is not None:
            yield int(entry.name)


def launch(component: str, request: Mapping[str, Any], records: Path) -> Process:
    """Start a process detached from this one and record it.

    Raises:
        ClusterError: the program could not be executed, or the namespaces could not be made.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(_LAUNCHER)],
        # The launcher bears the mark too: where we are killed meanwhile, what it starts does not outlive a `down`.
        env={**os.environ, MARK: request["env"][MARK]},
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"starting {component} failed: {done.stderr.strip()}")
    pid = int(done.stdout)
    start = start_time(pid)
    if start is None:
        raise ClusterError(f"{component} ended at once; see {request['log']}")
    process = Process(component, pid, start, dict(request))
    records.mkdir(parents=True, exist_ok=True)
    _record_path(records, component).write_text(json.dumps(asdict(process)))
    return process


def recorded(records: Path) -> dict[str, Process]:
    """Read the processes that were started, by component; a record cut short by a crash is left out."""
    found = {}
    for file in sorted(records.glob("*.json")):
        try:
            process = Process(**json.loads(file.read_text()))
        except (ValueError, TypeError):
            continue
        found[process.component] = process
    return found


def _record_path(records: Path, component: str) -> Path:
    return records / f"{component.replace('/', '@')}.json"


def kill(pids: Mapping[int, int], *, within_s: float = 20, sign: signal.Signals = signal.SIGKILL) -> None:
    """Signal processes and wait until they are gone.

    Args:
        pids: process id to start time; a process that started at another time is left alone.
        within_s: how long to wait for them.

    Raises:
        ClusterError: one is still there after that time.
    """
    waiting: dict[int, int] = {}
    for pid, start in pids.items():
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        # Checked after the descriptor was opened: from here on it can't come to stand for another process.
        if start_time(pid) != start:
            os.close(descriptor)
            continue
        waiting[pid] = descriptor
    try:
        for descriptor in waiting.values():
            _signal(descriptor, sign)
        deadline = time.monotonic() + within_s
        for pid, descriptor in waiting.items():
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready and start_time(pid) is not None:
                raise ClusterError(
                    f"process {pid} ({command_line(pid)}) is still there {within_s:.0f} s after {sign.name}"
                )
    finally:
        for descriptor in waiting.values():
            os.close(descriptor)


def _signal(descriptor: int, sign: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(descriptor, sign)
    except ProcessLookupError:
        return


def command_line(pid: int) -> str:
    """Return a process's command line for messages."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended"


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log for an error message."""
    try:
        text = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text[-lines:])


def failures(processes: Sequence[Process]) -> str:
    """Describe the processes that have ended, with the ends of their logs; empty where all live."""
    ended = [process for process in processes if not process.alive()]
    return "\n".join(
        f"{process.component} has ended; the end of {process.log}:\n{tail(process.log)}" for process in ended
    )
