"""One pod of several real processes, and what etcd knows of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from ebbtide import environment
from ebbtide.etcd import Changed, EtcdClient
from ebbtide.protocol import Desired, Keys, Order, PodState, Report
from tests.contract.member import Member, free_port
from tests.contract.watching import SyncWatching, wait_until

KEYS = Keys()
ROOT = Path(__file__).parents[2]


class Pod:
    """Run a server whose workers obey `prefork_apps`.

    Args:
        etcd: Where it reports to.
        folder: Where the workers look for what they are to do.
        command: Arguments of Python.
        settings: Further environment.
    """

    def __init__(self, etcd: Member, folder: Path, *command: str, **settings: str) -> None:
        self.folder = folder
        self.uid, self.namespace = uuid.uuid4().hex, "prefork"
        self.port = free_port()
        self.store = EtcdClient([etcd.url], timeout_s=2)
        self._generation = 0
        self._seen: dict[str, int] = {}
        environ = {
            **os.environ,
            "PREFORK_FOLDER": str(folder),
            environment.POD_NAMESPACE: self.namespace,
            environment.POD_UID: self.uid,
            environment.WORKLOAD: "deployment/prefork",
            environment.ENDPOINTS: etcd.url,
            environment.ADMIN_ADDRESS: f"127.0.0.1:{self.port}",
            environment.CANCEL_GRACE: "5",
            **settings,
        }
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own: a worker that has only just been made is in nobody's list yet.
                start_new_session=True,
            )

    # --- its workers

    def pids(self) -> set[int]:
        """Return the workers that came up and live."""
        return {int(path.stem) for path in self.folder.glob("*.up") if _lives(int(path.stem))}

    def wait_for_workers(self, count: int) -> set[int]:
        wait_until(lambda: self.process.poll() is None and len(self.pids()) == count)
        return self.pids()

    def wait_for_new_workers(self, before: set[int]) -> set[int]:
        """Return the workers that came up after those, once there is one."""
        wait_until(lambda: self.pids() - before)
        return self.pids() - before

    def start_task(self, pid: int) -> None:
        self._tell(pid, "start")

    def end_tasks(self, pid: int) -> None:
        self._tell(pid, "end")

    def refused(self, pid: int) -> bool:
        return (self.folder / f"{pid}.refused").exists()

    def _tell(self, pid: int, what: str) -> None:
        path = self.folder / f"{pid}.{what}"
        path.touch()
        wait_until(lambda: not path.exists())

    # --- its operator

    def order(self, desired: Desired = Desired.DRAIN, drain_timeout_s: float = 60.0, *, leave: bool = False) -> int:
        """Write an order for the pod; return its generation."""
        self._generation += 1
        order = Order(
            desired=desired,
            generation=self._generation,
            epoch=1,
            drain_timeout_s=drain_timeout_s,
            cancel_grace_s=5.0,
            leave=leave,
        )
        self.store.put(KEYS.order(self.namespace, self.uid), order.encode())
        return self._generation

    @property
    def report(self) -> Report | None:
        """Its report as the store has it; fails where a boot counts backwards."""
        stored = self.store.get(self.report_key)
        if stored is None:
            return None
        report = Report.decode(stored.value)
        assert report.sequence >= self._seen.get(report.boot_id, 0)
        self._seen[report.boot_id] = report.sequence
        return report

    def states_told(self, watching: SyncWatching) -> list[PodState]:
        """Return the states of all reports that somebody saw who follows them."""
        return [
            Report.decode(change.key_value.value).state for change in watching.changes if isinstance(change, Changed)
        ]

    @property
    def report_key(self) -> str:
        return KEYS.report(self.namespace, self.uid)

    @property
    def boots(self) -> int:
        """How many boot ids were seen."""
        return len(self._seen)

    def wait_for(self, state: PodState, **fields: Any) -> Report:
        """Wait until the store has a report like that."""
        wanted = {"state": state, **fields}

        def matching() -> Report | None:
            report = self.report
            if report is None or any(getattr(report, name) != value for name, value in wanted.items()):
                return None
            return report

        try:
            report: Report = wait_until(matching)
        except AssertionError:
            raise AssertionError(f"{self.report} is not {state} {fields}") from None
        return report

    # --- its admin server

    def ask(self, method: str, path: str, timeout_s: float = 5.0) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def view(self) -> dict[str, Any]:
        view: dict[str, Any] = json.loads(self.ask("GET", "/drain")[1])
        return view

    def states(self) -> dict[int, str]:
        """Return the state of each worker by its process id, as the leader has it; empty while none answers."""
        try:
            view = self.view()
        except (OSError, http.client.HTTPException):
            return {}  # one worker has closed the port, or is about to, and the next one does not listen yet
        return {worker["pid"]: worker["state"] for worker in view.get("workers", [])}

    def leader(self) -> int:
        """Return the worker that has the admin server's port, as soon as one has it."""

        def the_one() -> int | None:
            inode = _listening(self.port)
            found = [pid for pid in self.pids() if inode is not None and _has_socket(pid, inode)]
            return found[0] if len(found) == 1 else None

        pid: int = wait_until(the_one)
        return pid

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.store.close()


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def _listening(port: int) -> str | None:
    """Return the inode of the socket that listens at a port; None without one."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].partition(":")[2], 16) == port:
            return fields[9]
    return None


def _has_socket(pid: int, inode: str) -> bool:
    with contextlib.suppress(OSError):  # it ended
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # this one is closed
                if str(path.readlink()) == f"socket:[{inode}]":
                    return True
    return False
