"""The Drain definition: a structural schema, columns that fit a terminal, and names that agree with the code."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from charts import crd_template
from ebbtide.protocol import Outcome, RolloutPhase
from ebbtide_operator.core import names
from ebbtide_operator.core.model import Mode

SOURCE = crd_template.SOURCES / "ebbtide.dev_drains.yaml"
CRD: dict[str, Any] = yaml.safe_load(SOURCE.read_text())
VERSION: dict[str, Any] = CRD["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]
STATUS: dict[str, Any] = SCHEMA["properties"]["status"]


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def at(path: str) -> dict[str, Any]:
    return dict(nodes(SCHEMA))[path]


def test_is_named_as_the_code_names_it() -> None:
    assert CRD["spec"]["group"] == names.DOMAIN
    assert [version["name"] for version in CRD["spec"]["versions"]] == [names.API_VERSION]
    assert CRD["metadata"]["name"] == f"{CRD['spec']['names']['plural']}.{names.DOMAIN}"
    assert CRD["spec"]["scope"] == "Namespaced"


def test_has_a_status_subresource_and_nothing_for_users_to_fill_in() -> None:
    assert VERSION["subresources"] == {"status": {}}
    assert set(SCHEMA["properties"]) == {"apiVersion", "kind", "metadata", "status"}


def test_every_field_has_a_type_and_no_field_is_open() -> None:
    for path, node in nodes(SCHEMA):
        assert node.get("type"), path
        assert not node.get("x-kubernetes-preserve-unknown-fields"), path
        if node["type"] == "array":
            assert node.get("x-kubernetes-list-type") in {"map", "atomic"}, path


def test_every_status_field_is_described() -> None:
    assert [name for name, field in STATUS["properties"].items() if not field.get("description")] == []


@pytest.mark.parametrize(
    ("path", "members"),
    [(".status.phase", RolloutPhase), (".status.mode", Mode), (".status.lastDrains[].outcome", Outcome)],
)
def test_open_lists_of_values_name_the_values_of_today(path: str, members: Any) -> None:
    field = at(path)
    assert "enum" not in field
    for member in members:
        assert str(member) in field["description"]


def test_conditions_are_those_of_the_kubernetes_api() -> None:
    conditions = at(".status.conditions")
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert set(conditions["items"]["required"]) == {"type", "status", "lastTransitionTime", "reason", "message"}
    assert conditions["items"]["properties"]["status"]["enum"] == ["True", "False", "Unknown"]


def test_columns_show_fields_that_exist() -> None:
    known = {path for path, _ in nodes(SCHEMA)} | {".metadata.creationTimestamp"}
    assert {column["jsonPath"] for column in VERSION["additionalPrinterColumns"]} <= known


def test_no_column_shows_a_future_time_as_an_age() -> None:
    ages = [column["jsonPath"] for column in VERSION["additionalPrinterColumns"] if column["type"] == "date"]
    assert ages == [".metadata.creationTimestamp"]


def test_columns_fit_eighty_characters() -> None:
    widest = {
        "Phase": max(len(phase) for phase in RolloutPhase),
        "Draining": 4,
        "Tasks": 5,
        "Deadline": len("2026-11-24T14:00:00Z"),
        "Age": 4,
    }
    shown = [column["name"] for column in VERSION["additionalPrinterColumns"] if not column.get("priority")]
    assert shown == list(widest)
    columns = [len("deployment-orders"), *(max(len(name), widest[name]) for name in shown)]
    # kubectl puts three blanks between columns.
    assert sum(columns) + 3 * (len(columns) - 1) <= 80


def test_the_charts_template_is_the_definition() -> None:
    assert crd_template.TEMPLATE.read_text() == crd_template.render()


def test_a_definition_that_helm_would_evaluate_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / SOURCE.name).write_text(SOURCE.read_text().replace("What the operator saw last.", "{{ .Values }}"))
    monkeypatch.setattr(crd_template, "SOURCES", tmp_path)
    with pytest.raises(ValueError, match=r"which Helm would evaluate"):
        crd_template.render()


def test_a_definition_under_another_name_than_its_file_is_refused(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ebbtide.dev_tides.yaml").write_text(SOURCE.read_text())
    monkeypatch.setattr(crd_template, "SOURCES", tmp_path)
    with pytest.raises(ValueError, match=r"name: tides\.ebbtide\.dev"):
        crd_template.render()
