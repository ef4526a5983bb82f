"""When Ebbtide decided to let each pod go, by its operator's own log, and how long the deletion took from there.

Pure but for `read_operator_log`. Times are Unix seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from .cluster_api import Kubectl

OPERATOR_SELECTOR = "app.kubernetes.io/name=ebbtide,app.kubernetes.io/component=operator"


async def read_operator_log(kubectl: Kubectl, namespace: str, since: float) -> list[str]:
    """Return the lines that all replicas of the operator logged since a moment.

    Raises:
        CommandError: kubectl could not read them.
    """
    moment = datetime.fromtimestamp(since).astimezone().isoformat(timespec="seconds")
    options = (f"--selector={OPERATOR_SELECTOR}", "--tail=-1", f"--since-time={moment}")
    return (await kubectl("-n", namespace, "logs", *options)).splitlines()


def release_decisions(lines: Iterable[str], namespace: str) -> dict[str, float]:
    """Return when it was decided to let each pod of a namespace go; a release that was taken back does not count.

    Args:
        lines: Of all replicas, each in its own order; lines that are no JSON objects are passed over.
        namespace: Of the pods.
    """
    decided: dict[str, float] = {}
    for entry in sorted(filter(None, map(_entry, lines)), key=lambda entry: str(entry.get("at"))):
        if not str(entry.get("workload")).startswith(f"{namespace}/"):
            continue
        match entry:
            case {"event": "pod.released", "pod": str(pod), "decided_at": str(at)}:
                decided.setdefault(pod, datetime.fromisoformat(at).timestamp())
            case {"event": "order.sent", "pod": str(pod), "desired": "serve"}:
                decided.pop(pod, None)
            case _:
                pass
    return decided


def release_latencies(decided: Mapping[str, float], deletions: Mapping[str, float]) -> list[float]:
    """Return the seconds from the decision to let each pod go until its deletion was accepted.

    A pod whose deletion came first, by somebody else, is left out, and so is one that stands.
    """
    return [deletions[pod] - at for pod, at in decided.items() if deletions.get(pod, 0.0) >= at]


def _entry(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        found: Any = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
