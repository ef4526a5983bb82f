"""The order service and the load generator together, in one process, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from examples.orders.orders.accounts import Execution, Fate, OrderRecord
from examples.orders.orders.app import Order, OrderService
from examples.orders.orders.intake import GracefulIntake
from examples.orders.orders.ledger import DuplicateRunError, Ledger
from examples.orders.orders.load import LoadGenerator, RunSpec
from examples.orders.orders.marks import LedgerClient, Mark, MarkKind

FEW = {"rate": 100.0, "duration_s": 0.2, "work": {"median_s": 0.1, "sigma": 0.5, "min_s": 0.05, "max_s": 0.5}}


@asynccontextmanager
async def served(application: web.Application) -> AsyncIterator[str]:
    server = TestServer(application)
    await server.start_server()
    try:
        yield str(server.make_url("/")).rstrip("/")
    finally:
        await server.close()


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (what is waited for happens in code under test, which has no event for it)
            await asyncio.sleep(0.01)


async def finished_run(session: aiohttp.ClientSession, url: str, name: str) -> dict[str, dict[str, int]]:
    """Wait until a run has ended and each of its orders is settled; return its counts."""
    async with asyncio.timeout(20):
        while True:
            async with session.get(f"{url}/runs/{name}") as response:
                summary = await response.json()
            counts: dict[str, dict[str, int]] = summary["deployments"]
            if summary["stopped_at"] and not any(each["in_flight"] for each in counts.values()):
                return counts
            await asyncio.sleep(0.05)


async def test_orders_are_worked_once_and_both_targets_get_the_same_stream() -> None:
    async with (
        served(LoadGenerator().application()) as load,
        LedgerClient(load, "pod-1") as ledger,
        GracefulIntake(ledger.note) as intake,
        served(OrderService(intake, ledger).application()) as url,
        aiohttp.ClientSession() as session,
    ):
        spec = {"name": "r", "targets": {"a": f"{url}/orders", "b": f"{url}/orders"}, "seed": 7, **FEW}
        async with session.post(f"{load}/runs", json=spec) as response:
            assert response.status == 201
        counts = await finished_run(session, load, "r")
        async with session.get(f"{load}/runs/r/orders") as response:
            orders = [OrderRecord.from_json(item) for item in (await response.json())["orders"]]
    assert counts["a"]["sent"] == counts["a"][Fate.FINISHED] > 5
    work = {name: [order.work_s for order in orders if order.deployment == name] for name in "ab"}
    assert work["a"] == work["b"]


async def test_a_graceful_service_finishes_what_it_has_and_refuses_the_rest() -> None:
    async with (
        served(LoadGenerator().application()) as load,
        LedgerClient(load, "pod-1") as ledger,
        GracefulIntake(ledger.note) as intake,
        served(OrderService(intake, ledger).application()) as url,
        aiohttp.ClientSession() as session,
    ):
        first = asyncio.create_task(session.post(f"{url}/orders", json={"id": "1", "work_s": 0.3}).__aenter__())
        await eventually(lambda: bool(intake._working))
        intake.terminate()
        async with session.get(f"{url}/ready") as response:
            assert response.status == 503
            assert response.headers["Connection"] == "close"
        async with session.post(f"{url}/orders", json={"id": "2", "work_s": 0.3}) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 0
        async with asyncio.timeout(5):
            await intake.wait_exit()
        async with await first as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "order:"),
        ({"work_s": 1}, "id:"),
        ({"id": "1"}, "work_s:"),
        ({"id": "1", "work_s": True}, "work_s:"),
        ({"id": "1", "work_s": 1e9}, "work_s:"),
    ],
)
def test_an_order_that_cannot_be_read_names_its_field(document: object, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Order.from_json(document)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"targets": {}}, "targets:"),
        ({"rate": 0}, "rate:"),
        ({"duration_s": 1e9}, "duration_s:"),
        ({"speed": 1}, "speed"),
        ({"work": {"mode_s": 1}}, "mode_s"),
    ],
)
def test_a_run_that_cannot_be_read_names_its_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        RunSpec.from_json({"name": "r", "targets": {"a": "http://a"}, "rate": 1.0, "duration_s": 1.0, **changes})


def test_a_mark_that_is_delivered_twice_counts_once() -> None:
    ledger = Ledger(lambda: 100.0)
    run = ledger.open_run("r")
    order = OrderRecord("1", "a", 1.0, 99.0)
    ledger.enter(run, order)
    for kind in (MarkKind.STARTED, MarkKind.COMPLETED, MarkKind.COMPLETED):
        ledger.mark(Mark(kind=kind, pod="p", at=99.5, order="1", execution="x"))
    assert order.executions == {"x": Execution("p", 99.5, 99.5)}
    ledger.mark(Mark(kind=MarkKind.COMPLETED, pod="q", at=99.6, order="1", execution="y"))
    assert ledger.summary(run)["deployments"]["a"][Fate.DUPLICATED] == 1


def test_marks_of_pods_belong_to_runs_that_had_begun_and_strays_are_counted() -> None:
    ledger = Ledger(lambda: 100.0)
    run = ledger.open_run("r")
    ledger.mark(Mark(kind=MarkKind.TOLD, pod="p", at=99.0))
    for _ in range(2):
        ledger.mark(Mark(kind=MarkKind.TOLD, pod="p", at=101.0))
    ledger.mark(Mark(kind=MarkKind.STARTED, pod="p", at=1.0, order="unknown", execution="x"))
    assert [mark["at"] for mark in ledger.dump(run)["pod_marks"]] == [101.0]
    assert ledger.stray_marks == 1
    with pytest.raises(DuplicateRunError, match="'r'"):
        ledger.open_run("r")
