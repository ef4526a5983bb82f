"""Entries in flight that look like leaks: sees them, asks the rules, and describes what these suspect."""

from __future__ import annotations

from collections.abc import Hashable
from time import monotonic
from typing import TYPE_CHECKING

from ebbtide.leaks.findings import EXAMPLES, Finding, Group
from ebbtide.leaks.rules import Kind, Rule, Sight, Thresholds, judge, usual_s
from ebbtide.stacks.frames import Step, all_threads, place_of, stack_of
from ebbtide.stacks.origins import code_of, created_at
from ebbtide.tasks.entries import Live, frames_of, kind_of, name_of, task_of
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.states import beat_age_s

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope


def suspects(registry: Registry, thresholds: Thresholds) -> list[Finding]:
    """Look at everything in flight; in a thread that is not the loop's where that is much."""
    now = monotonic()
    kinds: dict[Scope, Kind] = {}
    groups: dict[tuple[Rule, Hashable], Group] = {}
    for item in registry.entries():
        number = item.number
        if number in registry.abandoned:
            continue  # named in the log already
        kind = kinds.get(item.scope)
        if kind is None:
            kind = kinds[item.scope] = _kind(registry, item.scope, thresholds)
        asked_at = registry.marks.asked_at(item)
        sight = Sight(
            kind,
            now - item.started_at,
            beat_age_s(registry, item, now),
            None if asked_at is None else now - asked_at - registry.grace_s,
        )
        rule = judge(sight, thresholds)
        if rule is not None and number in registry.live:
            _collect(groups, rule, item, sight)
    return [group.finding() for group in groups.values()]


def _kind(registry: Registry, scope: Scope, thresholds: Thresholds) -> Kind:
    orphaned = scope.opened_by != 0 and scope.opened_by not in registry.live
    return Kind(usual_s(scope.durations.copy(), thresholds), scope.heartbeat_s, orphaned)


def _collect(groups: dict[tuple[Rule, Hashable], Group], rule: Rule, item: Live, sight: Sight) -> None:
    task = task_of(item)
    code = code_of(task) if task is not None and kind_of(item) == "task" else None
    key: Hashable = code or (kind_of(item), item.scope.name)
    group = groups.get((rule, key))
    if group is None:
        what = f"{kind_of(item)} of {item.scope.name}" if code is None else str(Step(code, code.co_firstlineno))
        group = groups[rule, key] = Group(rule, what)
    group.count += 1
    group.scopes[item.scope.name] += 1
    if task is not None:
        group.origins[created_at(task)] += 1
    if len(group.ids) < EXAMPLES:
        group.ids.append(item.number)
        group.names.append(name_of(item))
    if sight.age_s > group.oldest_s:
        group.oldest_s = sight.age_s
        group.why = _why(rule, item, sight)
        group.waits_at = place_of(stack_of(frames_of(item, {} if task is not None else all_threads())))


def _why(rule: Rule, item: Live, sight: Sight) -> str:
    match rule:
        case Rule.SWALLOWED:
            return f"its grace ended {sight.cancelled_s or 0.0:.1f} s ago"
        case Rule.STALE:
            return f"silent for {sight.beat_age_s or 0.0:.1f} s, {sight.kind.heartbeat_s:g} s were promised"
        case Rule.FORGOTTEN:
            return f"its scope was opened at {item.scope.opened_at}"
        case Rule.OVERDUE:
            return f"its like takes up to {sight.kind.usual_s or 0.0:.3g} s"
        case Rule.OUTSIDE:
            return ""
