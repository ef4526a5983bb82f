"""What is said of a drain when it is over, and so far."""

import asyncio
import json
import logging
import threading
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebbtide
from ebbtide.lifecycle.drainreport import DrainReport, Finisher, HookRecord, PhaseTime, Straggler
from ebbtide.lifecycle.drainwatch import SLOWEST, STRAGGLERS
from ebbtide.protocol import MOST_DRAIN_BYTES, TASK_OUTCOMES, Outcome, PodState, RecordError, Report
from tests.unit.library.runtimes import a_runtime, until, without_collector

names = st.text(max_size=300)
times = st.floats(min_value=0.0, max_value=1e9)
outcomes = st.sampled_from(TASK_OUTCOMES)
finishers = st.builds(Finisher, names, names, names, times, times, outcomes)
stragglers = st.builds(
    Straggler, names, names, names, times, names, st.lists(names, max_size=3).map(tuple), st.none() | outcomes
)
reports = st.builds(
    DrainReport,
    outcome=st.none() | st.sampled_from(Outcome),
    reason=names,
    started_at=times,
    took_s=times,
    budget_s=times,
    phases=st.lists(st.builds(PhaseTime, st.sampled_from(PodState), times, times), max_size=3),
    active_at_start=st.integers(0, 2**40),
    active=st.integers(0, 2**40),
    counts=st.dictionaries(outcomes, st.integers(1, 2**40)),
    late_arrivals=st.integers(0, 2**40),
    slowest=st.lists(finishers, max_size=SLOWEST),
    stragglers=st.lists(stragglers, max_size=5),
    stragglers_in_all=st.integers(0, 2**40),
    hooks=st.lists(st.builds(HookRecord, names, times, st.none() | names), max_size=5),
)


@given(report=reports)
def test_a_digest_fits_the_store_whatever_the_tasks_are_called(report: DrainReport) -> None:
    digest = report.digest()
    assert len(json.dumps(digest)) <= MOST_DRAIN_BYTES
    said = Report(state=PodState.DRAINED, sequence=1, boot_id="b", drain=digest)
    assert Report.decode(said.encode()) == said


@given(report=reports)
def test_a_report_is_json_and_its_line_is_one_line_of_the_log(report: DrainReport) -> None:
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["reason"] == report.reason
    assert len(report.line().splitlines()) == 1


def test_a_line_says_what_a_person_asks_first() -> None:
    report = DrainReport(
        outcome=Outcome.CANCELLED,
        reason="signal: SIGTERM",
        started_at=1.0,
        took_s=61.234,
        budget_s=75.0,
        phases=[PhaseTime("Draining", 60.0, 60.0), PhaseTime("Cancelling", 10.0, 1.234)],
        active_at_start=3,
        counts={"finished": 2, "cancelled": 1},
        slowest=[Finisher("order-7", "task", "orders", 90.0, 61.2, "cancelled")],
        stragglers=[Straggler("order-7", "task", "orders", 90.0, "shop.py:7 in pay", (), "cancelled")],
        stragglers_in_all=1,
    )
    assert report.line() == (
        "drain cancelled in 61.2 of 75 s (signal: SIGTERM); Draining 60 of 60 s, Cancelling 1.23 of 10 s; "
        "3 in flight at its start: 2 finished, 1 cancelled; slowest: order-7 of orders (cancelled after 61.2 s); "
        "stragglers: order-7 of orders (cancelled) at shop.py:7 in pay"
    )


@pytest.mark.parametrize("drain", [{"name": "x" * MOST_DRAIN_BYTES}, {"took_s": float("inf")}, ["no object"]])
def test_a_report_whose_drain_is_no_small_object_cannot_be_read(drain: Any) -> None:
    written = json.dumps({"v": 1, "state": "Drained", "sequence": 1, "boot_id": "b", "drain": drain}).encode()
    with pytest.raises(RecordError, match="report: drain: must be an object"):
        Report.decode(written)


async def test_a_clean_drain_names_the_slowest_first() -> None:
    async with a_runtime() as runtime:
        orders = runtime.scope("orders")
        ends = [asyncio.Event() for _ in range(3)]
        tasks = [orders.spawn(end.wait(), name=f"order-{place}") for place, end in enumerate(ends)]
        runtime.drain("test", leave=False)
        for end, task in zip(ends, tasks, strict=True):
            end.set()
            await task
        await until(lambda: runtime.state is PodState.DRAINED)
        report = runtime.drain_report()
    assert report is not None
    assert (report.outcome, report.reason) == (Outcome.CLEAN, "api: test")
    assert (report.active_at_start, report.counts) == (3, {"finished": 3})
    assert [item.name for item in report.slowest] == ["order-2", "order-1", "order-0"]
    assert report.stragglers == ()
    assert [phase.state for phase in report.phases] == ["Quiescing", "Draining"]
    assert sum(phase.took_s for phase in report.phases) == pytest.approx(report.took_s)
    assert report.budget_s == 35.0


