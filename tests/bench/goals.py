"""Every goal of the library, measured: `python -m tests.bench.goals`, or `make bench-library`.

A group is a module with `figures()`. Each runs in a process of its own on each Python; one that fails costs its own
rows and no others, and makes the exit status 1. A goal that is missed is shown as missed and costs no exit status.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.distributions import ROOT
from tests.bench.figures import Figure
from tests.bench.pythons import Python, environment, furnished, pythons


@dataclass(frozen=True, slots=True)
class Group:
    """Goals that are measured together.

    Attributes:
        module: Of `tests.bench`.
        goals: Their ids.
        about_s: Seconds that it takes, roughly.
        home_only: Whether it needs etcd or packages that only `.venv` has.
    """

    module: str
    goals: tuple[str, ...]
    about_s: float
    home_only: bool = False

    @property
    def most_s(self) -> float:
        """Seconds after which it is given up."""
        return max(300.0, 6 * self.about_s)


GROUPS = (
    Group("hot_path", ("G1", "G2", "G3", "G4", "G5", "G12"), 180),
    Group("asgi", ("G6",), 10),
    Group("live_memory", ("G7",), 30),
    Group("cancel_crowd", ("G8", "G9"), 90),
    Group("published", ("G10",), 5),
    Group("order_latency", ("G11",), 10, home_only=True),
    Group("dump_stall", ("G13",), 20),
    Group("idle", ("G14",), 35, home_only=True),
    Group("import_time", ("G15",), 20),
    Group("zoo_goals", ("G16", "G17"), 40),
    Group("rolling_restart", ("G18",), 60, home_only=True),
)

MEANING = {
    "G1": "starting and ending an empty task, everything counted and every limit asked",
    "G2": "the same, lazily; there is no lazy mode, so it is G1's figure",
    "G3": "the same for tasks that work for about 20 µs",
    "G4": "breaker, current entry and heartbeat on top of that",
    "G5": "counting a block in place, `scope.track()`",
    "G6": "what the ASGI middleware adds to a request",
    "G7": "memory of a live task beyond that of a bare one",
    "G8": "cancelling 100,000 tasks and waiting for their end",
    "G9": "how long that stops the event loop",
    "G10": "from the end of the last task to the drained state",
    "G11": "from an order in etcd to closed intake",
    "G12": "asking on the hot path whether intake is open",
    "G13": "a dump of 100,000 tasks by where they wait",
    "G14": "CPU of a process that has nothing to do",
    "G15": "importing the library",
    "G16": "drains within their budget among bad citizens",
    "G17": "work that is neither finished, given back nor reported",
    "G18": "failed requests in a rolling restart with late endpoints",
}

MARK = "figures: "


@dataclass(frozen=True, slots=True)
class Row:
    """One goal on one Python: a figure, or why there is none."""

    python: str
    goal: str
    figure: Figure | None = None
    why: str = ""
    crashed: bool = False

    @property
    def verdict(self) -> str:
        if self.figure is None:
            return "NOT MEASURED"
        return "met" if self.figure.met else "MISSED"

    @property
    def cells(self) -> tuple[str, ...]:
        """Goal, Python, measured, target, verdict, and what it is."""
        if self.figure is None:
            return (self.goal, self.python, "-", "-", self.verdict, self.why)
        figure = self.figure
        target = f"{'<=' if figure.at_most else '>='} {figure.target:g} {figure.unit}"
        return (
            self.goal,
            self.python,
            f"{figure.measured:.4g} {figure.unit}",
            target,
            self.verdict,
            figure.what,
        )


Measure = Callable[[Group, Path], "subprocess.CompletedProcess[str]"]


def run_group(group: Group, program: Path) -> subprocess.CompletedProcess[str]:
    """Run a group in a process of its own.

    Raises:
        subprocess.TimeoutExpired: It took too long.
    """
    command = [str(program), "-m", "tests.bench.goals", "--group", group.module]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=group.most_s, check=False
    )


def rows_of(group: Group, version: str, program: Path, measure: Measure = run_group) -> list[Row]:
    """Return a row for every goal of a group, whatever becomes of it."""
    try:
        ran = measure(group, program)
    except subprocess.TimeoutExpired:
        return [Row(version, goal, why=f"took longer than {group.most_s:g} s", crashed=True) for goal in group.goals]
    found = [line for line in ran.stdout.splitlines() if line.startswith(MARK)]
    if ran.returncode or not found:
        lines = ran.stderr.strip().splitlines()
        why = lines[-1] if lines else f"exit status {ran.returncode}, and it said nothing"
        return [Row(version, goal, why=why, crashed=True) for goal in group.goals]
    said = json.loads(found[-1].removeprefix(MARK))
    if isinstance(said, str):
        return [Row(version, goal, why=said) for goal in group.goals]
    figures = [Figure(**each) for each in said]
    rows = [Row(version, figure.goal, figure) for figure in figures]
    there = {figure.goal for figure in figures}
    missing = [
        Row(version, goal, why=f"{group.module} said nothing of it") for goal in group.goals if goal not in there
    ]
    return [*rows, *missing]


def figures_of(module: str) -> list[Figure] | str:
    """Measure a group in this process; a text says why it cannot be."""
    name = f"tests.bench.{module}"
    if importlib.util.find_spec(name) is None:
        return f"there is no {name} yet"
    figures = getattr(importlib.import_module(name), "figures", None)
    if figures is None:
        return f"{name} has no figures() yet"
    # A group that starts interpreters of its own wants to know which.
    arguments = {"python": Path(sys.executable)} if "python" in inspect.signature(figures).parameters else {}
    return list(figures(**arguments))


def runs_on(group: Group, python: Python, found: Sequence[Python]) -> bool:
    """Say whether a group is measured on this Python; of two of a minor version that of `.venv` has what needs it."""
    if group.home_only or not python.home:
        return group.home_only == python.home
    return all(other is python or other.minor != python.minor for other in found)


def collect(found: Sequence[Python], groups: Sequence[Group], tell: Callable[[str], None]) -> list[Row]:
    """Measure every group on every Python that it runs on."""
    rows: list[Row] = []
    for python in found:
        program, about = furnished(python)
        tell(f"== Python {python.version}, {about}")
        for group in groups:
            if not runs_on(group, python, found):
                continue
            began_at = time.monotonic()
            # Etcd, aiohttp and the rest are in `.venv`; the peers of the hot path are not.
            mine = rows_of(group, python.version, python.program if group.home_only else program)
            rows += mine
            tell(table(mine).rstrip())
            tell(f"   {group.module}: {time.monotonic() - began_at:.0f} s")
    return rows


def order_of(row: Row) -> tuple[int, list[int]]:
    return int(row.goal.removeprefix("G")), [int(part) for part in row.python.split(".")]


def table(rows: Iterable[Row]) -> str:
    """Return aligned lines."""
    cells = [row.cells for row in rows]
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)).rstrip() + "\n"
        for row in cells
    )


def summary(rows: Sequence[Row]) -> str:
    """Return how many goals are met, missed and not measured."""
    verdicts = [row.verdict for row in rows]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("met", "MISSED", "NOT MEASURED"))


def status(rows: Sequence[Row]) -> int:
    """Return the exit status: only a group that crashed is an error."""
    return int(any(row.crashed for row in rows))


BEGIN, END = "<!-- goals: begin -->\n", "<!-- goals: end -->\n"


def page_with(page: str, rows: Sequence[Row], machine: str) -> str:
    """Return a page with the tables between its marks made anew for the goals and Pythons of these rows; others stay.

    Raises:
        ValueError: It has no marks.
    """
    head, begin, rest = page.partition(BEGIN)
    old, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN.strip()} and {END.strip()}")
    measured_now = {(row.goal, row.python) for row in rows}
    written = [line.strip("| ").split(" | ") for line in old.splitlines() if line.startswith("| G")]
    # The third cell is a version there, and a verdict in the table before.
    details = [cells for cells in written if cells[2][0].isdigit() and (cells[0], cells[2]) not in measured_now]
    for row in rows:
        goal, python, measured, target, verdict, what = (cell.replace("|", "/") for cell in row.cells)
        shown = f"**{verdict}**" if verdict == "MISSED" else verdict.lower()
        details.append([goal, f"{MEANING[goal]}: {what}", python, measured, target, shown])
    details.sort(key=lambda cells: order_of(Row(cells[2], cells[0])))
    lines = ["| goal | what | Python | measured | target | |", "| --- | --- | --- | ---: | ---: | --- |"]
    lines += [f"| {' | '.join(cells)} |" for cells in details]
    return head + begin + "\n".join([machine, "", *overview(details), "", *lines]) + "\n" + end + tail


def overview(details: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table that has a row for each goal and a column for each Python."""
    versions = sorted({cells[2] for cells in details}, key=lambda version: order_of(Row(version, "G0")))
    verdicts: dict[str, dict[str, list[str]]] = {}
    for goal, _, python, _, _, verdict in details:
        verdicts.setdefault(goal, {}).setdefault(python, []).append(verdict)
    lines = [f"| goal | | {' | '.join(versions)} |", f"| --- | --- |{' --- |' * len(versions)}"]
    for goal, by_python in verdicts.items():
        shown = [_in_short(by_python.get(python, [])) for python in versions]
        lines.append(f"| {goal} | {MEANING[goal]} | {' | '.join(shown)} |")
    return lines


