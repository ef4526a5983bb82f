"""The order service as a process of its own, under load on loopback, told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from examples.orders.orders.accounts import OrderRecord
from examples.orders.orders.load import LoadGenerator
from tests.unit.demo.test_service import eventually, served

EXAMPLE = Path(__file__).parents[3] / "examples" / "orders"


async def start_service(mode: str, port: int, ledger: str) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "ORDERS_MODE": mode,
        "POD_NAME": f"pod-{mode}",
        "ORDERS_LEDGER": ledger,
        "EBBTIDE_QUIESCE_S": "0.2",
        "EBBTIDE_ADMIN_ADDRESS": "127.0.0.1:0",
    }
    flags = ("--host", "127.0.0.1", "--port", str(port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orders.app", *flags, cwd=EXAMPLE, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(20), aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/ready", raise_for_status=True):
                    return process
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("mode", "code", "lost"),
    [("plain", -signal.SIGTERM, True), ("graceful", 0, False), ("ebbtide", 0, False)],
    ids=["plain", "graceful", "ebbtide"],
)
async def test_what_sigterm_does_to_orders_in_flight(mode: str, code: int, lost: bool, unused_tcp_port: int) -> None:
    generator = LoadGenerator()
    async with served(generator.application()) as load, aiohttp.ClientSession() as session:
        process = await start_service(mode, unused_tcp_port, load)
        try:
            work = {"median_s": 1.0, "sigma": 0.1, "min_s": 0.8, "max_s": 1.2}
            target = {mode: f"http://127.0.0.1:{unused_tcp_port}/orders"}
            spec = {"name": "r", "targets": target, "rate": 40.0, "duration_s": 0.5, "work": work}
            async with session.post(f"{load}/runs", json=spec, raise_for_status=True):
                pass
            run = generator._ledger.run("r")
            assert run is not None
            await eventually(lambda: sum(bool(order.executions) for order in run.orders.values()) > 3)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == code
            async with session.get(f"{load}/runs/r/orders") as response:
                dump = await response.json()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    orders = [OrderRecord.from_json(item) for item in dump["orders"]]
    begun = [order for order in orders if order.executions]
    assert len(begun) > 3
    assert any(not order.completions for order in begun) is lost
    assert [mark["kind"] for mark in dump["pod_marks"]] == ([] if mode == "plain" else ["told", "closed"])


@pytest.mark.parametrize("mode", ["graceful", "ebbtide"])
async def test_an_order_that_is_still_being_sent_at_the_end_is_refused_at_once(mode: str, unused_tcp_port: int) -> None:
    body = b'{"id": "late", "work_s": 0.2}'
    async with served(LoadGenerator().application()) as load:
        process = await start_service(mode, unused_tcp_port, load)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
            with contextlib.closing(writer):
                writer.write(b"POST /orders HTTP/1.1\r\nHost: orders\r\nExpect: 100-continue\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n" % len(body))
                async with asyncio.timeout(10):
                    assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
                    process.send_signal(signal.SIGTERM)
                    await refused(unused_tcp_port)
                    writer.write(body)
                    answer = await reader.read()
                    assert await process.wait() == 0
                assert b"HTTP/1.1 503 " in answer
                assert b"Retry-After:" in answer
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def refused(port: int) -> None:
    """Wait until nobody listens there any more."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it was in the queue of the socket that was closed
        writer.close()
        await asyncio.sleep(0.01)
