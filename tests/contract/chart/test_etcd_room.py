"""The embedded etcd reaches its quota, of which an alert warns, before the end of its disk, of which none does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.chart.rendering import Document, only, refusal, render

pytestmark = pytest.mark.timeout(900)

GIB = 2**30


def etcd(quota_bytes: int, size: Any = None) -> dict[str, Any]:
    persistence = {"enabled": False} if size is None else {"enabled": True, "size": size}
    return {"etcd": {"quotaBytes": quota_bytes, "persistence": persistence}}


def scratch(found: list[Document]) -> str:
    volumes = only(found, "StatefulSet")["spec"]["template"]["spec"]["volumes"]
    (limit,) = [volume["emptyDir"]["sizeLimit"] for volume in volumes if volume["name"] == "data"]
    assert isinstance(limit, str)
    return limit


@pytest.mark.parametrize(
    ("quota_bytes", "limit"), [(GIB // 2, "2048Mi"), (8 * GIB, "17408Mi"), (16 * 2**20 + 1, "1057Mi")]
)
def test_without_a_volume_there_is_room_for_the_quota_its_copy_and_the_log(quota_bytes: int, limit: str) -> None:
    assert scratch(render(etcd(quota_bytes))) == limit


@pytest.mark.parametrize(
    ("quota_bytes", "size"),
    [(GIB // 2, "1Gi"), (GIB // 2, GIB), (8 * GIB, "8.5Gi"), (8 * GIB, "10G"), (2 * GIB, "1Ti")],
)
def test_a_volume_that_is_large_enough_is_asked_for(quota_bytes: int, size: Any) -> None:
    (claim,) = only(render(etcd(quota_bytes, size)), "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"] == size


@pytest.mark.parametrize(
    ("quota_bytes", "size"),
    [
        (GIB // 2 + 1, "1Gi"),
        (8 * GIB, "8Gi"),
        (8 * GIB, "9G"),
        (GIB, GIB),
        (GIB, "1500M"),
        (GIB // 2, "1000000000000m"),
    ],
)
def test_a_volume_that_the_quota_does_not_fit_is_refused(quota_bytes: int, size: Any) -> None:
    said = refusal(etcd(quota_bytes, size))
    assert "etcd.persistence.size: " in said
    least_mi = -(-(quota_bytes + GIB // 2) // 2**20)
    assert f"at least {least_mi}Mi" in said
