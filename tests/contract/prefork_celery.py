"""A Celery worker with forked children: each counts its tasks, and the parent takes none while the pod drains."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from celery import Celery, Task, signals

import ebbtide
from tests.contract.prefork_apps import FOLDER, InThread, runtime, work

QUEUE = "celery"
_in_thread = InThread()


def an_app(folder: Path) -> Celery:
    """Return an application whose broker is a folder."""
    app = Celery("prefork", broker="filesystem://")
    app.conf.update(
        broker_transport_options={
            "data_folder_in": str(folder),
            "data_folder_out": str(folder),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.05,
        },
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
    )
    return app


app = an_app(FOLDER / "queue")


class Counted(Task):
    """A task that is work in flight; one that comes during a drain goes back to the queue."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        try:
            with work.track(self.name):
                return super().__call__(*arguments, **named)
        except ebbtide.Refused as refused:
            raise self.retry(countdown=refused.retry_after_s, max_retries=None) from None


@app.task(base=Counted, name="wait_for_file")
def wait_for_file(name: str) -> None:
    """Take until a file is there."""
    (FOLDER / f"{os.getpid()}.busy").touch()
    while not (FOLDER / name).exists():
        time.sleep(0.01)


@signals.worker_process_init.connect
def start_in_child(**_: Any) -> None:
    _in_thread.start()


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def stop(**_: Any) -> None:
    _in_thread.stop()


@signals.worker_ready.connect
def start_in_parent(**_: Any) -> None:
    _in_thread.start(follow_drains)


async def follow_drains() -> None:
    """Take no tasks while the pod drains."""
    while True:
        await runtime.drain_requested()
        await asyncio.to_thread(app.control.cancel_consumer, QUEUE)
        (FOLDER / "closed").touch()
        while runtime.draining:  # noqa: ASYNC110 (there is no event for a drain that is taken back)
            await asyncio.sleep(0.05)
        await asyncio.to_thread(app.control.add_consumer, QUEUE)
        (FOLDER / "closed").unlink()
