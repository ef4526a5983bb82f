import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from ebbtide_operator.queue import WorkQueue


@asynccontextmanager
async def running(work: Callable[[str], Awaitable[float | None]], **options: object) -> AsyncIterator[WorkQueue[str]]:
    queue: WorkQueue[str] = WorkQueue(work, **options)  # type: ignore[arg-type]
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_wakes_before_the_work_are_merged() -> None:
    seen: Counter[str] = Counter()
    done = asyncio.Event()

    async def work(key: str) -> None:
        seen[key] += 1
        done.set()

    async with running(work) as queue:
        for _ in range(5):
            queue.wake("a")
        await done.wait()
        await asyncio.sleep(0)
    assert seen == {"a": 1}


async def test_a_wake_during_the_work_is_not_lost() -> None:
    entered, leave, again = asyncio.Event(), asyncio.Event(), asyncio.Event()
    runs = 0

    async def work(_key: str) -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            again.set()
            return
        entered.set()
        await leave.wait()

    async with running(work) as queue:
        queue.wake("a")
        await entered.wait()
        queue.wake("a")
        leave.set()
        await asyncio.wait_for(again.wait(), 5)


@settings(max_examples=30)
@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(min_value=1, max_value=3))
def test_a_key_is_never_worked_on_twice_at_once_and_none_is_forgotten(wakes: list[str], concurrency: int) -> None:
    async def scene() -> None:
        busy: Counter[str] = Counter()
        done: set[str] = set()
        idle = asyncio.Event()

        async def work(key: str) -> None:
            busy[key] += 1
            assert busy[key] == 1
            assert busy.total() <= concurrency
            await asyncio.sleep(0)
            busy[key] -= 1
            done.add(key)
            idle.set()

        async with running(work, concurrency=concurrency) as queue:
            for key in wakes:
                queue.wake(key)
                await asyncio.sleep(0)
            while done != set(wakes) or len(queue):
                idle.clear()
                await asyncio.wait_for(idle.wait(), 5)

    asyncio.run(scene())


async def test_an_earlier_wake_stands_and_a_later_one_is_merged_into_it() -> None:
    done = asyncio.Event()

    async def work(_key: str) -> None:
        done.set()

    async with running(work) as queue:
        queue.wake("a", after_s=3600)
        queue.wake("a", after_s=0.01)
        queue.wake("a", after_s=60)
        await asyncio.wait_for(done.wait(), 5)
        assert len(queue) == 0


async def test_a_failure_is_told_and_tried_again_without_disturbing_others() -> None:
    failures: list[str] = []
    recovered, other = asyncio.Event(), asyncio.Event()

    async def work(key: str) -> None:
        if key == "good":
            other.set()
        elif len(failures) < 2:
            raise RuntimeError(key)
        else:
            recovered.set()

    async with running(work, on_error=lambda key, error: failures.append(f"{key}: {error}")) as queue:
        queue.wake("bad")
        queue.wake("good")
        await asyncio.wait_for(recovered.wait(), 5)
        await asyncio.wait_for(other.wait(), 5)
    assert failures == ["bad: bad", "bad: bad"]


async def test_work_can_ask_to_be_called_again() -> None:
    runs = 0
    twice = asyncio.Event()

    async def work(_key: str) -> float | None:
        nonlocal runs
        runs += 1
        if runs == 2:
            twice.set()
            return None
        return 0.01

    async with running(work) as queue:
        queue.wake("a")
        await asyncio.wait_for(twice.wait(), 5)
        await asyncio.sleep(0)
        assert len(queue) == 0


async def test_depth_counts_what_is_due_and_the_longest_work_is_known() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def work(_key: str) -> None:
        entered.set()
        await leave.wait()

    async with running(work, concurrency=1) as queue:
        assert queue.longest_s == 0
        queue.wake("a")
        await entered.wait()
        queue.wake("b")
        queue.wake("later", after_s=3600)
        await asyncio.sleep(0.001)
        assert queue.depth == 1
        assert len(queue) == 2
        assert queue.longest_s > 0
        leave.set()


async def test_a_burst_of_wakes_is_looked_at_together() -> None:
    begun: list[float] = []
    first, second = asyncio.Event(), asyncio.Event()

    async def work(_key: str) -> float:
        begun.append(asyncio.get_running_loop().time())
        (second if first.is_set() else first).set()
        return 3600.0

    async with running(work, spacing_s=0.2) as queue:
        queue.wake("a")
        await first.wait()
        for _ in range(20):
            queue.wake("a")
            await asyncio.sleep(0)
        await asyncio.wait_for(second.wait(), 5)
    # The first pass began some time before it read the clock, and a busy machine makes that long.
    assert begun[1] - begun[0] >= 0.1
