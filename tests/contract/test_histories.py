"""What concurrent clients see over faults has an order, epochs and revisions included: real etcd, both adapters.

`EBBTIDE_HISTORY_ROUNDS` says how many histories of each fault are recorded (1); `make test-store` takes more.
"""

import asyncio
import dataclasses
import math
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ebbtide_operator.store.etcd3 import Etcd3
from ebbtide_operator.store.gateway import Gateway
from tests.contract.faults import leader_of
from tests.contract.histories import Clients
from tests.contract.linearizability import Held, Operation, Undecided, is_linearizable
from tests.contract.member import Member, three
from tests.contract.proxy import Proxy

pytestmark = pytest.mark.etcd
ROUNDS = int(os.environ.get("EBBTIDE_HISTORY_ROUNDS", "1"))
STEADY = 100
"""Answers before a fault, and after it."""
TIMEOUT_S = 0.5

Harm = Callable[[Clients, list[Member], list[Proxy]], Awaitable[None]]


async def killed(clients: Clients, members: list[Member], _proxies: list[Proxy]) -> None:
    await asyncio.to_thread(members[0].kill)
    await clients.failing()
    await asyncio.to_thread(members[0].start)


async def frozen(clients: Clients, members: list[Member], _proxies: list[Proxy]) -> None:
    """What was sent before is done after everybody gave up waiting for it."""
    members[0].freeze()
    for _ in range(3):
        await clients.failing()
    members[0].thaw()


async def cut(clients: Clients, _members: list[Member], proxies: list[Proxy]) -> None:
    (proxy,) = proxies
    proxy.delay_s = 0.01
    wanted = clients.failures + 5
    while clients.failures < wanted:
        # Between a request and its answer, as often as not.
        await clients.answers(3)
        proxy.cut()
    proxy.delay_s = 0.0


async def deposed(clients: Clients, members: list[Member], _proxies: list[Proxy]) -> None:
    """The leader sleeps, another takes its place, and the first one wakes up and is asked again."""
    leader = await asyncio.to_thread(leader_of, members)
    leader.freeze()
    await clients.failing()
    others = [member for member in members if member is not leader]
    await asyncio.to_thread(leader_of, others)
    await clients.answers(STEADY // 2)
    leader.thaw()


FAULTS: dict[str, tuple[Harm, bool]] = {
    "SIGKILL, restart with data": (killed, False),
    "SIGSTOP, SIGCONT": (frozen, False),
    "connections cut": (cut, False),
    "leader of three members asleep": (deposed, True),
}


@pytest.mark.timeout(60 + 20 * ROUNDS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("adapter", [Gateway, Etcd3])
async def test_what_clients_see_over_a_fault_has_an_order(adapter: Any, fault: str, record_property: Any) -> None:
    counts = [0, 0]
    for number in range(ROUNDS):
        clients = await recorded(adapter, *FAULTS[fault], seed=number)
        counts[0] += clients.answered
        counts[1] += clients.unknown
        assert await asyncio.to_thread(is_linearizable, clients.history)
        assert await asyncio.to_thread(bites, clients.history)
        assert clients.failures
    record_property(
        "history", f"| {adapter.__name__.lower()} | {fault} | {ROUNDS} | {counts[0]} | {counts[1]} | {ROUNDS} |"
    )


def bites(history: list[Operation]) -> bool:
    """Say whether the check finds out where one of these answers is given otherwise."""
    try:
        return not is_linearizable(told_otherwise(history))
    except Undecided:
        # Too many writes without an answer may have come in any order; before all of them nothing may.
        unknown_at = min(one.called_at for one in history if not one.known)
        return not is_linearizable(told_otherwise(history, unknown_at))


def told_otherwise(history: list[Operation], until: float = math.inf) -> list[Operation]:
    """Return a history in which the last read that found something found what was there before, which is a lie.

    Args:
        history: What clients were told.
        until: The read was answered before this moment.
    """
    reads = [number for number, one in enumerate(history) if isinstance(one.answer, Held) and one.answered_at < until]
    last = history[reads[-1]]
    assert isinstance(last.answer, Held)
    stale = last.answer._replace(mod_revision=last.answer.mod_revision - 1)
    return [*history[: reads[-1]], dataclasses.replace(last, answer=stale), *history[reads[-1] + 1 :]]


async def recorded(adapter: Any, harm: Harm, clustered: bool, *, seed: int) -> Clients:
    """Let clients go through a fault of a fresh etcd."""
    members = three() if clustered else [Member()]
    proxies: list[Proxy] = []
    try:
        for member in members:
            member.launch()
        for member in members:
            await asyncio.to_thread(member.wait)
        if harm is cut:
            proxies.append(Proxy(members[0].port))
        urls = [proxy.url for proxy in proxies] or [member.url for member in members]
        clients = Clients(lambda: adapter(urls, timeout_s=TIMEOUT_S), seed)
        clients.start()
        try:
            await clients.answers(STEADY)
            await harm(clients, members, proxies)
            await clients.answers(STEADY)
        finally:
            await clients.stop()
        return clients
    finally:
        for proxy in proxies:
            await asyncio.to_thread(proxy.close)
        for member in members:
            member.close()