async def test_the_slowest_are_few_however_many_end() -> None:
    async with a_runtime() as runtime:
        orders = runtime.scope("orders")
        go_on = asyncio.Event()
        tasks = [orders.spawn(go_on.wait()) for _ in range(3 * SLOWEST)]
        runtime.drain("test", leave=False)
        go_on.set()
        await asyncio.wait(tasks)
        await until(lambda: runtime.state is PodState.DRAINED)
        report = runtime.drain_report()
    assert report is not None
    assert len(report.slowest) == SLOWEST
    assert report.counts == {"finished": 3 * SLOWEST}


async def test_stragglers_are_shown_where_they_were_and_with_their_end() -> None:
    give_up = asyncio.Event()

    async def obedient() -> None:
        await asyncio.sleep(3600)

    async def deaf() -> None:
        while not give_up.is_set():
            try:
                await give_up.wait()
            except asyncio.CancelledError:
                continue

    stuck = threading.Event()
    async with a_runtime(drain_timeout_s=0.02, cancel_grace_s=0.1) as runtime:
        orders = runtime.scope("orders")
        for _ in range(STRAGGLERS):
            orders.spawn(obedient())
        task = orders.spawn(deaf(), name="deaf")
        thread = orders.thread(stuck.wait)
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.DRAINED)
        report = runtime.drain_report()
        give_up.set()
        stuck.set()
        await task
        await asyncio.wrap_future(thread)
    assert report is not None
    assert report.outcome is Outcome.ABANDONED
    assert report.counts == {"cancelled": STRAGGLERS, "abandoned": 2}
    assert report.stragglers_in_all == STRAGGLERS + 2
    assert len(report.stragglers) == STRAGGLERS
    first, second, *rest = report.stragglers
    assert (first.name, first.outcome) == ("deaf", "abandoned")
    assert "in test_stragglers_are_shown_where_they_were_and_with_their_end.<locals>.deaf" in first.where
    assert (second.kind, second.outcome) == ("thread", "abandoned")
    assert "threading.py" in second.stack[-1]
    assert {item.outcome for item in rest} == {"cancelled"}
    assert [phase.state for phase in report.phases] == ["Quiescing", "Draining", "Cancelling"]


async def test_those_that_were_cancelled_are_freed_when_the_drain_is_over() -> None:
    # Without the collector: what a crowd of ended tasks held would stay until it comes, and its coming stops the loop.
    async with a_runtime(drain_timeout_s=0.02) as runtime:
        orders = runtime.scope("orders")
        with without_collector():
            seen = [weakref.ref(orders.spawn(asyncio.sleep(3600))) for _ in range(2 * STRAGGLERS)]
            runtime.drain("test", leave=False)
            await until(lambda: runtime.state is PodState.DRAINED and runtime.drain_report())
            await until(lambda: not any(reference() for reference in seen))


async def test_a_report_can_be_read_while_the_drain_goes_on_and_when_it_is_taken_back() -> None:
    async with a_runtime() as runtime:
        assert runtime.drain_report() is None
        go_on = asyncio.Event()
        task = runtime.scope("orders").spawn(go_on.wait())
        runtime.drain("test", leave=False)
        so_far = runtime.drain_report()
        assert so_far is not None
        assert (so_far.outcome, so_far.active) == (None, 1)
        runtime.undrain()
        taken_back = runtime.drain_report()
        assert taken_back is not None
        assert taken_back.outcome is Outcome.RETURNED
        go_on.set()
        await task
        runtime.drain("again", leave=False)
        again = runtime.drain_report()
        assert again is not None
        assert (again.reason, again.counts) == ("api: again", {})


async def test_a_drain_is_logged_in_one_line_when_it_is_over(caplog: Any) -> None:
    with caplog.at_level(logging.INFO, "ebbtide"):
        async with a_runtime() as runtime:
            go_on = asyncio.Event()
            runtime.scope("orders").spawn(go_on.wait())
            runtime.on_drain(go_on.set)
    lines = [record.getMessage() for record in caplog.records if " drain clean in " in record.getMessage()]
    assert len(lines) == 1
    assert "1 finished" in lines[0]


async def test_the_operator_is_told_of_the_drain_once_it_is_over() -> None:
    async with a_runtime() as runtime:
        assert runtime._views.report(1, 0).drain is None
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.DRAINED)
        said = runtime._views.report(2, 0).drain
        assert said is not None
        assert (said["outcome"], said["reason"]) == ("clean", "api: test")


async def test_hooks_are_part_of_the_report_with_their_errors() -> None:
    def broken() -> None:
        raise RuntimeError("hook")

    async with a_runtime() as runtime:
        runtime.on_exit(broken)
    report = runtime.drain_report()
    assert report is not None
    assert [record.error for record in report.hooks] == ["RuntimeError('hook')"]
    assert "broken" in report.digest()["failed_hooks"][0]


def test_the_report_is_part_of_the_public_interface() -> None:
    assert ebbtide.DrainReport is DrainReport
