"""What becomes of tasks when there is no room for them."""

import asyncio
import json
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import ebbtide
from ebbtide.tasks.limits import Admission, Limits
from tests.unit.library.runtimes import a_runtime, until


@asynccontextmanager
async def a_scope(limits: Limits | None = None, **process: Any) -> AsyncIterator[tuple[ebbtide.Runtime, ebbtide.Scope]]:
    async with a_runtime() as runtime:
        runtime.limits = Limits(**process)
        yield runtime, runtime.scope("orders", limits=limits)
        runtime.scope("orders").cancel("the test is over")


def refusal_of(scope: ebbtide.Scope) -> ebbtide.Refused:
    with pytest.raises(ebbtide.Refused) as refused:
        scope.spawn(asyncio.sleep(3600))
    return refused.value


async def test_a_process_that_says_nothing_has_limits() -> None:
    async with a_runtime() as runtime:
        assert runtime.limits == Limits.defaults()
        scope = runtime.scope("orders")
        for _ in range(1000):
            scope.spawn(asyncio.sleep(3600))
        refused = refusal_of(scope)
        assert (refused.why, refused.scope) == ("limit", "orders")
        assert refused.retry_after_s > 0
        scope.cancel("test")


async def test_a_task_that_ends_makes_room_for_one() -> None:
    async with a_scope(max_tasks=2) as (_, scope):
        first = scope.spawn(asyncio.sleep(0))
        scope.spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "limit"
        await first
        await until(lambda: scope.tasks_left == 1)
        scope.spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "limit"


async def test_a_scope_has_its_own_limit_inside_the_one_of_the_process() -> None:
    async with a_scope(Limits(max_tasks=2), max_tasks=3) as (runtime, orders):
        mails = runtime.scope("mails")
        nested = orders.scope("retry", limits=Limits(max_tasks=10))
        assert nested.limits.max_tasks == 2
        nested.spawn(asyncio.sleep(3600))
        orders.spawn(asyncio.sleep(3600))
        assert refusal_of(nested).why == "limit"
        assert refusal_of(orders).why == "limit"
        mails.spawn(asyncio.sleep(3600))
        assert refusal_of(mails).why == "limit"
        mails.cancel("test")
        await until(lambda: mails.tasks_left == 0)


async def test_a_rate_refuses_and_says_when_there_is_a_token_again() -> None:
    async with a_scope(Limits(rate_per_s=0.5, burst=2)) as (_, scope):
        await scope.spawn(asyncio.sleep(0))
        await scope.spawn(asyncio.sleep(0))
        refused = refusal_of(scope)
        assert refused.why == "rate"
        assert 1.5 < refused.retry_after_s <= 2.0


async def test_who_is_refused_by_an_outer_limit_pays_nothing_to_the_inner_one() -> None:
    async with a_scope(Limits(rate_per_s=0.001, burst=1), rate_per_s=0.001, burst=1) as (runtime, scope):
        await runtime.scope("mails").spawn(asyncio.sleep(0))
        assert refusal_of(scope).why == "rate"
        runtime.limits = Limits()
        await scope.spawn(asyncio.sleep(0))


async def test_limits_change_while_the_process_runs() -> None:
    async with a_scope(max_tasks=1) as (runtime, scope):
        scope.spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "limit"
        runtime.limits = Limits(max_tasks=3)
        scope.spawn(asyncio.sleep(3600))
        scope.limits = Limits(max_tasks=2)
        assert refusal_of(scope).why == "limit", "what is in flight already counts against a new limit"
        scope.limits = Limits()
        scope.spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "limit"


async def test_limits_change_over_http() -> None:
    async with a_scope() as (runtime, scope):

        def post(query: str) -> Any:
            url = f"http://127.0.0.1:{runtime.admin_port}/debug/limits?{query}"
            request = urllib.request.Request(url, method="POST")
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)

        assert (await asyncio.to_thread(post, "scope=orders&max_tasks=1"))["limits"]["max_tasks"] == 1
        scope.spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "limit"
        shown = {gate["scope"]: gate["in_flight"] for gate in runtime.limits_view()}
        assert shown == {"": 1, "orders": 1}


