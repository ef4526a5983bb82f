"""values.yaml, its schema and its table: each key takes good values, refuses wrong ones and its own misspelling."""

from __future__ import annotations

import copy
import functools
import json
import operator
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from charts import readme

SCHEMA: dict[str, Any] = json.loads((readme.CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load(readme.VALUES.read_text())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)

# Each leaf: what is good besides the default, and what is not.
CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "nameOverride": (["drains"], ["Drains", 1, "-a"]),
    "fullnameOverride": (["drains"], ["1drains", "a" * 41, None]),
    "commonLabels": ([{"team": "a"}], [{"team": 1}, [], {"team": "no spaces"}]),
    "allowSecondRelease": ([True], ["true", 1]),
    "image.repository": (["registry.local:5000/a/b"], ["", "UPPER", 1]),
    "image.tag": (["v1.2.3"], [1, "a b"]),
    "image.digest": (["sha256:" + "0" * 64], ["sha256:0", "md5:0"]),
    "image.pullPolicy": (["Always"], ["always", ""]),
    "imagePullSecrets": ([["a"]], [["a", ""], [{"name": "a"}], "a"]),
    "replicas": ([1, 3], [0, "2", 1.5, 100]),
    "logLevel": (["debug"], ["DEBUG", "trace", ""]),
    "defaults.drainTimeout": (["5m", "1h30m", "500ms", "1.5h"], [60, "60", "", "1d", "-5s", "5 m"]),
    "defaults.cancelGrace": (["0s"], [10, "10"]),
    "defaults.quiesce": (["0s"], [5, "x"]),
    "deleteReleasedPods": ([False], ["no", 1]),
    "failOpenAfterSeconds": ([5, 2.5], [0, "10", 1000]),
    "leaseDurationSeconds": ([30], [1, "15", 15.5]),
    "podEndpoints": ([["https://a.example:2379"]], [["a.example"], ["https://a/b"], ["https://a", "https://a"]]),
    "webhooks.excludeNamespaces": ([["monitoring"]], [["A"], "monitoring", ["a", "a"]]),
    "resources.requests": ([{"cpu": 1}, {}], [{"cpu": "1 core"}, {"cpu": None}, []]),
    "resources.limits": ([{"memory": "1Gi"}], [{"memory": "1GB"}, "1Gi"]),
    "runAsUser": ([None, 1000], [0, "1000", -1]),
    "podAnnotations": ([{"a/b": "c"}], [{"a": 1}, []]),
    "podLabels": ([{"a/b": "c"}], [{"a": True}]),
    "nodeSelector": ([{"disk": "ssd"}], [{"disk": 1}]),
    "tolerations": ([[{"operator": "Exists"}]], [[{"operation": "Exists"}], [{"effect": "Never"}], {}]),
    "affinity": ([{"nodeAffinity": {}}], [{"nodeaffinity": {}}, []]),
    "topologySpreadConstraints": (
        [[{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]],
        [[{"maxSkew": 1}], {}],
    ),
    "priorityClassName": (["high"], ["High", 1]),
    "podDisruptionBudget.enabled": ([False], ["no"]),
    "serviceAccount.create": ([False], ["no"]),
    "serviceAccount.name": (["a"], ["A b"]),
    "serviceAccount.annotations": ([{"a": "b"}], [{"a": 1}]),
    "rbac.create": ([False], ["no"]),
    "rbac.aggregate": ([False], ["no"]),
    "crds.enabled": ([False], ["no"]),
    "crds.keep": ([False], ["no"]),
    "crds.annotations": ([{"a": "b"}], [{"a": 1}]),
    "etcd.prefix": (["/a", "/a/b"], ["a", "/a/", "/", "/a b"]),
    "etcd.adapter": (["etcd3", "gateway"], ["grpc", "", None]),
    "etcd.image.repository": (["a/b"], [""]),
    "etcd.image.tag": (["v3.5.30"], [3.6]),
    "etcd.image.digest": (["sha256:" + "a" * 64], ["a"]),
    "etcd.image.pullPolicy": (["Never"], ["never"]),
    "etcd.persistence.enabled": ([True, False, "true", "false"], ["yes", 1, None]),
    "etcd.persistence.storageClass": (["fast"], ["Fast"]),
    "etcd.persistence.size": (["10Gi"], ["10GB", ""]),
    "etcd.persistence.deleteOnUninstall": ([True], ["yes"]),
    "etcd.logLevel": (["info"], ["INFO", "warning"]),
    "etcd.listenAddress": (["[::]", "10.0.0.1"], ["::", "0.0.0.0:2379", "localhost", "", 0]),
    "etcd.quotaBytes": ([2147483648], [1024, "512Mi", 2**40]),
    "etcd.compactionRetention": (["1h"], ["1", 1]),
    "etcd.resources.requests": ([{"cpu": 1}], [{"cpu": []}]),
    "etcd.resources.limits": ([{"cpu": "2"}], [{"cpu": "two"}]),
    "etcd.podAnnotations": ([{"a": "b"}], [{"a": 1}]),
    "etcd.podLabels": ([{"a": "b"}], [{"a": 1}]),
    "etcd.nodeSelector": ([{"a": "b"}], [{"a": 1}]),
    "etcd.tolerations": ([[{"key": "a", "effect": "NoSchedule"}]], [[{"keys": "a"}]]),
    "etcd.affinity": ([{"podAffinity": {}}], [{"pods": {}}]),
    "etcd.priorityClassName": (["high"], ["High"]),
    "etcd.external.endpoints": ([["https://a:2379", "https://b:2379"]], [["a:2379"], "https://a:2379"]),
    "etcd.external.tlsSecret": (["a"], ["A"]),
    "etcd.external.username": (["drains"], [1]),
    "etcd.external.passwordSecret.name": (["a"], ["A"]),
    "etcd.external.passwordSecret.key": (["p.w"], ["", "a/b"]),
    "networkPolicy.enabled": ([True], ["yes"]),
    "networkPolicy.metricsFrom": ([[{"namespaceSelector": {}}]], [[{"namespace": "a"}], {}]),
    "networkPolicy.egress.enabled": ([True], ["yes"]),
    "networkPolicy.egress.apiServerPorts": ([[8443]], [[], [0], ["https"]]),
    "networkPolicy.egress.etcdPorts": ([[2379, 2380]], [[], [70000]]),
    "monitoring.serviceMonitor.enabled": (["always", "never"], [True, "yes"]),
    "monitoring.serviceMonitor.interval": (["15s", "1m30s"], [15, "often"]),
    "monitoring.serviceMonitor.labels": ([{"release": "p"}], [{"release": 1}]),
    "monitoring.podMonitor.enabled": (["always", "never"], [False]),
    "monitoring.podMonitor.interval": (["15s"], ["15"]),
    "monitoring.podMonitor.labels": ([{"release": "p"}], [{"release": 1}]),
    "monitoring.alerts.enabled": (["always", "never"], [True, "yes"]),
    "monitoring.alerts.interval": (["15s"], [15]),
    "monitoring.alerts.labels": ([{"release": "p"}], [{"release": 1}]),
    "monitoring.dashboards.enabled": ([False], ["no"]),
    "monitoring.dashboards.namespace": (["monitoring"], ["Monitoring"]),
    "monitoring.dashboards.labels": ([{"a": "b"}], [{"a": 1}]),
    "monitoring.dashboards.annotations": ([{"folder": "a b"}], [{"folder": 1}]),
}

# Objects of Kubernetes that pass through as they are: the API server knows their fields.
PASSED_THROUGH = re.compile(
    r"(global|(etcd\.)?affinity\.\w+|topologySpreadConstraints\[\]|networkPolicy\.metricsFrom\[\]\.\w+)$"
)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "")
    return SCHEMA["definitions"][reference.removeprefix("#/definitions/")] if reference else schema


