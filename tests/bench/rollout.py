"""What a managed rollout of idle pods costs, against a plain one in the same cluster: `make bench-rollout`.

Each round rolls a plain Deployment and a managed one, one after the other, and scales the managed one down and up. Pods
are idle: what is left is Ebbtide's own share. While pods start, the figures are also those of the machine: on two cores
the controller-manager waits for the CPU. In a scale-down nothing starts.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass, field

import aiohttp

from demo.audit import AuditTail, Write, accepted_deletions
from demo.cluster_api import Kubectl
from demo.measures import percentile
from demo.releases import read_operator_log, release_decisions, release_latencies
from demo.watch import PodWatch
from tests import localcluster
from tests.cluster.installation import NAMESPACE, Installation, eventually, fresh_namespace, install
from tests.cluster.workloads import MANAGED, Deployment

UNMANAGED = {"bench.ebbtide.dev/side": "plain"}
WITHIN_S = 600.0
TARGET_RELEASE_S = 0.2
TARGET_CPU_S = 3.0


@dataclass
class Figures:
    plain_s: list[float] = field(default_factory=list)
    managed_s: list[float] = field(default_factory=list)
    releases_s: list[float] = field(default_factory=list)
    quiet_releases_s: list[float] = field(default_factory=list)
    """Those of scale-downs."""
    cpu_s: float = 0.0
    writes: int = 0
    replaced: int = 0


async def measure(installation: Installation, namespace: str, replicas: int, rounds: int) -> Figures:
    """Roll both Deployments `rounds` times."""
    surge = {"maxSurge": max(1, replicas // 4), "maxUnavailable": 0}
    sides = [
        ("plain", Deployment(installation, namespace, "plain"), UNMANAGED),
        ("managed", Deployment(installation, namespace, "managed"), MANAGED),
    ]
    figures = Figures()
    log = installation.cluster.audit_log
    kubectl = Kubectl(installation.cluster.kubectl_command())

    async def releases(since: float, writes: list[Write]) -> list[float]:
        decided = release_decisions(await read_operator_log(kubectl, NAMESPACE, since), namespace)
        decided = {pod: at for pod, at in decided.items() if at >= since}
        return release_latencies(decided, accepted_deletions(writes, namespace))

    async with kubectl.proxy() as api, aiohttp.ClientSession() as session:
        for _, worker, annotations in sides:
            worker.apply(replicas, annotations=annotations, strategy=surge)
        for _, worker, _ in sides:
            await asyncio.to_thread(worker.wait_ready, replicas, 300)
        async with PodWatch(session, api, namespace) as watch:
            for number in range(rounds):
                for side, worker, _ in sides:
                    before = await asyncio.to_thread(_cpu_s, installation)
                    audit, began_at = AuditTail(log), time.time()
                    taken_s = await _roll(watch, worker, f"{number + 2}", replicas)
                    print(f"round {number + 1}: {side} {taken_s:.1f} s", flush=True)
                    if side == "plain":
                        figures.plain_s.append(taken_s)
                        continue
                    figures.managed_s.append(taken_s)
                    figures.cpu_s += await asyncio.to_thread(_cpu_s, installation) - before
                    writes = audit.read()
                    figures.writes += sum(
                        write.accepted and write.resource in {"pods", "drains", "events"}
                        for write in writes
                        if write.user.startswith(f"system:serviceaccount:{NAMESPACE}:")
                    )
                    figures.replaced += replicas
                    figures.releases_s += await releases(began_at, writes)
                    began_at = time.time()
                    await _scale_down(watch, worker)
                    figures.quiet_releases_s += await releases(began_at, audit.read())
                    await asyncio.to_thread(worker.scale, replicas)
                    await asyncio.to_thread(worker.wait_ready, replicas, 300)
    return figures


async def _roll(watch: PodWatch, worker: Deployment, version: str, replicas: int) -> float:
    old = {pod.name for pod in watch.of(worker.name)}
    began = time.monotonic()
    await asyncio.to_thread(worker.change, version)

    def over() -> bool:
        pods = watch.of(worker.name)
        return len(pods) == replicas and all(pod.ready and pod.name not in old for pod in pods)

    await watch.until(f"{worker.name} has {replicas} new pods", over, WITHIN_S)
    return time.monotonic() - began


async def _scale_down(watch: PodWatch, worker: Deployment) -> None:
    await asyncio.to_thread(worker.scale, 1)
    await watch.until(f"{worker.name} has one pod", lambda: len(watch.of(worker.name)) == 1, WITHIN_S)


def _cpu_s(installation: Installation) -> float:
    return installation.metric("process_cpu_seconds_total")


def show(figures: Figures, replicas: int) -> None:
    """Print the table."""
    plain_s, managed_s = statistics.median(figures.plain_s), statistics.median(figures.managed_s)
    print(f"\nrollouts of {replicas} idle pods, {len(figures.plain_s)} of each kind, median")
    print(f"  plain {plain_s:.1f} s, managed {managed_s:.1f} s, ratio {managed_s / plain_s:.2f}")
    for when, releases_s in (("rollouts", figures.releases_s), ("scale-downs", figures.quiet_releases_s)):
        p50, p99 = (percentile(releases_s, q) for q in (50, 99))
        print(
            f"release decided to deletion accepted, {len(releases_s)} pods of {when}: p50 {p50:.3f} s, p99 {p99:.3f} s",
            end=" ",
        )
        print(f"(target {TARGET_RELEASE_S} s)")
    cpu_s = figures.cpu_s / figures.replaced * 1000
    print(f"operator, both replicas: {cpu_s:.1f} CPU seconds per 1,000 replaced pods (target {TARGET_CPU_S:.0f})")
    print(f"writes to pods, Drains and Events by Ebbtide: {figures.writes / figures.replaced:.1f} per replaced pod")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.rollout", description=__doc__)
    parser.add_argument("--replicas", type=int, default=20, help="pods of each Deployment (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="rollouts of each (default: %(default)s)")
    parser.add_argument("--cluster", default="ebbtide-bench", help="taken down at the end (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument(
        "--controller-manager-qps", type=float, help="client rate of the controller-manager (its own default: 20/s)"
    )
    options = parser.parse_args()
    cluster = localcluster.up(options.cluster, controller_manager_qps=options.controller_manager_qps)
    try:
        installation = install(cluster)
        eventually("the operator serves", installation.ready)
        with fresh_namespace(cluster, "bench") as namespace:
            show(asyncio.run(measure(installation, namespace, options.replicas, options.rounds)), options.replicas)
    finally:
        if not options.keep:
            cluster.down()


if __name__ == "__main__":
    main()
