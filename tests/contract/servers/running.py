"""Starts a server, gives it requests and a reason to end, and tells what became of everybody."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TextIO

ROOT = Path(__file__).parents[3]
QUIESCE_S, DRAIN_TIMEOUT_S, CANCEL_GRACE_S = 1.0, 1.5, 2.0
SERVER_S = 6
"""The server's own limit of a graceful end: behind the library's budget."""
IN_TIME_S = 1.6
"""A request that ends while the process drains."""
LONG_S = 12.0
"""One that does not."""
GIVE_UP_S = 30.0


class Trigger(StrEnum):
    PRESTOP = "preStop, SIGTERM"
    """What the kubelet does: `/drain?start=prestop`, and the signal when that has answered."""
    SIGTERM = "SIGTERM"
    SIGTERM_TWICE = "SIGTERM, SIGTERM"
    SIGINT = "SIGINT"
    SIGINT_TWICE = "SIGINT, SIGINT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What became of one server and its requests."""

    drain: str
    """Its outcome and its reason."""
    arriving: str
    """Requests that arrive right after the trigger, before intake closes."""
    in_time: str
    long: str
    code: str
    """How the process ended."""


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    command: Callable[[int], list[str]]
    """Takes the port."""


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


ASGI = "tests.contract.servers.asgi:app"
SERVERS = (
    Server(
        "uvicorn",
        lambda port: python("-m", "uvicorn", ASGI, f"--port={port}", f"--timeout-graceful-shutdown={SERVER_S}"),
    ),
    Server(
        "uvicorn, uvloop",
        lambda port: python(
            "-m", "uvicorn", ASGI, f"--port={port}", f"--timeout-graceful-shutdown={SERVER_S}", "--loop=uvloop"
        ),
    ),
    Server(
        "gunicorn -k asgi",
        lambda port: python(
            "-m",
            "gunicorn",
            ASGI,
            f"--bind=127.0.0.1:{port}",
            "--worker-class=asgi",
            f"--graceful-timeout={SERVER_S}",
            "--no-control-socket",
        ),
    ),
    Server(
        "hypercorn",
        lambda port: python("-m", "hypercorn", ASGI, f"--bind=127.0.0.1:{port}", f"--graceful-timeout={SERVER_S}"),
    ),
    Server(
        "hypercorn --workers 0",
        lambda port: python(
            "-m", "hypercorn", ASGI, f"--bind=127.0.0.1:{port}", f"--graceful-timeout={SERVER_S}", "--workers=0"
        ),
    ),
    Server(
        "granian",
        lambda port: python(
            "-m", "granian", ASGI, f"--port={port}", "--interface=asgi", f"--workers-kill-timeout={SERVER_S}"
        ),
    ),
    Server("aiohttp", lambda port: python("-m", "tests.contract.servers.aio", str(port), str(SERVER_S))),
)


THREADS = Server(
    "gunicorn -k gthread",
    lambda port: python(
        "-m",
        "gunicorn",
        "tests.contract.servers.wsgi:app",
        "--config=python:tests.contract.servers.wsgi",
        f"--bind=127.0.0.1:{port}",
        "--worker-class=gthread",
        "--threads=4",
        "--no-control-socket",
        f"--graceful-timeout={SERVER_S}",
    ),
)
CELERY = Server(
    "celery --pool threads",
    lambda _port: python("-m", "celery", "--app=tests.contract.servers.tasks", "worker", "--pool=threads", "-c4"),
)


def start_broken(server: Server, folder: Path) -> tuple[str, list[str]]:
    """Run a server whose application cannot start; return how it ended, and the notes."""
    notes = folder / "notes"
    with (folder / "log").open("w") as log, running(server, free_port(), free_port(), log, BROKEN="1") as process:
        code = process.wait(GIVE_UP_S)
    return spoken(code), lines(notes)


def observe(server: Server, trigger: Trigger, folder: Path) -> Seen:
    """Run one server once."""
    port, admin_port = free_port(), free_port()
    (folder / "queue").mkdir()
    with (folder / "log").open("w") as log, running(server, port, admin_port, log) as process:
        clients: Clients = Publisher(folder / "queue") if server is CELERY else Browser(port)
        return _observe(process, trigger, clients, admin_port, folder / "notes")