def objects(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    schema = resolved(schema)
    if schema.get("type") == "object":
        yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from objects(child, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from objects(schema["items"], f"{path}[]")


def with_value(path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(VALUES)
    *parents, last = path.split(".")
    parent = changed
    for name in parents:
        parent = parent[name]
    parent[last] = value
    return changed


def without(path: str) -> dict[str, Any]:
    changed = copy.deepcopy(VALUES)
    *parents, last = path.split(".")
    parent = changed
    for name in parents:
        parent = parent[name]
    del parent[last]
    return changed


def errors(values: dict[str, Any]) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(values)]


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        here = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict) and value and here not in CASES:
            yield from leaves(value, here)
        else:
            yield here


def test_schema_is_valid_and_accepts_the_defaults() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert errors(VALUES) == []


def test_schema_refuses_unknown_keys_at_every_level() -> None:
    found = dict(objects(SCHEMA))
    assert len(found) > 30
    for path, schema in found.items():
        extra = schema.get("additionalProperties", True)
        assert extra is not True or PASSED_THROUGH.search(path), path


def test_schema_and_values_have_the_same_keys() -> None:
    for path, schema in objects(SCHEMA):
        if schema.get("properties") and "[]" not in path and not path.endswith("affinity"):
            value: Any = VALUES
            for name in filter(None, path.split(".")):
                value = value[name]
            assert set(value) == set(schema["properties"]) - {"global"}, path


def test_every_value_has_cases() -> None:
    assert list(leaves(VALUES)) == list(CASES)


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, (good, _) in CASES.items() for value in good])
def test_accepts(path: str, value: Any) -> None:
    assert errors(with_value(path, value)) == []


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, (_, bad) in CASES.items() for value in bad])
def test_refuses(path: str, value: Any) -> None:
    assert errors(with_value(path, value)) != []


