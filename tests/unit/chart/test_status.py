"""What the planner writes into a Drain is what the definition has, field for field: the API server drops the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest
import yaml

from charts import crd_template
from ebbtide.protocol import DrainRecord, Outcome, PodState
from ebbtide_operator.core.decide import decide
from ebbtide_operator.core.model import Mode, Problem, Snapshot, WriteStatus
from tests.unit.core.builders import NOW, a_pod, a_policy, a_report, a_set, a_snapshot, a_workload, an_order

CRD = yaml.safe_load((crd_template.SOURCES / "ebbtide.dev_drains.yaml").read_text())
STATUS: dict[str, Any] = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses what the API server would drop."""
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: closed(child) for name, child in schema["properties"].items()}
        result["additionalProperties"] = False
    if "items" in schema:
        result["items"] = closed(schema["items"])
    return result


VALIDATOR = jsonschema.Draft7Validator(closed(STATUS), format_checker=jsonschema.FormatChecker())


def paths(value: Any, at: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield f"{at}.{name}"
            yield from paths(child, f"{at}.{name}")
    elif isinstance(value, list):
        for child in value:
            yield from paths(child, f"{at}[]")


def known(schema: Mapping[str, Any], at: str = "") -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        yield f"{at}.{name}"
        yield from known(child, f"{at}.{name}")
    if "items" in schema:
        yield from known(schema["items"], f"{at}[]")


def draining() -> Snapshot:
    workload = a_workload(replicas=1, sets=(a_set(replicas=1, observed_replicas=3),))
    pods = (
        a_pod("a", draining_since=NOW - 3, deadline_at=NOW + 72, deletion_cost=-2147483647, original_cost=""),
        a_pod("b"),
        a_pod("c"),
    )
    reports = {
        "a-uid": a_report(state=PodState.DRAINING, active=4, eta_s=12.5, generation=1),
        "b-uid": a_report(active=1, eta_s=2.0),
        "c-uid": a_report(active=2, eta_s=3.0),
    }
    record = DrainRecord(
        pod="z",
        uid="z-uid",
        outcome=Outcome.ABANDONED,
        reason="scale-down",
        started_at=NOW - 90,
        ended_at=NOW - 15,
        active_at_end=2,
    )
    return a_snapshot(workload, pods, orders={"a-uid": an_order(issued_at=NOW - 3)}, reports=reports, recent=(record,))


def invalid() -> Snapshot:
    problem = Problem("ebbtide.dev/drain", "ebbtide.dev/drain: must be managed, floor or off, not 'yes'", fatal=True)
    return a_snapshot(a_workload(policy=a_policy(mode=Mode.OFF), problems=(problem,)), (a_pod("a"),))


def written(snapshot: Snapshot) -> Mapping[str, object]:
    (status,) = [action.status for action in decide(snapshot, NOW).actions if isinstance(action, WriteStatus)]
    return status


@pytest.mark.parametrize("snapshot", [draining(), invalid()], ids=["draining", "invalid"])
def test_the_definition_accepts_what_the_planner_writes(snapshot: Snapshot) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(written(snapshot))] == []


def test_every_field_of_the_definition_is_written() -> None:
    assert set(known(STATUS)) - set(paths(written(draining()))) == set()


def test_a_field_that_the_definition_lacks_would_be_noticed() -> None:
    assert list(VALIDATOR.iter_errors({**written(draining()), "extra": 1}))
