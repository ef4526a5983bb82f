"""What the store has of a drain when the process is gone."""

import asyncio

import pytest

import ebbtide
from ebbtide.etcd import EtcdClient
from ebbtide.lifecycle.machine import Durations
from ebbtide.protocol import Keys, PodState, Report
from ebbtide.settings import Workers
from tests.contract.member import Member

pytestmark = pytest.mark.etcd


async def test_the_last_report_outlives_the_process_and_says_what_its_drain_was_like(shared_etcd: Member) -> None:
    settings = ebbtide.Settings(
        endpoints=(shared_etcd.url,),
        pod_namespace="drain-report",
        pod_uid="uid-1",
        admin_port=0,
        workers=Workers.SINGLE,
        durations=Durations(0.0, 0.05, 5.0),
    )

    def broken() -> None:
        raise RuntimeError("hook")

    async with ebbtide.Runtime(settings, watchdog=False) as runtime:
        runtime.on_exit(broken)
        runtime.scope("orders").spawn(asyncio.sleep(3600), name="order-1")
        runtime.drain("an example")
        await runtime.wait_exit()
    with EtcdClient([shared_etcd.url], timeout_s=5.0) as store:
        said = store.get(Keys().report("drain-report", "uid-1"))
    assert said is not None
    assert said.lease == 0
    report = Report.decode(said.value)
    assert (report.state, report.forced) == (PodState.EXITING, True)
    assert report.drain is not None
    assert report.drain["outcome"] == "cancelled"
    assert report.drain["reason"] == "api: an example"
    assert report.drain["counts"] == {"cancelled": 1}
    assert [item["name"] for item in report.drain["stragglers"]] == ["order-1"]
    assert report.drain["stragglers"][0]["outcome"] == "cancelled"
    assert "broken" in report.drain["failed_hooks"][0]
