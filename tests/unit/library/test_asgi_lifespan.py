"""The runtime in the lifespan of an application: inside it, and there also for those that have none."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import ebbtide
from ebbtide import PodState
from ebbtide.asgi import DrainMiddleware
from tests.unit.library.asgi_server import BODY, Exchange, Held, Message, plain, request
from tests.unit.library.runtimes import a_runtime

STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}
UP, DOWN = "lifespan.startup.complete", "lifespan.shutdown.complete"


def lifespan(app: Any) -> Exchange:
    return Exchange(app, {"type": "lifespan", "asgi": {"version": "3.0"}}, STARTUP)


class Shop:
    """An application with a lifespan, which notes what happens in which order."""

    def __init__(self, runtime: ebbtide.Runtime, *, fails: bool = False, leaves: bool = False) -> None:
        self.notes: list[str] = []
        self._runtime = runtime
        self._fails = fails
        self._leaves = leaves

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive()) == STARTUP
        self.notes.append(f"opened while {self._runtime.state}")
        if self._fails:
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            return
        await send({"type": UP})
        if self._leaves:
            return
        assert (await receive()) == SHUTDOWN
        self.notes.append(f"closed while {self._runtime.state}")
        await send({"type": DOWN})


async def test_the_runtime_lives_inside_the_lifespan_of_the_application() -> None:
    runtime = a_runtime()
    shop, held = Shop(runtime), Held()

    async def both(scope: Any, receive: Any, send: Any) -> None:
        await (shop if scope["type"] == "lifespan" else held)(scope, receive, send)

    app = DrainMiddleware(both, runtime)
    living = lifespan(app)
    await living.until_sent(UP)
    assert runtime.ready
    in_flight = Exchange(app, request(), BODY)
    await held.began.wait()
    living.arrive(SHUTDOWN)
    await runtime.drain_requested()
    assert not living.task.done()
    held.go.set()
    await in_flight.done()
    assert [message["type"] for message in await living.done()] == [UP, DOWN]
    assert shop.notes == [f"opened while {PodState.STARTING}", f"closed while {PodState.EXITING}"]


async def refuses(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError(f"what is {scope['type']}?")


async def returns(scope: Any, receive: Any, send: Any) -> None:
    return


async def asks_and_returns(scope: Any, receive: Any, send: Any) -> None:
    await receive()


@pytest.mark.parametrize("app", [refuses, returns, asks_and_returns])
async def test_an_application_without_a_lifespan_gets_one(app: Any) -> None:
    runtime = a_runtime()
    living = lifespan(DrainMiddleware(app, runtime))
    await living.until_sent(UP)
    assert runtime.ready
    living.arrive(SHUTDOWN)
    assert [message["type"] for message in await living.done()] == [UP, DOWN]
    assert runtime.state is PodState.EXITING


async def test_an_application_that_leaves_its_lifespan_early_keeps_the_runtime() -> None:
    runtime = a_runtime()
    shop = Shop(runtime, leaves=True)
    living = lifespan(DrainMiddleware(shop, runtime))
    await living.until_sent(UP)
    assert runtime.ready
    living.arrive(SHUTDOWN)
    assert [message["type"] for message in await living.done()] == [UP, DOWN]


async def test_a_start_that_fails_in_the_application_starts_no_runtime() -> None:
    runtime = a_runtime()
    living = lifespan(DrainMiddleware(Shop(runtime, fails=True), runtime))
    assert await living.done() == [{"type": "lifespan.startup.failed", "message": "no database"}]
    assert runtime.state is PodState.STARTING


async def test_an_application_that_raises_in_its_start_is_not_silenced() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ConnectionError("no database")

    runtime = a_runtime()
    living = lifespan(DrainMiddleware(broken, runtime))
    with pytest.raises(ConnectionError, match="no database"):
        await living.done()
    assert living.sent == []


def no_check() -> None:
    raise ConnectionError("does not answer")


@pytest.mark.parametrize("make", [Shop, lambda runtime: refuses], ids=["lifespan", "none"])
async def test_a_start_that_fails_in_the_runtime_stops_the_application_before_the_server_hears_of_it(
    make: Callable[[ebbtide.Runtime], Any],
) -> None:
    runtime = a_runtime()
    runtime.on_start(no_check, ebbtide.Stage.CHECKS)
    app = make(runtime)
    (sent,) = await lifespan(DrainMiddleware(app, runtime)).done()
    assert sent["type"] == "lifespan.startup.failed"
    assert "no_check" in sent["message"]
    if isinstance(app, Shop):
        assert app.notes[-1].startswith("closed")


async def test_a_runtime_that_the_application_enters_itself_is_left_to_it() -> None:
    runtime = a_runtime()

    async def own(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with runtime:
            await send({"type": UP})
            assert await receive() == SHUTDOWN
            states.append(runtime.state)
        await send({"type": DOWN})

    states: list[PodState] = []
    living = lifespan(DrainMiddleware(own, runtime))
    await living.until_sent(UP)
    living.arrive(SHUTDOWN)
    assert [message["type"] for message in await living.done()] == [UP, DOWN]
    assert states == [PodState.SERVING]


async def test_a_runtime_that_has_run_does_not_run_again() -> None:
    runtime = a_runtime()
    app = DrainMiddleware(plain_after(returns), runtime)
    first = lifespan(app)
    await first.until_sent(UP)
    first.arrive(SHUTDOWN)
    await first.done()
    (sent,) = await lifespan(app).done()
    assert sent["type"] == "lifespan.startup.failed"
    assert "runs once" in sent["message"]


async def test_a_lifespan_that_crashes_or_is_cancelled_drains_the_runtime() -> None:
    async def crashes(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": UP})
        await crash.wait()
        raise ValueError("background work")

    for cancelled in (False, True):
        crash, runtime = asyncio.Event(), a_runtime()
        living = lifespan(DrainMiddleware(crashes, runtime))
        await living.until_sent(UP)
        if cancelled:
            living.task.cancel()
        else:
            crash.set()
        with pytest.raises(asyncio.CancelledError if cancelled else ValueError):
            await living.done()
        assert runtime.state is PodState.EXITING


async def test_a_whole_life_with_requests() -> None:
    runtime = a_runtime()
    app = DrainMiddleware(plain_after(refuses), runtime)
    living = lifespan(app)
    await living.until_sent(UP)
    served = Exchange(app, request())
    await served.done()
    assert served.statuses == [200]
    living.arrive(SHUTDOWN)
    await living.done()
    late = Exchange(app, request())
    await late.done()
    assert late.statuses == [503]


def plain_after(own: Any) -> Any:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await (own if scope["type"] == "lifespan" else plain)(scope, receive, send)

    return app
