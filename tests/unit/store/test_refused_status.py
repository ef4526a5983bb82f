"""A real way to an etcd whose status is not for everybody."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from ebbtide_operator.ports import StoreUnavailable
from ebbtide_operator.store.gateway import STATUS, Gateway

REFUSALS = {
    "denied": (403, {"code": 7, "message": "etcdserver: permission denied"}),
    "not served": (404, {}),
    "not understood": (400, {"code": 12, "message": "not implemented"}),
}


class Etcd:
    """Answers ranges while it lives, and refuses its status."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        self.lives = True
        self._refusal = status, body

    async def range(self, _request: web.Request) -> web.Response:
        if not self.lives:
            return web.json_response({"code": 14, "message": "etcdserver: no leader"}, status=503)
        return web.json_response({"header": {"cluster_id": "1", "revision": "5"}, "kvs": [], "count": "0"})

    async def status(self, _request: web.Request) -> web.Response:
        status, body = self._refusal
        return web.json_response(body, status=status)


@pytest.fixture(params=REFUSALS)
def etcd(request: pytest.FixtureRequest) -> Etcd:
    return Etcd(*REFUSALS[request.param])


@pytest.fixture
async def store(etcd: Etcd) -> AsyncIterator[Gateway]:
    app = web.Application()
    app.router.add_post("/v3/kv/range", etcd.range)
    app.router.add_post(STATUS, etcd.status)
    async with TestServer(app) as server:
        store = Gateway([str(server.make_url(""))])
        yield store
        await store.close()


async def refuse(store: Gateway) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(StoreUnavailable, match="ask for its status"):
            await store.status()


async def test_a_store_that_refuses_its_status_stays_healthy(store: Gateway) -> None:
    await store.range("/")
    await refuse(store)
    assert store.healthy


async def test_a_refused_status_does_not_make_a_store_healthy_that_answers_nothing_else(
    store: Gateway, etcd: Etcd
) -> None:
    await store.range("/")
    etcd.lives = False
    with pytest.raises(StoreUnavailable):
        await store.range("/")
    await refuse(store)
    assert not store.healthy
