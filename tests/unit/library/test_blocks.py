"""Blocks: work in flight in whatever task, thread and context enters and leaves them."""

import asyncio
import contextvars
import threading
import weakref
from collections.abc import AsyncIterator, Iterator

import pytest

import ebbtide
from ebbtide.tasks.block import Block
from ebbtide.tasks.entries import current_entry
from ebbtide.tasks.registry import Registry
from tests.unit.library.runtimes import a_runtime, until, without_collector


def registry_of(runtime: ebbtide.Runtime) -> Registry:
    return runtime.scope("any").registry


async def test_a_block_in_a_thread_is_shown_where_it_is() -> None:
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        with runtime.scope("reports").track("report"):
            entered.set()
            release.wait(10)

    async with a_runtime() as runtime:
        thread = threading.Thread(target=work)
        thread.start()
        await asyncio.to_thread(entered.wait, 10)
        try:
            text = await asyncio.to_thread(runtime.dump, {})
        finally:
            release.set()
            thread.join(10)
        assert "in test_a_block_in_a_thread_is_shown_where_it_is.<locals>.work" in text
        assert "event" in text


async def test_a_block_outside_of_any_task_is_shown_where_it_is() -> None:
    async with a_runtime() as runtime:
        texts: list[str] = []

        def called_by_the_loop() -> None:
            with runtime.scope("reports").track("report"):
                texts.append(runtime.dump({}))

        asyncio.get_running_loop().call_soon(called_by_the_loop)
        await until(lambda: texts)
        assert "called_by_the_loop" in texts[0]


async def test_the_number_of_blocks_is_right_however_and_wherever_they_end() -> None:
    async with a_runtime() as runtime:
        registry, scope = registry_of(runtime), runtime.scope("http")

        def in_thread() -> None:
            with scope.track():
                pass
            with pytest.raises(ZeroDivisionError), scope.track():
                raise ZeroDivisionError

        with scope.track():
            await asyncio.to_thread(in_thread)
            with pytest.raises(ZeroDivisionError), scope.track():
                raise ZeroDivisionError
            assert registry.blocks == 1
        begun_here = scope.track()
        begun_here.__enter__()
        thread = threading.Thread(target=begun_here.__exit__, args=(None, None, None))
        thread.start()
        thread.join(10)
        assert (registry.blocks, len(registry)) == (0, 0)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        with pytest.raises(ebbtide.Refused), scope.track():
            pass
        assert (registry.blocks, len(registry)) == (0, 0)
        assert runtime.drain_view()["tally"] == {"finished": 3, "failed": 2, "refused": 1}


async def test_an_abandoned_block_is_counted_once_and_is_no_block_any_more() -> None:
    async with a_runtime() as runtime:
        registry, scope = registry_of(runtime), runtime.scope("http")
        with scope.track() as block:
            registry.abandon([block], "test")
            assert registry.blocks == 1
        assert (registry.blocks, registry.tally) == (0, {"abandoned": 1})


async def test_a_limit_that_is_set_while_a_block_runs_does_not_count_it() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        with scope.track():
            scope.limits = ebbtide.Limits(max_tasks=1)
            await scope.spawn(asyncio.sleep(0))
        await scope.spawn(asyncio.sleep(0))


async def test_what_runs_around_a_block_is_current_again_after_it() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("http")
        seen: list[int] = []
        with scope.track() as outer:
            with scope.track():
                pass
            seen.append(current_entry.get())
        assert seen == [outer.number]
        assert current_entry.get() == 0


async def test_a_generator_that_is_closed_in_another_context_leaves_no_ended_block_current() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("http")

        async def rows() -> AsyncIterator[int]:
            with scope.track("query"):
                yield 1

        def lines() -> Iterator[int]:
            with scope.track("file"):
                yield 1

        async def close(generators: list[object]) -> int:
            for generator in generators:
                if isinstance(generator, AsyncIterator):
                    await generator.aclose()  # type: ignore[attr-defined]
                else:
                    generator.close()  # type: ignore[attr-defined]
            return current_entry.get()

        in_query, in_file = rows(), lines()
        with scope.track() as outer:
            assert await anext(in_query) + next(in_file) == 2
            closing = asyncio.create_task(close([in_file, in_query]), context=contextvars.Context())
            assert await closing == outer.number
        assert (registry_of(runtime).blocks, len(registry_of(runtime))) == (0, 0)


async def test_a_block_may_be_entered_again() -> None:
    async with a_runtime() as runtime:
        block = runtime.scope("http").track("poll")
        numbers = []
        for _ in range(2):
            with block:
                numbers.append(block.number)
        assert numbers[0] < numbers[1]
        assert runtime.drain_view()["tally"] == {"finished": 2}


async def test_a_block_that_is_kept_keeps_neither_task_nor_context() -> None:
    kept: list[Block] = []
    variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")

    class Held:
        pass

    async def handler() -> None:
        held.append(weakref.ref(mine := Held()))
        variable.set(mine)
        with scope.track() as block:
            kept.append(block)

    held: list[weakref.ref[Held]] = []
    async with a_runtime() as runtime:
        scope = runtime.scope("http")
        with without_collector():
            await asyncio.create_task(handler())
            await asyncio.sleep(0)
            assert held[0]() is None


async def test_how_long_blocks_took_is_known_without_asking_the_clock_for_each() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("http")
        with scope.track("long"):
            for _ in range(50):
                with scope.track("short"):
                    pass
            await asyncio.sleep(0.02)
            with scope.track("later"):
                pass
        assert 2 <= len(scope.durations) < 52
        assert max(scope.durations) >= 0.02, "a long one is not passed over for the short ones after it"
