"""The pytest plugin: `@pytest.mark.no_task_leaks` fails a test that leaves asyncio tasks behind.

For coroutine tests, whatever plugin runs them. Nothing of the library imports this module, and it nothing of the
library until such a test runs.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Collection, Coroutine
from fnmatch import fnmatch
from typing import Any

import pytest

MARK = "no_task_leaks"
WITHIN_S = 1.0
"""Seconds that tasks have for their end after the test; those that were cancelled need a turn or two."""
FIRST_PAUSE_S = 0.001
CHECKED = "_ebbtide_checked"
"""Attribute of a test that was wrapped already."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(MARK, "treat every coroutine test as marked no_task_leaks", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARK}(ignore=(), within_s={WITHIN_S:g}): fail where the test leaves asyncio tasks behind; "
        "ignore: patterns of task names, within_s: seconds that tasks have for their end",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    everywhere = bool(config.getini(MARK))
    for item in items:
        mark = item.get_closest_marker(MARK)
        if not isinstance(item, pytest.Function) or not (mark or everywhere):
            continue
        options = {} if mark is None else mark.kwargs
        ignore, within_s = options.get("ignore", ()), options.get("within_s", WITHIN_S)
        # Hypothesis's, which it calls for each example; the test itself is an ordinary function then.
        handle = getattr(item.obj, "hypothesis", None)
        inner = getattr(handle, "inner_test", None)
        if handle is not None and inspect.iscoroutinefunction(inner):
            if not hasattr(inner, CHECKED):  # all cases of a parametrized test share it
                handle.inner_test = checked(inner, ignore, within_s)
        elif inspect.iscoroutinefunction(item.obj):
            item.obj = checked(item.obj, ignore, within_s)
        elif mark is not None:
            raise pytest.UsageError(f"{item.nodeid}: {MARK} is for coroutine tests")


def checked(
    test: Callable[..., Coroutine[Any, Any, Any]], ignore: Collection[str], within_s: float
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine test that also fails where it leaves tasks behind.

    Args:
        test: The test.
        ignore: Patterns of names of tasks that may stay.
        within_s: Seconds that tasks have for their end.
    """

    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> Any:
        from ebbtide.stacks.origins import tracing

        before = asyncio.all_tasks()
        with tracing():
            result = await test(*args, **kwargs)
            left = await _left_after(before, ignore, within_s)
        if left:
            pytest.fail(_report(left), pytrace=False)
        return result

    setattr(run, CHECKED, True)
    return run


async def _left_after(
    before: Collection[asyncio.Task[Any]], ignore: Collection[str], within_s: float
) -> list[asyncio.Task[Any]]:
    loop = asyncio.get_running_loop()
    give_up_at, pause_s = loop.time() + within_s, 0.0
    while True:
        left = [
            task
            for task in asyncio.all_tasks()
            if task not in before and not any(fnmatch(task.get_name(), pattern) for pattern in ignore)
        ]
        if not left or loop.time() >= give_up_at:
            return sorted(left, key=lambda task: task.get_name())
        await asyncio.sleep(pause_s)
        pause_s = min(0.1, max(FIRST_PAUSE_S, 2 * pause_s))


def _report(left: list[asyncio.Task[Any]]) -> str:
    from ebbtide.stacks.frames import frames_of_task, place_of, stack_of
    from ebbtide.stacks.origins import created_at

    lines = [f"the test left {len(left)} tasks behind:"]
    for task in left:
        lines.append(f"  {task.get_name()}: waits at {place_of(stack_of(frames_of_task(task)))}")
        if origin := created_at(task):
            lines.append(f"    created at {origin}")
    return "\n".join(lines)
