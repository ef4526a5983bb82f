"""A Celery worker with the runtime beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Reject
from celery.worker import state

import ebbtide
from tests.contract.servers.beside import Beside
from tests.contract.servers.service import handle_in_thread


def a_celery(folder: Path) -> Celery:
    """Return an application whose queue is a folder."""
    app = Celery("tasks", broker="filesystem://", set_as_current=False)
    folders = {"data_folder_in": str(folder), "data_folder_out": str(folder), "control_folder": str(folder / "control")}
    # Late: what a worker that dies had taken goes back to the queue.
    app.conf.update(broker_transport_options=folders, task_acks_late=True, worker_prefetch_multiplier=1)
    return app


app = a_celery(Path(os.environ.get("QUEUE", ".")))


def stop_consuming() -> None:
    state.should_stop = 0  # a warm shutdown, with this exit code


beside = Beside(on_drain=stop_consuming)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def start(**_: Any) -> None:
    beside.start()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def drain(sig: str, **_: Any) -> None:
    beside.drain(f"celery: {sig}")


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def wait(**_: Any) -> None:
    beside.wait()


@app.task(name="work")  # type: ignore[untyped-decorator]
def work(name: str, seconds: float) -> None:
    try:
        handle_in_thread(beside.runtime.scope("tasks"), name, seconds, beside.runtime)
    except ebbtide.Refused as refused:
        raise Reject(str(refused), requeue=True) from refused
