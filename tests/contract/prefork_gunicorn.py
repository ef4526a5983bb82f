"""Gunicorn's configuration for workers without an event loop: the runtime lives in a thread of each."""

from typing import Any

from tests.contract.prefork_apps import InThread

worker_class = "gthread"
_in_thread = InThread()


def post_worker_init(worker: Any) -> None:
    _in_thread.start()


def worker_exit(server: Any, worker: Any) -> None:
    _in_thread.stop()
