"""A task is cancelled once, whoever asks and by whichever of its entries, and has its grace then."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable

import pytest

import ebbtide
from ebbtide.protocol import PodState
from tests.unit.library.runtimes import a_runtime, until, without_collector


class Worker:
    """Work in a block that cleans up when it is cancelled, until it is let go."""

    def __init__(self) -> None:
        self.cleaning, self.go_on = asyncio.Event(), asyncio.Event()
        self.cleaned = False

    async def work(self, *scopes: ebbtide.Scope) -> None:
        if scopes:
            with scopes[0].track("step"):
                return await self.work(*scopes[1:])
        try:
            await asyncio.Event().wait()
        finally:
            self.cleaning.set()
            await self.go_on.wait()
            self.cleaned = True


def by_scope(_: ebbtide.Runtime, scope: ebbtide.Scope) -> None:
    scope.cancel("test")


def by_id_of(kind: str) -> Callable[[ebbtide.Runtime, ebbtide.Scope], None]:
    def cancel(runtime: ebbtide.Runtime, _: ebbtide.Scope) -> None:
        for shown in runtime.tasks():
            if shown["kind"] == kind:
                runtime.cancel(shown["id"])

    return cancel


def by_neighbour(_: ebbtide.Runtime, scope: ebbtide.Scope) -> None:
    async def crash() -> None:
        raise ValueError("boom")

    scope.spawn(crash())


WAYS = {
    "a scope": by_scope,
    "the block's id": by_id_of("block"),
    "the task's id": by_id_of("task"),
    "a neighbour's crash": by_neighbour,
}


@pytest.mark.parametrize("second", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("first", WAYS.values(), ids=WAYS)
async def test_a_second_cancel_does_not_break_off_the_cleanup_of_a_task_with_a_block(
    first: Callable[..., None], second: Callable[..., None]
) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders", on_crash=ebbtide.OnCrash.PROPAGATE)
        worker = Worker()
        task = scope.spawn(worker.work(scope))
        await asyncio.sleep(0)
        first(runtime, scope)
        await worker.cleaning.wait()
        second(runtime, scope)
        # A crash is told a few turns later, and a cancel by id in the turn after the call.
        await until(lambda: scope.tasks_left == 1)
        await asyncio.sleep(0)
        assert task.cancelling() == 1
        worker.go_on.set()
        await asyncio.wait({task})
        assert worker.cleaned
        assert not len(runtime._registry.marks)


async def test_blocks_of_two_scopes_are_one_task_to_their_cancels() -> None:
    async with a_runtime() as runtime:
        http, database = runtime.scope("http"), runtime.scope("database")
        worker = Worker()
        task = asyncio.create_task(worker.work(http, database))
        await asyncio.sleep(0)
        assert database.cancel("the pool closes") == 1
        await worker.cleaning.wait()
        assert http.cancel("the server closes") == 0
        assert task.cancelling() == 1
        worker.go_on.set()
        await asyncio.wait({task})
        assert worker.cleaned


async def test_a_time_limit_does_not_break_off_the_cleanup_of_a_block_that_was_cancelled() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        worker = Worker()
        task = scope.spawn(worker.work(scope), timeout_s=0.01)
        await asyncio.sleep(0)
        scope.cancel("test")
        # The timer of the limit is due first.
        asyncio.get_running_loop().call_later(0.02, worker.go_on.set)
        await asyncio.wait({task})
        assert worker.cleaned
        assert task.cancelled()


async def test_a_drain_does_not_break_off_the_cleanup_of_a_block_past_its_time_limit() -> None:
    async with a_runtime(drain_timeout_s=0.0) as runtime:
        scope = runtime.scope("orders")
        worker = Worker()
        task = scope.spawn(worker.work(scope), timeout_s=0.005)
        await worker.cleaning.wait()
        runtime.drain("test", leave=False)
        # What is to be cancelled is on its way to the loop before the state is told.
        await until(lambda: runtime.state is PodState.CANCELLING)
        await asyncio.sleep(0)
        assert task.cancelling() == 1
        worker.go_on.set()
        with pytest.raises(ebbtide.TimedOut):
            await task
        assert worker.cleaned


async def test_a_group_does_not_break_off_the_cleanup_of_a_child_whose_block_was_cancelled() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        worker = Worker()

        async def fail() -> None:
            await worker.cleaning.wait()
            asyncio.get_running_loop().call_later(0.01, worker.go_on.set)
            raise ValueError("boom")

        with pytest.raises(ExceptionGroup):
            async with scope.group() as group:
                child = group.spawn(worker.work(scope))
                group.spawn(fail())
                await asyncio.sleep(0)
                by_id_of("block")(runtime, scope)
        assert worker.cleaned
        assert child.cancelled()


async def test_a_task_with_a_block_is_cancelled_again_when_its_grace_is_over() -> None:
    async with a_runtime(cancel_grace_s=0.02) as runtime:
        scope = runtime.scope("orders")
        worker = Worker()
        task = scope.spawn(worker.work(scope))
        await asyncio.sleep(0)
        scope.cancel("test")
        await worker.cleaning.wait()
        await until(lambda: scope.cancel("once more"))
        await asyncio.wait({task})
        assert not worker.cleaned
        assert task.cancelling() == 2


async def test_a_cancel_that_waits_for_a_protected_block_is_not_joined_by_a_second_one() -> None:
    async def work() -> None:
        try:
            with ebbtide.protect(30):
                charging.set()
                await charged.wait()
                with ebbtide.protect(30):
                    noting.set()
                    await noted.wait()
        finally:
            cleaning.set()
            await cleaned.wait()

    charging, charged, noting, noted, cleaning, cleaned = (asyncio.Event() for _ in range(6))
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(work())
        await charging.wait()
        assert scope.cancel("test") == 1
        charged.set()
        await noting.wait()
        assert scope.cancel("once more") == 0
        noted.set()
        await cleaning.wait()
        cleaned.set()
        await asyncio.wait({task})
        assert task.cancelling() == 1


async def test_who_takes_a_cancel_back_and_goes_on_can_be_cancelled_at_once() -> None:
    steps: list[int] = []

    async def consume() -> None:
        for step in range(2):
            try:
                with scope.track(f"step-{step}"):
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                steps.append(step)
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()

    async with a_runtime() as runtime:
        scope = runtime.scope("jobs")
        consumer = asyncio.create_task(consume())
        for step in range(2):
            await until(lambda: [shown["name"] for shown in runtime.tasks()] == [f"step-{step}"])  # noqa: B023 (awaited here)
            assert runtime.tasks()[0]["state"] == "running"
            assert runtime.cancel(runtime.tasks()[0]["id"])
        await consumer
        assert steps == [0, 1]


async def test_all_entries_of_a_cancelled_task_are_shown_so_and_what_its_cleanup_begins_is_not() -> None:
    states: list[dict[str, str]] = []

    async def work() -> None:
        with scope.track("outer"), scope.track("inner"):
            try:
                await asyncio.Event().wait()
            finally:
                with scope.track("rollback"):
                    states.append({shown["name"]: shown["state"] for shown in runtime.tasks()})

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        task = scope.spawn(work(), name="task")
        await asyncio.sleep(0)
        by_id_of("task")(runtime, scope)
        await asyncio.wait({task})
        assert states == [
            {"task": "cancelling", "outer": "cancelling", "inner": "cancelling", "rollback": "running"},
        ]


async def test_a_cancelled_task_that_has_only_blocks_is_not_remembered_when_it_is_gone() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("http")
        worker = Worker()
        worker.go_on.set()
        task = asyncio.create_task(worker.work(scope))
        gone = weakref.ref(task)
        await asyncio.sleep(0)
        scope.cancel("test")
        with without_collector():
            await asyncio.wait({task})
            del task
            await until(lambda: gone() is None)
        assert not len(runtime._registry.marks)


async def test_a_cancel_that_was_taken_back_keeps_no_later_one_from_work_that_protects_itself() -> None:
    async with a_runtime(drain_timeout_s=0.0) as runtime:
        scope = runtime.scope("orders")
        resumed = asyncio.Event()

        async def work() -> None:
            task = asyncio.current_task()
            assert task is not None
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                task.uncancel()
            with ebbtide.protect(0.001):
                resumed.set()
                await asyncio.Event().wait()

        task = scope.spawn(work())
        await asyncio.sleep(0)
        scope.cancel("test")
        await resumed.wait()
        assert [shown["state"] for shown in runtime.tasks()] == ["running"]
        runtime.drain("test", leave=False)
        await asyncio.wait({task})
        assert task.cancelled()
