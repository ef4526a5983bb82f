"""A small Kubernetes API server on loopback: lists, watches, merge patches, preconditions, and faults on command."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import kopf
from aiohttp import web

from ebbtide_operator.cluster.api import Api

Document = dict[str, Any]


@dataclass(frozen=True)
class Event:
    version: int
    type: str
    path: str
    document: Document


@dataclass
class FakeApi:
    """Objects by path (`/api/v1/namespaces/shop/pods/a`); a collection is what lies below a path and no deeper."""

    objects: dict[str, Document] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path, query left out, in order."""
    refuse: Callable[[str, str], int | None] = lambda _method, _path: None
    """Returns an HTTP status with which to refuse a request."""
    graceful: bool = False
    """Whether deleted objects stay as terminating ones, as pods do that run."""
    answers: dict[str, Callable[[Document], Document]] = field(default_factory=dict)
    """Answers of paths that take a POST and store nothing."""
    token: str = ""
    """Demanded of each request, where set."""
    version: int = 100
    oldest: int = 0
    """Watches from a lower version answer 410 Gone."""
    history: list[Event] = field(default_factory=list)
    watchers: int = 0
    url: str = ""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _cut: asyncio.Event = field(default_factory=asyncio.Event)
    silent: bool = False
    """Watches stay open and deliver nothing, as over a connection that the network forgot."""

    def put(self, path: str, document: Document) -> Document:
        """Create or change an object and tell the watches."""
        known = path in self.objects
        self.version += 1
        document = copy.deepcopy(document)
        document.setdefault("metadata", {})["resourceVersion"] = str(self.version)
        self.objects[path] = document
        self._tell(Event(self.version, "MODIFIED" if known else "ADDED", path, document))
        return document

    def remove(self, path: str) -> None:
        self.version += 1
        document = copy.deepcopy(self.objects.pop(path))
        document["metadata"]["resourceVersion"] = str(self.version)
        self._tell(Event(self.version, "DELETED", path, document))

    def bookmark(self) -> None:
        """Tell the watches how far they are, without an object."""
        self.version += 1
        document = {"kind": "Pod", "metadata": {"resourceVersion": str(self.version)}}
        self._tell(Event(self.version, "BOOKMARK", "", document))

    def cut(self) -> None:
        """Break every open watch."""
        self._cut.set()
        self._cut = asyncio.Event()

    def forget_history(self) -> None:
        """Compact: watches from before now answer 410 Gone."""
        self.oldest = self.version
        self.history.clear()

    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path in self.requests if method != "GET"]

    def _tell(self, event: Event) -> None:
        self.history.append(event)
        self._changed.set()
        self._changed = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        refused = self.refuse(request.method, request.path)
        if refused is not None:
            return _status(refused, "Refused")
        body = json.loads(await request.read() or b"null")
        match request.method:
            case "GET" if request.query.get("watch") == "true":
                return await self._watch(request)
            case "GET":
                return self._get(request)
            case "POST":
                return self._post(request.path, body)
            case "PUT":
                return self._replace(request.path, body)
            case "PATCH":
                return self._patch(request, body)
            case "DELETE":
                found = self.objects.get(request.path)
                if found is None:
                    return _status(404, "NotFound")
                expected = ((body or {}).get("preconditions") or {}).get("uid")
                if expected and expected != found["metadata"].get("uid"):
                    return _status(409, "Conflict")
                if self.graceful:
                    ending = {**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-11-24T12:00:00Z"}}
                    return web.json_response(self.put(request.path, ending))
                self.remove(request.path)
                return web.json_response({"kind": "Status", "status": "Success"})
            case _:
                return _status(405, "MethodNotAllowed")

    def _collection(self, request: web.Request) -> list[Document]:
        return [
            document
            for path, document in sorted(self.objects.items())
            if _within(path, request.path) and _selected(document, request.query.get("labelSelector", ""))
        ]

    def _get(self, request: web.Request) -> web.Response:
        found = self.objects.get(request.path)
        if found is not None:
            return web.json_response(found)
        if not _is_collection(request.path):
            return _status(404, "NotFound")
        items = self._collection(request)
        start, limit = int(request.query.get("continue") or 0), int(request.query.get("limit", 500))
        metadata = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            metadata["continue"] = str(start + limit)
        return web.json_response({"kind": "List", "metadata": metadata, "items": items[start : start + limit]})

    def _post(self, path: str, body: Document) -> web.Response:
        if path in self.answers:
            return web.json_response(self.answers[path](body), status=201)
        self.version += 1
        metadata = body.setdefault("metadata", {})
        name = metadata.setdefault("name", metadata.get("generateName", "") + str(self.version))
        if f"{path}/{name}" in self.objects:
            return _status(409, "AlreadyExists")
        metadata.setdefault("uid", f"uid-{self.version}")
        return web.json_response(self.put(f"{path}/{name}", body), status=201)

    def _replace(self, path: str, body: Document) -> web.Response:
        old = self.objects.get(path)
        if old is None:
            return _status(404, "NotFound")
        expected = body["metadata"].get("resourceVersion")
        if expected and expected != old["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        return web.json_response(self.put(path, body))

    def _patch(self, request: web.Request, body: Document) -> web.Response:
        if request.content_type != "application/merge-patch+json":
            return _status(415, "UnsupportedMediaType")
        path = request.path.removesuffix("/status")
        old = self.objects.get(path)
        if old is None:
            return _status(404, "NotFound")
        uid = body.get("metadata", {}).get("uid")
        if uid and uid != old["metadata"].get("uid"):
            return _status(409, "Conflict")
        return web.json_response(self.put(path, _merged(old, body)))

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if version < self.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old", "metadata": {}}
            await _send(response, "ERROR", {**gone, "status": "Failure"})
            return response
        self.watchers += 1
        cut = self._cut
        try:
            while not cut.is_set():
                changed = self._changed
                for event in [event for event in self.history if event.version > version]:
                    version = event.version
                    if not self.silent and (not event.path or _within(event.path, request.path)):
                        await _send(response, event.type, event.document)
                waiters = [asyncio.ensure_future(one.wait()) for one in (changed, cut)]
                try:
                    await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for waiter in waiters:
                        waiter.cancel()
        finally:
            self.watchers -= 1
        assert request.transport is not None
        request.transport.abort()
        return response


@asynccontextmanager
async def serving(fake: FakeApi) -> AsyncIterator[Api]:
    """Serve a fake API and yield a connection to it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    api = Api(kopf.ConnectionInfo(server=fake.url, token=fake.token or None))
    try:
        yield api
    finally:
        await api.close()
        fake.cut()
        await runner.cleanup()


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, 10 s at most."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (conditions of others' making have no event)
            await asyncio.sleep(0.002)


def a_pod(name: str, *, uid: str = "", owner: str = "set-1", namespace: str = "shop", **metadata: Any) -> Document:
    """Build a managed pod that runs and is ready."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{name}",
            "creationTimestamp": "2026-11-24T12:00:00Z",
            "labels": {"ebbtide.dev/managed": "true", "pod-template-hash": "abc"},
            "annotations": {},
            "ownerReferences": [{"kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}],
            **metadata,
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "app"}]},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"state": {"running": {}}, "ready": True}],
        },
    }


def pod_path(name: str, namespace: str = "shop") -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def _status(code: int, reason: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "reason": reason, "message": reason}, status=code)


async def _send(response: web.StreamResponse, kind: str, document: Document) -> None:
    await response.write(json.dumps({"type": kind, "object": document}).encode() + b"\n")


def _is_collection(path: str) -> bool:
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    return len(parts) == 1 or (parts[0] == "namespaces" and len(parts) == 3)


def _within(path: str, collection: str) -> bool:
    if path.rpartition("/")[0] == collection:
        return True
    # /api/v1/pods is all of /api/v1/namespaces/*/pods.
    root, _, plural = collection.rpartition("/")
    parts = path.removeprefix(f"{root}/namespaces/").split("/")
    return path.startswith(f"{root}/namespaces/") and len(parts) == 3 and parts[1] == plural


def _selected(document: Document, selector: str) -> bool:
    labels = document["metadata"].get("labels", {})
    return all(
        part[1:] not in labels if part.startswith("!") else part in labels for part in selector.split(",") if part
    )


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
