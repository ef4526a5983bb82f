"""What the store and the relay cost, each figure beside its target: `make bench-store`.

etcd, the relay and the pods are processes of their own. On a machine with two cores they share them, and the pods, many
in one process, take more than the relay: figures of time are upper bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from demo.measures import percentile
from ebbtide.agent import KEEP_ALIVE_S
from ebbtide_operator.cluster.authority import Leaf, make_authority, make_leaf
from tests.bench.store_processes import Helper, helper, raise_limits
from tests.contract.member import Member

PACE_S = 0.02
"""Between two orders: faster than an operator, which writes to Kubernetes for each."""
SETTLE_S = 5.0


class Bench:
    def __init__(self, relay: Helper, pods: Helper, etcd: int) -> None:
        self._relay = relay
        self._pods = pods
        self._etcd = etcd

    async def real(self, count: int, rounds: int) -> None:
        """Drain real pods, take them back, and at last let them leave."""
        uids = [f"real-{number}" for number in range(count)]
        await self._pods.ask("start", kind="real", uids=uids)
        taken_s: list[float] = []
        for _ in range(rounds):
            await asyncio.sleep(1)
            begun = await self._relay.ask("order", uids=uids, desired="drain", pace_s=PACE_S)
            taken_s += differences(begun, await self._pods.ask("told", within_s=60))
            await self._relay.ask("order", uids=uids, desired="serve", pace_s=PACE_S / 4)
        what = f"order written to intake closed, {count} real pods, {len(taken_s)} drains"
        show(what, ((taken_s, 50, None), (taken_s, 99, 50)))

        await asyncio.sleep(SETTLE_S)
        before = await self._relay.ask("revision")
        await self._relay.ask("order", uids=uids, desired="drain", pace_s=PACE_S, leave=True)
        await self._pods.ask("leave")
        await self._relay.ask("end", uids=uids)
        writes = (await self._relay.ask("revision") - before) / count
        print(f"etcd writes per drained pod: {writes:.1f} (target 5): order, reports, record, deletion of its keys;")
        print("  without a phase for its workload, and the request of a held pod: `make bench-rollout` has a cluster")

    async def simulated(self, idle: int, count: int, watched_s: float, *, by_request: bool) -> None:
        """Connect pods, look at the relay while they rest, and tell each something."""
        uids = [f"simulated-{number}" for number in range(count)]
        await asyncio.sleep(SETTLE_S)
        empty = await self._relay.ask("usage")
        print(f"relay CPU without pods, of one core: {await self._share(watched_s / 3)}")
        await self._pods.ask("start", kind="simulated", uids=uids[:idle], by_request=by_request)
        await asyncio.sleep(SETTLE_S)
        watching = await self._relay.ask("usage")
        watch_share = await self._share(watched_s / 2)
        await self._pods.ask("report")
        wave = await self._relay.ask("usage")
        reporting = wave
        while reporting["connections"] > reporting["watches"] and not by_request:
            await asyncio.sleep(0.5)
            reporting = await self._relay.ask("usage")
        await asyncio.sleep(SETTLE_S)
        reporting = await self._relay.ask("usage")
        if not by_request:
            await asyncio.sleep(KEEP_ALIVE_S)  # the first beat of each is answered, and then every second
        share = await self._share(watched_s)
        each_kib = [(usage["rss_kib"] - empty["rss_kib"]) / idle for usage in (watching, reporting)]
        print(f"relay memory per pod, {idle} pods: {each_kib[0]:.0f} KiB for its watch (target 60),", end=" ")
        print(f"{each_kib[1]:.0f} KiB once all have reported by a second connection each (target 60);")
        wave_kib = (wave["rss_kib"] - empty["rss_kib"]) / wave["connections"]
        print(f"  {wave_kib:.0f} KiB for each connection while {wave['connections']} of these were open")
        print(f"relay CPU with {idle} quiet pods, of one core: {watch_share} for watches,", end=" ")
        how = "a request every 8 to 10 s" if by_request else "a beat every 24 to 30 s"
        print(f"{share} where each keeps a lease by {how} (target 1 %)")

        if count == idle:
            await self._pods.ask("leave")
            return
        await self._pods.ask("start", kind="simulated", uids=uids[idle:])
        await asyncio.sleep(SETTLE_S)
        await self._pods.ask("forget")
        begun = await self._relay.ask("order", uids=uids, desired="drain", pace_s=PACE_S)
        taken_s = differences(begun, await self._pods.ask("told", within_s=60))
        show(f"order written to pod told, {count} simulated pods", ((taken_s, 50, None), (taken_s, 99, 250)))
        begun_at = await self._relay.ask("phase", reason="Bench")
        told = await self._pods.ask("told", within_s=60)
        last_s = max(told.values()) - begun_at
        print(f"one phase to all {count} simulated pods: the last is told after {last_s * 1000:.0f} ms")
        await self._pods.ask("leave")

    async def _share(self, seconds: float) -> str:
        """Return what the relay and etcd take of one core, in words."""
        before = await self._relay.ask("usage"), cpu_s(self._etcd)
        await asyncio.sleep(seconds)
        after = await self._relay.ask("usage"), cpu_s(self._etcd)
        relay = (after[0]["cpu_s"] - before[0]["cpu_s"]) / seconds
        return f"{relay:.2%} (etcd {(after[1] - before[1]) / seconds:.2%})"


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process took."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def differences(begun: Mapping[str, float], told: Mapping[str, float]) -> list[float]:
    return [told[uid] - at for uid, at in begun.items()]


def show(what: str, figures: Iterable[tuple[list[float], int, int | None]]) -> None:
    """Print percentiles in milliseconds, beside the target of those that have one."""
    parts = []
    for values, percent, target in figures:
        found = percentile(values, percent)
        assert found is not None, what
        parts.append(f"p{percent} {found * 1000:.0f} ms" + (f" (target {target} ms)" if target else ""))
    print(f"{what}: {', '.join(parts)}", flush=True)


def certificates(folder: Path) -> None:
    now = dt.datetime.now(dt.UTC)
    authority = make_authority("bench", now)
    pair = make_leaf(authority, Leaf("relay", ("localhost",)), now)
    for name, pem in (("ca.crt", authority.certificate), ("tls.crt", pair.certificate), ("tls.key", pair.key)):
        (folder / name).write_bytes(pem)


async def main(options: argparse.Namespace) -> None:
    etcd = Member()
    with tempfile.TemporaryDirectory(prefix="ebbtide-bench-") as name:
        folder = Path(name)
        certificates(folder)
        try:
            await asyncio.to_thread(etcd.start)
            async with helper("tests.bench.store_relay", etcd.url, name) as relay:
                port = (await relay.hear())["port"]
                async with helper("tests.bench.store_pods", f"https://localhost:{port}", name) as pods:
                    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")
                    bench = Bench(relay, pods, etcd.pid)
                    if options.real:
                        await bench.real(options.real, options.rounds)
                    await bench.simulated(
                        options.idle, options.simulated, options.watched_s, by_request=options.by_request
                    )
        finally:
            await asyncio.to_thread(etcd.close)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description=__doc__)
    parser.add_argument("--real", type=int, default=200, help="pods with the library (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="drains of each (default: %(default)s)")
    parser.add_argument("--idle", type=int, default=1000, help="pods that rest (default: %(default)s)")
    parser.add_argument("--simulated", type=int, default=2000, help="pods of the protocol alone (default: %(default)s)")
    parser.add_argument("--watched-s", type=float, default=20, help="how long to look on (default: %(default)s)")
    parser.add_argument("--by-request", action="store_true", help="keep-alives as of a library that knows no beats")
    raise_limits()
    asyncio.run(main(parser.parse_args()))
