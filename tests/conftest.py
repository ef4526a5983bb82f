"""What every test may rely on, however the run was started."""

import asyncio
import gc
import signal
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing about the rule that is tested.
settings.register_profile("ebbtide", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ebbtide")


def pytest_configure() -> None:
    # A shell starts what it puts in the background with SIGINT ignored, and every process below inherits that: the
    # tests of Ctrl-C would wait for ever. A handler is not inherited, so processes of tests begin as in a terminal.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    # What collection made stays to the end: the collector need not look through all of it again and again.
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Choose the loops that a test runs on: asyncio's, and the operator's too where it says `both_loops`."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops
