"""What the demo says in the end, and its exit code."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from charts.dashboards.verify import QueryResult
from demo.cluster_api import CommandError, Kubectl
from demo.findings import Findings
from demo.options import choose_pace, choose_subjects, parse_arguments
from demo.progress import Progress
from demo.results import Row
from demo.scenes import Pace, scenes

GOOD = Row(
    scene="rollout",
    deployment="orders-managed",
    sent=100,
    finished=100,
    lost=0,
    duplicated=0,
    turned_away=0,
    open=0,
    refusals=3,
    interrupted_for_nothing=0,
    over_s=30.0,
    status_s=30.0,
    peak_pods=15,
    least_serving=9,
    signal_p50_s=0.1,
    signal_p99_s=0.2,
    signals=12,
    starting=0,
    starting_signal_s=None,
    closed_p50_s=5.1,
    release_p50_s=0.03,
    release_p99_s=0.1,
    removed_pods=12,
    writes_per_pod=9.0,
    own_writes_per_pod=2.5,
    own_pod_writes_per_pod=2.0,
    held_requests=10,
)


def problems(*rows: Row, empty: bool = False) -> list[str]:
    result = QueryResult("Drains", "A", "up", 0 if empty else 1, 0 if empty else 1)
    findings = Findings(rows=list(rows), dashboard=[result])
    findings.judge()
    return findings.problems


def test_a_good_run_has_no_problem() -> None:
    assert problems(GOOD, replace(GOOD, scene="scale-down")) == []


@pytest.mark.parametrize("change", [{"lost": 1}, {"duplicated": 1}, {"open": 1}, {"over_s": None}])
def test_a_promise_that_was_broken_is_a_problem(change: dict[str, int | None]) -> None:
    (found,) = problems(replace(GOOD, **change))  # type: ignore[arg-type]
    assert found.startswith("rollout: orders-managed:")


def test_what_other_deployments_lose_is_no_problem() -> None:
    assert problems(replace(GOOD, deployment="orders-plain", lost=40)) == []


def test_an_empty_panel_is_a_problem() -> None:
    assert problems(GOOD, empty=True) == ["dashboard: no data in Drains"]


def test_the_load_follows_the_replicas() -> None:
    assert choose_pace(parse_arguments([])) == Pace()
    double = choose_pace(parse_arguments(["--replicas", "24"]))
    assert double.rate == 2 * Pace().rate
    with pytest.raises(ValueError, match="--replicas: must be between"):
        choose_pace(parse_arguments(["--replicas", "1"]))


def test_quick_is_one_scene() -> None:
    assert [scene.name for scene in scenes(Pace(), quick=True)] == ["rollout"]
    assert len(scenes(Pace(), quick=False)) == 3


def test_only_the_plain_service_can_be_process_1() -> None:
    subjects = choose_subjects(parse_arguments(["--plain-as-process-1"]))
    assert [subject.name for subject in subjects if subject.process_1] == ["orders-plain"]


async def test_a_command_that_fails_says_what_it_was() -> None:
    with pytest.raises(CommandError, match=r"kubectl -c .*no such"):
        await Kubectl(["sh"])("-c", "echo no such thing >&2; exit 1")


async def test_a_proxy_that_does_not_start_is_an_error() -> None:
    with pytest.raises(CommandError, match="kubectl proxy: broken"):
        async with Kubectl(["echo", "broken"]).proxy():
            pass


def test_messages_carry_the_time_and_logs_no_control_characters() -> None:
    stream = io.StringIO()
    Progress(stream).say("hello")
    assert stream.getvalue().startswith("[   ")
    assert stream.getvalue().endswith(" s] hello\n")
    assert "\x1b" not in stream.getvalue()