async def test_time_outs_in_a_row_stop_one_scope_until_one_task_shows_that_things_are_better() -> None:
    limits = Limits(breaker_timeouts=2, breaker_pause_s=0.05)
    async with a_scope(limits) as (runtime, scope):
        for _ in range(2):
            with pytest.raises(ebbtide.TimedOut):
                await scope.spawn(asyncio.sleep(3600), timeout_s=0.001)
        refused = refusal_of(scope)
        assert refused.why == "breaker"
        assert 0 < refused.retry_after_s <= 0.05
        await runtime.scope("mails").spawn(asyncio.sleep(0))
        assert "ebbtide_breakers_open 1" in await page_of(runtime)
        await asyncio.sleep(0.05)
        probe = scope.spawn(asyncio.sleep(0.001))
        assert refusal_of(scope).why == "breaker"
        await probe
        await until(lambda: scope.tasks_left == 0)
        await scope.spawn(asyncio.sleep(0))


async def page_of(runtime: ebbtide.Runtime) -> str:
    url = f"http://127.0.0.1:{runtime.admin_port}/metrics"

    def get() -> str:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return str(answer.read(), "utf-8")

    return await asyncio.to_thread(get)


async def cleans_up(go_on: asyncio.Event) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        await go_on.wait()


async def test_an_end_without_a_time_out_ends_the_row() -> None:
    async with a_scope(Limits(breaker_timeouts=2)) as (_, scope):
        for _ in range(3):
            with pytest.raises(ebbtide.TimedOut):
                await scope.spawn(asyncio.sleep(3600), timeout_s=0.001)
            await scope.spawn(asyncio.sleep(0))


async def test_a_task_that_ends_late_after_its_time_limit_is_one_time_out() -> None:
    go_on = asyncio.Event()
    async with a_runtime(cancel_grace_s=0.02) as runtime:
        scope = runtime.scope("orders", timeout_s=0.001, limits=Limits(breaker_timeouts=3, breaker_pause_s=60.0))
        late = scope.spawn(cleans_up(go_on))
        await until(lambda: runtime._registry.abandoned)
        go_on.set()
        for task in (late, scope.spawn(cleans_up(go_on))):
            with pytest.raises(ebbtide.TimedOut):
                await task
        await until(lambda: runtime.tasks_left == 0)
        assert scope.gate.breakers[0].row == 2
        with pytest.raises(ebbtide.TimedOut):
            await scope.spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "breaker"


async def test_a_cancelled_probe_lets_another_one_try() -> None:
    async with a_scope(Limits(breaker_timeouts=1, breaker_pause_s=0.0)) as (_, scope):
        with pytest.raises(ebbtide.TimedOut):
            await scope.spawn(asyncio.sleep(3600), timeout_s=0.001)
        probe = scope.spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "breaker"
        probe.cancel()
        await until(lambda: scope.tasks_left == 0)
        await scope.spawn(asyncio.sleep(0))


WAIT = Limits(max_tasks=1, admission=Admission.WAIT, wait_s=30.0)


