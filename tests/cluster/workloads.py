"""Deployments that the cluster tests roll, scale and end, and what happened to their tasks."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import threading
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.installation import Installation, eventually
from tests.localcluster import images

# Takes work from files: the name of a file below /tmp/work is a task's name, its content the seconds that it lasts.
# `forever` tasks end only when they are cancelled, `stubborn` ones not even then.
WORKER = """
import asyncio, os, pathlib, time
time.sleep(float(os.environ.get("START_AFTER", "0")))
import ebbtide

async def work(name, seconds):
    print("started", name, flush=True)
    try:
        await asyncio.sleep(1e9 if seconds in ("forever", "stubborn") else float(seconds))
    except asyncio.CancelledError:
        print("cancelled", name, flush=True)
        while seconds == "stubborn":
            try:
                await asyncio.sleep(1e9)
            except asyncio.CancelledError:
                pass
        raise
    print("finished", name, flush=True)

async def intake(scope, inbox):
    while True:
        for path in sorted(inbox.iterdir()):
            if path.suffix == ".task":
                seconds = path.read_text()
                path.unlink()
                try:
                    scope.spawn(work(path.stem, seconds), name=path.stem)
                except ebbtide.Refused:
                    print("refused", path.stem, flush=True)
        await asyncio.sleep(0.02)

async def main():
    inbox = pathlib.Path("/tmp/work")
    inbox.mkdir(exist_ok=True)
    async with ebbtide.Runtime.from_env() as runtime:
        scope = runtime.scope("work")
        for number in range(int(os.environ.get("TASKS", "0"))):
            scope.spawn(work(f"first{number}", os.environ["SECONDS"]), name=f"first{number}")
        print("serving", flush=True)
        reader = asyncio.create_task(intake(scope, inbox))
        await runtime.wait_exit()
        reader.cancel()

