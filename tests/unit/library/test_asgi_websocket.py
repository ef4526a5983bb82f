"""Websockets through the middleware: counted, closed with 1012, refused."""

import asyncio
from typing import Any

import pytest

from ebbtide import Refused
from ebbtide.asgi import DrainMiddleware, OnDrain
from ebbtide.asgi.soft import AT_ONCE, Endings
from tests.unit.library.asgi_server import CONNECT, Exchange, Message, websocket
from tests.unit.library.runtimes import a_runtime, until

RESTART = {"type": "websocket.close", "code": 1012, "reason": "service restart"}
ACCEPT: Message = {"type": "websocket.accept"}


class Chat:
    """Accepts, and then waits for messages until the socket is gone."""

    def __init__(self) -> None:
        self.ended: list[Message] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})
        self.ended.append(message)


async def test_a_websocket_lives_through_the_quiet_period_and_is_closed_for_a_restart() -> None:
    async with a_runtime(quiesce_s=0.05) as runtime:
        exchange = Exchange(DrainMiddleware(Chat(), runtime), websocket(), CONNECT)
        await exchange.until_sent("websocket.accept")
        assert [task["name"] for task in runtime.tasks()] == ["/ws"]
        runtime.drain("test")
        exchange.arrive({"type": "websocket.receive", "text": "hello"})
        await exchange.until_sent("websocket.send")
        assert runtime.intake_open
        assert await exchange.until_sent("websocket.close") == RESTART
        exchange.arrive({"type": "websocket.disconnect", "code": 1012})  # as servers do when the client has answered
        await exchange.done()
        await runtime.wait_exit()


async def test_one_that_comes_back_to_listen_hears_of_its_end() -> None:
    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await go.wait()
        heard.append(await receive())

    go = asyncio.Event()
    heard: list[Message] = []
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(deaf, runtime), websocket(), CONNECT)
        await exchange.until_sent("websocket.accept")
        runtime.drain("test")
        await exchange.until_sent("websocket.close")
        go.set()
        await exchange.done()
        assert heard == [{"type": "websocket.disconnect", "code": 1012, "reason": "service restart"}]


async def test_one_that_only_sends_is_told_by_an_error_that_is_no_crash() -> None:
    async def ticker(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await asyncio.sleep(0.001)

    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(ticker, runtime), websocket(), CONNECT)
        await exchange.until_sent("websocket.send")
        runtime.drain("test")
        sent = await exchange.done()
        assert sent[-1] == RESTART
        assert runtime.sample().tally == {"finished": 1}


async def test_an_application_that_closes_as_well_closes_once() -> None:
    async def polite(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await go.wait()
        await send({"type": "websocket.close", "code": 1001})

    go = asyncio.Event()
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(polite, runtime), websocket(), CONNECT)
        await exchange.until_sent("websocket.accept")
        runtime.drain("test")
        await exchange.until_sent("websocket.close")
        go.set()
        assert await exchange.done() == [ACCEPT, RESTART]


async def test_one_that_is_accepted_too_late_is_closed_at_once() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        began.set()
        await go.wait()
        await send(ACCEPT)
        await receive()

    began, go = asyncio.Event(), asyncio.Event()
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(slow, runtime), websocket(), CONNECT)
        await began.wait()
        runtime.drain("test")
        await until(lambda: not runtime.intake_open)
        await asyncio.sleep(0)
        go.set()
        assert await exchange.done() == [ACCEPT, RESTART]


async def test_a_crowd_is_closed_to_the_last_one() -> None:
    async with a_runtime() as runtime:
        app = DrainMiddleware(Chat(), runtime)
        crowd = [Exchange(app, websocket(), CONNECT) for _ in range(2 * AT_ONCE + 1)]
        for exchange in crowd:
            await exchange.until_sent("websocket.accept")
        runtime.drain("test")
        for exchange in crowd:
            assert await exchange.until_sent("websocket.close") == RESTART
            exchange.arrive({"type": "websocket.disconnect", "code": 1012})
            await exchange.done()
        await runtime.wait_exit()


async def test_a_forked_child_does_not_close_the_websockets_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parents:
        def end(self) -> None:
            raise AssertionError

    endings = Endings()
    endings.add(Parents(), late=False)
    monkeypatch.setattr("os.getpid", lambda: -1)
    endings.end_all()


@pytest.mark.parametrize("by_path", [True, False])
async def test_one_that_may_finish_is_waited_for_until_the_time_limit(by_path: bool) -> None:
    policy: Any = (lambda scope: OnDrain.FINISH if scope["path"] == "/ws" else OnDrain.END) if by_path else "finish"
    async with a_runtime(drain_timeout_s=0.1) as runtime:
        exchange = Exchange(DrainMiddleware(Chat(), runtime, websocket=policy), websocket(), CONNECT)
        await exchange.until_sent("websocket.accept")
        runtime.drain("test")
        await until(lambda: not runtime.intake_open)
        exchange.arrive({"type": "websocket.receive", "text": "still here"})
        await exchange.until_sent("websocket.send")
        with pytest.raises(asyncio.CancelledError):
            await exchange.done()
        assert exchange.sent[-1] == RESTART, "its client is told why"


@pytest.mark.parametrize("answers", [True, False])
async def test_a_new_one_is_refused_before_it_is_accepted(answers: bool) -> None:
    async with a_runtime() as runtime:
        app = DrainMiddleware(Chat(), runtime)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        exchange = Exchange(app, websocket(answers=answers), CONNECT)
        sent = await exchange.done()
        if answers:
            assert (exchange.statuses, exchange.header(b"retry-after")) == ([503], [b"1"])
        else:
            assert sent == [{"type": "websocket.close", "code": 1012}]


async def test_one_that_is_gone_before_it_is_refused_gets_nothing() -> None:
    async with a_runtime() as runtime:
        app = DrainMiddleware(Chat(), runtime)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        assert await Exchange(app, websocket(), {"type": "websocket.disconnect", "code": 1006}).done() == []


async def test_a_refusal_by_the_application_is_an_answer_before_it_accepts_and_an_error_after_it() -> None:
    async def limited(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/accepted":
            await send(ACCEPT)
        raise Refused("limit", 2.5)

    async with a_runtime() as runtime:
        app = DrainMiddleware(limited, runtime)
        exchange = Exchange(app, websocket(), CONNECT)
        await exchange.done()
        assert (exchange.statuses, exchange.header(b"retry-after")) == ([503], [b"3"])
        accepted = Exchange(app, websocket("/accepted"), CONNECT)
        with pytest.raises(Refused):
            await accepted.done()
        assert accepted.sent == [ACCEPT]


async def test_a_crash_goes_on_to_the_server_and_sends_nothing() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        raise ValueError("no such room")

    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(broken, runtime), websocket(), CONNECT)
        with pytest.raises(ValueError, match="no such room"):
            await exchange.done()
        assert exchange.sent == [ACCEPT]
        assert runtime.sample().tally == {"failed": 1}


async def test_a_client_that_is_gone_by_the_time_of_the_close_is_no_error() -> None:
    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            tried.set()
            raise ConnectionResetError
        accepted.set()

    accepted, tried = asyncio.Event(), asyncio.Event()
    incoming: asyncio.Queue[Message] = asyncio.Queue()
    incoming.put_nowait(CONNECT)
    async with a_runtime() as runtime:
        serving = asyncio.create_task(DrainMiddleware(Chat(), runtime)(websocket(), incoming.get, send))
        await accepted.wait()
        runtime.drain("test")
        await tried.wait()
        incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await serving
