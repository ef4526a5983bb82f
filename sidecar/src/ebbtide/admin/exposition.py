"""The library's metrics as Prometheus text; small enough to need no client library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ebbtide.leaks.rules import Rule
from ebbtide.leaks.trend import Shape, Trend
from ebbtide.vocabulary import TASK_OUTCOMES, PodState


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the runtime counts, read at one moment."""

    state: PodState
    active: int
    oldest_age_s: float
    tally: Mapping[str, int] = field(default_factory=dict)
    """Tasks that ended since the start, by outcome."""
    drain_age_s: float | None = None
    """Seconds since the drain began; None while there is none."""
    late_arrivals: int = 0
    """Tasks that live tasks started while intake was closed."""
    store_connected: bool | None = None
    """None where there is no store."""
    hook_failures: int = 0
    trend: Trend = field(default_factory=lambda: Trend(Shape.NORMAL, 0.0))
    """What the number of tasks does."""
    leaks: Mapping[str, int] = field(default_factory=dict)
    """Work that is suspected to be a leak, by rule."""
    restarts: int = 0
    """How often supervised work was started again after a crash."""
    refusals: Mapping[str, int] = field(default_factory=dict)
    """Refused tasks by reason."""
    max_tasks: int | None = None
    """None: no limit."""
    open_breakers: Sequence[str] = ()
    """Scopes where nothing is started because tasks timed out."""


def render(numbers: Numbers) -> str:
    """Return the numbers in the Prometheus text format 0.0.4."""
    families: list[tuple[str, str, str, list[tuple[str, float]]]] = [
        ("ebbtide_tasks_active", "gauge", "Tasks in flight.", [("", numbers.active)]),
        (
            "ebbtide_oldest_task_age_seconds",
            "gauge",
            "Age of the oldest task in flight; 0 without one.",
            [("", numbers.oldest_age_s)],
        ),
        (
            "ebbtide_tasks_total",
            "counter",
            "Tasks that ended, by outcome.",
            [(f'{{outcome="{outcome}"}}', numbers.tally.get(outcome, 0)) for outcome in TASK_OUTCOMES],
        ),
        (
            "ebbtide_late_arrivals_total",
            "counter",
            "Tasks that live tasks started while intake was closed.",
            [("", numbers.late_arrivals)],
        ),
        (
            "ebbtide_state",
            "gauge",
            "1 for the state that the process is in.",
            [(f'{{state="{state}"}}', int(state is numbers.state)) for state in PodState],
        ),
        (
            "ebbtide_drain_age_seconds",
            "gauge",
            "Seconds since the drain began; 0 without one.",
            [("", numbers.drain_age_s or 0.0)],
        ),
    ]
    text = "Drain and exit hooks that failed or took too long."
    families.append(("ebbtide_hook_failures_total", "counter", text, [("", numbers.hook_failures)]))
    text = "1 for what the number of tasks does: growth is a leak, sawtooth is churn."
    shapes: list[tuple[str, float]] = [(f'{{shape="{shape}"}}', int(shape is numbers.trend.shape)) for shape in Shape]
    families.append(("ebbtide_tasks_trend", "gauge", text, shapes))
    text = "Tasks per second by which the least number of tasks rises, over ten minutes."
    families.append(("ebbtide_tasks_growth_per_second", "gauge", text, [("", numbers.trend.growth_per_s)]))
    text = "Work in flight that is suspected to be a leak, by the rule that it falls under."
    by_rule: list[tuple[str, float]] = [(f'{{rule="{rule}"}}', numbers.leaks.get(rule, 0)) for rule in Rule]
    families.append(("ebbtide_leaks_suspected", "gauge", text, by_rule))
    text = "Times that supervised work was started again after a crash."
    families.append(("ebbtide_restarts_total", "counter", text, [("", numbers.restarts)]))
    text = "Tasks that were not admitted, by reason."
    by_reason: list[tuple[str, float]] = [
        (f'{{reason="{reason}"}}', count) for reason, count in numbers.refusals.items()
    ]
    families.append(("ebbtide_refused_total", "counter", text, by_reason))
    if numbers.max_tasks is not None:
        families.append(("ebbtide_tasks_limit", "gauge", "Most tasks at the same time.", [("", numbers.max_tasks)]))
    text = "Scopes where nothing is started because the last tasks timed out."
    families.append(("ebbtide_breakers_open", "gauge", text, [("", len(numbers.open_breakers))]))
    if numbers.store_connected is not None:
        text = "1 while the operator's relay (or etcd) is connected."
        families.append(("ebbtide_store_connected", "gauge", text, [("", int(numbers.store_connected))]))
    lines = []
    for name, kind, text, samples in families:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value}" for labels, value in samples]
    return "\n".join(lines) + "\n"
