"""The relay's side of `tests.bench.store`: the operator's store, relay and server in a process of their own.

Takes one JSON object a line on stdin and answers each with one on stdout. A token is `namespace/uid`: asking Kubernetes
about tokens is no part of what is measured, since the relay remembers the answer for a minute.
"""

import asyncio
import json
import resource
import ssl
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ebbtide.protocol import Desired, DrainRecord, Order, Outcome, Phase, RolloutPhase
from ebbtide_operator import loops
from ebbtide_operator.core.model import WorkloadKey
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import Deposed, PodIdentity, StoreUnavailable
from ebbtide_operator.serve import relay, reviews
from ebbtide_operator.serve.app import Server
from ebbtide_operator.store.drain_state import MirroredDrainState
from ebbtide_operator.store.gateway import Gateway
from tests.bench.store_processes import MANY, lines_of

ORDERS = WorkloadKey("shop", "deployment", "orders")


class RelayProcess:
    def __init__(self, etcd: str) -> None:
        # All pods of the bench share one address, and ask faster than pods of one node do.
        reviews.REVIEWS_PER_S = reviews.REVIEWS_AT_ONCE = MANY
        self._metrics = Metrics()
        self._store = Gateway([etcd])
        self._state = MirroredDrainState(self._store)
        self._relay = relay.Relay(self._state, self._store, self._authenticate, lambda *_: ORDERS, self._metrics)
        self._server = Server(self._metrics, tuple)
        self._generation = 0

    async def _authenticate(self, token: str) -> PodIdentity | None:
        namespace, _, uid = token.partition("/")
        return PodIdentity(namespace, uid, uid)

    async def run(self, folder: Path) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        following = asyncio.create_task(self._state.run())
        await self._state.synced()
        leading = asyncio.create_task(self._state.hold_leadership("bench"))
        feeling = asyncio.create_task(self._relay.run())
        while not self._state.epoch:  # noqa: ASYNC110 (etcd brings it about)
            await asyncio.sleep(0.01)
        port = await self._server.start_secure(self._relay.routes(), tls, 0, "localhost")
        say({"port": port})
        async for command in lines_of(sys.stdin):
            say(await getattr(self, command.pop("do"))(**command))
        self._relay.close()
        for task in (feeling, leading, following):
            task.cancel()
        await asyncio.gather(feeling, leading, following, return_exceptions=True)
        await self._server.close()
        await self._store.close()

    async def order(self, uids: list[str], desired: str, pace_s: float, *, leave: bool = False) -> Any:
        """Send an order to each pod, one every `pace_s` seconds; return when each was begun to be written."""
        self._generation += 1
        begun: dict[str, float] = {}
        for uid in uids:
            started_at = time.monotonic()
            order = Order(
                desired=Desired(desired),
                generation=self._generation,
                epoch=self._state.epoch,
                quiesce_s=0.0,
                leave=leave,
                workload="deployment/orders",
            )
            begun[uid] = started_at
            await self._insist(self._state.send_order, "shop", uid, order)
            await asyncio.sleep(max(0.0, started_at + pace_s - time.monotonic()))
        return begun

    async def phase(self, reason: str) -> Any:
        """Publish a phase, which every pod follows; return when that was begun."""
        begun = time.monotonic()
        await self._state.publish_phase(ORDERS, Phase(phase=RolloutPhase.STABLE, reason=reason))
        return begun

    async def end(self, uids: list[str]) -> Any:
        """Do for each drained pod what the operator does at its end: a record, and the pod's keys deleted."""
        for uid in uids:
            record = DrainRecord(pod=uid, uid=uid, outcome=Outcome.CLEAN, reason="Bench", ended_at=time.time())
            await self._insist(self._state.end, ORDERS, record)
        return len(uids)

    @staticmethod
    async def _insist(write: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Write until it is acknowledged, as the operator does; the time that a try without an answer took counts."""
        while True:
            try:
                return await write(*arguments)
            except (StoreUnavailable, Deposed) as error:
                print(f"tried again: {error}", file=sys.stderr)
                await asyncio.sleep(0.05)

    async def revision(self) -> Any:
        _, revision = await self._store.range("/nothing")
        return revision

    async def usage(self) -> Any:
        """Return this process's memory and CPU time, how many connections are open, and how many are watches."""
        watches = self._metrics.registry.get_sample_value("ebbtide_relay_connections")
        (runner,) = self._server._runners
        assert runner.server is not None
        connections = len(runner.server.connections)
        return {
            "rss_kib": resident_kib(),
            "cpu_s": time.process_time(),
            "connections": connections,
            "watches": watches,
        }


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    loops.run(RelayProcess(sys.argv[1]).run(Path(sys.argv[2])))
