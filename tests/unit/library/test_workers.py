"""How workers add up to a pod, and who belongs to it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebbtide.admin.exposition import Numbers
from ebbtide.lifecycle.machine import Durations, Source
from ebbtide.protocol import MOST_DRAIN_BYTES, Desired, Order, PodState, Report
from ebbtide.workers.drains import merged_drain
from ebbtide.workers.group import REMEMBERED, Group, Told, durations_left, order_left
from ebbtide.workers.snapshot import ADVANCE, Snapshot, least_advanced, merged_numbers, merged_report

FEW = settings(max_examples=30)
COUNTS = st.dictionaries(st.sampled_from(["finished", "failed", "abandoned"]), st.integers(1, 100))


@st.composite
def snapshots(draw: st.DrawFn, worker: str | None = None) -> Snapshot:
    active = draw(st.integers(0, 50))
    report = Report(
        state=draw(st.sampled_from(PodState)),
        sequence=0,
        boot_id="own",
        generation=draw(st.integers(0, 5)),
        active=active,
        oldest_age_s=draw(st.floats(0, 1e6)),
        eta_s=draw(st.none() | st.floats(0, 1e6)),
        tally=draw(COUNTS),
        forced=draw(st.booleans()),
    )
    return Snapshot(
        worker=worker or draw(st.uuids()).hex,
        pid=draw(st.integers(1, 99999)),
        parent=1,
        report=report,
        ready=draw(st.booleans()),
        awaited=draw(st.integers(0, active)),
        refusals=draw(st.dictionaries(st.just("limit"), st.integers(1, 9))),
        more=draw(st.dictionaries(st.just("restarts"), st.integers(1, 9))),
        max_tasks=draw(st.none() | st.integers(1, 100)),
        leaks=draw(st.dictionaries(st.just("old"), st.integers(1, 9))),
    )


def a_worker(
    state: PodState = PodState.SERVING, worker: str = "one", *, awaited: int = 0, **fields: object
) -> Snapshot:
    report = replace(Report(state=state, sequence=0, boot_id="own", active=awaited), **fields)  # type: ignore[arg-type]
    return Snapshot(worker=worker, pid=1, parent=0, report=report, awaited=awaited)


def merged(*workers: Snapshot) -> Report:
    return merged_report(workers, {}, sequence=7, boot_id="pod", phase_revision=3)


@FEW
@given(snapshots())
def test_a_pod_of_one_worker_reports_what_the_worker_would(worker: Snapshot) -> None:
    report = merged(worker)
    expected = replace(worker.report, sequence=7, boot_id="pod", phase_revision=3)
    # One without tasks has nothing to wait for, whatever it last guessed.
    assert report == replace(expected, eta_s=expected.eta_s if expected.active else 0.0)


@FEW
@given(st.lists(snapshots(), min_size=1, max_size=4))
def test_counts_add_up_and_ages_do_not(workers: list[Snapshot]) -> None:
    report = merged(*workers)
    reports = [each.report for each in workers]
    assert report.active == sum(each.active for each in reports)
    assert report.oldest_age_s == max(each.oldest_age_s for each in reports)
    assert sum(report.tally.values()) == sum(sum(each.tally.values()) for each in reports)
    numbers = merged_numbers(Numbers(PodState.SERVING, 0, 0.0, leaks={"old": 7}), workers, {})
    assert numbers.leaks == {"old": sum(each.leaks.get("old", 0) for each in workers)}
    assert (numbers.active, numbers.tally, numbers.state) == (report.active, report.tally, report.state)


@given(st.lists(st.sampled_from(PodState), min_size=1))
def test_a_pod_is_as_far_as_its_least_advanced_worker(states: list[PodState]) -> None:
    state = least_advanced(states)
    assert state in states
    assert all(ADVANCE.index(state) <= ADVANCE.index(each) for each in states)


def test_a_pod_is_drained_only_when_the_last_worker_is() -> None:
    drained, draining = a_worker(PodState.DRAINED), a_worker(PodState.DRAINING)
    assert merged(drained, draining).state is PodState.DRAINING
    assert merged(drained, drained).state is PodState.DRAINED


def test_an_order_is_obeyed_when_every_worker_that_can_obeyed_it() -> None:
    done, behind = a_worker(generation=2), a_worker(generation=1)
    assert merged(done, behind).generation == 1
    assert merged(done, a_worker(PodState.EXITING, generation=1)).generation == 2


def test_the_estimate_is_the_longest_and_nobody_knows_where_one_does_not() -> None:
    knows, longer, does_not, idle = (
        a_worker(active=1, eta_s=2.0),
        a_worker(active=1, eta_s=5.0),
        a_worker(active=1, eta_s=None),
        a_worker(eta_s=None),
    )
    assert merged(knows, longer, idle).eta_s == 5.0
    assert merged(knows, does_not).eta_s is None


@FEW
@given(st.lists(snapshots(), max_size=4))
def test_what_is_told_over_the_socket_arrives(workers: list[Snapshot]) -> None:
    group = Group("boot")
    for each in workers:
        group.update(each)
    if workers:
        group.leave(workers[0].worker, "other")
    group.told = Told().ordered(Order(desired=Desired.DRAIN, generation=1, epoch=1), 5.0)
    group.told = group.told.asked(Source.PRESTOP, "", leave=True, now=6.0)
    sent = json.loads(json.dumps(group.encode()))
    again = Group.decode(sent)
    assert json.loads(json.dumps(again.encode())) == sent
    assert again.report(0) == group.report(0)


@pytest.mark.parametrize("ordered", [True, False], ids=["order", "prestop"])
def test_what_leaves_is_not_taken_back_whoever_asked(ordered: bool) -> None:
    order = Order(desired=Desired.DRAIN, generation=1, epoch=1, leave=True)
    told = Told().ordered(order, 5.0) if ordered else Told().asked(Source.PRESTOP, "", leave=True, now=5.0)
    assert told.undrained().to_drain
    stays = Told().ordered(Order(desired=Desired.DRAIN, generation=1, epoch=1), 5.0)
    assert not stays.undrained().to_drain


@FEW
@given(snapshots(worker="lost"), snapshots(worker="stays"))
def test_what_a_lost_worker_had_in_flight_is_abandoned_once(lost: Snapshot, stays: Snapshot) -> None:
    group = Group("boot")
    group.update(lost)
    group.update(stays)
    before = group.report(0)
    assert group.leave("lost", "other") is lost
    assert group.leave("lost", "other") is None
    after = group.report(0)
    abandoned = after.tally.get("abandoned", 0) - before.tally.get("abandoned", 0)
    assert abandoned == lost.awaited
    assert after.active == stays.report.active
    group.update(lost)
    assert group.report(0).tally == before.tally, "it was only frozen"
    assert group.report(0).active == before.active


def test_only_so_many_that_left_are_remembered() -> None:
    group = Group("boot")
    for number in range(10 * REMEMBERED):
        group.update(a_worker(worker=str(number), awaited=1))
        group.leave(str(number), "other")
    assert group.report(0).tally == {"abandoned": 10 * REMEMBERED}
    assert len(group.encode()["left"]) == REMEMBERED


def test_a_pod_whose_cancelled_workers_are_gone_is_another_one() -> None:
    group = Group("boot")
    for worker, forced in (("one", True), ("two", True), ("three", False)):
        group.update(a_worker(worker=worker, forced=forced))
    group.leave("one", "other")
    assert group.boot_id == "boot", "a worker of it still cannot serve again"
    group.leave("two", "other")
    assert (group.boot_id, group.report(0).forced) == ("other", False)


def a_digest(outcome: str | None, took_s: float, held_s: float, name: str = "task") -> dict[str, Any]:
    return {
        "outcome": outcome,
        "reason": "order",
        "started_at": 100.0 - took_s,
        "took_s": took_s,
        "budget_s": 60.0,
        "phases": {"Draining": took_s},
        "active_at_start": 2,
        "counts": {"finished": 1, str(outcome): 1},
        "late_arrivals": 1,
        "slowest": [{"name": name, "held_s": held_s, "outcome": "finished"}],
        "stragglers_in_all": 1,
        "stragglers": [{"name": name, "where": name, "outcome": None}],
        "failed_hooks": [],
    }


def test_the_drain_of_a_pod_is_that_of_its_slowest_worker_and_as_bad_as_the_worst() -> None:
    merged = merged_drain([a_digest("abandoned", 3.0, 1.0), a_digest("clean", 5.0, 4.0)])
    assert merged is not None
    assert (merged["outcome"], merged["took_s"], merged["phases"]) == ("abandoned", 5.0, {"Draining": 5.0})
    assert merged["counts"] == {"finished": 2, "abandoned": 1, "clean": 1}
    assert [item["held_s"] for item in merged["slowest"]] == [4.0, 1.0]
    assert (merged["active_at_start"], merged["stragglers_in_all"]) == (4, 2)
    assert merged_drain([]) is None


def test_the_drain_of_a_pod_fits_the_store_whatever_its_tasks_are_called() -> None:
    merged = merged_drain([a_digest("clean", 1.0, 1.0, name="\N{SNOWMAN}" * 80) for _ in range(20)])
    assert len(json.dumps(merged)) <= MOST_DRAIN_BYTES


DURATIONS = st.floats(0, 1e4)


@given(DURATIONS, DURATIONS, DURATIONS, DURATIONS)
def test_a_worker_that_comes_later_ends_with_the_others(
    quiesce_s: float, timeout_s: float, grace_s: float, elapsed_s: float
) -> None:
    whole = Durations(quiesce_s, timeout_s, grace_s)
    left = durations_left(whole, elapsed_s)
    assert abs(left.budget_s - max(0.0, whole.budget_s - elapsed_s)) < 1e-6
    assert left.quiesce_s <= quiesce_s
    assert left.drain_timeout_s <= timeout_s
    # A part that has begun is over before the next one is touched.
    assert left.quiesce_s == 0 or left.drain_timeout_s == timeout_s
    assert left.drain_timeout_s == 0 or left.cancel_grace_s == grace_s


def test_an_order_for_a_late_worker_is_the_same_order() -> None:
    order = Order(desired=Desired.DRAIN, generation=4, epoch=2, quiesce_s=5, drain_timeout_s=60, cancel_grace_s=10)
    late = order_left(order, 15)
    assert (late.generation, late.epoch) == (4, 2)
    assert (late.quiesce_s, late.drain_timeout_s, late.cancel_grace_s) == (0, 50, 10)


def test_an_order_to_serve_takes_back_what_a_person_asked_for_and_not_what_the_kubelet_did() -> None:
    serve = Order(desired=Desired.SERVE, generation=1, epoch=1)
    asked = Told().asked(Source.API, "", leave=False, now=1.0)
    assert asked.to_drain
    assert not asked.ordered(serve, 2.0).to_drain
    leaving = asked.asked(Source.PRESTOP, "", leave=True, now=2.0)
    assert leaving.ordered(serve, 3.0).to_drain
    assert leaving.undrained().to_drain
    assert not asked.undrained().to_drain


def test_what_a_person_took_back_is_over_until_the_next_order() -> None:
    order = Order(desired=Desired.DRAIN, generation=1, epoch=1)
    returned = Told().ordered(order, 1.0).undrained()
    assert not returned.to_drain
    assert not returned.ordered(order, 2.0).to_drain, "it was seen before"
    assert returned.ordered(replace(order, generation=2), 2.0).to_drain
    assert returned.asked(Source.API, "", leave=False, now=2.0).to_drain


def test_an_order_is_counted_from_its_first_receipt() -> None:
    order = Order(desired=Desired.DRAIN, generation=1, epoch=1)
    told = Told().ordered(order, 5.0)
    assert told.ordered(order, 9.0).order_at == 5.0
    assert told.ordered(replace(order, generation=2), 9.0).order_at == 9.0
    assert told.forgotten().ordered(order, 9.0).order_at == 9.0
