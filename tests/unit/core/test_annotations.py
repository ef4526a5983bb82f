import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.core import names
from ebbtide_operator.core.annotations import KNOWN, duration, read_policy
from ebbtide_operator.core.model import Mode, Policy

MANAGED = {names.DRAIN: "managed"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("0s", 0), ("1.5m", 90)]
)
def test_durations_are_read_as_kubernetes_users_write_them(text: str, seconds: float) -> None:
    assert duration(text, 86400) == seconds


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_every_composed_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: int) -> None:
    assert duration(f"{hours}h{minutes}m{seconds}s", 86400) == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize("text", ["soon", "", "-5s", "5", "5 s", "5x", "s", "1e3s", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration like 90s, 5m or 1h30m"):
        duration(text, 86400)


def test_a_missing_unit_is_suggested() -> None:
    with pytest.raises(ValueError, match=r"a unit is missing: 300s\?"):
        duration("300", 86400)


def test_without_our_annotations_a_workload_is_off() -> None:
    policy, problems = read_policy({"deployment.kubernetes.io/revision": "3"}, Policy(quiesce_s=1))
    assert (policy.mode, problems) == (Mode.OFF, ())


def test_all_annotations_are_read_and_defaults_fill_the_rest() -> None:
    policy, problems = read_policy(
        MANAGED | {names.DRAIN_TIMEOUT: "5m", names.MAX_DRAINING: "25%", names.CONTAINER: "app"},
        Policy(quiesce_s=2, cancel_grace_s=3),
    )
    assert problems == ()
    assert policy == Policy(Mode.MANAGED, 300, 3, 2, "25%", "app")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (names.DRAIN, "yes"),
        (names.DRAIN_TIMEOUT, "soon"),
        (names.DRAIN_TIMEOUT, "25h"),
        (names.CANCEL_GRACE, "11m"),
        (names.QUIESCE, "6m"),
        (names.MAX_DRAINING, "0"),
        (names.MAX_DRAINING, "101%"),
        (names.MAX_DRAINING, "half"),
        (names.CONTAINER, "My App"),
    ],
)
def test_a_wrong_value_switches_off_and_names_annotation_value_and_fix(name: str, text: str) -> None:
    policy, (problem,) = read_policy(MANAGED | {name: text}, Policy())
    assert policy.mode is Mode.OFF
    assert problem.fatal
    assert problem.annotation == name
    assert problem.message.startswith(f"{name}: must be ")
    assert problem.message.endswith(f"not {text!r}")


def test_an_unknown_annotation_is_a_warning_with_the_nearest_name() -> None:
    policy, (problem,) = read_policy(MANAGED | {"ebbtide.dev/drain-timout": "5m"}, Policy())
    assert policy.mode is Mode.MANAGED
    assert not problem.fatal
    assert "did you mean ebbtide.dev/drain-timeout?" in problem.message


@given(st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=20).map("ebbtide.dev/".__add__), st.text(max_size=80)))
def test_no_annotation_whatever_breaks_the_reader(annotations: dict[str, str]) -> None:
    policy, problems = read_policy(annotations, Policy())
    assert policy.mode is Mode.OFF or not any(problem.fatal for problem in problems)
    assert all(len(problem.message) < 400 for problem in problems)
