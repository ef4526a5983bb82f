"""The rules that a dashboard keeps, after those of Grafana's dashboard-linter for Prometheus.

Left out on purpose: a variable and a matcher for `instance`. The metrics of workloads belong to whoever leads, and a
choice of instance would hide all of them at the next change of leader.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

UNITS = {"short", "s", "cps", "cpm", "reqps", "wps", "bytes", "percentunit"}
SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\{([^}]*)\}")
_COUNTER = re.compile(r"\w+_(?:total|bucket|count|sum)$")
_LABEL_VALUES = re.compile(r"label_values\(([^{,]+(?:\{[^}]*\})?), (\w+)\)")


@dataclass(frozen=True, slots=True)
class Finding:
    """What breaks which rule, and where."""

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} ({self.rule})"


def lint(dashboard: Mapping[str, Any]) -> list[Finding]:
    """Return everything that breaks a rule, in the order of the dashboard."""
    found = list(_variables(dashboard)) + list(_whole(dashboard))
    for panel in panels(dashboard):
        found += [finding for rule in _PANEL_RULES for finding in rule(panel)]
        for target in panel.get("targets", []):
            where = f"{panel.get('title')!r} {target.get('refId')}"
            found += [
                Finding(name, where, message) for name, check in _QUERY_RULES.items() for message in check(target)
            ]
    return found


def panels(dashboard: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield every panel that shows something, those in collapsed rows too."""
    for panel in dashboard.get("panels", []):
        if panel["type"] == "row":
            yield from panels(panel)
        else:
            yield panel


def _variables(dashboard: Mapping[str, Any]) -> Iterator[Finding]:
    variables = {variable["name"]: variable for variable in dashboard.get("templating", {}).get("list", [])}
    datasource = variables.get("datasource", {})
    if datasource.get("type") != "datasource" or datasource.get("query") != "prometheus":
        yield Finding("template-datasource", "variables", "needs a data source variable 'datasource' for Prometheus")
    if "job" not in variables:
        yield Finding("template-job", "variables", "needs a variable 'job'")
    for name, variable in variables.items():
        if variable["type"] != "query":
            continue
        where = f"variable {name}"
        if not _LABEL_VALUES.fullmatch(variable["query"]):
            yield Finding("template-promql", where, "must be label_values(<selector>, <label>)")
        if variable.get("refresh") != 2:
            yield Finding("template-reload", where, "must be read again when the time range changes")
        if not (variable.get("multi") and variable.get("includeAll")):
            yield Finding("template-all", where, "must allow several values and all")
        if variable.get("datasource", {}).get("uid") != "$datasource":
            yield Finding("panel-datasource", where, "must use $datasource")


def _whole(dashboard: Mapping[str, Any]) -> Iterator[Finding]:
    if dashboard.get("editable") is not False:
        yield Finding("uneditable", "dashboard", "must not be editable: it is generated")
    if not dashboard.get("uid") or not dashboard.get("description"):
        yield Finding("identity", "dashboard", "needs a uid and a description")
    titles = [panel.get("title") for panel in panels(dashboard)]
    yield from (
        Finding("unique-title", repr(title), "is the title of several panels")
        for title in sorted({str(title) for title in titles if titles.count(title) > 1})
    )
    cells: dict[tuple[int, int], object] = {}
    for panel in panels(dashboard):
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield Finding("grid", repr(panel.get("title")), "is wider than the page")
        for cell in ((x, y) for x in _span(place, "x", "w") for y in _span(place, "y", "h")):
            if cells.setdefault(cell, panel.get("title")) != panel.get("title"):
                yield Finding("grid", repr(panel.get("title")), f"covers {cells[cell]!r}")
                break


def _span(place: Mapping[str, int], start: str, length: str) -> range:
    return range(place[start], place[start] + place[length])


def _described(panel: Mapping[str, Any]) -> Iterator[Finding]:
    where = repr(panel.get("title"))
    if not panel.get("title"):
        yield Finding("panel-title", f"panel {panel.get('id')}", "needs a title")
    if "Normal: " not in panel.get("description", ""):
        yield Finding("panel-description", where, "needs a description that says what is normal")
    if panel.get("fieldConfig", {}).get("defaults", {}).get("unit") not in UNITS:
        yield Finding("panel-unit", where, f"needs a unit of {', '.join(sorted(UNITS))}")
    if not panel.get("targets"):
        yield Finding("panel-target", where, "needs a query")
    uids = [source.get("datasource", {}).get("uid") for source in (panel, *panel.get("targets", []))]
    if any(uid != "$datasource" for uid in uids):
        yield Finding("panel-datasource", where, "must use $datasource, its queries too")


def _well_formed(target: Mapping[str, Any]) -> Iterator[str]:
    expression = target.get("expr", "")
    bare = re.sub(r'"[^"]*"', "", expression)
    open_brackets: list[str] = []
    for character in bare:
        if character in "([{":
            open_brackets.append(character)
        elif character in ")]}" and (not open_brackets or open_brackets.pop() + character not in ("()", "[]", "{}")):
            yield f"closes a bracket that is not open: {expression}"
            return
    if open_brackets or not expression.strip():
        yield f"is not complete: {expression!r}"


def _own_rate_interval(target: Mapping[str, Any]) -> Iterator[str]:
    for window in re.findall(r"\[([^]]*)\]", re.sub(r'"[^"]*"', "", target.get("expr", ""))):
        if window not in ("$__rate_interval", "$__range"):
            yield f"must look back over $__rate_interval or $__range, not {window}"


def _job_matcher(target: Mapping[str, Any]) -> Iterator[str]:
    expression = target.get("expr", "")
    for metric, matchers in SELECTOR.findall(expression):
        if not re.search(r'\bjob=~"\$\w*job"', matchers):
            yield f"{metric} needs a matcher of the job variable"
    for metric in re.findall(r"\bebbtide_\w+(?![\w{])", expression):
        yield f"{metric} needs matchers"


def _counters_rated(target: Mapping[str, Any]) -> Iterator[str]:
    expression = target.get("expr", "")
    for found in SELECTOR.finditer(expression):
        before = expression[: found.start()]
        if _COUNTER.match(found[1]) and not re.search(r"\b(?:rate|irate|increase)\($", before):
            yield f"{found[1]} is a counter: show its rate or increase"


def _legend_known(target: Mapping[str, Any]) -> Iterator[str]:
    grouped = {
        label.strip()
        for labels in re.findall(r"\bby \(([^)]*)\)", target.get("expr", ""))
        for label in labels.split(",")
    }
    for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
        if label not in grouped:
            yield f"the legend's label {label} is not among those that the query keeps"


_PANEL_RULES: tuple[Callable[[Mapping[str, Any]], Iterator[Finding]], ...] = (_described,)
_QUERY_RULES: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "target-promql": _well_formed,
    "target-rate-interval": _own_rate_interval,
    "target-job": _job_matcher,
    "target-counter": _counters_rated,
    "target-legend": _legend_known,
}


def metrics_used(dashboard: Mapping[str, Any]) -> set[str]:
    """Return the names of the metrics that panels ask for, histograms by their own name."""
    expressions = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", [])]
    return {re.sub(r"_bucket$", "", metric) for text in expressions for metric, _ in SELECTOR.findall(text)}
