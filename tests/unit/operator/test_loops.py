import asyncio
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import uvloop

from ebbtide_operator import app, loops


async def kind() -> type[asyncio.AbstractEventLoop]:
    return type(asyncio.get_running_loop())


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    loops.logger.addHandler(handler)
    yield stream
    loops.logger.removeHandler(handler)


def test_the_operator_runs_on_uvloop(stream: io.StringIO) -> None:
    assert loops.run(kind()) is uvloop.Loop
    assert stream.getvalue() == ""


def test_where_there_is_no_uvloop_it_runs_on_asyncios_loop_and_says_so(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert not issubclass(loops.run(kind()), uvloop.Loop)
    assert stream.getvalue() == "operator.without_uvloop\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("missing", [False, True], ids=["uvloop", "asyncio"])
def test_a_signal_stops_it_on_either_loop(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, missing: bool
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "uvloop", None)

    async def main() -> bool:
        loop, others = asyncio.get_running_loop(), asyncio.Event()
        # As kopf does while it starts; then they are ours again.
        loop.add_signal_handler(number, others.set)
        stop = asyncio.Event()
        app._stop_on_signals(stop)
        os.kill(os.getpid(), number)
        async with asyncio.timeout(10):
            await stop.wait()
        return others.is_set()

    assert loops.run(main()) is False