asyncio.run(main())
"""


@dataclass
class Log:
    """What one pod printed, read until it ended."""

    pod: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    def said(self, verb: str) -> set[str]:
        return {line.split()[1] for line in list(self.lines) if line.startswith(f"{verb} ")}

    def end(self) -> None:
        """Wait until the log is complete: the pod is gone."""
        assert self.reader is not None
        self.reader.join(30)
        self.process.wait(30)


@dataclass
class Deployment:
    """One Deployment of the worker above."""

    installation: Installation
    namespace: str
    name: str = "worker"
    logs: dict[str, Log] = field(default_factory=dict)

    def kubectl(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.installation.cluster.kubectl("-n", self.namespace, *args, **options)

    def metric(self, name: str, **labels: str) -> float:
        """Sum a metric of this workload over the operator's replicas, and over the labels that are not given."""
        return self.installation.metric(name, namespace=self.namespace, workload=self.name, **labels)

    def apply(
        self,
        replicas: int,
        *,
        tasks: int = 0,
        seconds: str = "1",
        annotations: dict[str, str] | None = None,
        strategy: dict[str, int] | None = None,
        version: str = "1",
        start_after_s: float = 0,
    ) -> None:
        probe = {"httpGet": {"path": "/readyz", "port": 8471}, "periodSeconds": 1, "failureThreshold": 1}
        container = {
            "name": "worker",
            "image": images.reference("orders"),
            "imagePullPolicy": "Never",
            "command": ["python", "-c", WORKER],
            "env": [
                {"name": "TASKS", "value": str(tasks)},
                {"name": "SECONDS", "value": seconds},
                {"name": "VERSION", "value": version},
                {"name": "START_AFTER", "value": str(start_after_s)},
            ],
            "readinessProbe": probe,
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        }
        self._apply_manifest(container, replicas, annotations, strategy)

    def _apply_manifest(
        self,
        container: dict[str, Any],
        replicas: int,
        annotations: dict[str, str] | None,
        strategy: dict[str, int] | None,
    ) -> None:
        manifest = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name, "namespace": self.namespace, "annotations": annotations or MANAGED},
            "spec": {
                "replicas": replicas,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": strategy or {"maxSurge": 1, "maxUnavailable": 0},
                },
                "selector": {"matchLabels": {"app": self.name}},
                "template": {"metadata": {"labels": {"app": self.name}}, "spec": {"containers": [container]}},
            },
        }
        self.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def change(self, version: str) -> None:
        """Start a rollout."""
        self.kubectl("set", "env", f"deployment/{self.name}", f"VERSION={version}")

    def scale(self, replicas: int) -> None:
        self.kubectl("scale", f"deployment/{self.name}", f"--replicas={replicas}")

    def pods(self) -> list[dict[str, Any]]:
        return self.installation.items("pods", "-n", self.namespace, "-l", f"app={self.name}")

    def names(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.pods()}

    def running(self) -> set[str]:
        """Return the pods of which a container runs, ready or not."""
        return {
            pod["metadata"]["name"]
            for pod in self.pods()
            if any("running" in one["state"] for one in pod["status"].get("containerStatuses", []))
        }

    def draining(self) -> set[str]:
        return {pod["metadata"]["name"] for pod in self.pods() if annotation(pod, "draining-since")}

    def last_drains(self, count: int = 1) -> list[dict[str, Any]]:
        """Return the ends of drains that the Drain object shows, newest first, once there are `count`."""

        def recorded() -> list[dict[str, Any]]:
            # The status is written every 2 s, so a pod may be gone before its end is shown.
            drains: list[dict[str, Any]] = self.installation.drain(self.namespace, self.name).get("lastDrains", [])
            return drains if len(drains) >= count else []

        return eventually(f"{count} drains are recorded", recorded)

    def wait_ready(self, replicas: int, within_s: float = 90) -> None:
        def ready() -> bool:
            pods = self.pods()
            return len(pods) == replicas and all(is_ready(pod) for pod in pods)

        eventually(f"{replicas} pods of {self.name} are ready", ready, within_s=within_s)

    def follow(self) -> None:
        """Read the logs of the pods that are there now."""
        for name in self.names() - self.logs.keys():
            process = subprocess.Popen(
                [*self.installation.cluster.kubectl_command("-n", self.namespace, "logs", "-f", name)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            log = Log(name, process)
            log.reader = threading.Thread(target=_read, args=(log,), daemon=True)
            log.reader.start()
            self.logs[name] = log

    def close(self) -> None:
        """Stop reading logs, and end what runs, endless tasks too, without its grace periods."""
        for log in self.logs.values():
            log.process.terminate()
            log.end()
        everything = ("--all", "--wait=false", "--ignore-not-found")
        self.kubectl("delete", "deployments,replicasets", "--cascade=orphan", *everything)
        self.kubectl("delete", "pods", "--force", "--grace-period=0", *everything)

    def give(self, pod: str, task: str, seconds: str) -> None:
        """Make a pod start a task, and wait until it did."""
        script = f"echo -n {seconds} > /tmp/work/{task}.new && mv /tmp/work/{task}.new /tmp/work/{task}.task"
        self.kubectl("exec", pod, "--", "sh", "-c", script)
        log = self.logs[pod]
        eventually(f"{pod} started {task}", lambda: task in log.said("started"))


MANAGED = {"ebbtide.dev/drain": "managed", "ebbtide.dev/drain-timeout": "60s", "ebbtide.dev/quiesce": "0s"}


def _read(log: Log) -> None:
    assert log.process.stdout is not None
    with log.process.stdout as lines:
        for line in lines:
            log.lines.append(line.strip())


def annotation(pod: dict[str, Any], name: str) -> str | None:
    found: str | None = pod["metadata"].get("annotations", {}).get(f"ebbtide.dev/{name}")
    return found


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def seconds_of(timestamp: str) -> float:
    """Return RFC 3339 as Unix seconds."""
    return dt.datetime.fromisoformat(timestamp).timestamp()
