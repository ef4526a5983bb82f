"""The row on all drains: what drains now, and what became of it."""

from __future__ import annotations

from typing import Any

from charts.dashboards import panels
from charts.dashboards.queries import OLDEST, OPERATOR, WORKLOAD, by, gauge, per_minute, quantile, total

BADLY = 'outcome=~"abandoned|unknown|lost"'


def drains() -> list[Any]:
    """Return the panels of the row, in order."""
    draining = gauge("ebbtide_pods", matchers='state="draining"')
    return [
        panels.number(
            "Pods draining",
            "Pods that were told to drain and are not done. Normal: 0 outside a rollout or scale-down, and at most "
            "the budget of each workload within one. If it stays up, look at the oldest drain.",
            total(draining),
        ),
        panels.number(
            "Tasks left",
            "Tasks in flight in draining pods. Normal: falls to 0 in each step of a rollout. If it stands still, the "
            "tasks are longer than the rollout was planned for: kubectl get drains says whose they are.",
            total(gauge("ebbtide_tasks_left")),
        ),
        panels.number(
            "Oldest drain",
            "Age of the oldest drain under way. Normal: below the longest drain timeout in use; every drain ends at "
            "its deadline. An age above it means that the operator does not decide: look at the row Operator.",
            f"max(time() - ({gauge(OLDEST)} > 0)) or vector(0)",
            unit="s",
        ),
        panels.number(
            "Ended badly",
            "Drains in the time range that ended with tasks abandoned, without a word from the pod, or with the pod "
            "gone. Normal: 0. Otherwise raise ebbtide.dev/drain-timeout, or see in the pods' logs why the library did "
            "not answer.",
            total(f"increase(ebbtide_drains_total{{{WORKLOAD}, {BADLY}}}[$__range])"),
            warn_at=1,
        ),
        panels.number(
            "Let through undrained",
            "Deletions in the time range that passed before the pod was drained, because a part of Ebbtide was away. "
            "Normal: 0. Otherwise see Store and Leaders below for the part.",
            total(f"increase(ebbtide_fail_open_total{{{OPERATOR}}}[$__range])"),
            warn_at=1,
        ),
        panels.number(
            "Workloads",
            "Workloads that opted in, in the chosen namespaces. Normal: as many as you annotated. One is missing: "
            "kubectl get drains, and the events of its Deployment.",
            f"count({gauge('ebbtide_workload_info')}) or vector(0)",
        ),
        panels.graph(
            "Pods by state",
            "Pods of all chosen workloads by what they said last. Normal: serving, with a passing layer of draining "
            "and drained during rollouts. Unknown that lasts: pods without the library, or that cannot reach the "
            "operator.",
            [(by("state", gauge("ebbtide_pods", "state")), "{{state}}")],
            stacked=True,
        ),
        panels.graph(
            "Drains ended",
            "Drains that ended, by outcome. Normal: clean, and returned after a rollback. Cancelled: tasks outlived "
            "the drain timeout but ended in order. Abandoned, unknown, lost: work was cut off.",
            [(per_minute("outcome", "ebbtide_drains_total", WORKLOAD), "{{outcome}}")],
            unit="cpm",
            stacked=True,
        ),
        panels.graph(
            "Drain duration",
            "Time from the order to the end of a drain, of the drains in each interval; gaps are times without any. "
            "Normal: about the length of a task; p99 at the drain timeout plus the cancel grace means that tasks are "
            "being cut off.",
            [(quantile(q, "ebbtide_drain_duration_seconds", WORKLOAD), f"p{q * 100:.0f}") for q in (0.5, 0.99)],
            unit="s",
        ),
        panels.graph(
            "Tasks of drained pods",
            "How the tasks of pods that drained had ended, from the pods' last reports. Normal: finished, and failed "
            "at your own rate. Timed out, cancelled and abandoned tasks need a longer drain timeout or a way to be "
            "handed over.",
            [(per_minute("outcome", "ebbtide_drained_tasks_total", WORKLOAD), "{{outcome}}")],
            unit="cpm",
            stacked=True,
        ),
    ]
