"""Applications for several workers, driven through files in a folder, which every kind of server lets pass.

A worker that is up makes `<pid>.up`. `<pid>.start` makes it start a task, `<pid>.end` ends all of its tasks; each file
is gone when that is done. What is not admitted makes `<pid>.refused`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import ebbtide

FOLDER = Path(os.environ.get("PREFORK_FOLDER", "/nonexistent"))

# As in an application that makes it when it is imported: with `gunicorn --preload` that is before the fork.
runtime = ebbtide.Runtime.from_env()
work = runtime.scope("work")


def file(kind: str) -> Path:
    return FOLDER / f"{os.getpid()}.{kind}"


async def obey() -> None:
    """Do as the files say, until cancelled."""
    ended = asyncio.Event()
    file("up").touch()
    while True:
        if file("start").exists():
            try:
                work.spawn(until(ended))
            except ebbtide.Refused:
                file("refused").touch()
            file("start").unlink()
        if file("end").exists():
            ended.set()
            ended = asyncio.Event()
            file("end").unlink()
        await asyncio.sleep(0.01)


async def until(event: asyncio.Event) -> None:
    await event.wait()


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application: the runtime lives as long as the server's lifespan."""
    assert scope["type"] == "lifespan"
    assert (await receive())["type"] == "lifespan.startup"
    async with runtime:
        obeying = asyncio.create_task(obey())
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
    obeying.cancel()
    await send({"type": "lifespan.shutdown.complete"})


class InThread:
    """A runtime for a process without an event loop."""

    def __init__(self) -> None:
        self._up = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, *more: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start it, and run coroutine functions beside it."""
        self._up.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(more)), daemon=True)
        self._thread.start()
        assert self._up.wait(30)

    def stop(self) -> None:
        """Drain, and say goodbye."""
        runtime.drain("the worker leaves")
        if self._thread is not None:
            self._thread.join(30)

    async def _run(self, more: tuple[Callable[[], Coroutine[Any, Any, None]], ...]) -> None:
        async with runtime:
            running = [asyncio.create_task(each()) for each in (obey, *more)]
            self._up.set()
            await runtime.wait_exit()
        for each in running:
            each.cancel()


def wsgi(environ: Any, start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


async def serve() -> None:
    async with runtime:
        obeying = asyncio.create_task(obey())
        await runtime.wait_exit()
    obeying.cancel()


def main(workers: int) -> None:
    """Fork workers, and new ones in the place of those that end, until SIGTERM; then pass it on."""
    import signal

    # Waited for instead of handled: a handler may run where a worker is collected and not yet taken from the list.
    signals = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pids: set[int] = set()
    stopping = False

    def fork() -> None:
        pid = os.fork()
        if pid:
            pids.add(pid)
            return
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        asyncio.run(serve())
        os._exit(0)

    for _ in range(workers):
        fork()
    while pids:
        if signal.sigwait(signals) == signal.SIGTERM:
            stopping = True
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
        for pid in [pid for pid in pids if os.waitpid(pid, os.WNOHANG)[0]]:
            pids.discard(pid)
            if not stopping:
                fork()


if __name__ == "__main__":
    main(int(sys.argv[1]))
