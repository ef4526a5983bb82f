import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

import ebbtide
from ebbtide.machine import Durations
from ebbtide.protocol import PodState


def a_runtime(**durations: float) -> ebbtide.Runtime:
    spend = Durations(**{"quiesce_s": 0.0, "drain_timeout_s": 30.0, "cancel_grace_s": 5.0} | durations)
    return ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=spend), watchdog=False)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (the machine has a thread of its own and tells nobody)
            await asyncio.sleep(0.002)


async def test_a_drain_waits_for_tasks_and_refuses_new_ones() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        go_on = asyncio.Event()
        task = scope.spawn(go_on.wait(), name="order-1")
        await until(lambda: runtime.state is PodState.SERVING)
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.DRAINING)
        assert runtime.draining
        assert not runtime.ready
        with pytest.raises(ebbtide.Refused, match="draining"):
            scope.spawn(asyncio.sleep(0))
        go_on.set()
        await task
        await until(lambda: runtime.state is PodState.DRAINED)
        assert runtime.drain_view()["tally"] == {"finished": 1, "refused": 1}


async def test_intake_stays_open_while_endpoints_propagate() -> None:
    async with a_runtime(quiesce_s=5.0) as runtime:
        scope = runtime.scope("orders")
        await until(lambda: runtime.ready)
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.QUIESCING)
        assert not runtime.ready
        await scope.spawn(asyncio.sleep(0))
        runtime.undrain()
        await until(lambda: runtime.ready)


async def test_live_work_may_still_start_what_it_needs() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        draining = asyncio.Event()

        async def parent() -> str:
            await draining.wait()
            return await scope.spawn(child())

        async def child() -> str:
            with scope.track("grandchild"):
                return "done"

        task = scope.spawn(parent())
        await asyncio.sleep(0)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        draining.set()
        assert await task == "done"
        assert runtime.drain_view()["late_arrivals"] == 2


async def test_an_undrained_process_serves_again() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        await until(lambda: runtime.ready)
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.DRAINED)
        runtime.undrain()
        await until(lambda: runtime.ready)
        assert await scope.spawn(asyncio.sleep(0, "again")) == "again"


async def test_stragglers_are_cancelled_once_and_their_cleanup_is_waited_for() -> None:
    cancels = 0
    cleaned = False

    async def straggler() -> None:
        nonlocal cancels, cleaned
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancels += 1
            await asyncio.sleep(0.05)
            cleaned = True
            raise

    async with a_runtime(drain_timeout_s=0.05) as runtime:
        task = runtime.scope("orders").spawn(straggler())
        await until(lambda: runtime.ready)
        runtime.drain("test")
        await runtime.wait_exit()
        assert task.cancelled()
        assert (cancels, cleaned) == (1, True)
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert runtime.drain_view()["forced"]


async def test_a_task_that_ignores_its_cancel_is_abandoned_when_the_budget_is_spent() -> None:
    give_up = asyncio.Event()

    async def deaf() -> None:
        while not give_up.is_set():
            try:
                await give_up.wait()
            except asyncio.CancelledError:
                continue

    async with a_runtime(drain_timeout_s=0.02, cancel_grace_s=0.05) as runtime:
        task = runtime.scope("orders").spawn(deaf(), name="deaf")
        await until(lambda: runtime.ready)
        runtime.drain("test")
        await runtime.wait_exit()
        assert runtime.drain_view()["tally"] == {"abandoned": 1}
        assert runtime.tasks_left == 1
        give_up.set()
        await task
        assert runtime.drain_view()["tally"] == {"abandoned": 1}, "it is counted once"


async def test_a_blocked_loop_still_loses_its_readiness_and_is_counted() -> None:
    async with a_runtime(drain_timeout_s=0.05, cancel_grace_s=0.05) as runtime:
        scope = runtime.scope("orders")

        async def block() -> tuple[bool, PodState]:
            runtime.drain("test")
            assert runtime.wait_drained(10)
            return runtime.ready, runtime.state

        await until(lambda: runtime.ready)
        ready, state = await scope.spawn(block())
        assert not ready
        assert state in {PodState.DRAINED, PodState.EXITING}
        assert runtime.drain_view()["tally"]["abandoned"] == 1


async def test_a_crash_is_logged_once_with_its_metadata_and_harms_no_neighbour(caplog: Any) -> None:
    async def crash() -> None:
        raise ValueError("boom")

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        with caplog.at_level(logging.ERROR):
            neighbour = scope.spawn(asyncio.sleep(0.02, "fine"))
            task = scope.spawn(crash(), name="order-7", meta={"customer": 3})
            await asyncio.wait({task})
            assert await neighbour == "fine"
        del task
        assert [record.getMessage() for record in caplog.records] == [
            "ebbtide: task order-7 of orders crashed: {'customer': 3}"
        ]
        assert runtime.drain_view()["tally"] == {"failed": 1, "finished": 1}


