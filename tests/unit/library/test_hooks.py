"""Hooks: in reverse, each in its own time, all within one budget, and none stops the others."""

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.lifecycle.hooks import LEAST_S, Hooks, allowance_s

seconds = st.floats(min_value=0.001, max_value=1000.0)


@given(own=st.lists(seconds, max_size=20), budget_s=seconds)
def test_hooks_that_use_all_their_time_keep_to_the_budget_or_to_the_least_of_each(
    own: list[float], budget_s: float
) -> None:
    spent_s = 0.0
    for place, own_s in enumerate(own):
        allowed_s = allowance_s(own_s, budget_s - spent_s, len(own) - 1 - place)
        assert min(own_s, LEAST_S) <= allowed_s <= own_s
        spent_s += allowed_s
    assert spent_s <= max(budget_s, LEAST_S * len(own)) + 1e-6


def raising(error: BaseException) -> Callable[[], Any]:
    def hook() -> None:
        raise error

    return hook


async def exiting() -> None:
    sys.exit(3)


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        (raising(RuntimeError("broken")), "RuntimeError('broken')"),
        (raising(SystemExit(3)), "SystemExit(3)"),
        (raising(asyncio.CancelledError()), "CancelledError()"),
        (exiting, "RuntimeError('called sys.exit(3)')"),
    ],
)
async def test_a_hook_that_fails_in_whatever_way_is_recorded_and_the_rest_run(hook: Any, error: str) -> None:
    ran: list[str] = []
    hooks = Hooks("exit")
    hooks.add(lambda: ran.append("first registered"), name="first")
    hooks.add(hook, name="broken")
    await hooks.run()
    assert ran == ["first registered"]
    assert [(record.name, record.error) for record in hooks.records] == [("exit: broken", error), ("exit: first", None)]
    assert hooks.failures == 1


async def test_a_spent_budget_leaves_the_least_to_each() -> None:
    ran: list[str] = []
    hooks = Hooks("exit")
    hooks.add(lambda: ran.append("first"))
    for _ in range(2):
        hooks.add(lambda: asyncio.sleep(3600), limit_s=30.0, name="hangs")
    began_at = time.monotonic()
    await hooks.run(budget_s=0.0)
    assert 2 * LEAST_S <= time.monotonic() - began_at < 2.0
    assert [record.error for record in hooks.records] == ["took longer than 0.1 s"] * 2 + [None]
    assert ran == ["first"]


async def test_a_plain_function_that_was_late_is_recorded() -> None:
    hooks = Hooks("exit")
    hooks.add(lambda: time.sleep(0.02), limit_s=0.01)
    await hooks.run()
    assert hooks.records[0].error == "took longer than 0.01 s"


async def test_who_cancels_hurries_the_rest_and_skips_none() -> None:
    ran: list[str] = []
    begun = asyncio.Event()
    hooks = Hooks("exit")

    async def hang() -> None:
        begun.set()
        await asyncio.sleep(3600)

    hooks.add(lambda: ran.append("first"))
    hooks.add(lambda: asyncio.sleep(3600), limit_s=30.0, name="slow")
    hooks.add(hang, limit_s=30.0)
    running = asyncio.create_task(hooks.run())
    await begun.wait()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert [record.error for record in hooks.records] == ["cancelled", "took longer than 0.1 s", None]
    assert ran == ["first"]


@pytest.mark.parametrize("limit_s", [0.0, -1.0, float("nan")])
def test_a_limit_that_makes_no_sense_is_refused(limit_s: float) -> None:
    with pytest.raises(ValueError, match="exit hook print: timeout_s: must be more than 0 seconds"):
        Hooks("exit").add(print, limit_s)


def test_hooks_have_their_least_time_together() -> None:
    hooks = Hooks("drain")
    for _ in range(3):
        hooks.add(lambda: None)
    assert hooks.least_s == pytest.approx(3 * LEAST_S)
