"""The client of the load generator against servers that leave at every possible moment, on loopback."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from examples.orders.orders import client as client_module
from examples.orders.orders.accounts import OrderRecord, Outcome
from examples.orders.orders.client import Client

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Let the client hand its order over, and read all of it."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    await reader.readuntil(b"0\r\n\r\n")


async def done(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await accept(reader, writer)
    writer.write(ANSWER % b"200 OK")


async def refuse_with_order_in_hand(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await accept(reader, writer)
    writer.write(ANSWER % b"503 Service Unavailable")


async def refuse_at_the_door(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER % b"503 Service Unavailable")


async def leave_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    return


async def leave_before_accepting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def leave_after_accepting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await accept(reader, writer)


async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await accept(reader, writer)
    writer.write(ANSWER % b"500 Internal Server Error")


@asynccontextmanager
async def service(*talks: Talk) -> AsyncIterator[tuple[OrderRecord, Client]]:
    """Serve one connection after another as told; the last way serves all that follow."""
    served: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = talks[min(len(served), len(talks) - 1)]
        served.append(asyncio.current_task())
        try:
            await talk(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
    order = OrderRecord("1", "orders", 0.5, time.time())
    async with server, session:
        yield order, Client(session, f"http://127.0.0.1:{port}/orders", time.time, random.Random(1))
        await asyncio.gather(*filter(None, served))


def outcomes(order: OrderRecord) -> list[Outcome]:
    return [attempt.outcome for attempt in order.attempts]


@pytest.mark.parametrize("talk", [refuse_with_order_in_hand, refuse_at_the_door, leave_at_once, leave_before_accepting])
async def test_asks_again_where_nothing_was_begun(talk: Talk) -> None:
    async with service(talk, talk, done) as (order, client):
        await client.place(order)
    assert outcomes(order) == [Outcome.REFUSED, Outcome.REFUSED, Outcome.ANSWERED]
    assert order.settled_at == order.attempts[-1].ended_at


@pytest.mark.parametrize("talk", [leave_after_accepting, fail])
async def test_never_asks_again_once_the_order_was_handed_over(talk: Talk) -> None:
    async with service(talk, done) as (order, client):
        await client.place(order)
    assert outcomes(order) == [Outcome.CUT]
    assert order.settled_at is not None


async def test_a_connection_that_nobody_takes_is_a_refusal(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "GIVE_UP_S", 0.2)
    order = OrderRecord("1", "orders", 0.5, time.time())
    async with aiohttp.ClientSession() as session:
        client = Client(session, f"http://127.0.0.1:{unused_tcp_port}/orders", time.time, random.Random(1))
        await client.place(order)
    assert set(outcomes(order)) == {Outcome.REFUSED}
    assert len(order.attempts) > 1
    assert order.settled_at is not None


async def test_gives_up_waiting_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        await reader.read()

    monkeypatch.setattr(client_module, "ANSWER_MARGIN_S", -0.3)
    async with service(hold) as (order, client):
        await client.place(order)
    assert outcomes(order) == [Outcome.CUT]
