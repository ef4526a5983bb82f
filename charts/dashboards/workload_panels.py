"""The rows on single workloads and their pods."""

from __future__ import annotations

from typing import Any

from charts.dashboards import panels
from charts.dashboards.queries import OLDEST, PODS, WORKLOAD, by, gauge, per_minute, rate


def workloads() -> list[Any]:
    """Return the panels on each workload, as the operator sees it."""
    name = "{{namespace}}/{{workload}}"
    labels = "namespace, workload"
    return [
        panels.rows(
            "Workloads now",
            "One line for each workload. Normal: phase Stable, and nothing draining. A surplus with nothing draining "
            "means that a gate holds the next step: kubectl get drains -o wide names it.",
            {
                "Phase is": f"{gauge('ebbtide_rollout_phase', 'phase')} == 1",
                "Draining": gauge("ebbtide_pods", matchers='state="draining"'),
                "Serving": gauge("ebbtide_pods", matchers='state="serving"'),
                "Surplus": gauge("ebbtide_surplus_pods"),
                "Tasks left": gauge("ebbtide_tasks_left"),
                "Oldest drain": f"time() - ({gauge(OLDEST)} > 0) or {gauge(OLDEST)} * 0",
            },
            units={"Oldest drain": "s"},
            hidden=("Phase is",),
        ),
        panels.timeline(
            "Rollout phases",
            "When each workload was in which phase. Normal: Stable with bounded stretches of RollingOut and "
            "ScalingDown. A RollingOut without end: the rollout is held or broken; kubectl rollout status says which.",
            f"max by ({labels}, phase) ({gauge('ebbtide_rollout_phase', 'phase')})",
            f"{name} {{{{phase}}}}",
            shown={"0": ("no", "transparent"), "1": ("yes", "blue")},
        ),
        panels.graph(
            "Surplus",
            "Pods that their controllers want to delete and Ebbtide still holds. Normal: rises with each step of a "
            "rollout and falls to 0. If it stays up, its pods drain slowly or the budget is small.",
            [(by(labels, gauge("ebbtide_surplus_pods")), name)],
        ),
        panels.graph(
            "Draining by workload",
            "Pods draining at the same time. Normal: never above the workload's budget (ebbtide.dev/max-draining).",
            [(by(labels, gauge("ebbtide_pods", matchers='state="draining"')), name)],
            stacked=True,
        ),
        panels.graph(
            "Tasks left by workload",
            "Tasks in flight in draining pods. Normal: falls to 0. A line that stands still until the deadline is a "
            "task that hears no cancellation.",
            [(by(labels, gauge("ebbtide_tasks_left")), name)],
            stacked=True,
        ),
        panels.buckets(
            "Drain durations",
            "How many drains took how long. Normal: one cloud around the length of a task. A second cloud at the "
            "drain timeout are pods with tasks that do not end by themselves.",
            f"sum by (le) (increase(ebbtide_drain_duration_seconds_bucket{{{WORKLOAD}}}[$__rate_interval]))",
            unit="s",
        ),
        panels.graph(
            "Orders",
            "Orders sent to pods. Normal: drain in rollouts and scale-downs; serve when a rollback or scale-up took "
            "pods back; cancel when somebody shortened a drain.",
            [(per_minute("desired", "ebbtide_orders_total", WORKLOAD), "{{desired}}")],
            unit="cpm",
        ),
        panels.graph(
            "Annotations that cannot be used",
            "Annotations whose value was not understood; the workload runs as without Ebbtide. Normal: 0. The event "
            "on the Deployment says what is wrong and how to write it.",
            [
                (
                    by("namespace, workload, annotation", gauge("ebbtide_invalid_annotations", "annotation")),
                    f"{name} {{{{annotation}}}}",
                )
            ],
        ),
    ]


