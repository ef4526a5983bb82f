"""What each server does with a drain, against the table in docs/library/servers.md: every cell of it was seen here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.contract.servers.running import CELERY, ROOT, SERVERS, THREADS, Seen, Server, Trigger, observe, start_broken

PAGE = (ROOT / "docs/library/servers.md").read_text()
CASES = [(server, trigger) for trigger in Trigger for server in (*SERVERS, THREADS, CELERY)]
AT_ONCE = 6
"""Servers that run at the same time: they mostly wait."""


def rows_under(heading: str, page: str = PAGE) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the table under a heading of the page: the first two cells of each row, and the others."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    cells = [
        tuple(cell.strip().strip("`") for cell in line.strip("|").split("|"))
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {row[:2]: row[2:] for row in cells}


def matches(expected: str, seen: str) -> bool:
    """Say whether a cell tells what was seen; `or` stands between what luck decides on."""
    return seen in re.split(r"\s+or\s+", expected)


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Server, Trigger], Seen]]:
    """All cases that were asked for, side by side."""
    wanted: list[tuple[Any, Any]] = [
        (item.callspec.params["server"], item.callspec.params["trigger"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == test_a_server_does_what_the_table_says.__name__
    ]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        started: dict[tuple[Server, Trigger], Future[Seen]] = {
            case: threads.submit(observe, *case, tmp_path_factory.mktemp("server")) for case in wanted
        }
        yield lambda server, trigger: started[server, trigger].result()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("server", "trigger"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_server_does_what_the_table_says(
    server: Server,
    trigger: Trigger,
    runs: Callable[[Server, Trigger], Seen],
    record_property: Callable[[str, object], None],
) -> None:
    seen = dataclasses.astuple(runs(server, trigger))
    row = f"| `{server.name}` | `{trigger}` | {' | '.join(seen)} |"
    record_property("servers", row)
    expected = rows_under("What was seen")[server.name, trigger]
    assert all(map(matches, expected, seen)), f"seen: {row}"


def test_the_table_has_no_rows_but_those_that_were_seen() -> None:
    assert rows_under("What was seen").keys() == {(server.name, str(trigger)) for server, trigger in CASES}


@pytest.mark.parametrize("server", SERVERS, ids=lambda server: server.name)
def test_a_start_that_fails_ends_the_server_and_closes_what_was_open(server: Server, tmp_path: Path) -> None:
    code, notes = start_broken(server, tmp_path)
    assert notes[:2] == ["pool opened", "pool closed"]
    assert matches(rows_under("When the start fails")[server.name, code][0], "closed")