def _in_short(verdicts: Sequence[str]) -> str:
    missed = sum(verdict == "**MISSED**" for verdict in verdicts)
    if not missed:
        return next(iter(verdicts), "-")
    return "**missed**" if missed == len(verdicts) else f"**{missed} of {len(verdicts)} missed**"


def machine() -> str:
    """Say where and when."""
    now = datetime.now(UTC).date().isoformat()
    load = os.getloadavg()[2]
    return (
        f"Run of {now} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"load of the last 15 minutes {load:.1f}."
    )


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", help="measure one group here and print its figures as JSON")
    parser.add_argument("--only", default="", help="goals or groups, separated by commas: G8,zoo_goals")
    parser.add_argument("--python", default="", help="minor versions, separated by commas: 3.11,3.13")
    parser.add_argument(
        "--distributions", action="store_true", help="on Pythons as Debian and Ubuntu build them, before all others"
    )
    parser.add_argument("--write", type=Path, help="a page whose table is made anew, in these rows")
    chosen = parser.parse_args()
    if chosen.group:
        found = figures_of(chosen.group)
        _say(MARK + json.dumps(found if isinstance(found, str) else [asdict(figure) for figure in found]))
        return 0
    only = set(filter(None, chosen.only.split(",")))
    groups = [group for group in GROUPS if not only or only & {group.module, *group.goals}]
    wanted = set(filter(None, chosen.python.split(",")))
    on = [
        python
        for python in pythons(distributions=chosen.distributions)
        if not wanted or "{}.{}".format(*python.minor) in wanted
    ]
    about_s = sum(group.about_s for python in on for group in groups if runs_on(group, python, on))
    _say(f"{len(groups)} groups on Python {', '.join(python.version for python in on)}: about {about_s / 60:.0f} min")
    rows = sorted(collect(on, groups, _say), key=order_of)
    if rows:
        _say(f"\n{machine()}\n\n{table(rows)}\n{summary(rows)}")
    if chosen.write:
        chosen.write.write_text(page_with(chosen.write.read_text(), rows, machine()))
    return status(rows)


if __name__ == "__main__":
    sys.exit(main())
