"""Requests through the middleware: counted, finished, refused, closed."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebbtide
from ebbtide import PodState
from ebbtide.asgi import DrainMiddleware, OnDrain
from ebbtide.asgi.answers import closing, has_body, retry_after
from tests.unit.library.asgi_server import BODY, END, START, Exchange, Held, plain, request, websocket
from tests.unit.library.runtimes import a_runtime, until

LONG_S = 60.0


async def test_a_request_is_work_in_flight_until_the_application_returns() -> None:
    async def with_background_task(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(END)
        after.set()
        await go.wait()

    after, go = asyncio.Event(), asyncio.Event()
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(with_background_task, runtime), request("/orders"))
        await after.wait()
        assert [(task["name"], task["scope"], task["kind"]) for task in runtime.tasks()] == [
            ("/orders", "http", "block")
        ]
        go.set()
        assert await exchange.done() == [START, END]
        assert runtime.tasks_left == 0


async def test_messages_pass_unchanged_while_nothing_drains() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert scope is connection
        assert await receive() is BODY
        await send(START)
        await send(END)

    connection = request()
    async with a_runtime() as runtime:
        sent = await Exchange(DrainMiddleware(echo, runtime), connection).done()
        assert sent[0] is START
        assert sent[1] is END


async def test_a_request_in_flight_is_finished_by_a_drain_and_closes_its_connection() -> None:
    held = Held()
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(held, runtime), request())
        await held.began.wait()
        runtime.drain("test")
        await until(lambda: not runtime.intake_open)
        held.go.set()
        await exchange.done()
        assert (exchange.statuses, exchange.header(b"connection")) == ([200], [b"close"])
        await runtime.wait_exit()
        report = runtime.drain_report()
        assert report is not None
        assert str(report.outcome) == "clean"


async def test_requests_are_served_in_the_quiet_period_and_close_their_connections() -> None:
    async with a_runtime(quiesce_s=LONG_S) as runtime:
        app = DrainMiddleware(plain, runtime)
        runtime.drain("test", leave=False)
        exchange = Exchange(app, request())
        await exchange.done()
        assert (exchange.statuses, exchange.header(b"connection")) == ([200], [b"close"])
        assert START["headers"] == [(b"content-type", b"text/plain")], "the application's own message is left alone"
        runtime.undrain()
        await until(lambda: not runtime.draining)
        again = Exchange(app, request())
        await again.done()
        assert again.header(b"connection") == []


async def test_http_2_is_not_told_to_close() -> None:
    async with a_runtime() as runtime:
        app = DrainMiddleware(plain, runtime, health_paths=["/up"])
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        late = Exchange(app, request(version="2"))
        await late.done()
        assert (late.statuses, late.header(b"connection")) == ([503], [])


async def test_a_late_request_is_told_to_go_elsewhere() -> None:
    async def unreachable(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async with a_runtime() as runtime:
        app = DrainMiddleware(unreachable, runtime)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        late = Exchange(app, request())
        await late.done()
        assert late.statuses == [503]
        assert late.header(b"retry-after") == [b"1"]
        assert late.header(b"connection") == [b"close"]
        assert late.sent[-1].get("more_body") is False


async def test_a_refused_upload_is_answered_first_and_then_read() -> None:
    async with a_runtime() as runtime:
        app = DrainMiddleware(plain, runtime)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        upload = Exchange(app, request(body=True), {"type": "http.request", "body": b"a", "more_body": True})
        await upload.until_sent("http.response.start")
        await upload.until_sent("http.response.body")
        assert not upload.task.done()
        upload.arrive(BODY)
        await upload.done()
        assert [message.get("more_body") for message in upload.sent[1:]] == [True, False]


@pytest.mark.parametrize("last", [None, {"type": "http.disconnect"}])
async def test_a_refused_upload_that_stops_holds_nobody(last: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebbtide.asgi.answers.LINGER_S", 0.01)
    async with a_runtime() as runtime:
        app = DrainMiddleware(plain, runtime)
        runtime.drain("test", leave=False)
        await until(lambda: not runtime.intake_open)
        upload = Exchange(app, request(body=True), {"type": "http.request", "body": b"a", "more_body": True})
        if last:
            upload.arrive(last)
        await upload.done()
        assert upload.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_health_paths_are_answered_at_any_time_and_are_no_work() -> None:
    held = Held()
    async with a_runtime() as runtime:
        app = DrainMiddleware(held, runtime, health_paths=["/up"])
        runtime.drain("test", leave=False)
        await until(lambda: runtime.state is PodState.DRAINED)
        probe = Exchange(app, request("/up"))
        await held.began.wait()
        assert runtime.tasks_left == 0
        held.go.set()
        await probe.done()
        assert probe.statuses == [200]


@pytest.mark.parametrize("path", ["/api/livez", "/livez"])
async def test_health_paths_are_known_behind_the_root_path_of_the_server(path: str) -> None:
    async with a_runtime() as runtime:
        app = DrainMiddleware(plain, runtime)
        runtime.drain("test", leave=False)
        assert (await Exchange(app, request(path) | {"root_path": "/api"}).done())[0]["status"] == 200
        late = request("/api/orders/livez") | {"root_path": "/api"}
        assert (await Exchange(app, late).done())[0]["status"] == 503


async def test_a_refusal_by_the_application_is_an_answer() -> None:
    async def limited(scope: Any, receive: Any, send: Any) -> None:
        runtime.scope("inner", limits=ebbtide.Limits(max_tasks=1)).spawn(asyncio.sleep(LONG_S))
        await send(START)

    async with a_runtime(drain_timeout_s=0.0) as runtime:
        inner = runtime.scope("inner", limits=ebbtide.Limits(max_tasks=1))
        inner.spawn(asyncio.sleep(LONG_S))
        exchange = Exchange(DrainMiddleware(limited, runtime), request())
        await exchange.done()
        assert exchange.statuses == [503]
        assert exchange.header(b"retry-after") == [b"1"]
        assert exchange.header(b"connection") == []
        assert runtime.sample().tally.get("failed", 0) == 0


async def test_a_refusal_after_the_response_has_started_makes_no_second_one() -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise ebbtide.Refused("limit")

    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(half, runtime), request())
        with pytest.raises(ebbtide.Refused):
            await exchange.done()
        assert exchange.sent == [START]


async def test_what_the_application_raises_goes_on_to_the_server_as_it_is() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise error

    error = ValueError("no such order")
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(broken, runtime), request())
        with pytest.raises(ValueError, match="no such order") as raised:
            await exchange.done()
        assert raised.value is error
        assert exchange.sent == []
        assert runtime.tasks_left == 0
        assert runtime.sample().tally["failed"] == 1


async def test_a_client_that_goes_away_is_no_crash() -> None:
    class ClientDisconnect(Exception):
        pass

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        raise ClientDisconnect

    async with a_runtime() as runtime:
        with pytest.raises(ClientDisconnect):
            await Exchange(DrainMiddleware(reading, runtime), request()).done()
        assert runtime.sample().tally == {"cancelled": 1}


async def test_at_the_time_limit_the_application_cleans_up_and_the_client_gets_an_answer() -> None:
    held = Held()
    async with a_runtime(drain_timeout_s=0.01) as runtime:
        exchange = Exchange(DrainMiddleware(held, runtime), request())
        await held.began.wait()
        runtime.drain("test")
        with pytest.raises(asyncio.CancelledError):
            await exchange.done()
        assert held.cleaned_up
        assert (exchange.statuses, exchange.header(b"connection")) == ([503], [b"close"])


async def test_a_response_that_was_cut_off_by_the_time_limit_is_not_followed_by_another() -> None:
    held = Held()
    held.start_first = True
    async with a_runtime(drain_timeout_s=0.01) as runtime:
        exchange = Exchange(DrainMiddleware(held, runtime), request())
        await held.began.wait()
        runtime.drain("test")
        with pytest.raises(asyncio.CancelledError):
            await exchange.done()
        assert held.cleaned_up
        assert exchange.sent == [START]


async def test_a_request_that_the_server_cancels_is_not_answered() -> None:
    held = Held()
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(held, runtime), request())
        await held.began.wait()
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.done()
        assert exchange.sent == []
        assert runtime.sample().tally == {"cancelled": 1}


async def test_the_scope_can_be_chosen() -> None:
    held = Held()
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(held, runtime, scope=runtime.scope("public")), request())
        await held.began.wait()
        assert [task["scope"] for task in runtime.tasks()] == ["public"]
        held.go.set()
        await exchange.done()


async def test_a_policy_that_is_none_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="later"):
        DrainMiddleware(plain, a_runtime(), http="later")  # type: ignore[arg-type]


async def test_a_policy_that_fails_leaves_nothing_in_flight() -> None:
    def broken(scope: Any) -> OnDrain:
        raise KeyError("tenant")

    async with a_runtime() as runtime:
        app = DrainMiddleware(plain, runtime, http=broken, websocket=broken)
        for connection in (request(), websocket()):
            with pytest.raises(KeyError):
                await Exchange(app, connection).done()
        assert runtime.tasks_left == 0


async def test_unknown_kinds_of_connections_pass() -> None:
    async def strange(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    seen: list[str] = []
    async with a_runtime() as runtime:
        await Exchange(DrainMiddleware(strange, runtime), {"type": "webtransport"}).done()
    assert seen == ["webtransport"]


@pytest.mark.parametrize(("status", "streams"), [(b"5", False), (None, True)])
async def test_a_stream_that_listens_ends_when_intake_closes(status: bytes | None, streams: bool) -> None:
    async def events(scope: Any, receive: Any, send: Any) -> None:
        await receive()  # the body of the request
        headers = [(b"content-length", status)] if status else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        began.set()
        assert (await receive())["type"] == "http.disconnect"

    began = asyncio.Event()
    async with a_runtime() as runtime:
        app = DrainMiddleware(events, runtime, http=lambda scope: OnDrain.END)
        exchange = Exchange(app, request("/events"))
        await began.wait()
        runtime.drain("test")
        sent = await exchange.done()
        # An end in order, but where a length was promised: then only the server can break it off.
        assert (sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}) is streams
        await runtime.wait_exit()


async def test_a_stream_is_waited_for_where_nobody_asked_for_its_end() -> None:
    async def events(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        began.set()
        ended.append((await receive())["type"])

    began = asyncio.Event()
    ended: list[str] = []
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(events, runtime), request("/events"))
        await began.wait()
        runtime.drain("test")
        await until(lambda: not runtime.intake_open)
        assert len(runtime.tasks()) == 1
        assert ended == []
        exchange.arrive({"type": "http.disconnect"})
        await exchange.done()
        assert ended == ["http.disconnect"]


async def test_a_soft_end_does_not_take_the_body_of_the_request_away() -> None:
    async def upload(scope: Any, receive: Any, send: Any) -> None:
        began.set()
        while (message := await receive())["type"] == "http.request":
            bodies.append(message["body"])
            if not message["more_body"]:
                break
        await send(START)
        await send(END)

    bodies: list[bytes] = []
    began = asyncio.Event()
    async with a_runtime() as runtime:
        exchange = Exchange(
            DrainMiddleware(upload, runtime, http=OnDrain.END),
            request(body=True),
            {"type": "http.request", "body": b"a", "more_body": True},
        )
        await began.wait()
        runtime.drain("test")
        await until(lambda: not runtime.intake_open)
        exchange.arrive({"type": "http.request", "body": b"b", "more_body": False})
        await exchange.done()
        assert bodies == [b"a", b"b"]
        assert exchange.statuses == [200]


async def test_a_listener_that_is_cancelled_loses_no_message() -> None:
    async def impatient(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await receive()
        gave_up.set()
        seen.append((await receive())["type"])
        await send(START)
        await send(END)

    seen: list[str] = []
    gave_up = asyncio.Event()
    async with a_runtime() as runtime:
        exchange = Exchange(DrainMiddleware(impatient, runtime, http=OnDrain.END), request())
        await gave_up.wait()
        exchange.arrive({"type": "http.disconnect"})
        await exchange.done()
    assert seen == ["http.disconnect"]


HEADERS = st.lists(
    st.tuples(st.sampled_from([b"connection", b"Connection", b"Keep-Alive", b"content-type", b"x-id"]), st.binary())
)


@given(HEADERS)
def test_closing_says_so_once_and_keeps_every_other_header(headers: list[tuple[bytes, bytes]]) -> None:
    message = {"type": "http.response.start", "status": 204, "headers": headers}
    closed = closing(message)
    assert closed["status"] == 204
    assert [value for name, value in closed["headers"] if name.lower() == b"connection"] == [b"close"]
    others = [pair for pair in headers if pair[0].lower() not in {b"connection", b"keep-alive"}]
    assert closed["headers"][:-1] == others
    assert message["headers"] is headers


@given(st.floats(0, 1e6))
def test_retry_after_is_a_whole_number_of_seconds_and_never_too_early(seconds: float) -> None:
    _, value = retry_after(seconds)
    assert int(value) >= max(1, seconds)
    assert int(value) <= math.ceil(seconds) + 1


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], False),
        ([(b"content-length", b"0")], False),
        ([(b"content-length", b"7")], True),
        ([(b"transfer-encoding", b"chunked")], True),
    ],
)
def test_a_body_is_known_by_its_headers(headers: Any, expected: bool) -> None:
    assert has_body({"headers": headers}) is expected
