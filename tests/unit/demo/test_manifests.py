from __future__ import annotations

from typing import Any

from demo.manifests import SUBJECTS, load, orders, prometheus
from ebbtide_operator.core import names


def deployments() -> dict[str, dict[str, Any]]:
    return {subject.mode.value: orders(subject, 12, "registry/orders:1")[0] for subject in SUBJECTS}


def without_names(deployment: dict[str, Any]) -> dict[str, Any]:
    metadata = {"annotations": {}, "labels": {}, "name": ""}
    template = deployment["spec"]["template"]
    return {
        **deployment,
        "metadata": metadata,
        "spec": {**deployment["spec"], "selector": {}, "template": {**template, "metadata": {}}},
    }


def mode_of(deployment: dict[str, Any]) -> dict[str, str]:
    (variable,) = [
        item for item in deployment["spec"]["template"]["spec"]["containers"][0]["env"] if item["name"] == "ORDERS_MODE"
    ]
    found: dict[str, str] = variable
    return found


def test_managed_differs_from_plain_in_its_annotations_and_its_mode_alone() -> None:
    plain, managed = deployments()["plain"], deployments()["ebbtide"]
    assert plain["metadata"]["annotations"] == {}
    assert managed["metadata"]["annotations"] == {names.DRAIN: "managed", names.DRAIN_TIMEOUT: "60s"}
    assert mode_of(managed).pop("value") == "ebbtide"
    assert mode_of(plain).pop("value") == "plain"
    assert without_names(plain) == without_names(managed)


def test_graceful_has_five_minutes_and_no_annotation() -> None:
    graceful = deployments()["graceful"]
    assert graceful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 300
    assert graceful["metadata"]["annotations"] == {}


def test_names_of_the_deployments_are_not_beginnings_of_each_other() -> None:
    found = [subject.name for subject in SUBJECTS]
    assert not [(one, other) for one in found for other in found if one != other and other.startswith(f"{one}-")]


def test_each_service_selects_its_own_pods() -> None:
    for subject in SUBJECTS:
        deployment, service = orders(subject, 12, "orders")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
        assert service["metadata"]["name"] == subject.name
        assert subject.url == f"http://{subject.name}/orders"


def test_every_image_is_filled_in() -> None:
    documents = [
        *load("registry/x:1"),
        *prometheus("registry/x:1", "registry/x:1"),
        *orders(SUBJECTS[0], 1, "registry/x:1"),
    ]
    images = [
        container["image"]
        for document in documents
        for spec in [document.get("spec", {})]
        for container in spec.get("template", {}).get("spec", spec).get("containers", [])
    ]
    assert images == ["registry/x:1"] * 4
