"""The Kubernetes API as plain JSON over aiohttp (docs/decisions/0006 says why there is no typed client)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import kopf

Document = dict[str, Any]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_AGE_S = 60.0
"""Projected tokens are replaced while the process runs; the file is read again this often."""
IDLE_S = 60.0
"""How long an idle connection is kept, so that the next step finds one open. The API server closes it after 90 s."""
MERGE_PATCH = "application/merge-patch+json"
MAX_LINE = 8 * 2**20


class ApiError(Exception):
    """The API server refused: `status` is the HTTP code, `reason` the API's own word (`NotFound`)."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


def connection(environ: Mapping[str, str] = os.environ) -> kopf.ConnectionInfo:
    """Find the API server: the pod's own service account, else the kubeconfig.

    Raises:
        RuntimeError: There is neither.
    """
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    token = SERVICE_ACCOUNT / "token"
    if host and port and token.exists():
        name = f"[{host}]" if ":" in host else host
        return kopf.ConnectionInfo(
            server=f"https://{name}:{port}", ca_path=str(SERVICE_ACCOUNT / "ca.crt"), token=token.read_text().strip()
        )
    found: kopf.ConnectionInfo | None = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    if found is None:
        raise RuntimeError("no API server: run in a pod with a service account, or set KUBECONFIG")
    return found


class Api:
    """One connection pool to one API server."""

    def __init__(
        self, info: kopf.ConnectionInfo, on_write: Callable[[str, str], None] = lambda _verb, _kind: None
    ) -> None:
        self._server = info.server.rstrip("/")
        self._tls = info.as_ssl_context()
        self._token = info.token
        self._in_cluster = info.ca_path == str(SERVICE_ACCOUNT / "ca.crt")
        self._token_read_at = time.monotonic()
        self._on_write = on_write
        self._session: aiohttp.ClientSession | None = None

    async def get(self, path: str, **params: str) -> Document:
        return await self._request("GET", path, params=params)

    async def raw(self, path: str, **params: str) -> bytes:
        """Return a document as the bytes that came, for callers with a decoder of their own."""
        return await self._send("GET", path, params=params)

    async def create(self, path: str, body: Document) -> Document:
        return await self._write("POST", "create", path, body)

    async def replace(self, path: str, body: Document) -> Document:
        return await self._write("PUT", "update", path, body)

    async def patch(self, path: str, body: Document) -> Document:
        """Merge-patch an object."""
        return await self._write("PATCH", "patch", path, body, content_type=MERGE_PATCH)

    async def delete(self, path: str, *, uid: str | None = None) -> Document:
        """Delete an object; with `uid`, only the one that has it: another one of the same name answers 409."""
        body = None if uid is None else {"preconditions": {"uid": uid}}
        return await self._write("DELETE", "delete", path, body)

    @asynccontextmanager
    async def stream(self, path: str, *, silence_s: float, **params: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch and yield its lines; TimeoutError after `silence_s` seconds without a byte."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=silence_s)
        async with self._open().get(
            self._server + path, params=params, headers=self._headers(), timeout=timeout
        ) as answer:
            if answer.status != 200:
                raise _error(answer.status, await answer.read())
            yield _lines(answer.content)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _write(
        self, method: str, verb: str, path: str, body: Document | None, content_type: str = "application/json"
    ) -> Document:
        answer = await self._request(method, path, body=body, content_type=content_type)
        self._on_write(verb, _resource(path, create=method == "POST"))
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Document | None = None,
        content_type: str = "application/json",
    ) -> Document:
        payload = await self._send(method, path, params=params, body=body, content_type=content_type)
        document: Document = json.loads(payload)
        return document

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Document | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers(), "Content-Type": content_type}
        async with self._open().request(
            method, self._server + path, params=params, data=data, headers=headers
        ) as answer:
            payload = await answer.read()
            if answer.status >= 400:
                raise _error(answer.status, payload)
            return payload

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls, limit=50, keepalive_timeout=IDLE_S),
                timeout=aiohttp.ClientTimeout(total=10),
                read_bufsize=2**20,
            )
        return self._session

    def _headers(self) -> dict[str, str]:
        if self._in_cluster and time.monotonic() - self._token_read_at > TOKEN_AGE_S:
            self._token = (SERVICE_ACCOUNT / "token").read_text().strip()
            self._token_read_at = time.monotonic()
        headers = {"Accept": "application/json", "User-Agent": "ebbtide-operator"}
        return headers | {"Authorization": f"Bearer {self._token}"} if self._token else headers


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of any length up to 8 MiB; aiohttp's own reader stops at its buffer's size."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        while (end := rest.find(b"\n")) >= 0:
            yield bytes(rest[:end])
            del rest[: end + 1]
        if len(rest) > MAX_LINE:
            raise ValueError(f"a watch event of more than {MAX_LINE} bytes")


def _error(status: int, payload: bytes) -> ApiError:
    try:
        document = json.loads(payload)
        return ApiError(status, document.get("reason") or str(status), document.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(status, str(status), payload[:200].decode(errors="replace"))


def _resource(path: str, *, create: bool) -> str:
    """Return the resource that a path writes, for the metric: `pods`, `drains/status`."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    return parts[0] if create or len(parts) < 3 else f"{parts[0]}/{parts[2]}"
