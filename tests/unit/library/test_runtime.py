import asyncio
import logging
import threading
import time
from typing import Any

import pytest

import ebbtide
from ebbtide.agent import connect
from ebbtide.lifecycle.machine import Event
from ebbtide.protocol import PodState
from tests.unit.library.runtimes import a_runtime, until

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBbTCCAROgAwIBAgIUAUfneyuLWDtFbN4SLd1ZT6Mm/ZswCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAeFw0yNjExMjcyMzQ0MThaFw0yNjEyMDYyMzQ0MThaMAwx
CjAIBgNVBAMMAXgwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATBbzFyBEag2bTb
DzEqxY+kIAVSdf+/ihaMBOWy+aOGIooQ3eqic9W0Wmal67Dirjwd2DRTj3U5sgch
ONsfhLCDo1MwUTAdBgNVHQ4EFgQUfFtrIAxg20FJ6Gu/LQ32Kxcv9pcwHwYDVR0j
BBgwFoAUfFtrIAxg20FJ6Gu/LQ32Kxcv9pcwDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNIADBFAiEApuQ3bamHaMdBP8GQRUeGdl7iwmGNQ0jNBaUvez3g6JIC
IA5+lkNk9UCzUC6PggQepfYF90x4v2PdxP12W6OR3sLx
-----END CERTIFICATE-----
"""


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


async def test_who_asks_for_it_is_told_in_the_loop_whenever_intake_closes() -> None:
    def told() -> None:
        assert asyncio.get_running_loop() is loop
        seen.append(None)

    loop = asyncio.get_running_loop()
    seen: list[None] = []
    async with a_runtime(quiesce_s=0.01) as runtime:
        runtime.on_intake_closed(told)
        for times in (1, 2):
            runtime.drain("test", leave=False)
            await until(lambda: not runtime.intake_open)
            runtime.undrain()
            await until(lambda: runtime.intake_open and runtime.state is PodState.SERVING)
            await asyncio.sleep(0)
            assert len(seen) == times


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


async def test_a_drain_is_under_way_when_the_call_returns() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        runtime.drain("test", leave=False)
        assert runtime.draining
        with pytest.raises(ebbtide.Refused):
            scope.spawn(asyncio.sleep(0))
        runtime.undrain()
        assert runtime.ready
        await scope.spawn(asyncio.sleep(0))


async def test_a_cancel_reaches_a_loop_that_was_blocked_when_it_was_due() -> None:
    async with a_runtime(drain_timeout_s=0.02, cancel_grace_s=30.0) as runtime:
        scope = runtime.scope("orders")
        sleeper = scope.spawn(asyncio.sleep(3600))

        def block() -> None:
            deadline = time.monotonic() + 10
            while runtime.state is not PodState.CANCELLING:
                assert time.monotonic() < deadline

        runtime.drain("test")
        block()
        await asyncio.wait({sleeper})
        assert sleeper.cancelled()
        await runtime.wait_exit()
        assert runtime.drain_view()["tally"] == {"cancelled": 1}


async def test_drain_hooks_may_be_coroutines_and_run_in_reverse_each_time() -> None:
    ran: list[str] = []

    async def pool() -> None:
        await asyncio.sleep(0)
        ran.append("pool")

    async with a_runtime() as runtime:
        runtime.on_drain(pool)
        runtime.on_drain(lambda: ran.append("queue"))
        for times in (1, 2):
            runtime.drain("test", leave=False)
            expected = 2 * times
            await until(lambda: len(ran) == expected)  # noqa: B023 (waited for in this round)
            runtime.undrain()
    assert ran == ["queue", "pool"] * 3, "the end of the runtime is a drain too, and waits for its hooks"


async def test_a_hook_that_takes_too_long_is_left_behind_and_recorded() -> None:
    ran: list[str] = []
    go_on = asyncio.Event()

    async def stubborn() -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                ran.append("cancelled")

    async with a_runtime() as runtime:
        runtime.on_exit(lambda: ran.append("last"))
        runtime.on_exit(stubborn, timeout_s=0.02)
    assert runtime.drain_view()["hooks"][0]["error"] == "took longer than 0.02 s"
    assert runtime.sample().hook_failures == 1
    go_on.set()
    await until(lambda: len(ran) == 2)
    assert ran == ["last", "cancelled"]


async def test_a_drain_that_is_shortened_hurries_its_drain_hooks_and_leaves_the_exit_hooks_their_time() -> None:
    ran: list[str] = []
    begun = asyncio.Event()

    async def deregister() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ran.append("deregistered")

    async with a_runtime(cancel_grace_s=0.05) as runtime:
        runtime.on_exit(lambda: ran.append("pool closed"))
        runtime.on_drain(lambda: ran.append("told"))
        runtime.on_drain(deregister, timeout_s=3600)
        runtime.scope("orders").spawn(asyncio.sleep(3600))
        runtime._on_signal("SIGTERM", 1)
        await begun.wait()
        began_at = time.monotonic()
        runtime._on_signal("SIGTERM", 2)
        await runtime.wait_exit()
    assert time.monotonic() - began_at < 3
    assert sorted(ran[:2]) == ["deregistered", "told"]
    assert ran[2:] == ["pool closed"]


async def test_leaving_the_runtime_waits_for_what_is_in_flight() -> None:
    async with a_runtime() as runtime:
        task = runtime.scope("orders").spawn(asyncio.sleep(0.05, "done"))
    assert task.result() == "done"


async def test_an_application_that_crashed_cancels_its_tasks_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        async with a_runtime() as runtime:
            task = runtime.scope("orders").spawn(asyncio.sleep(3600))
            raise ZeroDivisionError
    assert task.cancelled()
    assert "ZeroDivisionError" in runtime.drain_view()["reason"]


async def test_an_application_that_was_cancelled_lets_its_tasks_finish_and_a_second_cancel_does_not() -> None:
    tasks: list[asyncio.Task[None]] = []
    entered = asyncio.Event()

    async def application(seconds: float) -> None:
        async with a_runtime() as runtime:
            tasks.append(runtime.scope("orders").spawn(asyncio.sleep(seconds)))
            entered.set()
            await runtime.wait_exit()

    patient = asyncio.create_task(application(0.05))
    await entered.wait()
    patient.cancel()
    await asyncio.wait({patient})
    assert patient.cancelled()
    assert not tasks[0].cancelled()

    entered.clear()
    hurried = asyncio.create_task(application(3600))
    await entered.wait()
    hurried.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    hurried.cancel()
    await asyncio.wait({hurried})
    assert tasks[1].cancelled()


async def test_the_end_does_not_wait_for_the_executor_of_the_application() -> None:
    release = threading.Event()
    loop = asyncio.get_running_loop()
    async with a_runtime():
        stuck = [loop.run_in_executor(None, release.wait) for _ in range(64)]
    assert not any(job.done() for job in stuck)
    release.set()
    await asyncio.gather(*stuck)


async def test_the_last_end_is_seen_without_polling() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        go_on = asyncio.Event()
        tasks = [scope.spawn(go_on.wait()) for _ in range(50)]
        runtime.drain("test", leave=False)
        steps: list[object] = []
        post = runtime._conductor.post

        def noted(event: Event) -> None:
            steps.append(event)
            post(event)

        runtime._conductor.post = noted  # type: ignore[method-assign]
        go_on.set()
        await asyncio.wait(tasks)
        await until(lambda: runtime.state is PodState.DRAINED)
        assert len(steps) == 1


async def test_a_displaced_signal_handler_is_told_of_once(caplog: Any, monkeypatch: Any) -> None:
    async with a_runtime() as runtime:
        monkeypatch.setattr(type(runtime._signals), "displaced", ("SIGTERM",))
        with caplog.at_level(logging.WARNING, "ebbtide"):
            runtime._patrol()
            runtime._patrol()
    assert sum("SIGTERM" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("text", ["no certificate", "keine Zertifizierungsbehörde"])
async def test_certificates_that_cannot_be_read_keep_no_application_from_starting(text: str, caplog: Any) -> None:
    settings = ebbtide.Settings(
        admin_port=0, endpoints=("https://ebbtide:443",), pod_uid="u", pod_namespace="n", ca=text
    )
    with caplog.at_level(logging.ERROR, "ebbtide"):
        async with ebbtide.Runtime(settings, watchdog=False) as runtime:
            assert runtime.ready
    assert "EBBTIDE_CA" in caplog.text


def test_a_comment_beside_a_certificate_may_be_in_any_language() -> None:
    connect(ebbtide.Settings(endpoints=("https://ebbtide:443",), ca=f"# Autorità interna\n{CERTIFICATE}"))


async def test_a_runtime_runs_once() -> None:
    async with a_runtime() as runtime:
        pass
    with pytest.raises(ebbtide.NotRunning):
        await runtime.__aenter__()