async def test_the_tightest_time_limit_counts_and_is_told_from_a_failure() -> None:
    async def own_timeout() -> None:
        raise TimeoutError("of its own")

    async with a_runtime() as runtime:
        outer = runtime.scope("orders", timeout_s=0.02)
        inner = outer.scope("retry", timeout_s=3600)
        with pytest.raises(TimeoutError):
            await inner.spawn(asyncio.sleep(60), timeout_s=600)
        with pytest.raises(TimeoutError, match="of its own"):
            await inner.spawn(own_timeout())
        assert runtime.drain_view()["tally"] == {"timed_out": 1, "failed": 1}


async def test_cancelling_a_scope_cancels_what_is_inside_it_and_nothing_else() -> None:
    async with a_runtime() as runtime:
        orders, mail = runtime.scope("orders"), runtime.scope("mail")
        inner = orders.scope("retry")
        hit = [orders.spawn(asyncio.sleep(60)), inner.spawn(asyncio.sleep(60))]
        spared = mail.spawn(asyncio.sleep(0.05))
        assert orders.cancel("test") == 2
        await asyncio.wait(hit)
        assert all(task.cancelled() for task in hit)
        await spared


async def test_thousands_of_tasks_are_cancelled_in_portions() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        tasks = [scope.spawn(asyncio.sleep(3600)) for _ in range(2000)]
        scope.cancel("test")
        await asyncio.wait(tasks)
        assert runtime.tasks_left == 0


async def test_a_task_cancelled_before_its_first_step_is_counted_and_warns_of_nothing() -> None:
    async with a_runtime() as runtime:
        task = runtime.scope("orders").spawn(asyncio.sleep(60))
        task.cancel()
        await asyncio.wait({task})
        assert runtime.drain_view()["tally"] == {"cancelled": 1}
        assert runtime.tasks_left == 0


async def test_work_in_threads_counts_as_work() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("reports")

        def work() -> int:
            with scope.track("report"):
                return runtime.tasks_left

        assert await asyncio.to_thread(work) == 1
        assert runtime.tasks_left == 0


async def test_exit_hooks_run_in_reverse_and_a_failing_one_stops_none(caplog: Any) -> None:
    ran: list[str] = []

    async def pool() -> None:
        ran.append("pool")

    def broken() -> None:
        ran.append("broken")
        raise RuntimeError("hook")

    with caplog.at_level(logging.CRITICAL, "ebbtide"):
        async with a_runtime() as runtime:
            runtime.on_exit(pool)
            runtime.on_exit(broken)
            await until(lambda: runtime.ready)
            runtime.drain("test")
            await runtime.wait_exit()
    assert ran == ["broken", "pool"]


async def test_work_can_wait_for_the_drain_to_begin() -> None:
    async with a_runtime() as runtime:
        began: list[bool] = []
        runtime.on_drain(lambda: began.append(True))
        await until(lambda: runtime.ready)
        waiting = asyncio.create_task(runtime.drain_requested())
        runtime.drain("test", leave=False)
        await asyncio.wait_for(waiting, 10)
        assert began == [True]


async def test_tasks_are_shown_with_scope_and_metadata() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        go_on = asyncio.Event()
        task = scope.spawn(go_on.wait(), name="order-1", meta={"customer": 3})
        (shown,) = runtime.tasks()
        assert (shown["name"], shown["scope"], shown["meta"]) == ("order-1", "orders", {"customer": 3})
        go_on.set()
        await task


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks_leave_no_entry_behind() -> None:
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        for _ in range(10):
            await scope.spawn(asyncio.sleep(0, "done"))
        assert runtime.tasks_left == 0
        assert runtime.drain_view()["tally"] == {"finished": 10}


SERVICE = textwrap.dedent("""
    import asyncio, os, sys, ebbtide
    from ebbtide.machine import Durations
    async def work(seconds):
        await asyncio.sleep(seconds)
        print("finished", flush=True)
    async def main():
        durations = Durations(0.0, 30.0, float(sys.argv[2]))
        settings = ebbtide.Settings(admin_port=0, durations=durations)
        async with ebbtide.Runtime(settings) as runtime:
            runtime.on_drain(lambda: print("draining", flush=True))
            runtime.scope("work").spawn(work(float(sys.argv[1])))
            print("serving", flush=True)
            await runtime.wait_exit()
        print("bye", flush=True)
    asyncio.run(main())
""")


def a_service(seconds: float, cancel_grace_s: float = 5.0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", SERVICE, str(seconds), str(cancel_grace_s)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "serving\n"
    return process


def test_sigterm_lets_tasks_finish_and_the_process_exits() -> None:
    with a_service(0.5) as process:
        os.kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "draining\nfinished\nbye\n"
        assert process.returncode == 0


def test_a_second_sigterm_cancels_at_once() -> None:
    with a_service(60) as process:
        assert process.stdout is not None
        os.kill(process.pid, signal.SIGTERM)
        # Two that come together are one to the kernel: the second waits until the first was understood.
        assert process.stdout.readline() == "draining\n"
        os.kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "bye\n"
