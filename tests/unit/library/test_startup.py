"""The start as a chain: its order, its first failure, and what becomes of what had started."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import ebbtide
from ebbtide import Stage
from ebbtide.protocol import PodState
from tests.unit.library.runtimes import a_runtime, until


def step(seen: list[str], name: str, *, fails: bool = False) -> Callable[[], AsyncIterator[None]]:
    """A step that notes its start and its stop."""

    async def run() -> AsyncIterator[None]:
        if fails:
            raise ConnectionError(f"{name} is away")
        seen.append(f"+{name}")
        yield
        seen.append(f"-{name}")

    run.__qualname__ = name
    return run


async def test_steps_start_by_stage_and_stop_in_exact_reverse() -> None:
    seen: list[str] = []
    runtime = a_runtime()
    runtime.on_start(step(seen, "consumer"), Stage.INTAKE)
    runtime.on_start(step(seen, "database"), Stage.POOLS)
    runtime.on_start(step(seen, "cache"), Stage.POOLS)
    runtime.on_start(lambda: seen.append("check"), Stage.CHECKS)
    runtime.on_start(lambda: seen.append("configuration"), Stage.CONFIGURATION)
    async with runtime:
        assert runtime.ready
        runtime.on_exit(lambda: seen.append("exit"))
        seen.append("serving")
    started, stopped = seen[: seen.index("serving")], seen[seen.index("serving") + 1 :]
    assert started == ["configuration", "+database", "+cache", "check", "+consumer"]
    assert stopped == ["exit", "-consumer", "-cache", "-database"]


async def test_the_first_failure_ends_the_start_and_undoes_it() -> None:
    seen: list[str] = []
    runtime = a_runtime()
    runtime.on_start(step(seen, "database"), Stage.POOLS)
    runtime.on_start(step(seen, "cache"), Stage.POOLS)
    runtime.on_start(step(seen, "broker", fails=True), Stage.CHECKS)
    runtime.on_start(step(seen, "consumer"), Stage.INTAKE)
    with pytest.raises(ebbtide.StartFailed, match=r"step broker did not start: .*broker is away") as failed:
        async with runtime:
            raise AssertionError("it must not serve")
    assert failed.value.step == "broker"
    assert isinstance(failed.value.__cause__, ConnectionError)
    assert seen == ["+database", "+cache", "-cache", "-database"]
    assert not runtime.ready
    assert runtime.state is PodState.EXITING


async def test_a_process_is_not_ready_before_its_start_is_over() -> None:
    runtime = a_runtime()
    states: list[tuple[PodState, bool]] = []
    runtime.on_start(lambda: states.append((runtime.state, runtime.ready)), Stage.INTAKE)
    async with runtime:
        states.append((runtime.state, runtime.ready))
    assert states == [(PodState.STARTING, False), (PodState.SERVING, True)]


async def test_a_step_that_is_late_is_broken_off_and_its_cleanup_is_waited_for() -> None:
    seen: list[str] = []

    async def slow() -> AsyncIterator[None]:
        try:
            await asyncio.sleep(3600)
            yield
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    runtime = a_runtime()
    runtime.on_start(step(seen, "database"), Stage.POOLS)
    runtime.on_start(slow, Stage.CHECKS, timeout_s=0.02)
    with pytest.raises(ebbtide.StartFailed, match=r"slow did not start: took longer than 0.02 s"):
        async with runtime:
            pass
    assert seen == ["+database", "cleaned up", "-database"]


@pytest.mark.parametrize("state", [Stage.POOLS, Stage.INTAKE])
async def test_a_process_that_is_told_to_leave_while_it_starts_gives_up_the_start(state: Stage) -> None:
    seen: list[str] = []
    runtime = a_runtime(quiesce_s=30.0)

    async def told_to_leave() -> None:
        runtime.drain("deleted")
        await asyncio.sleep(3600)

    runtime.on_start(step(seen, "configuration"), Stage.CONFIGURATION)
    runtime.on_start(told_to_leave, state)
    async with asyncio.timeout(10):
        with pytest.raises(ebbtide.StartFailed, match="told to leave"):
            async with runtime:
                pass
    assert seen == ["+configuration", "-configuration"]


async def test_a_drain_that_can_be_taken_back_does_not_end_the_start() -> None:
    runtime = a_runtime()
    runtime.on_start(lambda: runtime.drain("ordered", leave=False), Stage.POOLS)
    async with runtime:
        assert runtime.draining
        runtime.undrain()
        assert runtime.ready


async def test_what_a_step_enters_it_leaves_in_the_same_task() -> None:
    inside: contextvars.ContextVar[str] = contextvars.ContextVar("inside", default="")
    seen: list[Any] = []

    @asynccontextmanager
    async def workers() -> AsyncIterator[None]:
        token = inside.set("workers")
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            yield
        inside.reset(token)
        seen.append(asyncio.current_task())

    runtime = a_runtime()
    runtime.on_start(workers, Stage.POOLS)
    async with runtime:
        pass
    assert seen
    assert runtime.drain_view()["hooks"][-1]["error"] is None


async def test_a_step_that_dies_while_serving_is_told_of_and_stops_none_of_the_others(caplog: Any) -> None:
    seen: list[str] = []
    die = asyncio.Event()

    async def crash() -> None:
        await die.wait()
        raise ZeroDivisionError

    async def workers() -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(crash())
            yield

    runtime = a_runtime()
    runtime.on_start(step(seen, "database"), Stage.POOLS)
    runtime.on_start(workers, Stage.INTAKE)
    async with runtime:
        die.set()
        await until(lambda: "ended before its stop" in caplog.text)
        assert runtime.ready
    assert seen == ["+database", "-database"]
    assert "ZeroDivisionError" in runtime.drain_view()["hooks"][0]["error"]


async def test_an_application_that_is_cancelled_while_it_starts_stops_what_had_started() -> None:
    seen: list[str] = []
    runtime = a_runtime()
    begun = asyncio.Event()

    async def slow() -> None:
        begun.set()
        await asyncio.sleep(3600)

    async def application() -> None:
        async with runtime:
            raise AssertionError("it must not serve")

    runtime.on_start(step(seen, "database"), Stage.POOLS)
    runtime.on_start(slow, Stage.CHECKS)
    running = asyncio.create_task(application())
    await begun.wait()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert seen == ["+database", "-database"]


def generator() -> Any:
    yield


@pytest.mark.parametrize(
    ("function", "arguments", "error", "said"),
    [
        (generator, {}, TypeError, "step generator: is a generator function; make it `async def`"),
        (print, {"timeout_s": 0}, ValueError, "step print: timeout_s: must be more than 0 seconds, not 0"),
        (print, {"stop_timeout_s": -1.0}, ValueError, "step print: stop_timeout_s: must be more than 0"),
    ],
)
async def test_what_cannot_be_a_step_is_refused_at_once(
    function: Any, arguments: dict[str, float], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        a_runtime().on_start(function, Stage.POOLS, **arguments)


async def test_steps_are_registered_before_the_start() -> None:
    async with a_runtime() as runtime:
        with pytest.raises(ebbtide.NotRunning, match="before the runtime is entered"):
            runtime.on_start(print, Stage.POOLS)
