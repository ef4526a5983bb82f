"""What the rules suspect, and what they leave alone."""

from hypothesis import given
from hypothesis import strategies as st

from ebbtide.leaks.rules import Kind, Rule, Sight, Thresholds, judge, usual_s
from ebbtide.tasks.heartbeats import MISSED_BEATS

seconds = st.floats(0, 1e7)
some_seconds = st.none() | seconds
kinds = st.builds(Kind, some_seconds, st.none() | st.floats(0.001, 1e6), st.booleans())
sights = st.builds(Sight, kinds, seconds, some_seconds, st.none() | st.floats(-1e6, 1e6))
thresholds = st.builds(Thresholds, least_age_s=seconds, times_usual=st.floats(1, 100), enough=st.integers(1, 200))


@given(sights, thresholds)
def test_what_was_cancelled_is_suspected_of_nothing_but_swallowing_it(sight: Sight, limits: Thresholds) -> None:
    if sight.cancelled_s is not None:
        assert judge(sight, limits) is (Rule.SWALLOWED if sight.cancelled_s > 0 else None)
    else:
        assert judge(sight, limits) is not Rule.SWALLOWED


@given(sights, thresholds)
def test_young_work_is_suspected_only_where_it_breaks_its_own_word(sight: Sight, limits: Thresholds) -> None:
    found = judge(sight, limits)
    if sight.age_s < limits.least_age_s:
        assert found in {None, Rule.STALE, Rule.SWALLOWED}


@given(sights, thresholds)
def test_what_beats_in_time_is_never_stale_nor_overdue(sight: Sight, limits: Thresholds) -> None:
    heartbeat_s = sight.kind.heartbeat_s
    if heartbeat_s is not None and sight.beat_age_s is not None and sight.beat_age_s <= MISSED_BEATS * heartbeat_s:
        assert judge(sight, limits) not in {Rule.STALE, Rule.OVERDUE}


@given(sights, thresholds, seconds)
def test_what_is_suspected_stays_so_as_it_ages(sight: Sight, limits: Thresholds, more_s: float) -> None:
    if judge(sight, limits) is not None:
        later = sight._replace(
            age_s=sight.age_s + more_s,
            beat_age_s=None if sight.beat_age_s is None else sight.beat_age_s + more_s,
            cancelled_s=None if sight.cancelled_s is None else sight.cancelled_s + more_s,
        )
        assert judge(later, limits) is not None


@given(st.lists(seconds, max_size=200), thresholds)
def test_the_usual_is_one_of_what_was_seen_and_few_are_slower(durations: list[float], limits: Thresholds) -> None:
    found = usual_s(durations, limits)
    if len(durations) < limits.enough:
        assert found is None
    else:
        assert found in durations
        assert sum(duration > found for duration in durations) <= len(durations) / 100


def test_each_rule_has_its_case() -> None:
    limits = Thresholds()
    usual = Kind(usual_s=2.0)
    assert judge(Sight(usual, 59.0), limits) is None
    assert judge(Sight(usual, 61.0), limits) is Rule.OVERDUE
    assert judge(Sight(Kind(usual_s=7.0), 61.0), limits) is None
    assert judge(Sight(Kind(), 1e6), limits) is None
    assert judge(Sight(usual, 61.0, beat_age_s=1.0), limits) is None
    assert judge(Sight(Kind(heartbeat_s=10.0), 31.0, beat_age_s=31.0), limits) is Rule.STALE
    assert judge(Sight(Kind(orphaned=True), 61.0), limits) is Rule.FORGOTTEN
    assert judge(Sight(usual, 61.0, cancelled_s=-1.0), limits) is None
    assert judge(Sight(usual, 61.0, cancelled_s=1.0), limits) is Rule.SWALLOWED