def pods() -> list[Any]:
    """Return the panels on the pods, as they see themselves."""
    return [
        panels.graph(
            "Tasks in flight by pod",
            "The twenty busiest pods, as they say themselves. Normal: even among serving pods; a draining pod falls "
            "to 0. Empty: the pods' port 8471 is not scraped.",
            [(_busiest("ebbtide_tasks_active"), "{{pod}}")],
        ),
        panels.graph(
            "Tasks ended",
            "Tasks that ended in the pods, by outcome, serving pods included. Normal: finished. The last moments of a "
            "pod are seen here only if it was scraped in them: Tasks of drained pods counts them all.",
            [(by("outcome", rate("ebbtide_tasks_total", PODS)), "{{outcome}}")],
            unit="cps",
            stacked=True,
        ),
        panels.graph(
            "Pods by their own state",
            "States of the pods as the library has them. Normal: Serving, and in rollouts the way over Quiescing, "
            "Draining and Drained. Many Starting: the application does not call ready.",
            [(by("state", f"ebbtide_state{{{PODS}}}"), "{{state}}")],
            stacked=True,
        ),
        panels.graph(
            "Pods without the operator",
            "Pods whose library has lost the operator's relay. Normal: 0, and all of them for seconds while operators "
            "are replaced. They go on working, and drain within their grace period only.",
            [(by("namespace", f"1 - ebbtide_store_connected{{{PODS}}}"), "{{namespace}}")],
        ),
        panels.graph(
            "Oldest tasks",
            "The twenty oldest tasks in flight, one for each pod. Normal: below the drain timeout: a task that is "
            "older would be cancelled by a drain now.",
            [(_busiest("ebbtide_oldest_task_age_seconds"), "{{pod}}")],
            unit="s",
        ),
        panels.graph(
            "Drain ages",
            "How long the pods have been draining, by their own clocks. Normal: 0, and in rollouts a saw of short "
            "teeth. The height of a tooth is the length of that pod's drain.",
            [(_busiest("ebbtide_drain_age_seconds"), "{{pod}}")],
            unit="s",
        ),
        panels.graph(
            "Late arrivals",
            "Tasks that live tasks started while intake was closed. Normal: few, or none. Many of them keep a pod "
            "from getting drained: let tasks requeue their children instead.",
            [(per_minute("namespace", "ebbtide_late_arrivals_total", PODS), "{{namespace}}")],
            unit="cpm",
        ),
        panels.graph(
            "Refused tasks",
            "Tasks that were not admitted, by reason. Normal: draining, in rollouts, and nothing else. limit and rate: "
            "the pods get more than they may start; breaker: tasks timed out one after the other.",
            [(by("reason", rate("ebbtide_refused_total", PODS)), "{{reason}}")],
            unit="cps",
            stacked=True,
        ),
        panels.graph(
            "Task limits used",
            "The fullest pods: tasks in flight against the most that may be. Normal: well below 1. Blocks that are "
            "tracked in place count in the one and are not limited by the other: they may lift it above 1.",
            [(_used(), "{{pod}}")],
            unit="percentunit",
        ),
        panels.graph(
            "Open breakers",
            "Scopes where nothing is started because the last tasks timed out. Normal: 0. The pod's log names the "
            "scope; what its tasks wait for is too slow.",
            [(by("namespace", f"ebbtide_breakers_open{{{PODS}}}"), "{{namespace}}")],
        ),
        panels.graph(
            "Shape of the task count",
            "Pods by what their number of tasks does over ten minutes. Normal: normal. growth: more is started than "
            "ends, a leak; sawtooth: work piles up and goes at once. /debug/tasks of the pod shows what waits.",
            [(by("shape", f"ebbtide_tasks_trend{{{PODS}}}"), "{{shape}}")],
            stacked=True,
        ),
        panels.graph(
            "Growth of the task count",
            "The twenty pods whose least number of tasks rises fastest. Normal: around 0. Days of a little are as "
            "bad as an hour of much.",
            [(_busiest("ebbtide_tasks_growth_per_second"), "{{pod}}")],
            unit="cps",
        ),
        panels.graph(
            "Suspected leaks",
            "Work in flight that looks like a leak, by the rule that says so. Normal: 0. /debug/leaks of the pod names "
            "it, and on request where it was created.",
            [(by("rule", f"ebbtide_leaks_suspected{{{PODS}}}"), "{{rule}}")],
            stacked=True,
        ),
        panels.graph(
            "Restarts of supervised work",
            "Times that supervised work was started again after a crash. Normal: 0. The pod's log has each crash once, "
            "with the name of the task.",
            [(per_minute("namespace", "ebbtide_restarts_total", PODS), "{{namespace}}")],
            unit="cpm",
        ),
        panels.graph(
            "Failed hooks",
            "Drain and exit hooks of the application that failed or took too long. Normal: 0. The pod drains all the "
            "same; its log has the hook's name and error.",
            [(per_minute("namespace", "ebbtide_hook_failures_total", PODS), "{{namespace}}")],
            unit="cpm",
        ),
    ]


def _busiest(metric: str) -> str:
    return f"topk(20, max by (namespace, pod) ({metric}{{{PODS}}})) or on () vector(0)"


def _used() -> str:
    used = f"ebbtide_tasks_active{{{PODS}}} / ebbtide_tasks_limit{{{PODS}}}"
    return f"topk(20, max by (namespace, pod) ({used})) or on () vector(0)"
