"""The chart as real Helm renders it, without a cluster."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from charts.readme import CHART
from tests.localcluster import binaries

NAMESPACE = "ebbtide-system"
MONITORING = tuple(f"monitoring.coreos.com/v1/{kind}" for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule"))
Document = dict[str, Any]


@functools.cache
def _homes() -> dict[str, str]:
    # Plugins, caches and repositories of whoever runs the tests must not count.
    folder = tempfile.mkdtemp(prefix="ebbtide-helm-")
    return {f"HELM_{kind}_HOME": f"{folder}/{kind}" for kind in ("CACHE", "CONFIG", "DATA")}


def helm(
    *arguments: str, values: Mapping[str, Any] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run Helm; values go in as a file, so that types are kept."""
    command = [str(binaries.path("helm")), *arguments]
    if values is not None:
        command += ["--values", "-"]
    done = subprocess.run(
        command,
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **_homes()},
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{done.stderr}")
    return done


def template(
    values: Mapping[str, Any] | None = None,
    *,
    release: str = "ebbtide",
    namespace: str = NAMESPACE,
    apis: Sequence[str] = (),
) -> str:
    """Return what `helm template` prints."""
    arguments = [part for api in apis for part in ("--api-versions", api)]
    return helm("template", release, str(CHART), "--namespace", namespace, *arguments, values=values or {}).stdout


class _Strict(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, as strict clients do; others take one of the two."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = {name for name in names if names.count(name) > 1}
        assert not twice, f"{', '.join(sorted(twice))}: twice, at {node.start_mark}"
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Document]:
    return [document for document in yaml.load_all(text, _Strict) if document]


def render(values: Mapping[str, Any] | None = None, **how: Any) -> list[Document]:
    """Return the rendered objects."""
    return documents(template(values, **how))


def refusal(values: Mapping[str, Any]) -> str:
    """Return why Helm refuses to render; AssertionError where it does not."""
    done = helm("template", "ebbtide", str(CHART), values=values, check=False)
    assert done.returncode, "rendered"
    return done.stderr


def only(found: Sequence[Document], kind: str, name: str | None = None) -> Document:
    (document,) = [one for one in found if one["kind"] == kind and name in (None, one["metadata"]["name"])]
    return document


def kinds(found: Sequence[Document]) -> set[str]:
    return {one["kind"] for one in found}


def sources(text: str) -> set[str]:
    """Return the template files that gave something."""
    return {Path(path).name for path in re.findall(r"^# Source: (\S+)$", text, re.MULTILINE)}


def pod_templates(found: Sequence[Document]) -> Iterator[tuple[str, Document]]:
    for one in found:
        if one["kind"] in {"Deployment", "StatefulSet"}:
            yield one["metadata"]["name"], one["spec"]["template"]


def setting(path: str, value: Any) -> dict[str, Any]:
    """Return values with one leaf: `a.b` and 1 give `{"a": {"b": 1}}`."""
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def merged(*several: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for one in several:
        for name, value in one.items():
            both = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if both else value
    return result


EXTERNAL = {"etcd": {"external": {"endpoints": ["https://a.example:2379"], "tlsSecret": "etcd-client"}}}
EXTERNAL_USER = merged(
    EXTERNAL, {"etcd": {"external": {"username": "drains", "passwordSecret": {"name": "etcd-password"}}}}
)
EXTERNAL_PLAIN = {"etcd": {"external": {"endpoints": ["http://a.example:2379", "http://b.example:2379"]}}}
PERSISTENT = {"etcd": {"persistence": {"enabled": True, "storageClass": "fast", "deleteOnUninstall": True}}}
POLICIES = {"networkPolicy": {"enabled": True, "egress": {"enabled": True}}}
ALL_MONITORING = {
    "monitoring": {name: {"enabled": "always"} for name in ("serviceMonitor", "podMonitor", "alerts")},
}
BARE = {
    "serviceAccount": {"create": False, "name": "mine"},
    "rbac": {"create": False, "aggregate": False},
    "crds": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "monitoring": {"dashboards": {"enabled": False}},
    "runAsUser": None,
    "replicas": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "external etcd": EXTERNAL,
    "external etcd with a user": EXTERNAL_USER,
    "external etcd without TLS": EXTERNAL_PLAIN,
    "persistent etcd": PERSISTENT,
    "network policies": POLICIES,
    "network policies, external etcd": merged(POLICIES, EXTERNAL),
    "monitors": ALL_MONITORING,
    "bare": BARE,
}
