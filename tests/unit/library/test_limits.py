"""The rules of admission, on a clock of the test's own."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.tasks.limits import Admission, Breaker, Limits, TokenBucket

GAPS = st.lists(st.floats(0, 5, allow_subnormal=False), max_size=60)
RATES = st.floats(0.1, 1000)
BURSTS = st.integers(1, 50)


def taken_at(bucket: TokenBucket, gaps: Sequence[float]) -> list[float]:
    now, taken = 1000.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            taken.append(now)
    return taken


@given(RATES, BURSTS, GAPS)
def test_no_stretch_of_time_has_more_than_the_burst_and_the_rate(rate: float, burst: int, gaps: list[float]) -> None:
    taken = taken_at(TokenBucket(rate, burst), gaps)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - start) + 1e-3


@given(RATES, BURSTS, GAPS)
def test_the_wait_that_is_told_is_enough_and_not_too_long(rate: float, burst: int, gaps: list[float]) -> None:
    bucket = TokenBucket(rate, burst)
    taken_at(bucket, gaps)
    now = 1000.0 + sum(gaps)
    wait_s = bucket.wait_s(now)
    assert wait_s <= 1 / rate + 1e-6
    if wait_s > 1e-6:
        assert not bucket.take(now + wait_s / 2)
    assert bucket.take(now + wait_s + 1e-6)


@given(RATES, BURSTS)
def test_after_a_quiet_time_the_whole_burst_is_there_and_no_more(rate: float, burst: int) -> None:
    bucket = TokenBucket(rate, burst)
    assert len(taken_at(bucket, [0.0] * (burst + 5))) == burst
    assert sum(bucket.take(1000.0 + 2 * burst / rate + 1) for _ in range(burst + 5)) == burst


@given(RATES, BURSTS, st.integers(1, 20))
def test_a_token_given_back_is_there_again(rate: float, burst: int, taken: int) -> None:
    bucket = TokenBucket(rate, burst)
    while bucket.take(1000.0):
        pass
    bucket.give_back()
    assert bucket.take(1000.0)
    assert not bucket.take(1000.0)


@given(st.floats(1, 1000), BURSTS, st.integers(1, 30))
def test_reserved_tokens_come_one_interval_after_the_other(rate: float, burst: int, count: int) -> None:
    bucket = TokenBucket(rate, burst)
    waits = [bucket.reserve(1000.0) for _ in range(burst + count)]
    assert waits[:burst] == [0.0] * burst
    for place, wait_s in enumerate(waits[burst:], 1):
        assert math.isclose(wait_s, place / rate, rel_tol=1e-6, abs_tol=2e-6)


@given(RATES, BURSTS, RATES, BURSTS, st.integers(0, 60))
def test_a_changed_rate_keeps_account_of_tokens(
    rate: float, burst: int, next_rate: float, next_burst: int, wanted: int
) -> None:
    bucket = TokenBucket(rate, burst)
    taken = sum(bucket.take(1000.0) for _ in range(wanted))
    bucket.change(next_rate, next_burst, 1000.0)
    left = sum(bucket.take(1000.0) for _ in range(next_burst + 5))
    assert left == max(0, next_burst - taken)
    bucket.change(math.inf, 1, 1000.0)
    assert bucket.take(1000.0)


def test_a_bucket_without_a_rate_always_has_a_token() -> None:
    bucket = TokenBucket(math.inf, 1)
    assert all(bucket.take(1000.0) for _ in range(1000))
    assert bucket.reserve(1000.0) == 0


EVENTS = st.lists(
    st.tuples(st.sampled_from(["start", "timed_out", "ended", "dropped", "wait"]), st.integers(0, 5)), max_size=80
)


@given(EVENTS, st.integers(1, 5))
def test_a_breaker_stops_exactly_after_the_row_and_is_never_stuck(events: list[tuple[str, int]], timeouts: int) -> None:
    breaker = Breaker(timeouts, 10.0)
    now, number, running, row = 1000.0, 0, [], 0
    for what, which in events:
        if what == "wait":
            now += which * 3
        elif what == "start":
            if breaker.admits(now):
                number += 1
                breaker.admitted(number)
                running.append(number)
        elif running:
            task = running.pop(which % len(running))
            was_closed = breaker.opened_at is None
            if what == "timed_out":
                row += 1
                opened = breaker.timed_out(task, now)
                if was_closed:
                    assert opened == (row >= timeouts)
            elif what == "ended":
                breaker.ended(task)
                if was_closed:
                    row = 0
            else:
                breaker.dropped(task)
            if breaker.opened_at is None and not was_closed:
                row = 0
        if breaker.opened_at is not None:
            assert not breaker.admits(breaker.opened_at + 9.99)
    for task in running:
        breaker.dropped(task)
    assert breaker.admits(now + 11)


def test_a_half_open_breaker_lets_one_through_and_goes_by_its_end() -> None:
    breaker = Breaker(2, 10.0)
    for number in (1, 2):
        breaker.timed_out(number, 1000.0)
    assert (breaker.state(1005.0), breaker.admits(1005.0), breaker.wait_s(1005.0)) == ("open", False, 5.0)
    assert breaker.admits(1010.0)
    breaker.admitted(3)
    assert not breaker.admits(1010.0)
    breaker.ended(99)
    assert breaker.state(1010.0) == "half-open", "an old task's end says nothing of now"
    breaker.timed_out(3, 1020.0)
    assert (breaker.state(1029.0), breaker.trips) == ("open", 2)
    breaker.admitted(4)
    breaker.ended(4)
    assert breaker.state(1030.0) == "closed"


LIMITS = st.builds(
    Limits,
    max_tasks=st.none() | st.integers(1, 9),
    rate_per_s=st.none() | st.floats(0.1, 9),
    breaker_timeouts=st.none() | st.integers(1, 9),
    breaker_pause_s=st.none() | st.floats(0, 9),
    admission=st.none() | st.sampled_from(Admission),
    wait_s=st.none() | st.floats(0, 9),
)


@given(LIMITS, LIMITS)
def test_a_scope_is_never_looser_than_its_parent(own: Limits, parent: Limits) -> None:
    held = own.inside(parent)
    for name in ("max_tasks", "rate_per_s", "breaker_timeouts"):
        known = [value for value in (getattr(own, name), getattr(parent, name)) if value is not None]
        assert getattr(held, name) == min(known, default=None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tasks": 0}, "max_tasks"),
        ({"rate_per_s": 0}, "rate_per_s"),
        ({"rate_per_s": math.inf}, "rate_per_s"),
        ({"burst": 5}, "burst"),
        ({"breaker_timeouts": 1.5}, "breaker_timeouts"),
        ({"wait_s": -1}, "wait_s"),
        ({"admission": "queue"}, "queue"),
    ],
)
def test_a_wrong_limit_is_named(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Limits(**fields)  # type: ignore[arg-type]


def test_limits_are_changed_by_what_people_write() -> None:
    changed = Limits.defaults().changed({"max_tasks": "none", "rate_per_s": "2.5", "admission": "shed"})
    assert (changed.max_tasks, changed.rate_per_s, changed.admission) == (None, 2.5, Admission.SHED)
    for texts in ({"max_task": "1"}, {"max_tasks": "many"}, {"max_tasks": "-1"}, {"admission": "queue"}):
        with pytest.raises(ValueError, match=next(iter(texts))):
            Limits().changed(texts)
