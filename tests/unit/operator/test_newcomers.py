"""Who may hold a connection without asking for anything, and for how long."""

from typing import Any

import pytest

from ebbtide_operator.serve import newcomers as module
from ebbtide_operator.serve.newcomers import GRACE_S, PATIENCE_S, Newcomers


class Connection:
    def __init__(self) -> None:
        self.closed = False

    def force_close(self) -> None:
        self.closed = True


class Request:
    def __init__(self, protocol: Connection) -> None:
        self.protocol = protocol


async def ask(newcomers: Newcomers, connection: Connection) -> None:
    async def answer(_request: Any) -> Any:
        return "answer"

    request: Any = Request(connection)
    assert await newcomers.middleware(request, answer) == "answer"


def look(newcomers: Newcomers, connections: Any, now: float) -> None:
    newcomers.look([one for one in connections if not one.closed], now)


async def test_who_asks_in_time_is_left_alone_for_good() -> None:
    newcomers, connection = Newcomers(), Connection()
    look(newcomers, [connection], 0)
    await ask(newcomers, connection)
    for now in (PATIENCE_S, 10 * PATIENCE_S):
        look(newcomers, [connection], now)
    assert not connection.closed


def test_who_is_silent_is_closed_after_a_while() -> None:
    newcomers, connection = Newcomers(), Connection()
    look(newcomers, [connection], 100)
    look(newcomers, [connection], 100 + PATIENCE_S - 0.1)
    assert not connection.closed
    look(newcomers, [connection], 100 + PATIENCE_S)
    assert connection.closed


async def test_a_flood_pushes_out_itself_and_nobody_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    newcomers, pod = Newcomers(), Connection()
    flood = [Connection() for _ in range(5)]
    await ask(newcomers, pod)
    look(newcomers, [pod, *flood], 0)
    assert not any(one.closed for one in flood), "all of them may be pods that come back after a restart"
    look(newcomers, [pod, *flood], GRACE_S)
    assert [one.closed for one in flood] == [True, True, False, False, False]
    assert not pod.closed


async def test_connections_that_are_gone_are_forgotten() -> None:
    newcomers, silent, pod = Newcomers(), Connection(), Connection()
    await ask(newcomers, pod)
    look(newcomers, [silent, pod], 0)
    look(newcomers, [], 1)
    assert not newcomers._asked
    assert not newcomers._since
