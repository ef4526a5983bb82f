"""A drain state over the memory store, with a clock that tests move."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from ebbtide.protocol import Desired, DrainRecord, Keys, Order, Outcome, PodState, Report
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.ports import Put
from ebbtide_operator.store.drain_state import MirroredDrainState

KEYS = Keys()
ORDERS = WorkloadKey("shop", "deployment", "orders")


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def an_order(epoch: int, generation: int = 1) -> Order:
    return Order(desired=Desired.DRAIN, generation=generation, epoch=epoch)


def a_report(**changes: Any) -> Report:
    return Report(**{"state": PodState.SERVING, "sequence": 1, "boot_id": "b", **changes})


def a_record(uid: str, ended_at: float, **changes: Any) -> DrainRecord:
    return DrainRecord(
        **{"pod": f"orders-{uid}", "uid": uid, "outcome": Outcome.CLEAN, "reason": "r", "ended_at": ended_at, **changes}
    )


class Told:
    """What listeners were told."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, namespace: str, uid: str, workload: Any) -> None:
        self.calls.append((namespace, uid, workload))


@contextlib.asynccontextmanager
async def running(store: Any, clock: Clock, told: Any = None) -> AsyncIterator[Any]:
    listener: Any = told or Told()
    state = MirroredDrainState(store, listener, clock=clock)
    task = asyncio.create_task(state.run())
    await state.synced()
    try:
        yield state
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def seen(state: Any, store: Any) -> None:
    """Wait until the mirror has everything that the store has."""
    async with asyncio.timeout(10):
        await state.mirror.reached(store.revision)


async def report(store: Any, uid: str, value: bytes | None = None, lease: int = 0) -> None:
    await store.transact([], [Put(KEYS.report("shop", uid), value or a_report().encode(), lease)])
