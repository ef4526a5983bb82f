from hypothesis import given
from hypothesis import strategies as st

from ebbtide.tasks.estimate import ENOUGH, remaining_s

seconds = st.floats(0.001, 1000)
samples = st.lists(seconds, min_size=ENOUGH, max_size=50).map(sorted)


def test_an_even_crowd_is_estimated_by_its_like() -> None:
    assert remaining_s([1.0], [4.0] * 10) == 3.0


def test_a_young_entry_may_be_one_of_the_slow_ones_where_many_are_in_flight() -> None:
    durations = sorted([0.1] * 90 + [60.0] * 10)
    assert remaining_s([0.0], durations) == 0.1
    assert remaining_s([0.0] * 50, durations) == 60.0


def test_an_old_entry_is_compared_with_those_that_lasted_as_long() -> None:
    assert remaining_s([2.0], sorted([0.1] * 50 + [10.0] * 5)) == 8.0


def test_says_nothing_where_too_few_have_finished() -> None:
    assert remaining_s([1.0], [2.0] * (ENOUGH - 1)) is None


@given(samples, st.lists(seconds, min_size=1, max_size=20))
def test_says_nothing_of_an_entry_that_is_older_than_all_before(durations: list[float], ages: list[float]) -> None:
    estimate = remaining_s(ages, durations)
    if max(ages) >= durations[-1]:
        assert estimate is None
    else:
        assert estimate is not None


@given(samples, st.lists(seconds, min_size=1, max_size=20))
def test_is_never_negative_and_never_more_than_the_longest_would_take(
    durations: list[float], ages: list[float]
) -> None:
    estimate = remaining_s(ages, durations)
    if estimate is not None:
        assert 0 <= estimate <= durations[-1] - min(ages)
