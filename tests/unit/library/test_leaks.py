"""Leaks in a running process: found with where they were created, told once, and nothing else suspected."""

import asyncio
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import ebbtide
from ebbtide.leaks.rules import Rule
from ebbtide.leaks.watch import MOST_SAID
from ebbtide.lifecycle.machine import Durations
from tests.unit.library.runtimes import until

AGE_S = 0.02


def a_watched_runtime(**settings: Any) -> ebbtide.Runtime:
    spend = Durations(quiesce_s=0.0, drain_timeout_s=5.0, cancel_grace_s=0.05)
    chosen = ebbtide.Settings(admin_port=0, durations=spend, **{"leak_age_s": AGE_S} | settings)
    return ebbtide.Runtime(chosen, watchdog=False)


@pytest.fixture
async def runtime() -> AsyncIterator[ebbtide.Runtime]:
    # The task of the test itself begins after the fixture, and no scope knows it.
    async with a_watched_runtime(leak_ignore=("test_*",)) as runtime:
        yield runtime
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


async def hang() -> None:
    await asyncio.Event().wait()


async def found(runtime: ebbtide.Runtime, rule: Rule) -> ebbtide.Finding:
    """Look until a rule suspects something, and return that."""
    findings: list[ebbtide.Finding] = []

    def look() -> bool:
        findings[:] = [finding for finding in runtime.leaks() if finding.rule is rule]
        return bool(findings)

    await until(look)
    (finding,) = findings
    return finding


async def seen_long_enough(runtime: ebbtide.Runtime) -> None:
    """Wait until what is there now is old enough for every rule, and was seen to be."""
    probe = asyncio.create_task(hang(), name="probe")
    await until(lambda: any("probe" in finding.names for finding in runtime.leaks()))
    probe.cancel()
    await asyncio.wait({probe})


async def test_a_task_much_older_than_its_like_is_found(runtime: ebbtide.Runtime) -> None:
    orders = runtime.scope("orders")
    await asyncio.gather(*(orders.spawn(asyncio.sleep(0)) for _ in range(30)))
    task = orders.spawn(hang(), name="order-42")
    finding = await found(runtime, Rule.OVERDUE)
    assert (finding.count, finding.names, finding.scopes) == (1, ["order-42"], ["orders"])
    assert finding.what.endswith("in hang")
    assert "test_leaks.py" in finding.waits_at
    assert runtime.cancel(finding.ids[0])
    await asyncio.wait({task})


async def test_a_task_that_beats_is_not_overdue(runtime: ebbtide.Runtime) -> None:
    async def consume() -> None:
        ebbtide.heartbeat()
        await hang()

    orders = runtime.scope("orders")
    await asyncio.gather(*(orders.spawn(asyncio.sleep(0)) for _ in range(30)))
    orders.spawn(consume())
    await asyncio.sleep(0)
    await seen_long_enough(runtime)
    assert not runtime.leaks()


async def test_missing_heartbeats_are_found(runtime: ebbtide.Runtime) -> None:
    runtime.scope("consumers", heartbeat_s=0.001).spawn(hang())
    finding = await found(runtime, Rule.STALE)
    assert "silent for" in finding.why
    assert "0.001 s were promised" in finding.why


async def test_a_cancel_that_is_swallowed_is_found(runtime: ebbtide.Runtime) -> None:
    stop = asyncio.Event()

    async def swallow() -> None:
        while not stop.is_set():
            try:
                await stop.wait()
            except asyncio.CancelledError:
                continue

    scope = runtime.scope("orders")
    scope.spawn(swallow())
    await asyncio.sleep(0)
    scope.cancel("test")
    assert (await found(runtime, Rule.SWALLOWED)).what.endswith("swallow")
    stop.set()


async def test_a_scope_that_its_opener_left_open_is_found_with_the_line_that_opened_it(
    runtime: ebbtide.Runtime,
) -> None:
    async def connection() -> None:
        runtime.scope("connections").scope("7").spawn(hang())

    runtime.scope("connections")
    await runtime.scope("server").spawn(connection())
    finding = await found(runtime, Rule.FORGOTTEN)
    assert finding.scopes == ["connections.7"]
    assert "test_leaks.py" in finding.why
    assert finding.why.endswith("connection")


async def test_a_scope_that_others_ask_for_too_is_nobodys_to_forget(runtime: ebbtide.Runtime) -> None:
    async def handle() -> None:
        runtime.scope("emails").spawn(hang())

    server = runtime.scope("server")
    await server.spawn(handle())
    await server.spawn(handle())
    await seen_long_enough(runtime)
    assert not runtime.leaks()


async def test_tasks_outside_any_scope_are_found_by_what_they_run(runtime: ebbtide.Runtime) -> None:
    tasks = [asyncio.create_task(hang(), name=f"poll-{number}") for number in range(20)]
    finding = await found(runtime, Rule.OUTSIDE)
    assert (finding.count, finding.names) == (20, ["poll-0", "poll-1", "poll-10"])
    assert finding.oldest_s >= AGE_S
    for task in tasks[1:]:
        task.cancel()
    await asyncio.wait(tasks[1:])
    assert (await found(runtime, Rule.OUTSIDE)).count == 1
    runtime.scope("polls").adopt(tasks[0])
    assert not runtime.leaks()
    tasks[0].cancel()


async def test_tasks_that_work_in_flight_waits_for_belong_to_it(runtime: ebbtide.Runtime) -> None:
    begun = asyncio.Event()

    async def family() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(hang())
            group.create_task(parent())

    async def parent() -> None:
        begun.set()
        await asyncio.gather(hang(), asyncio.wait_for(hang(), 3600))

    runtime.scope("orders").spawn(family())
    await begun.wait()
    await seen_long_enough(runtime)
    assert not runtime.leaks()


