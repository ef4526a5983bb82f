"""How the processes of `tests.bench.store` talk: one JSON object a line, a question and its answer."""

import asyncio
import contextlib
import json
import resource
import sys
from collections.abc import AsyncIterator
from typing import Any, TextIO

MANY = 1e6
MOST_LINE = 16 * 2**20


class Helper:
    """A process that answers questions."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def hear(self) -> Any:
        """Return the next answer.

        Raises:
            RuntimeError: It ended instead.
        """
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the bench ended; its own message is above")
        return json.loads(line)

    async def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        return await self.hear()


@contextlib.asynccontextmanager
async def helper(module: str, *arguments: str) -> AsyncIterator[Helper]:
    """Run `python -m module`; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MOST_LINE,
    )
    try:
        yield Helper(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def lines_of(stream: TextIO) -> AsyncIterator[Any]:
    """Give the objects that come on a stream, until it ends."""
    reader = asyncio.StreamReader(limit=MOST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    while line := await reader.readline():
        yield json.loads(line)


def raise_limits() -> None:
    """Allow as many open files as the machine lets us: two connections for each pod, in two processes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
