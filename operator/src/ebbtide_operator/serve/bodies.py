"""What comes in from a pod: the body of a request, and what goes on coming up an open watch. All of it has bounds."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from ebbtide.etcd import wire
from ebbtide.etcd.framing import FramingError, LineSplitter
from ebbtide_operator.serve import relay_wire
from ebbtide_operator.serve.relay_wire import Denial

MOST_BODY_BYTES = 32 * 1024
"""A report in base64, with its key around it."""
BODY_S = 5.0
MOST_BEAT_BYTES = 1024
"""A beat has about 30; so much between two looks is no pod's."""


class Beats:
    """The lines that come up a watch whose request stays open, each the body of a keep-alive.

    `sparing`: an answer to every second one is enough.
    """

    def __init__(self, content: aiohttp.StreamReader, begun: bytes, *, sparing: bool = False) -> None:
        self.sparing = sparing
        self._content = content
        self._begun = begun
        # What came with the opening waits as well.
        self._taken = content.total_bytes - len(begun)
        self._lines = LineSplitter(MOST_BEAT_BYTES)

    @property
    def waiting(self) -> bool:
        """Whether something came since the last time: cheap, since it is asked for every pod at each look."""
        return self._content.total_bytes != self._taken

    def take(self) -> set[int]:
        """Return the leases whose beats came since the last time; never waits.

        Raises:
            Denial: It is too much.
            WireError: It is no beat.
            aiohttp.ClientPayloadError: It is no HTTP.
        """
        self._taken = self._content.total_bytes
        data = self._begun + self._content.read_nowait()
        self._begun = b""
        too_much = Denial(413, wire.RESOURCE_EXHAUSTED, f"beats are at most {MOST_BEAT_BYTES} bytes at a time")
        if len(data) > MOST_BEAT_BYTES:
            raise too_much
        try:
            return {relay_wire.decode_lease(line) for line in self._lines.feed(data)}
        except FramingError as error:
            raise too_much from error


async def read_whole(request: web.Request) -> bytes:
    """Return the body of a request.

    Raises:
        Denial: It is too large, too slow, compressed, or ends early.
    """
    body, _ = await _read(request, until=None)
    return body


async def read_opening(request: web.Request) -> tuple[bytes, Beats | None]:
    """Return what a watch asks for, and what comes up after that; None: nothing does, the request is complete.

    Raises:
        Denial: As above.
    """
    if wire.HEARTBEAT not in request.headers:
        return await read_whole(request), None
    body, rest = await _read(request, until=wire.OPENING_END)
    if request.content.at_eof():
        return body, None
    return body, Beats(request.content, rest, sparing=request.headers[wire.HEARTBEAT] == wire.SPARING)


async def _read(request: web.Request, until: bytes | None) -> tuple[bytes, bytes]:
    if "Content-Encoding" in request.headers:
        raise Denial(415, wire.INVALID_ARGUMENT, "Content-Encoding: not taken")
    too_long = Denial(413, wire.RESOURCE_EXHAUSTED, f"a request has at most {MOST_BODY_BYTES} bytes")
    if (request.content_length or 0) > MOST_BODY_BYTES:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while data := await request.content.readany():
                body += data
                if len(body) > MOST_BODY_BYTES:
                    raise too_long
                if until is not None and until in body:
                    break
    except TimeoutError as error:
        raise Denial(408, wire.DEADLINE_EXCEEDED, f"the request took more than {BODY_S:g} s") from error
    except (aiohttp.ClientPayloadError, ConnectionError) as error:
        raise Denial(400, wire.INVALID_ARGUMENT, "the request ended early") from error
    opening, _, rest = bytes(body).partition(until) if until is not None else (bytes(body), b"", b"")
    return opening, rest
