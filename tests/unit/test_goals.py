"""The rules of `tests.bench.goals`: no figure is lost to another group's failure, and none is hidden."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.bench.figures import Figure
from tests.bench.goals import (
    GROUPS,
    MARK,
    MEANING,
    Group,
    Measure,
    Row,
    figures_of,
    order_of,
    page_with,
    rows_of,
    runs_on,
    status,
    summary,
    table,
)
from tests.bench.pythons import Python, usable

GROUP = Group("a_group", ("G1", "G2"), 1)
MET, MISSED = Figure("G1", "of a bench", 1.0, "ms", 2.0), Figure("G2", "of a bench", 3.0, "ms", 2.0)


def saying(text: str, code: int = 0, errors: str = "") -> Measure:
    return lambda _group, _program: subprocess.CompletedProcess([], code, text, errors)


def rows_from(measure: Measure) -> list[Row]:
    return rows_of(GROUP, "3.11.7", Path("python"), measure)


def figures_said(*figures: Figure) -> str:
    return "noise\n" + MARK + json.dumps([asdict(figure) for figure in figures]) + "\n"


def test_every_goal_belongs_to_one_group_and_has_a_meaning() -> None:
    goals = [goal for group in GROUPS for goal in group.goals]
    assert sorted(goals) == sorted(f"G{number}" for number in range(1, 19))
    assert set(MEANING) == set(goals)


def test_shows_a_missed_goal_as_missed_and_lets_the_run_succeed() -> None:
    rows = rows_from(saying(figures_said(MET, MISSED)))
    met, missed = table(rows).splitlines()
    assert "1 ms" in met
    assert "met" in met
    assert "MISSED" in missed
    assert summary(rows) == "1 met, 1 MISSED, 0 NOT MEASURED"
    assert status(rows) == 0


def test_a_group_that_fails_costs_its_own_rows_only() -> None:
    def too_long(group: Group, _program: Path) -> subprocess.CompletedProcess[str]:
        raise subprocess.TimeoutExpired("python", group.most_s)

    good = rows_from(saying(figures_said(MET, MISSED)))
    crashed = rows_from(saying("", 1, "Traceback\nValueError: no etcd\n"))
    mute = rows_from(saying(""))
    late = rows_from(too_long)
    rows = [*good, *crashed, *mute, *late]
    assert [row.figure for row in rows[:2]] == [MET, MISSED]
    assert [row.why for row in crashed] == ["ValueError: no etcd"] * 2
    assert {row.verdict for row in (*crashed, *mute, *late)} == {"NOT MEASURED"}
    assert all(row.why for row in (*mute, *late))
    assert all(status(each) == 1 for each in (crashed, mute, late))
    assert status(rows) == 1


def test_a_figure_before_a_crash_is_not_taken_for_the_whole() -> None:
    assert status(rows_from(saying(figures_said(MET), 1, "Killed"))) == 1


def test_a_goal_that_its_group_does_not_mention_is_not_measured() -> None:
    rows = rows_from(saying(figures_said(MET)))
    assert [(row.goal, row.verdict) for row in rows] == [("G1", "met"), ("G2", "NOT MEASURED")]


def test_a_group_that_does_not_exist_yet_is_no_error() -> None:
    said = figures_of("no_such_group")
    assert isinstance(said, str)
    rows = rows_from(saying(MARK + json.dumps(said)))
    assert {row.why for row in rows} == {"there is no tests.bench.no_such_group yet"}
    assert status(rows) == 0


def test_rows_go_by_number_and_not_by_text() -> None:
    rows = [Row("3.11.7", "G10"), Row("3.13.0", "G2"), Row("3.9.1", "G2")]
    assert [(row.goal, row.python) for row in sorted(rows, key=order_of)] == [
        ("G2", "3.9.1"),
        ("G2", "3.13.0"),
        ("G10", "3.11.7"),
    ]


def test_writes_the_table_between_the_marks_and_leaves_the_rest() -> None:
    page = "before\n<!-- goals: begin -->\nold\n<!-- goals: end -->\nafter\n"
    written = page_with(page, rows_from(saying(figures_said(MET, MISSED))), "a machine")
    assert written.startswith("before\n<!-- goals: begin -->\na machine\n")
    assert written.endswith("<!-- goals: end -->\nafter\n")
    assert "**MISSED**" in written
    assert "old" not in written
    assert page_with(written, [], "x").count("goals: begin") == 1
    other = [Row("3.9.1", "G2", MET), Row("3.11.7", "G1", MISSED)]
    again = page_with(written, other, "another machine").splitlines()
    rows = [cells for line in again if line.startswith("| G") and (cells := line.split(" | "))[2][0].isdigit()]
    assert [(row[0], row[2]) for row in rows] == [("| G1", "3.11.7"), ("| G2", "3.9.1"), ("| G2", "3.11.7")]
    assert any(line.startswith("| G1") and line.endswith("**MISSED** |") for line in again), "measured anew"
    assert f"| G2 | {MEANING['G2']} | met | **missed** |" in again
    assert page_with("\n".join(again), [], "another machine").splitlines() == again
    with pytest.raises(ValueError, match="needs the lines"):
        page_with("no marks", [], "a machine")


def test_takes_one_interpreter_for_each_supported_version_the_preferred_first() -> None:
    found = usable(
        [
            (Path("/venv"), "CPython 3.12.4 /usr"),
            (Path("/pyenv/3.13"), "CPython 3.13.0 /pyenv"),
            (Path("/pyenv/3.12"), "CPython 3.12.9 /pyenv"),
            (Path("/pyenv/3.10"), "CPython 3.10.1 /pyenv"),
            (Path("/pypy"), "PyPy 3.11.1 /pypy"),
            (Path("/usr/bin/python3.11"), "CPython 3.11.2 /usr"),
        ]
    )
    assert [(str(python.program), python.home) for python in found] == [
        ("/usr/bin/python3.11", False),
        ("/venv", True),
        ("/pyenv/3.13", False),
    ]


def test_the_tests_own_interpreter_measures_only_what_needs_it_where_a_distribution_has_its_like() -> None:
    said = [(Path("/venv"), "CPython 3.11.7 /pyenv"), (Path("/usr/bin/python3.11"), "CPython 3.11.2 /usr")]
    assert [python.version for python in usable(said)] == ["3.11.7"]
    found = usable(said, apart=True)
    assert [python.version for python in found] == ["3.11.2", "3.11.7"]
    with_etcd = Group("another_group", ("G3",), 1, home_only=True)
    for group, version in ((GROUP, "3.11.2"), (with_etcd, "3.11.7")):
        assert [python.version for python in found if runs_on(group, python, found)] == [version]
    alone = Python(Path("/venv"), "3.11.7", home=True)
    assert runs_on(GROUP, alone, [alone])
