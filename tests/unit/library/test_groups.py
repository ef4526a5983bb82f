"""Structured groups: asyncio's semantics, to the letter, and every child in the registry."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings

import ebbtide
from ebbtide.tasks.limits import Limits
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.scope import Scope
from tests.unit.library.group_programs import Program, Stage, observed, programs
from tests.unit.library.runtimes import a_runtime, until

WAYS: list[tuple[Any, dict[str, Any]]] = [(None, {})]
"""Task factories, and options for `create_task`."""
if sys.version_info >= (3, 12):
    WAYS.append((asyncio.eager_task_factory, {}))
if sys.version_info >= (3, 14):
    WAYS.append((None, {"eager_start": True}))
    WAYS.append((asyncio.eager_task_factory, {"eager_start": False}))


async def crash() -> None:
    raise ValueError("boom")


# --- the same as asyncio.TaskGroup


@pytest.mark.parametrize(("factory", "options"), WAYS)
@given(body=programs())
@settings(max_examples=400, deadline=None)
def test_a_program_cannot_tell_it_from_asyncios_own_group(factory: Any, options: Any, body: Program) -> None:
    logging.disable()
    try:
        with asyncio.Runner() as runner:
            runner.get_loop().set_task_factory(factory)
            plain = runner.run(observed(Stage(asyncio.TaskGroup, options), body))
        registry = Registry(lambda: None, Limits())
        scope = Scope(registry, "work", None)
        stage = Stage(scope.group, options)
        with asyncio.Runner() as runner:
            runner.get_loop().set_task_factory(factory)
            registry.settle(runner.get_loop())
            counted = runner.run(observed(stage, body))
    finally:
        logging.disable(logging.NOTSET)
    assert counted == plain
    assert len(registry) == 0
    assert sum(registry.tally.values()) == stage.started
    assert not registry.marks


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["child", "body"])
def test_an_interrupt_ends_the_group_and_the_program_as_in_asyncio(error: type[BaseException], where: str) -> None:
    def run(make_group: Callable[[], Any]) -> list[object]:
        seen: list[object] = []

        async def rest() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("rested")

        async def interrupt() -> None:
            raise error("now")

        async def main() -> None:
            try:
                async with make_group() as group:
                    group.create_task(rest())
                    await asyncio.sleep(0)
                    if where == "body":
                        await interrupt()
                    group.create_task(interrupt())
            except BaseException as raised:
                seen.append(repr(raised))
                raise

        try:
            asyncio.run(main())
        except BaseException as raised:  # noqa: BLE001 (it is what is compared)
            seen.append(repr(raised))
        return seen

    registry = Registry(lambda: None, Limits())
    assert run(Scope(registry, "work", None).group) == run(asyncio.TaskGroup)
    assert len(registry) == 0
    # Tasks whose error nobody took say so when they are collected: here, and not while a later test has a module
    # compiled, since their traceback is parsed as well and Python 3.11 then mixes up the depths of the two.
    gc.collect()


async def test_options_of_asyncio_reach_asyncio() -> None:
    variable = contextvars.ContextVar("variable", default="")
    context = contextvars.copy_context()

    async def begin() -> None:
        variable.set("set by the child")
        ran.append("began")

    ran: list[str] = []
    async with a_runtime() as runtime, runtime.scope("orders").group() as group:
        if sys.version_info >= (3, 14):
            child = group.create_task(begin(), context=context, eager_start=True)
            assert ran == ["began"]
            await child
            assert context[variable] == "set by the child"
        else:
            with pytest.raises(TypeError, match="eager_start"):
                group.create_task(begin(), eager_start=True)
        await until(lambda: runtime.tasks_left == 0)
        assert runtime.drain_view()["tally"] == ({"finished": 1} if ran else {})


async def test_a_group_is_entered_once_and_before_anything_is_spawned() -> None:
    async with a_runtime() as runtime:
        group = runtime.scope("orders").group()
        with pytest.raises(RuntimeError, match="has not been entered"):
            group.spawn(crash())
        async with group:
            pass
        with pytest.raises(RuntimeError, match="is finished"):
            group.spawn(crash())
        with pytest.raises(RuntimeError, match="entered"):
            async with group:
                pass
        assert runtime.tasks_left == 0
        assert runtime.drain_view()["tally"] == {}


async def test_a_group_holds_none_of_what_went_through_it() -> None:
    class Mark:
        pass

    async def keep(mark: Mark) -> None:
        await asyncio.sleep(0)

    async with a_runtime() as runtime, runtime.scope("orders").group() as group:
        for _ in range(50):
            await group.spawn(keep(Mark()))
        await asyncio.sleep(0)
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Mark)]


# --- and in the registry


async def test_children_are_work_in_flight_until_the_block_is_over() -> None:
    async with a_runtime() as runtime:
        go_on = asyncio.Event()
        async with runtime.scope("orders").group("lookup") as group:
            named = group.spawn(go_on.wait(), name="lookup-7", meta={"customer": 3})
            other = group.create_task(go_on.wait())
            first, second = runtime.tasks()
            assert (first["name"], first["kind"], first["scope"], first["meta"]) == (
                "lookup-7",
                "task",
                "orders",
                {"customer": 3},
            )
            assert second["name"] == other.get_name() == f"lookup-{second['id']}"
            assert named.get_name() == "lookup-7"
            go_on.set()
        assert runtime.tasks_left == 0
        assert runtime.drain_view()["tally"] == {"finished": 2}


async def test_a_crash_is_logged_once_and_is_the_groups_not_the_scopes(caplog: Any) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders", on_crash=ebbtide.OnCrash.PROPAGATE)
        neighbour = scope.spawn(asyncio.sleep(0.02, "fine"))
        with caplog.at_level(logging.ERROR), pytest.raises(ExceptionGroup) as raised:
            async with scope.group() as group:
                group.spawn(asyncio.Event().wait())
                group.spawn(crash(), name="order-7", meta={"customer": 3})
        assert raised.group_contains(ValueError, match="boom")
        assert [record.getMessage() for record in caplog.records] == [
            "ebbtide: task order-7 of orders crashed: {'customer': 3}"
        ]
        assert await neighbour == "fine"
        assert scope.failure is None
        assert runtime.drain_view()["tally"] == {"cancelled": 1, "failed": 1, "finished": 1}


async def test_the_tightest_time_limit_counts_and_fails_the_group() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders", timeout_s=3600)
        with pytest.raises(ExceptionGroup) as raised:
            async with scope.group(timeout_s=0.02) as group:
                group.spawn(asyncio.sleep(60), timeout_s=600)
        assert raised.group_contains(ebbtide.TimedOut)
        assert runtime.drain_view()["tally"] == {"timed_out": 1}


async def test_a_child_cancelled_before_its_first_step_warns_of_nothing() -> None:
    async with a_runtime() as runtime:
        async with runtime.scope("orders").group(timeout_s=60) as group:
            group.spawn(asyncio.sleep(60)).cancel()
        assert runtime.drain_view()["tally"] == {"cancelled": 1}


async def test_a_refused_child_was_not_started_and_the_group_goes_on() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders", limits=ebbtide.Limits(max_tasks=1))
        async with scope.group() as group:
            first = group.spawn(asyncio.sleep(0.01, "done"))
            with pytest.raises(ebbtide.Refused):
                group.spawn(crash())
        assert first.result() == "done"
        assert runtime.drain_view()["tally"] == {"finished": 1, "refused": 1}


async def test_a_scope_cancels_the_children_with_its_reason_and_the_group_ends_without_an_error() -> None:
    heard: list[object] = []

    async def listen() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            heard.append(error.args)
            raise

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        async with scope.group() as group:
            child = group.spawn(listen())
            await asyncio.sleep(0)
            assert scope.cancel("not today") == 1
        assert child.cancelled()
        assert heard == [("not today",)]


async def test_one_child_is_cancelled_by_its_id_and_its_siblings_go_on() -> None:
    async with a_runtime() as runtime:
        async with runtime.scope("orders").group() as group:
            child, sibling = group.spawn(asyncio.sleep(60)), group.spawn(asyncio.sleep(0.01, "done"))
            assert runtime.cancel(runtime.tasks()[0]["id"])
        assert child.cancelled()
        assert sibling.result() == "done"


async def test_a_drain_lets_a_group_go_on_and_start_what_it_needs() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        draining = asyncio.Event()

        async def child(group: ebbtide.Group) -> str:
            await draining.wait()
            return await group.spawn(asyncio.sleep(0.01, "grandchild"))

        async def parent() -> list[str]:
            async with scope.group() as group:
                first = group.spawn(child(group))
                await draining.wait()
                second = group.spawn(asyncio.sleep(0, "late"))
            return [first.result(), second.result()]

        task = scope.spawn(parent())
        await asyncio.sleep(0)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        draining.set()
        assert await task == ["grandchild", "late"]
        await until(lambda: runtime.state is ebbtide.PodState.DRAINED)
        assert runtime.drain_view()["forced"] is False


async def test_a_drain_that_cancels_makes_no_crash_of_a_group(caplog: Any) -> None:
    async with a_runtime(drain_timeout_s=0.05) as runtime:
        scope = runtime.scope("orders")

        async def rest() -> None:
            await asyncio.Event().wait()

        async def parent() -> None:
            async with scope.group() as group:
                for _ in range(3):
                    group.spawn(rest())
                await rest()

        task = scope.spawn(parent())
        with caplog.at_level(logging.ERROR):
            runtime.drain("test", leave=False)
            await until(lambda: runtime.state is ebbtide.PodState.DRAINED)
        assert task.cancelled()
        assert runtime.drain_view()["tally"] == {"cancelled": 4}
        assert caplog.records == []


async def test_a_group_outside_of_all_work_survives_the_cancel_of_its_children() -> None:
    async with a_runtime(drain_timeout_s=0.05) as runtime:
        async with runtime.scope("orders").group() as group:
            child = group.spawn(asyncio.Event().wait())
            runtime.drain("test", leave=False)
            await until(lambda: not runtime.intake_open)
            with pytest.raises(ebbtide.Refused):
                group.spawn(crash())
        assert child.cancelled()
        assert runtime.drain_view()["tally"] == {"cancelled": 1, "refused": 1}


async def test_no_group_breaks_off_the_clean_up_of_a_child_that_was_cancelled_already() -> None:
    cleaned = 0
    release = asyncio.Event()

    async def clean_up() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()
            cleaned += 1

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        with pytest.raises(ExceptionGroup) as raised:
            async with scope.group() as group:
                # Both are past their limit at once; the first one fails while the second one cleans up.
                group.spawn(asyncio.sleep(60), timeout_s=0.02)
                second = group.spawn(clean_up(), timeout_s=0.01)
                asyncio.get_running_loop().call_later(0.1, release.set)
        assert raised.group_contains(ebbtide.TimedOut)
        assert isinstance(second.exception(), ebbtide.TimedOut)
        assert cleaned == 1
        assert runtime.drain_view()["tally"] == {"timed_out": 2}


async def test_a_drain_cancels_the_children_of_a_large_group_once() -> None:
    cleaned = 0
    release = asyncio.Event()

    async def clean_up() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()
            cleaned += 1

    async with a_runtime(drain_timeout_s=0.05) as runtime:
        runtime.limits = Limits()
        scope = runtime.scope("orders")

        async def parent() -> None:
            async with scope.group() as group:
                for _ in range(1000):
                    group.spawn(clean_up())

        # Its own task is the oldest, and so is cancelled in the first portion of many.
        task = scope.spawn(parent())
        runtime.drain("test", leave=False)
        await until(lambda: task.cancelling() and all(each["state"] == "cancelling" for each in runtime.tasks()))
        await asyncio.sleep(0)
        release.set()
        await asyncio.wait({task})
        assert cleaned == 1000


async def test_a_child_that_swallowed_a_cancel_gets_the_groups_when_its_grace_is_over() -> None:
    swallowed = asyncio.Event()

    async def swallow() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        swallowed.set()
        await asyncio.Event().wait()

    async with a_runtime(cancel_grace_s=0.1) as runtime:
        with pytest.raises(ExceptionGroup):
            async with runtime.scope("orders").group() as group:
                child = group.spawn(swallow())
                await asyncio.sleep(0)
                runtime.cancel(runtime.tasks()[0]["id"])
                await swallowed.wait()
                await crash()
        assert child.cancelled()


async def test_a_protected_child_is_not_broken_off_by_the_crash_of_a_sibling() -> None:
    async def careful() -> str:
        with ebbtide.protect(5):
            await asyncio.sleep(0.02)
            written.append("all of it")
        await asyncio.sleep(60)
        return "never"

    written: list[str] = []
    async with a_runtime() as runtime:
        with pytest.raises(ExceptionGroup):
            async with runtime.scope("orders").group() as group:
                child = group.spawn(careful())
                await asyncio.sleep(0)
                group.spawn(crash())
        assert written == ["all of it"]
        assert child.cancelled()


async def test_a_child_that_listens_to_no_cancel_holds_its_group_and_no_drain() -> None:
    over = asyncio.Event()

    async def deaf() -> str:
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()
        return "in the end"

    async with a_runtime(drain_timeout_s=0.02, cancel_grace_s=0.05) as runtime:
        async with runtime.scope("orders").group() as group:
            child = group.spawn(deaf())
            await asyncio.sleep(0)
            runtime.drain("test", leave=False)
            await until(lambda: runtime.state is ebbtide.PodState.DRAINED)
            assert runtime.drain_view()["tally"] == {"abandoned": 1}
            over.set()
        assert child.result() == "in the end"
        assert runtime.drain_view()["tally"] == {"abandoned": 1}
        assert runtime.tasks_left == 0


async def test_a_foreign_task_factory_makes_the_children() -> None:
    made: list[asyncio.Task[Any]] = []

    class Foreign(asyncio.Task[Any]):
        pass

    # It does not know the argument `context`.
    def factory(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        made.append(Foreign(coroutine, loop=loop))
        return made[-1]

    async with a_runtime() as runtime:
        scope = runtime.scope("orders", heartbeat_s=60)

        async def beat() -> None:
            ebbtide.heartbeat()
            await asyncio.sleep(0)
            assert runtime.tasks()[0]["heartbeat_age_s"] < 60

        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory if sys.version_info < (3, 13) else None)  # type: ignore[arg-type] # as many are
        try:
            async with scope.group() as group:
                child = group.spawn(beat())
        finally:
            loop.set_task_factory(None)
        assert sys.version_info >= (3, 13) or child in made
        assert runtime.drain_view()["tally"] == {"finished": 1}


def test_a_group_in_a_loop_of_another_thread_counts_too() -> None:
    results: list[str] = []

    async def main() -> None:
        async with a_runtime() as runtime:
            scope = runtime.scope("orders")

            async def elsewhere() -> None:
                async with scope.group() as group:
                    child = group.spawn(asyncio.sleep(0.01, "elsewhere"))
                results.append(child.result())

            thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
            thread.start()
            await asyncio.to_thread(thread.join)
            assert runtime.drain_view()["tally"] == {"finished": 1}

    asyncio.run(main())
    assert results == ["elsewhere"]


async def test_a_child_that_a_factory_wrapped_and_nobody_began_leaves_no_warning(recwarn: Any) -> None:
    def wrapping(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        async def wrapped() -> Any:
            return await coroutine

        return asyncio.Task(wrapped(), loop=loop, **options)

    async with a_runtime() as runtime:
        asyncio.get_running_loop().set_task_factory(wrapping)
        async with runtime.scope("orders").group() as group:
            child = group.spawn(asyncio.sleep(60))
            child.cancel()
        assert child.cancelled()
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        asyncio.get_running_loop().set_task_factory(None)
    del child, group
    gc.collect()
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]
