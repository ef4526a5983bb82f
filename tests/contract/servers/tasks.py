"""A Celery worker with the library beside it: the runtime has a thread of its own, since Celery runs no event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Reject
from celery.worker import state

import ebbtide
from tests.contract.servers.service import a_runtime, handle_in_thread


def a_celery(folder: Path) -> Celery:
    """Return an application whose queue is a folder."""
    app = Celery("tasks", broker="filesystem://", set_as_current=False)
    folders = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(folder / "control")}
    # Late: what a worker that dies had taken goes back to the queue.
    app.conf.update(broker_transport_options=folders, task_acks_late=True, worker_prefetch_multiplier=1)
    return app


app = a_celery(Path(os.environ.get("QUEUE", ".")))


class Beside:
    """The runtime, in a thread with an event loop."""

    def __init__(self) -> None:
        self.runtime: ebbtide.Runtime | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="ebbtide-loop", daemon=True)

    def start(self, **_: Any) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def drain(self, sig: str = "", **_: Any) -> None:
        """Celery caught a signal and stops to take tasks."""
        assert self.runtime is not None
        self.runtime.drain(f"celery: {sig}")

    def wait(self, **_: Any) -> None:
        """Celery's tasks have ended."""
        self._thread.join(10)

    async def _live(self) -> None:
        async with a_runtime() as self.runtime:
            # Whoever began the drain: Celery is to stop taking tasks.
            self.runtime.on_drain(stop_consuming)
            self._started.set()
            await self.runtime.wait_exit()


def stop_consuming() -> None:
    state.should_stop = 0  # a warm shutdown, with this exit code


beside = Beside()
signals.worker_ready.connect(beside.start)
signals.worker_shutting_down.connect(beside.drain)
signals.worker_shutdown.connect(beside.wait)


@app.task(name="work")  # type: ignore[untyped-decorator]
def work(name: str, seconds: float) -> None:
    assert beside.runtime is not None
    try:
        handle_in_thread(beside.runtime.scope("tasks"), name, seconds, beside.runtime)
    except ebbtide.Refused as refused:
        raise Reject(str(refused), requeue=True) from refused
