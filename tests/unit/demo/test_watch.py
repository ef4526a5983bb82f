"""The pod watch against an API server that ends watches, forgets versions and loses pods, on loopback."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from demo import watch as watch_module
from demo.history import PodEvent
from demo.watch import PodWatch, WatchTimeoutError


def pod(name: str, *, ready: bool = True) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"app": "orders", "pod-template-hash": "t"}},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


class ApiServer:
    """Answer each list from `lists`, the last one for ever; end each watch after its batch, keep the others open."""

    def __init__(self, lists: list[list[dict[str, Any]]], watches: list[list[dict[str, Any]]]) -> None:
        self.lists = lists
        self.watches = watches
        self.versions: list[str] = []
        self.closing = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            items = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
            return web.json_response({"metadata": {"resourceVersion": "7"}, "items": items})
        self.versions.append(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        if not self.watches:
            await self.closing.wait()
            return response
        for event in self.watches.pop(0):
            await response.write(json.dumps(event).encode() + b"\n")
        return response


async def follow(server: ApiServer, count: int) -> list[PodEvent]:
    """Return the first events that a watch has seen."""
    application = web.Application()
    application.router.add_get("/api/v1/namespaces/shop/pods", server.answer)
    async with TestServer(application) as host, aiohttp.ClientSession() as session:
        async with PodWatch(session, str(host.make_url("/")).rstrip("/"), "shop") as watch:
            await watch.until("enough events", lambda: len(watch.events) >= count, 10)
            seen = list(watch.events)
        server.closing.set()
    return seen


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "RETRY_S", 0.01)


async def test_events_follow_the_list_and_the_watch_begins_at_its_version() -> None:
    server = ApiServer(
        [[pod("a", ready=False)]],
        [[{"type": "MODIFIED", "object": pod("a")}, {"type": "DELETED", "object": pod("a")}]],
    )
    events = await follow(server, 3)
    assert [(event.pod.name, event.pod.ready, event.gone) for event in events[:3]] == [
        ("a", False, False),
        ("a", True, False),
        ("a", True, True),
    ]
    assert server.versions[0] == "7"


async def test_a_pod_that_went_while_the_watch_was_lost_is_gone() -> None:
    expired = {"type": "ERROR", "object": {"code": 410, "message": "too old"}}
    server = ApiServer([[pod("a"), pod("b")], [pod("b"), pod("c")]], [[expired]])
    events = await follow(server, 4)
    assert [(event.pod.name, event.gone) for event in events] == [
        ("a", False),
        ("b", False),
        ("a", True),
        ("c", False),
    ]


async def test_says_what_did_not_come() -> None:
    application = web.Application()
    server = ApiServer([[pod("a")]], [])
    application.router.add_get("/api/v1/namespaces/shop/pods", server.answer)
    async with TestServer(application) as host, aiohttp.ClientSession() as session:
        async with PodWatch(session, str(host.make_url("/")).rstrip("/"), "shop") as watch:
            with pytest.raises(WatchTimeoutError, match="not within 0 s: the moon"):
                await watch.until("the moon", lambda: False, 0.05)
        server.closing.set()
