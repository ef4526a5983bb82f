"""What is in flight, where it waits, and for what."""

import asyncio
import json
import logging
import os
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

import pytest

import ebbtide
from ebbtide.stacks.frames import frames_of_task, key_of, key_of_task
from tests.unit.library.runtimes import a_runtime, until, without_collector


async def groups_of(runtime: ebbtide.Runtime, **query: str) -> list[dict[str, Any]]:
    text = await asyncio.to_thread(runtime.dump, {"format": "json", **query})
    groups: list[dict[str, Any]] = json.loads(text)["groups"]
    return groups


async def waits(*things: Awaitable[Any]) -> None:
    for thing in things:
        await thing


async def a_connection() -> tuple[asyncio.StreamReader, list[Any]]:
    """Return a reader that nothing comes to, and what is to be closed after it."""
    writers: list[Any] = []
    server = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    await until(lambda: writers)
    return reader, [writer, *writers, server]


async def held(lock: asyncio.Lock) -> asyncio.Lock:
    await lock.acquire()
    return lock


@pytest.mark.parametrize(
    ("state", "make"),
    [
        ("sleep", lambda: asyncio.sleep(3600)),
        ("event", lambda: asyncio.Event().wait()),
        ("queue", lambda: asyncio.Queue[int]().get()),
        ("select", lambda: asyncio.wait({asyncio.get_running_loop().create_future()})),
        ("future", lambda: asyncio.get_running_loop().create_future()),
    ],
)
async def test_a_wait_is_told_from_others(state: str, make: Callable[[], Awaitable[Any]]) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        scope.spawn(waits(make()))
        await asyncio.sleep(0)
        (group,) = await groups_of(runtime)
        assert group["state"] == state
        assert group["where"].partition(":")[0] == __file__, "the application's own line, not asyncio's"
        assert group["where"].endswith(" in waits")
        scope.cancel("test")


async def test_a_dump_by_the_work_itself_shows_its_line_and_keeps_nobody() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")

        def look() -> str:
            text: str = runtime.dump({"format": "json"})
            return text

        with without_collector():
            seen = weakref.ref(scope.spawn(asyncio.sleep(3600)))
            await asyncio.sleep(0)
            found = json.loads(await asyncio.wrap_future(scope.thread(look)))["groups"]
            assert any(group["where"].endswith("<locals>.look") for group in found)
            scope.cancel("test")
            await until(lambda: seen() is None)


async def test_waits_that_need_something_first_are_told_too() -> None:
    async def in_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))

    async def joined() -> None:
        unfinished: asyncio.Queue[int] = asyncio.Queue()
        unfinished.put_nowait(1)
        await unfinished.join()

    release = threading.Event()
    lock = await held(asyncio.Lock())
    reader, closing = await a_connection()
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    other = asyncio.create_task(asyncio.sleep(3600))
    cases: dict[str, tuple[str, Coroutine[Any, Any, Any]]] = {
        "lock": ("lock", waits(lock.acquire())),
        "join": ("queue", joined()),
        "read": ("I/O", waits(reader.read())),
        "thread": ("thread", waits(asyncio.to_thread(release.wait, 10))),
        "executor": ("thread", waits(asyncio.get_running_loop().run_in_executor(None, release.wait, 10))),
        "child": ("subprocess", waits(child.wait())),
        "group": ("select", in_group()),
        "gather": ("select", waits(asyncio.gather(asyncio.sleep(3600), asyncio.sleep(3600)))),
        "task": ("task", waits(other)),
    }
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        for name, (_, coroutine) in cases.items():
            scope.spawn(coroutine, name=name)
        for _ in range(5):
            await asyncio.sleep(0)
        text = await asyncio.to_thread(runtime.dump, {"format": "json"})
        found = {task["name"]: task["waits_for"] for task in json.loads(text)["tasks"]}
        assert found == {name: state for name, (state, _) in cases.items()}
        release.set()
        scope.cancel("test")
        await until(lambda: runtime.tasks_left == 0)
    other.cancel()
    await asyncio.wait({other})
    await child.communicate(b"\n")
    for thing in closing:
        thing.close()
        await thing.wait_closed()


async def test_running_ready_and_threads_are_told_apart() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        stop, items = threading.Event(), queue.Queue[int]()

        def spin() -> None:
            while not stop.is_set():
                pass

        async def look() -> dict[str, str]:
            scope.spawn(asyncio.sleep(3600), name="ready")
            found = json.loads(runtime.dump({"format": "json"}))["tasks"]
            return {task["name"]: task["waits_for"] for task in found}

        threads: list[Future[Any]] = [
            scope.thread(spin),
            scope.thread(lambda: stop.wait(10)),
            scope.thread(lambda: items.get(timeout=10)),
        ]
        await until(lambda: sum(task["kind"] == "thread" for task in runtime.tasks()) == 3)
        await until(lambda: all(f" {state} " in runtime.dump({"kind": "thread"}) for state in ("queue", "event")))
        found = await scope.spawn(look(), name="looks")
        assert found["looks"] == "running"
        assert found["ready"] == "ready"
        in_threads = [state for name, state in found.items() if name.startswith("orders-")]
        assert in_threads == ["running", "event", "queue"]
        stop.set()
        items.put(1)
        await asyncio.gather(*(asyncio.wrap_future(thread) for thread in threads))
        scope.cancel("test")


