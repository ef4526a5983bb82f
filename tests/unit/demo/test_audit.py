from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo.audit import AuditTail, Write, accepted_deletions, belongs_to, count_writes, parse, pod_deletions

OPERATOR = "system:serviceaccount:ebbtide-system:ebbtide"
CONTROLLER = "system:serviceaccount:kube-system:replicaset-controller"


def line(verb: str = "patch", name: str = "orders-managed-1", **changes: object) -> str:
    document = {
        "stage": "ResponseComplete",
        "verb": verb,
        "user": {"username": changes.pop("user", CONTROLLER)},
        "objectRef": {
            "resource": changes.pop("resource", "pods"),
            "namespace": changes.pop("namespace", "shop"),
            "name": name,
            "subresource": changes.pop("subresource", ""),
        },
        "responseStatus": {"code": changes.pop("code", 200)},
        "requestReceivedTimestamp": changes.pop("at", "2026-05-01T10:00:00.250000Z"),
        "stageTimestamp": changes.pop("answered_at", "2026-05-01T10:00:00.350000Z"),
        **changes,
    }
    return json.dumps(document)


def writes(*lines: str) -> list[Write]:
    return list(parse(lines))


def test_reads_and_unfinished_requests_are_no_writes() -> None:
    assert writes(line("get"), line("watch"), line("list"), line(stage="RequestReceived")) == []


def test_counts_what_belongs_to_the_deployment_and_tells_our_own_apart() -> None:
    counted = count_writes(
        writes(
            line(),
            line(user=OPERATOR),
            line(user=OPERATOR, resource="drains", name="deployment-orders-managed", subresource="status"),
            line(resource="replicasets", name="orders-managed-7f", subresource="status"),
            line(name="orders-plain-1"),
            line(namespace="other"),
            line(resource="events"),
            line("delete", code=429),
            line("create", name=""),
        ),
        "shop",
        "orders-managed",
        created_pods=3,
        operator="ebbtide-system",
    )
    assert (counted.accepted, counted.by_ebbtide, counted.to_pods_by_ebbtide, counted.held) == (7, 2, 1, 1)


def test_a_pod_is_deleted_by_the_first_request_that_is_accepted() -> None:
    log = writes(
        line("delete", "a", code=429, at="2026-05-01T10:00:00Z"),
        line("delete", "a", user="system:node:n", at="2026-05-01T10:00:09Z", answered_at="2026-05-01T10:00:09Z"),
        line("delete", "a", at="2026-05-01T10:00:01.500000Z", answered_at="2026-05-01T10:00:02.500000Z"),
        line("delete", "a", user=OPERATOR, at="2026-05-01T10:00:01.600000Z", answered_at="2026-05-01T10:00:01.750000Z"),
        line("delete", "b", namespace="other"),
    )
    assert pod_deletions(log, "shop") == {"a": 1777629601.5}
    assert accepted_deletions(log, "shop") == {"a": 1777629601.75}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("orders-managed", True),
        ("orders-managed-5d-x1", True),
        ("deployment-orders-managed", True),
        ("orders-managedx", False),
        ("orders", False),
        ("", False),
    ],
)
def test_objects_are_told_apart_by_name(name: str, expected: bool) -> None:
    assert belongs_to(name, "orders-managed") is expected


def test_the_tail_begins_at_the_end_and_leaves_half_a_line_for_later(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line(name="before") + "\n")
    tail = AuditTail(log)
    whole = line(name="after")
    with log.open("a") as writer:
        writer.write(line(name="now") + "\n" + whole[:20])
    assert [write.name for write in tail.read()] == ["now"]
    with log.open("a") as writer:
        writer.write(whole[20:] + "\n")
    assert [write.name for write in tail.read()] == ["after"]
    assert tail.read() == []


def test_the_tail_follows_a_log_that_was_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line(name="before") * 3 + "\n")
    tail = AuditTail(log)
    log.write_text(line(name="new") + "\n")
    assert [write.name for write in tail.read()] == ["new"]