async def test_who_waits_is_admitted_in_order_as_soon_as_there_is_room() -> None:
    ran: list[int] = []

    async def work(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(0)

    async with a_scope(WAIT) as (_, scope):
        async with asyncio.TaskGroup() as group:
            waiting = [group.create_task(scope.submit(work(number))) for number in range(20)]
        await asyncio.wait([task.result() for task in waiting])
        assert ran == list(range(20))
        assert refusals(scope) == {}


def refusals(scope: ebbtide.Scope) -> dict[str, int]:
    return {why: count for why, count in scope.registry.refusals.items() if count}


async def test_who_cannot_wait_is_refused_where_others_wait() -> None:
    async with a_scope(WAIT) as (_, scope):
        await scope.submit(asyncio.sleep(3600))
        assert refusal_of(scope).why == "limit"


async def test_a_wait_has_an_end() -> None:
    async with a_scope(Limits(max_tasks=1, admission=Admission.WAIT, wait_s=0.02)) as (_, scope):
        await scope.submit(asyncio.sleep(3600))
        coroutine = asyncio.sleep(0)
        with pytest.raises(ebbtide.Refused, match="limit"):
            await scope.submit(coroutine)
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await coroutine


async def test_a_cancelled_wait_leaves_its_place_to_the_next() -> None:
    async with a_scope(WAIT) as (_, scope):
        first = await scope.submit(asyncio.sleep(3600))
        gone, stays = (asyncio.create_task(scope.submit(asyncio.sleep(0, "ran"))) for _ in range(2))
        await until(lambda: len(scope.gate.waiters) == 2)
        first.cancel()
        await asyncio.wait({first})
        await asyncio.sleep(0)
        gone.cancel()
        assert await (await stays) == "ran"
        assert not scope.gate.waiters


async def test_who_gives_up_at_an_outer_limit_leaves_its_place_at_the_inner_one_to_the_next() -> None:
    async with a_scope(WAIT, max_tasks=3) as (runtime, scope):
        process, mails = runtime._registry.gate, runtime.scope("mails")
        first = await scope.submit(asyncio.sleep(3600))
        others = [mails.spawn(asyncio.sleep(3600)) for _ in range(2)]
        gone, stays = (asyncio.create_task(scope.submit(asyncio.sleep(0, "ran"))) for _ in range(2))
        await until(lambda: len(scope.gate.waiters) == 2)
        # Somebody else takes the place in the process before the one who is woken asks for it.
        first.add_done_callback(lambda _: others.append(mails.spawn(asyncio.sleep(3600))))
        first.cancel()
        await until(lambda: len(process.waiters) == 1)
        gone.cancel()
        mails.cancel("test")
        async with asyncio.timeout(10):
            assert await (await stays) == "ran"
        assert not scope.gate.waiters
        assert not process.waiters


async def test_who_waits_for_a_rate_comes_in_as_fast_as_it_allows() -> None:
    limits = Limits(rate_per_s=200.0, burst=1, admission=Admission.WAIT, wait_s=30.0)
    async with a_scope(limits) as (_, scope):
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        tasks = await asyncio.gather(*(scope.submit(asyncio.sleep(0)) for _ in range(11)))
        assert loop.time() - started_at >= 10 / 200
        await asyncio.wait(tasks)


async def test_who_would_wait_too_long_for_a_token_is_told_at_once() -> None:
    limits = Limits(rate_per_s=0.1, burst=1, admission=Admission.WAIT, wait_s=5.0)
    async with a_scope(limits) as (_, scope):
        await scope.submit(asyncio.sleep(0))
        with pytest.raises(ebbtide.Refused, match="rate") as refused:
            await scope.submit(asyncio.sleep(0))
        assert 9 < refused.value.retry_after_s <= 10


async def test_a_drain_refuses_those_who_wait() -> None:
    async with a_scope(WAIT) as (runtime, scope):
        await scope.submit(asyncio.sleep(3600))
        waiting = asyncio.create_task(scope.submit(asyncio.sleep(0)))
        await until(lambda: len(scope.gate.waiters) == 1)
        runtime.drain("test", leave=False)
        with pytest.raises(ebbtide.Refused, match="draining"):
            await waiting
        assert runtime.tasks_left == 1


async def test_a_wider_limit_lets_those_in_who_wait() -> None:
    async with a_scope(WAIT) as (_, scope):
        await scope.submit(asyncio.sleep(3600))
        waiting = asyncio.create_task(scope.submit(asyncio.sleep(0)))
        await until(lambda: len(scope.gate.waiters) == 1)
        scope.limits = Limits(max_tasks=2)
        await (await waiting)


async def test_the_oldest_task_of_the_same_scope_is_shed_for_a_new_one() -> None:
    async with a_scope(Limits(admission=Admission.SHED), max_tasks=3) as (runtime, scope):
        spared = runtime.scope("mails").spawn(asyncio.sleep(3600))
        first = scope.spawn(asyncio.sleep(3600))
        second = scope.spawn(asyncio.sleep(3600))
        scope.spawn(asyncio.sleep(3600))
        await asyncio.wait({first})
        assert first.cancelled()
        assert not second.done()
        assert not spared.done()
        runtime.scope("mails").cancel("test")


async def test_nothing_is_shed_for_who_is_refused_by_a_rate() -> None:
    limits = Limits(max_tasks=2, rate_per_s=0.001, burst=2, admission=Admission.SHED)
    async with a_scope(limits) as (_, scope):
        tasks = [scope.spawn(asyncio.sleep(3600)) for _ in range(2)]
        assert refusal_of(scope).why == "rate"
        assert not any(task.cancelling() for task in tasks)


async def test_who_finds_nothing_to_shed_pays_nothing() -> None:
    async with a_scope(Limits(admission=Admission.SHED), max_tasks=1, rate_per_s=0.001, burst=2) as (runtime, scope):
        runtime.scope("mails").spawn(asyncio.sleep(3600))
        assert refusal_of(scope).why == "limit"
        runtime.scope("mails").cancel("test")
        await until(lambda: runtime.tasks_left == 0)
        await scope.spawn(asyncio.sleep(0))


async def test_one_task_is_shed_for_a_new_one_where_its_scope_and_the_process_are_full() -> None:
    async with a_scope(Limits(max_tasks=3, admission=Admission.SHED), max_tasks=3) as (_, scope):
        tasks = [scope.spawn(asyncio.sleep(3600)) for _ in range(3)]
        scope.spawn(asyncio.sleep(3600))
        assert [task.cancelling() for task in tasks] == [1, 0, 0]
        await asyncio.wait(tasks[:1])
        assert scope.gate.held == 3


async def test_shedding_has_an_end_where_tasks_take_long_to_clean_up() -> None:
    go_on = asyncio.Event()
    async with a_scope(Limits(max_tasks=2, admission=Admission.SHED)) as (_, scope):
        admitted = 0
        for _ in range(10):
            try:
                scope.spawn(cleans_up(go_on))
                admitted += 1
            except ebbtide.Refused as refused:
                assert refused.why == "limit"
            await asyncio.sleep(0)
        assert admitted == 4
        go_on.set()


async def test_what_live_work_starts_during_a_drain_needs_no_token_but_has_an_end() -> None:
    async with a_scope(max_tasks=3, rate_per_s=0.001, burst=1) as (runtime, scope):
        draining = asyncio.Event()
        children: list[asyncio.Task[None]] = []
        why = ""

        async def order() -> None:
            nonlocal why
            await draining.wait()
            try:
                while True:
                    children.append(scope.spawn(asyncio.sleep(3600)))
            except ebbtide.Refused as refused:
                why = refused.why

        task = scope.spawn(order())
        await asyncio.sleep(0)
        runtime.drain("test", leave=False)
        draining.set()
        await task
        assert (len(children), why) == (5, "limit"), "twice the limit, the parent among them"


async def test_blocks_are_counted_and_not_limited() -> None:
    async with a_scope(max_tasks=1, rate_per_s=0.001, burst=1) as (runtime, scope):
        with scope.track("one"), scope.track("two"):
            assert runtime.tasks_left == 2
            await scope.spawn(asyncio.sleep(0))


async def test_threads_count_against_the_limit() -> None:
    release = threading.Event()
    async with a_scope(max_tasks=1) as (_, scope):
        future = scope.thread(release.wait, 10)
        assert refusal_of(scope).why == "limit"
        with pytest.raises(ebbtide.Refused):
            scope.thread(release.wait)
        release.set()
        await asyncio.wrap_future(future)
        await until(lambda: scope.tasks_left == 0)
        await scope.spawn(asyncio.sleep(0))


async def test_the_count_of_a_limited_scope_is_exact_over_threads_and_loops() -> None:
    async with a_scope(Limits(max_tasks=50)) as (runtime, scope):

        async def elsewhere() -> None:
            for _ in range(20):
                await asyncio.wait([scope.spawn(asyncio.sleep(0)) for _ in range(5)])

        await asyncio.gather(*(asyncio.to_thread(asyncio.run, elsewhere()) for _ in range(3)), elsewhere())
        await until(lambda: runtime.tasks_left == 0)
        assert scope.gate.held == 0
        assert runtime.drain_view()["tally"] == {"finished": 400}


async def test_a_scope_with_other_limits_is_told_apart() -> None:
    async with a_scope(Limits(max_tasks=2)) as (runtime, scope):
        assert runtime.scope("orders") is scope
        assert runtime.scope("orders", limits=Limits(max_tasks=2)) is scope
        with pytest.raises(ValueError, match="scope orders: it has other limits"):
            runtime.scope("orders", limits=Limits(max_tasks=3))


async def test_scopes_may_be_made_while_others_look() -> None:
    async with a_runtime() as runtime:
        top, stop = runtime.scope("top"), threading.Event()

        def look() -> None:
            while not stop.is_set():
                runtime.sample()
                runtime.limits_view()
                runtime._registry.gate.wake_everybody()
                top._inside()

        looking = [asyncio.create_task(asyncio.to_thread(look)) for _ in range(2)]
        for _ in range(30):
            kept = [top.scope(f"inner-{number}") for number in range(100)]
            await asyncio.sleep(0)
            del kept
        stop.set()
        await asyncio.gather(*looking)