async def test_tasks_in_the_same_place_are_one_group_with_age_scopes_and_examples() -> None:
    async with a_runtime() as runtime:
        orders, mails = runtime.scope("orders"), runtime.scope("mails")
        for number in range(5):
            orders.spawn(waits(asyncio.sleep(3600)), name=f"order-{number}")
        mails.spawn(waits(asyncio.sleep(3600)))
        await asyncio.sleep(0)
        (group,) = await groups_of(runtime)
        assert (group["count"], group["scopes"]) == (6, {"orders": 5, "mails": 1})
        assert group["examples"] == ["order-0", "order-1", "order-2"]
        assert group["oldest_s"] >= 0
        text = await asyncio.to_thread(runtime.dump)
        assert text.startswith("6 in flight, 6 asked for, 1 places\n")
        assert "orders 5, mails 1: order-0, order-1, order-2" in text
        lines = (await asyncio.to_thread(runtime.dump, {"format": "collapsed"})).splitlines()
        assert all(line.partition(";")[0] in {"orders", "mails"} for line in lines)
        assert sorted(int(line.rpartition(" ")[2]) for line in lines) == [1, 5]
        assert ";waits:" in lines[0]
        assert lines[0].endswith(";[sleep] 5")
        orders.cancel("test")
        mails.cancel("test")


async def test_two_lines_that_wait_for_the_same_are_two_places() -> None:
    async def wait(*, first: bool) -> None:
        if first:
            await asyncio.sleep(3600)
        else:
            await asyncio.sleep(3600)

    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        for count in range(5):
            scope.spawn(wait(first=count < 2))
        await asyncio.sleep(0)
        for _ in range(2):
            assert [group["count"] for group in await groups_of(runtime)] == [3, 2]
        scope.cancel("test")


class Outside:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Any:
        yield from asyncio.sleep(3600).__await__()


async def deep(levels: int) -> None:
    await (deep(levels - 1) if levels else asyncio.sleep(3600))


async def through_a_generator() -> None:
    async def rows() -> Any:
        await asyncio.sleep(3600)
        yield

    async for _ in rows():
        pass


async def test_the_quick_look_at_a_task_sees_what_the_thorough_one_does() -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        usual = [waits(asyncio.sleep(3600)), deep(5), asyncio.Event().wait(), through_a_generator()]
        odd = [waits(Outside()), deep(250)]
        tasks = [scope.spawn(coroutine) for coroutine in (*usual, *odd)]
        await asyncio.sleep(0)
        unbegun = scope.spawn(asyncio.sleep(3600))
        await asyncio.to_thread(runtime.dump, {})
        keys = [key_of_task(task) for task in tasks]
        assert keys[:4] == [key_of(frames_of_task(task)) for task in tasks[:4]]
        assert len(set(keys[:4])) == 4
        assert keys[4:] == [None] * 2, "left to the thorough one"
        running = asyncio.current_task()
        assert running is not None
        assert key_of_task(running) is None
        unbegun.cancel()
        scope.cancel("test")


async def test_a_dump_is_narrowed_and_cut() -> None:
    async with a_runtime() as runtime:
        orders = runtime.scope("orders")
        orders.spawn(asyncio.sleep(3600), name="order-1")
        orders.scope("retry").spawn(asyncio.Event().wait(), name="order-2")
        runtime.scope("ordersextra").spawn(asyncio.sleep(3600), name="order-3")
        await asyncio.sleep(0)

        def names(**query: str) -> list[str]:
            return [task["name"] for task in json.loads(runtime.dump({"format": "json", **query}))["tasks"]]

        with orders.track("block"):
            assert names(scope="orders") == ["order-1", "order-2", "block"]
            assert names(scope="orders", kind="task") == ["order-1", "order-2"]
            assert names(kind="block") == ["block"]
        assert names(state="event") == ["order-2"]
        assert names(name="-3") == ["order-3"]
        assert names(older="1000") == []
        assert names(limit="1") == ["order-1"]
        assert "... and" in runtime.dump({"limit": "1"})
        assert runtime.dump({"limit": "0"}).startswith("3 in flight")
        for scope in (orders, runtime.scope("ordersextra")):
            scope.cancel("test")


@pytest.mark.parametrize(
    "query", [{"format": "xml"}, {"state": "bored"}, {"kind": "fibre"}, {"older": "old"}, {"limit": "-1"}]
)
async def test_a_wrong_parameter_is_named(query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(query))):
        a_runtime().dump(query)


async def test_sigusr1_writes_a_dump_to_the_log(caplog: Any) -> None:
    async with a_runtime() as runtime:
        scope = runtime.scope("orders")
        scope.spawn(asyncio.sleep(3600), name="order-1")
        with caplog.at_level(logging.WARNING, "ebbtide"):
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: "order-1" in caplog.text)
        assert "SIGUSR1: 1 in flight" in caplog.text
        scope.cancel("test")
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


async def test_sigusr1_of_a_server_is_left_alone() -> None:
    reopened: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: reopened.append(number))
    try:
        async with a_runtime():
            os.kill(os.getpid(), signal.SIGUSR1)
            await until(lambda: reopened)
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


async def test_a_dump_of_many_tasks_does_not_stop_the_loop() -> None:
    async with a_runtime() as runtime:
        runtime.limits = ebbtide.Limits()
        scope = runtime.scope("orders")
        for _ in range(5_000):
            scope.spawn(waits(asyncio.sleep(3600)))
        await asyncio.sleep(0)
        dumping = asyncio.create_task(asyncio.to_thread(runtime.dump, {"format": "json", "limit": "5000"}))
        turns = 0
        while not dumping.done():
            await asyncio.sleep(0)
            turns += 1
        assert json.loads(await dumping)["matching"] == 5_000
        # Turns and not times, which a busy machine stretches; a loop that stood still would have had one or two.
        assert turns > 10
        scope.cancel("test")
