"""A WSGI application in gunicorn's threads; the module is its own configuration of gunicorn."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import ebbtide
from tests.contract.servers.beside import Beside
from tests.contract.servers.service import handle_in_thread

beside = Beside()


def app(environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]) -> Iterable[bytes]:
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    runtime = beside.runtime
    try:
        done = handle_in_thread(runtime.scope("requests"), query["name"], float(query["seconds"]), runtime)
    except ebbtide.Refused:
        done = False
    start_response("200 OK" if done else "503 Service Unavailable", [("Content-Length", "0")])
    return [b""]


def post_worker_init(_worker: Any) -> None:
    """Start in the worker, whose signal handlers are installed by now, and put ours before them."""
    beside.start()
    for number in (signal.SIGTERM, signal.SIGQUIT):
        earlier = signal.getsignal(number)
        assert callable(earlier)

        def handle(received: int, frame: Any, earlier: Any = earlier) -> None:
            beside.drain(f"gunicorn: {signal.Signals(received).name}")
            earlier(received, frame)

        signal.signal(number, handle)


def worker_exit(_server: Any, _worker: Any) -> None:
    beside.wait()
