"""`python -m demo`: set up, play the scenes, print the table, check the dashboard, say where to look next."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.localcluster import Cluster

from .audit import AuditTail
from .cluster_api import CommandError, Kubectl, LoadControl, service_path
from .dashboard import check_dashboard
from .findings import Findings
from .manifests import MONITORING, ROOT, SHOP, Subject
from .options import choose_pace, choose_subjects, parse_arguments
from .progress import Progress
from .results import measure
from .scenes import Pace, SceneError, Stage, record, scenes
from .setup import OPERATOR_NAMESPACE, deploy, install_ebbtide, start_cluster
from .table import render
from .watch import PodWatch, WatchTimeoutError

REQUEST_TIMEOUT_S = 30.0


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
            audit = AuditTail(cluster.audit_log)
            stage = Stage(kubectl, watch, load, audit, subjects, pace, progress.say, OPERATOR_NAMESPACE)
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