async def test_a_task_that_its_creator_did_not_wait_for_is_found_although_that_one_lives(
    runtime: ebbtide.Runtime,
) -> None:
    async def handle() -> None:
        kept.append(asyncio.create_task(hang(), name="forgotten"))
        await hang()

    kept: list[asyncio.Task[None]] = []
    runtime.scope("orders").spawn(handle())
    assert (await found(runtime, Rule.OUTSIDE)).names == ["forgotten"]


async def test_tasks_from_before_the_runtime_and_ignored_ones_are_not_meant() -> None:
    before = asyncio.create_task(hang(), name="before")
    async with a_watched_runtime(leak_ignore=("pool-*", "*.poll")) as runtime:

        async def poll() -> None:
            await hang()

        rest = [asyncio.create_task(poll()), asyncio.create_task(hang(), name="pool-1")]
        await seen_long_enough(runtime)
        assert not runtime.leaks()
        for task in [before, *rest]:
            task.cancel()


async def test_where_a_task_was_created_is_known_where_somebody_asked(runtime: ebbtide.Runtime) -> None:
    depth = sys.get_coroutine_origin_tracking_depth()

    def start(start: Callable[[Any], Any]) -> Any:
        return start(hang())

    scope = runtime.scope("orders", timeout_s=3600, heartbeat_s=0.001)
    start(scope.spawn)
    assert (await found(runtime, Rule.STALE)).created_at == ""
    scope.cancel("enough seen")
    # From another thread, as the admin server does it.
    await asyncio.to_thread(runtime.trace_origins)
    # A thread that was quick is not waited for by the loop, from Python 3.14 on: what it asked for is still to come.
    await until(lambda: sys.get_coroutine_origin_tracking_depth() > depth)
    kept = [start(scope.spawn), scope.supervise(hang), start(asyncio.create_task)]
    await asyncio.sleep(0)
    by_rule = {rule: (await found(runtime, rule)).created_at for rule in (Rule.STALE, Rule.OUTSIDE)}
    assert by_rule[Rule.STALE].endswith(("in start", "in test_where_a_task_was_created_is_known_where_somebody_asked"))
    assert by_rule[Rule.OUTSIDE].endswith("in start")
    runtime.trace_origins(False)
    assert sys.get_coroutine_origin_tracking_depth() == 0
    sys.set_coroutine_origin_tracking_depth(depth)
    assert len(kept) == 3


async def test_origins_asked_for_by_settings_end_with_the_runtime() -> None:
    async with a_watched_runtime(origins=True) as runtime:
        kept = asyncio.create_task(hang())
        assert "test_origins_asked_for" in (await found(runtime, Rule.OUTSIDE)).created_at
        kept.cancel()
    assert sys.get_coroutine_origin_tracking_depth() == 0


async def test_a_kind_of_leak_is_logged_once_and_counted(runtime: ebbtide.Runtime, caplog: Any) -> None:
    consumers = runtime.scope("consumers", heartbeat_s=0.001)
    with caplog.at_level(logging.WARNING, "ebbtide"):
        for _ in range(3):
            consumers.spawn(hang())
            await found(runtime, Rule.STALE)
    said = [record.getMessage() for record in caplog.records if "leak suspected" in record.getMessage()]
    assert len(said) == 1
    assert "stale" in said[0]
    assert "in consumers" in said[0]
    await until(lambda: runtime.leaks()[0].count == 3)
    assert runtime.sample().leaks["stale"] == 3


async def test_the_log_is_not_filled_by_kinds_without_end(runtime: ebbtide.Runtime, caplog: Any) -> None:
    def make(number: int) -> Any:
        scope: dict[str, Any] = {"hang": hang}
        exec(f"async def kind_{number}(): await hang()", scope)
        return scope[f"kind_{number}"]

    consumers = runtime.scope("consumers", heartbeat_s=0.001)
    with caplog.at_level(logging.WARNING, "ebbtide"):
        for number in range(MOST_SAID + 5):
            consumers.spawn(make(number)())
        await until(lambda: len(runtime.leaks()) == MOST_SAID + 5)
    assert len(caplog.records) == MOST_SAID + 1
    assert "no more suspects" in caplog.records[-1].getMessage()


async def test_the_patrol_looks_in_a_thread_of_its_own_and_not_while_the_process_drains(
    runtime: ebbtide.Runtime,
) -> None:
    looked_in: list[str] = []
    look = runtime._leaks.look

    def note() -> Any:
        looked_in.append(threading.current_thread().name)
        return look()

    runtime._leaks.look = note  # type: ignore[method-assign]
    runtime._leaks.patrol()
    await until(lambda: looked_in)
    assert looked_in == ["ebbtide-leaks"]
    runtime._registry.intake_open = False
    runtime._leaks._next_at = 0.0
    runtime._leaks.patrol()
    runtime._registry.intake_open = True
    assert looked_in == ["ebbtide-leaks"]


async def test_text_and_json_tell_the_same(runtime: ebbtide.Runtime) -> None:
    runtime.scope("consumers", heartbeat_s=0.001).spawn(hang(), name="pump")
    await found(runtime, Rule.STALE)
    text = runtime.leaks_view({})
    assert text.startswith("1 suspected, 1 in flight, 1 kinds\n       1  stale      oldest")
    assert "POST /debug/leaks?origins=on" in text
    document = json.loads(runtime.leaks_view({"format": "json"}))
    assert document["counts"] == dict.fromkeys(map(str, Rule), 0) | {"stale": 1}
    assert document["findings"][0]["names"] == ["pump"]
    with pytest.raises(ValueError, match="format: must be text or json, not 'xml'"):
        runtime.leaks_view({"format": "xml"})
