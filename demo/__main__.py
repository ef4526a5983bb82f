"""`python -m demo`: set up, play the scenes, print the table, check the dashboard, say where to look next."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from charts.dashboards.verify import QueryResult
from examples.orders.orders.app import Mode
from tests.localcluster import Cluster

from .audit import AuditTail
from .cluster_api import CommandError, Kubectl, LoadControl, service_path
from .dashboard import as_json, check_dashboard
from .manifests import MONITORING, ROOT, SHOP, SUBJECTS, Subject
from .progress import Progress
from .results import Row, measure
from .scenes import Pace, SceneError, Stage, record, scenes
from .setup import OPERATOR_NAMESPACE, deploy, install_ebbtide, start_cluster
from .table import render
from .watch import PodWatch, WatchTimeoutError

QUICK = Pace(replicas=6, rate=4.5, warm_up_s=10.0)
REQUEST_TIMEOUT_S = 30.0


@dataclass(slots=True)
class Findings:
    """What the demo found out, so far."""

    began_at: float = field(default_factory=time.time)
    rows: list[Row] = field(default_factory=list)
    dashboard: list[QueryResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Turn what must not be into problems; only the managed Deployment has promises to keep."""
        managed = {subject.name for subject in SUBJECTS if subject.managed}
        for row in self.rows:
            if row.deployment in managed and not row.kept:
                what = f"{row.lost} lost, {row.duplicated} duplicated, {row.open} undecided"
                when = "not over in time" if row.over_s is None else "over in time"
                self.problems.append(f"{row.scene}: {row.deployment}: {what}, {when}")
        empty = sorted({result.panel for result in self.dashboard if result.empty})
        if empty:
            self.problems.append(f"dashboard: no data in {', '.join(empty)}")

    def to_json(self, pace: Pace) -> dict[str, Any]:
        return {
            "began_at": self.began_at,
            "pace": asdict(pace),
            "rows": [row.to_json() for row in self.rows],
            "dashboard": as_json(self.dashboard),
            "problems": self.problems,
        }


async def play(
    cluster: Cluster,
    subjects: Sequence[Subject],
    pace: Pace,
    findings: Findings,
    progress: Progress,
    *,
    quick: bool,
) -> None:
    """Play all scenes and fill in the findings; those of scenes before an error stay.

    Raises:
        SceneError, WatchTimeoutError, CommandError, aiohttp.ClientError: The demo cannot go on.
    """
    kubectl = Kubectl(cluster.kubectl_command())
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    run = time.strftime("%H%M%S", time.gmtime(findings.began_at))
    async with kubectl.proxy() as api, aiohttp.ClientSession(timeout=timeout) as session:
        async with PodWatch(session, api, SHOP) as watch:
            load = LoadControl(session, api + service_path(SHOP, "load", 8090))
            audit = AuditTail(cluster.audit_log) if cluster.audit_log else None
            stage = Stage(kubectl, watch, load, audit, subjects, pace, progress.say)
            follower = asyncio.create_task(progress.follow(stage))
            try:
                for number, scene in enumerate(scenes(pace, quick=quick), start=1):
                    recording = await record(stage, scene, f"{run}-{number}", seed=number)
                    rows = [
                        measure(recording, course, time.time(), SHOP, OPERATOR_NAMESPACE)
                        for course in recording.courses
                    ]
                    findings.rows += rows
                    progress.say(f"{scene.name} is over\n\n{render(rows)}\n")
            finally:
                follower.cancel()
                with suppress(asyncio.CancelledError):
                    await follower
        url = api + service_path(MONITORING, "prometheus", 9090)
        findings.dashboard += await check_dashboard(url, findings.began_at, progress.say)
        progress.say(f"kubectl -n {SHOP} get drains\n{await kubectl('-n', SHOP, 'get', 'drains')}")


def where_next(cluster: Cluster, result: Path, name: str) -> str:
    """Return what to type next."""
    forward = "kubectl -n {} port-forward service/{} {}"
    return "\n".join(
        [
            "Where to look next:",
            f"  export KUBECONFIG={cluster.kubeconfig}",
            "  kubectl get drains -A                                      # what drains, and who holds it up",
            f"  kubectl -n {SHOP} describe drain deployment-orders-managed",
            f"  {forward.format(OPERATOR_NAMESPACE, 'ebbtide-metrics', 8080)}   # then http://127.0.0.1:8080/metrics",
            f"  {forward.format(MONITORING, 'prometheus', 9090)}             # then http://127.0.0.1:9090",
            f"  {result}   # all figures; docs/demo.md says what each means",
            f"  make demo-down NAME={name}",
        ]
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Three ways to end a pod, side by side, under load, on a real cluster."
    )
    parser.add_argument("--cluster", default="ebbtide-demo", metavar="NAME", help="local cluster (ebbtide-demo)")
    parser.add_argument("--quick", action="store_true", help="6 replicas, the rollout alone")
    parser.add_argument("--replicas", type=int, metavar="N", help="of each Deployment (12; quick: 6); the load follows")
    parser.add_argument(
        "--plain-as-process-1",
        action="store_true",
        help="run the plain service without an init: it then ignores SIGTERM and stays for its grace period",
    )
    parser.add_argument("--result", type=Path, metavar="FILE", help="JSON file (build/demo/result-<time>.json)")
    return parser.parse_args(argv)


def choose_pace(arguments: argparse.Namespace) -> Pace:
    """Return the pace; with other replicas the orders in flight on each pod stay the same."""
    pace = QUICK if arguments.quick else Pace()
    if arguments.replicas is None:
        return pace
    if not 2 <= arguments.replicas <= 100:
        raise ValueError(f"--replicas: must be between 2 and 100, not {arguments.replicas}")
    return Pace(arguments.replicas, pace.rate * arguments.replicas / pace.replicas, pace.warm_up_s)


def choose_subjects(arguments: argparse.Namespace) -> tuple[Subject, ...]:
    """Return the Deployments to compare."""
    return tuple(
        replace(subject, process_1=arguments.plain_as_process_1 and subject.mode is Mode.PLAIN) for subject in SUBJECTS
    )


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0: all promises kept, 1: one was broken, 2: it could not be played to its end."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s %(levelname)s %(message)s")
    progress = Progress(sys.stdout)
    try:
        pace = choose_pace(arguments)
    except ValueError as error:
        progress.say(str(error))
        return 2
    cluster = start_cluster(arguments.cluster, progress.say)
    install_ebbtide(cluster, progress.say)
    subjects = choose_subjects(arguments)
    deploy(cluster, subjects, pace.replicas, progress.say)
    findings = Findings()
    broken = False
    try:
        asyncio.run(play(cluster, subjects, pace, findings, progress, quick=arguments.quick))
    except (SceneError, WatchTimeoutError, CommandError, aiohttp.ClientError, TimeoutError) as error:
        broken = True
        findings.problems.append(f"the demo could not go on: {error}")
    findings.judge()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(findings.began_at))
    result: Path = arguments.result or ROOT / "build" / "demo" / f"result-{stamp}.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(findings.to_json(pace), indent=1))
    lines = [render(findings.rows) if findings.rows else "no scene was played to its end", ""]
    lines += [f"PROBLEM: {problem}" for problem in findings.problems]
    progress.say("\n\n" + "\n".join([*lines, "", where_next(cluster, result, arguments.cluster)]))
    return 2 if broken else int(bool(findings.problems))


if __name__ == "__main__":
    sys.exit(main())