@pytest.mark.parametrize("path", CASES)
def test_refuses_the_misspelling_of(path: str) -> None:
    assert any("Additional properties are not allowed" in message for message in errors(with_value(f"{path}x", 1)))


# The platform assigns a user; a digest replaces the tag, and the template asks for one of them.
MAY_GO = {"runAsUser", "etcd.image.tag"}


def test_what_the_operator_and_etcd_need_is_refused_where_it_is_taken_away() -> None:
    """Helm takes a value away that is set to null. What is empty by default may go, and maps that pass through."""
    for path in CASES:
        taken = without(path)
        default: Any = functools.reduce(operator.getitem, path.split("."), VALUES)
        may_go = default in ("", None) or isinstance(default, dict) or default == [] or path in MAY_GO
        assert bool(errors(taken)) is not may_go, path


def test_a_section_that_is_taken_away_is_refused() -> None:
    for path, schema in objects(SCHEMA):
        if path and schema.get("properties") and "[]" not in path and not path.endswith(("affinity", "resources")):
            assert errors(without(path)), path


def test_patterns_are_those_of_go() -> None:
    """Helm compiles them with RE2, which has neither lookaround nor backreferences."""
    patterns = re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', json.dumps(SCHEMA))
    assert len(patterns) > 10
    assert [pattern for pattern in patterns if "(?" in pattern or re.search(r"\\\\[1-9]", pattern)] == []


def test_readme_has_the_table_of_these_values() -> None:
    assert readme.README.read_text() == readme.render()


def test_a_value_without_a_comment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.b: needs a comment"):
        readme.values("a:\n  b: 1\n")


def test_a_comment_may_have_several_lines_and_a_heading_above() -> None:
    found = readme.values("# Heading.\n\n# -- First\n# second.\na: {}\n")
    assert [(value.path, value.default, value.text) for value in found] == [("a", "{}", "First second.")]