@contextlib.contextmanager
def running(server: Server, port: int, admin_port: int, log: TextIO, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    folder = Path(log.name).parent
    (folder / "notes").touch()
    environment = {
        **os.environ,
        **more,
        "NOTES": str(folder / "notes"),
        "QUEUE": str(folder / "queue"),
        "EBBTIDE_ADMIN_ADDRESS": f"127.0.0.1:{admin_port}",
        "EBBTIDE_QUIESCE_S": str(QUIESCE_S),
        "EBBTIDE_DRAIN_TIMEOUT_S": str(DRAIN_TIMEOUT_S),
        "EBBTIDE_CANCEL_GRACE_S": str(CANCEL_GRACE_S),
    }
    command = server.command(port)
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            # The whole session: some servers have workers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Clients(Protocol):
    """Who asks for work."""

    def can_ask(self) -> bool: ...

    def ask(self, name: str, seconds: float) -> str:
        """Ask for something that takes so long; return what the answer was, empty where there is none."""

    def arrive(self) -> str:
        """Ask during the quiesce time; return what became of that, empty where it shows later."""


@dataclass(frozen=True, slots=True)
class Browser:
    port: int

    def can_ask(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def ask(self, name: str, seconds: float) -> str:
        return get(self.port, f"/?name={name}&seconds={seconds}")

    def arrive(self) -> str:
        until = time.monotonic() + 0.8 * QUIESCE_S
        while time.monotonic() < until:
            answer = get(self.port, "/?name=arriving&seconds=0", timeout_s=1.0)
            if answer != "200":
                # A listener that closes refuses some connections, resets others, and forgets some.
                return "not served"
            time.sleep(0.02)
        return "served"


@dataclass(frozen=True, slots=True)
class Publisher:
    queue: Path

    def can_ask(self) -> bool:
        return True

    def ask(self, name: str, seconds: float) -> str:
        from tests.contract.servers.tasks import a_celery

        with a_celery(self.queue) as app:
            app.send_task("work", (name, seconds))
        return ""

    def arrive(self) -> str:
        time.sleep(0.8 * QUIESCE_S)  # a worker that stops may still fetch what comes before it looks again
        self.ask("arriving", 0.0)
        return ""

    def what_became_of_it(self, said: list[str]) -> str:
        if "arriving began" in said:
            return "served"
        waits = any(b"arriving" in message.read_bytes() for message in self.queue.glob("*.msg"))
        return "stays in the queue" if waits else "lost"


def _observe(
    process: subprocess.Popen[bytes], trigger: Trigger, clients: Clients, admin_port: int, notes: Path
) -> Seen:
    with ThreadPoolExecutor(3) as threads:
        wait(lambda: get(admin_port, "/readyz") == "200" and clients.can_ask(), "the server is ready", process)
        in_time = threads.submit(clients.ask, "in-time", IN_TIME_S)
        long = threads.submit(clients.ask, "long", LONG_S)
        wait(lambda: {"in-time began", "long began"} <= set(lines(notes)), "both requests have begun", process)
        arriving = _pull(process, trigger, clients, admin_port, threads)
        code = process.wait(GIVE_UP_S)
        said = lines(notes)
        if isinstance(clients, Publisher) and not arriving:
            arriving = clients.what_became_of_it(said)
        drain = next((line for line in said if line.startswith("drained ")), "none").removeprefix("drained ")
        return Seen(
            drain=drain if "pool closed" in said else f"{drain}, pool left open",
            arriving=arriving,
            in_time=_fate("in-time", said, in_time.result()),
            long=_fate("long", said, long.result()),
            code=spoken(code),
        )


def _pull(
    process: subprocess.Popen[bytes], trigger: Trigger, clients: Clients, admin_port: int, threads: ThreadPoolExecutor
) -> str:
    """Give the reason to end; return what becomes of requests that arrive meanwhile."""
    number = signal.SIGINT if trigger in {Trigger.SIGINT, Trigger.SIGINT_TWICE} else signal.SIGTERM
    if trigger is Trigger.PRESTOP:
        hook = threads.submit(get, admin_port, "/drain?start=prestop&wait=20")
        arriving = clients.arrive()
        hook.result()
        process.send_signal(number)
        return arriving
    process.send_signal(number)
    if trigger in {Trigger.SIGTERM_TWICE, Trigger.SIGINT_TWICE}:
        # Two that come together are one to the kernel: the second waits until the first was understood.
        wait(lambda: get(admin_port, "/readyz") != "200" or not clients.can_ask(), "it begins to end", process)
        process.send_signal(number)
        return "-"
    return clients.arrive()


def _fate(name: str, said: list[str], answer: str) -> str:
    if f"{name} finished" in said:
        fate = "finished"
    elif f"{name} cleaned up" in said:
        fate = "cleaned up"
    else:
        fate = "cleanup cut off" if f"{name} was cancelled" in said else "lost"
    return f"{fate}, {answer}" if answer else fate


def spoken(code: int) -> str:
    return str(code) if code >= 0 else signal.Signals(-code).name


def get(port: int, path: str, timeout_s: float = GIVE_UP_S) -> str:
    """Return the status of the answer, or why there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except ConnectionRefusedError:
        return "refused"
    except (OSError, http.client.HTTPException):  # a timeout is an OSError
        return "no answer"
    finally:
        connection.close()
    return str(answer.status)


def wait(condition: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + GIVE_UP_S
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before {what}"
        assert time.monotonic() < give_up_at, f"waited for: {what}"
        time.sleep(0.02)


def lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port
