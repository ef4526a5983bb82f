"""The cluster as the demo sees it: `kubectl` for what a user would type, its proxy for what is watched and asked."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

PROXY_START_S = 20.0


class CommandError(Exception):
    """A command failed; has the command and what it said."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Run kubectl.

    Args:
        command: The program and the flags that select the cluster.
    """

    command: Sequence[str]

    async def __call__(self, *arguments: str) -> str:
        """Run one command to its end and return what it printed.

        Raises:
            CommandError: It failed.
        """
        process = await asyncio.create_subprocess_exec(
            *self.command, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            output, errors = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise CommandError(f"kubectl {' '.join(arguments)}: {errors.decode().strip()}")
        return output.decode()

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[str]:
        """Serve the API on a loopback port while the context lasts, and give its base URL.

        Raises:
            CommandError: It did not start.
        """
        process = await asyncio.create_subprocess_exec(
            *self.command, "proxy", "--port=0", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(PROXY_START_S):
                line = (await process.stdout.readline()).decode()
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found is None:
                raise CommandError(f"kubectl proxy: {line.strip() or 'ended at once'}")
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def service_path(namespace: str, service: str, port: int) -> str:
    """Return where the API server passes requests on to a Service."""
    return f"/api/v1/namespaces/{namespace}/services/{service}:{port}/proxy"


class LoadControl:
    """Drive the load generator in the cluster.

    Args:
        session: Any client session.
        url: Base URL of the load generator.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def start(self, spec: Mapping[str, Any]) -> None:
        await self._ask("POST", "/runs", json=spec)

    async def show(self, run: str) -> Any:
        return await self._ask("GET", f"/runs/{run}")

    async def stop(self, run: str) -> None:
        await self._ask("POST", f"/runs/{run}/stop")

    async def dump(self, run: str) -> Any:
        return await self._ask("GET", f"/runs/{run}/orders")

    async def _ask(self, method: str, path: str, **options: Any) -> Any:
        async with self._session.request(method, f"{self._url}{path}", **options) as response:
            text = await response.text()
            if not response.ok:
                raise CommandError(f"load generator: {method} {path}: {response.status}: {text.strip()}")
            return json.loads(text)
