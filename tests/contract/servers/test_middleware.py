"""What clients see when a server ends behind the middleware, against the table in docs/library/asgi.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.servers.leaving import BEHIND, Farewell, watch
from tests.contract.servers.running import ROOT, Server, Trigger
from tests.contract.servers.test_servers import AT_ONCE, matches, rows_under

PAGE = (ROOT / "docs/library/asgi.md").read_text()
CASES = [(server, trigger) for trigger in (Trigger.PRESTOP, Trigger.SIGTERM) for server in BEHIND]

Watched = tuple[Farewell, list[str]]


@pytest.fixture(scope="session")
def farewells(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Server, Trigger], Watched]]:
    """All cases that were asked for, side by side."""
    wanted: dict[tuple[Any, Any], None] = {
        (item.callspec.params["server"], item.callspec.params["trigger"]): None
        for item in request.session.items
        if isinstance(item, pytest.Function) and "farewells" in item.fixturenames
    }
    with ThreadPoolExecutor(AT_ONCE) as threads:
        started: dict[tuple[Server, Trigger], Future[Watched]] = {
            case: threads.submit(watch, *case, tmp_path_factory.mktemp("server")) for case in wanted
        }
        yield lambda server, trigger: started[server, trigger].result()


def each(cases: list[tuple[Server, Trigger]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("server", "trigger"), cases, ids=lambda value: getattr(value, "name", value))


@pytest.mark.timeout(180)
@each(CASES)
def test_clients_see_what_the_table_says(
    server: Server,
    trigger: Trigger,
    farewells: Callable[[Server, Trigger], Watched],
    record_property: Callable[[str, object], None],
) -> None:
    seen = dataclasses.astuple(farewells(server, trigger)[0])
    row = f"| `{server.name}` | `{trigger}` | {' | '.join(seen)} |"
    record_property("servers", row)
    expected = rows_under("What was seen", PAGE)[server.name, trigger]
    assert all(map(matches, expected, seen)), f"seen: {row}"


@pytest.mark.timeout(180)
@each(CASES)
def test_the_runtime_drains_between_the_start_and_the_stop_of_the_application(
    server: Server, trigger: Trigger, farewells: Callable[[Server, Trigger], Watched]
) -> None:
    _, notes = farewells(server, trigger)
    assert notes[:2] == ["application opened", "pool opened"]
    assert "in-flight finished" in notes
    assert notes[-3] == "pool closed"
    assert notes[-2].startswith("drained clean by ")
    assert notes[-1] == "application closed"


def test_the_table_has_no_rows_but_those_that_were_seen() -> None:
    assert rows_under("What was seen", PAGE).keys() == {(server.name, str(trigger)) for server, trigger in CASES}
