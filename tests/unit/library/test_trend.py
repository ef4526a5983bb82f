"""What the number of tasks does, and how often that is told right."""

import logging
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.leaks.trend import LEAST_SAMPLES, Shape, Thresholds, Trend, classify
from ebbtide.leaks.trendwatch import CALM, KEPT, SURE, TrendWatch
from tests.bench.trend_quality import generate, scores


def test_leaks_and_churn_are_told_from_load_and_seldom_without_reason() -> None:
    found = scores(generate(3, 20), Thresholds())
    for shape, (precision, recall) in found.items():
        assert precision >= 0.85, shape
        assert recall >= 0.8, shape


@given(st.lists(st.integers(0, 10**6), max_size=LEAST_SAMPLES - 1))
def test_a_short_series_says_nothing(counts: list[int]) -> None:
    assert classify(counts, 10.0).shape is Shape.NORMAL


@given(st.lists(st.integers(0, 10**6), min_size=LEAST_SAMPLES, max_size=60), st.floats(0.1, 60))
def test_any_series_has_a_shape_and_growth_counts_per_second(counts: list[int], interval_s: float) -> None:
    trend = classify(counts, interval_s)
    slower = classify(counts, interval_s * 2)
    assert trend.shape is slower.shape
    assert trend.growth_per_s == pytest.approx(slower.growth_per_s * 2)


def test_the_growth_of_a_steady_leak_is_its_rate() -> None:
    trend = classify([100 + 5 * at for at in range(60)], 10.0)
    assert trend.shape is Shape.GROWTH
    assert trend.growth_per_s == pytest.approx(0.5, rel=0.05)


def test_a_change_of_shape_is_logged_once(caplog: Any) -> None:
    watch = TrendWatch(10.0)
    with caplog.at_level(logging.WARNING, "ebbtide"):
        for _ in range(60):
            watch.sample(10)
        for at in range(80):
            watch.sample(10 + 5 * at)
        assert watch.trend.shape is Shape.GROWTH
        for _ in range(KEPT + CALM):
            watch.sample(405)
    assert watch.trend.shape is Shape.NORMAL
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "went from normal to growth" in said[0]
    assert "went from growth to normal" in said[1]


def test_what_comes_and_goes_is_no_change_of_shape(caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([Shape.NORMAL, *[Shape.GROWTH] * (SURE - 1), Shape.NORMAL] * 3 + [Shape.GROWTH] * SURE)
    after = iter([*[Shape.NORMAL] * (CALM - 1), Shape.GROWTH] * 3)
    monkeypatch.setattr("ebbtide.leaks.trend.classify", lambda *_: Trend(next(answers), 1.0))
    watch = TrendWatch(10.0)
    with caplog.at_level(logging.WARNING, "ebbtide"):
        for _ in range(3 * (SURE + 1)):
            watch.sample(1)
            assert watch.trend.shape is Shape.NORMAL
        for _ in range(SURE):
            watch.sample(1)
        monkeypatch.setattr("ebbtide.leaks.trend.classify", lambda *_: Trend(next(after), 1.0))
        for _ in range(3 * CALM):
            watch.sample(1)
            assert watch.trend.shape is Shape.GROWTH
    assert len(caplog.records) == 1


def test_a_leak_that_is_under_way_is_still_one() -> None:
    """What has leaked raises the level, and makes no noise of its own."""
    rng = random.Random(1)
    counts = [500 + 3 * at + rng.randint(0, 12) for at in range(60)]
    assert classify(counts, 10.0).shape is Shape.GROWTH
