"""Runs every query of a dashboard on a Prometheus and says which panels are empty.

    python -m charts.dashboards.verify http://127.0.0.1:9090

Grafana itself is not needed: variables are filled in as Grafana would, from `label_values`. A query is empty where it
gives no finite number, now for a table or a number over the whole range, else at no moment of the window.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charts.dashboards.generate import OUTPUT
from charts.dashboards.lint import panels

Query = Callable[[str, Mapping[str, str]], Any]
"""Asks an API path (`/api/v1/query`) with parameters and returns the answer's `data`; raises QueryError."""

_LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")


class QueryError(Exception):
    """Prometheus cannot be reached, or refused a query; the message is its own."""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What one query of one panel gave."""

    panel: str
    ref_id: str
    expression: str
    now: int
    """Series with a finite number now."""
    window: int
    """Series with a finite number at any moment of the window."""
    error: str = ""
    instant: bool = False

    @property
    def empty(self) -> bool:
        return bool(self.error) or (self.now if self.instant else self.window) == 0


def prometheus(base_url: str, *, timeout_s: float = 10) -> Query:
    """Return a Query that asks a Prometheus over HTTP."""
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base URL: must start with http:// or https://, not {base_url!r}")

    def ask(path: str, parameters: Mapping[str, str]) -> Any:
        url = f"{base_url.rstrip('/')}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310 (the scheme is checked above)
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(f"{error.code}: {error.read().decode(errors='replace')[:500]}") from error
        except (OSError, ValueError, KeyError) as error:
            raise QueryError(f"{base_url}: {error}") from error

    return ask


def verify(
    dashboard: Mapping[str, Any],
    query: Query,
    *,
    at: float | None = None,
    window_s: int = 600,
    step_s: int = 5,
    rate_interval: str = "1m",
) -> list[QueryResult]:
    """Run every query of every panel, and those of the variables and annotations.

    Args:
        dashboard: The dashboard as Grafana reads it.
        query: Where to ask.
        at: Unix time in seconds of the window's end; None: now.
        window_s: Length of the window, which `$__range` stands for, in seconds.
        step_s: Distance of the samples asked for, which `$__interval` stands for, in seconds.
        rate_interval: What `$__rate_interval` stands for; at least four scrape intervals.

    Returns:
        One result for each variable and each query; an annotation that gives no rows is no result, only one that fails.
    """
    end = time.time() if at is None else at
    values = {"__rate_interval": rate_interval, "__range": f"{window_s}s", "__interval": f"{step_s}s"}
    results = []

    def run(panel: str, ref_id: str, expression: str, *, instant: bool) -> QueryResult:
        expression = substitute(expression, values)
        span = {"start": str(end - window_s), "end": str(end), "step": str(step_s)}
        try:
            now = _finite(query("/api/v1/query", {"query": expression, "time": str(end)}))
            window = _finite(query("/api/v1/query_range", {"query": expression, **span}))
        except QueryError as error:
            return QueryResult(panel, ref_id, expression, 0, 0, str(error), instant)
        return QueryResult(panel, ref_id, expression, now, window, "", instant)

    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            result, found = _variable(variable, query, values, end - window_s, end)
            values[variable["name"]] = _alternatives(found)
            results.append(result)
    for panel in panels(dashboard):
        for target in panel["targets"]:
            instant = bool(target.get("instant"))
            results.append(run(panel["title"], target["refId"], target["expr"], instant=instant))
    for annotation in dashboard.get("annotations", {}).get("list", []):
        if "expr" in annotation:
            result = run(f"annotation {annotation['name']}", "", annotation["expr"], instant=False)
            results += [result] if result.error else []
    return results


def substitute(expression: str, values: Mapping[str, str]) -> str:
    """Fill in `$name` and `${name}`; an unknown name is an error, as Grafana would show nothing.

    Raises:
        KeyError: There is no such variable.
    """
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda found: values[found[1] or found[2]], expression)


def _variable(
    variable: Mapping[str, Any], query: Query, values: Mapping[str, str], start: float, end: float
) -> tuple[QueryResult, list[str]]:
    name, text = f"variable {variable['name']}", substitute(variable["query"], values)
    parsed = _LABEL_VALUES.fullmatch(text)
    if parsed is None:
        return QueryResult(name, "", text, 0, 0, "must be label_values(<selector>, <label>)"), []
    parameters = {"match[]": parsed[1], "start": str(start), "end": str(end)}
    try:
        found = query(f"/api/v1/label/{parsed[2]}/values", parameters)
    except QueryError as error:
        return QueryResult(name, "", text, 0, 0, str(error)), []
    return QueryResult(name, "", text, len(found), len(found)), found


def _alternatives(values: Iterable[str]) -> str:
    """Return what Grafana makes of "All": every value, escaped, as a regular expression."""
    # Twice: once for the expression, once for the PromQL string around it.
    return "(" + "|".join(re.escape(value).replace("\\-", "-").replace("\\", "\\\\") for value in values) + ")"


def _finite(data: Mapping[str, Any]) -> int:
    if data["resultType"] == "scalar":
        return int(math.isfinite(float(data["result"][1])))
    series = (one.get("values") or [one["value"]] for one in data["result"])
    return sum(any(math.isfinite(float(value)) for _, value in samples) for samples in series)


def table(results: Iterable[QueryResult]) -> str:
    """Return the results as text, one line for each query."""
    lines = [f"{'':5} {'now':>4} {'range':>5}  panel"]
    for result in results:
        verdict = "EMPTY" if result.empty else "ok"
        lines.append(f"{verdict:5} {result.now:4} {result.window:5}  {result.panel} {result.ref_id}".rstrip())
        if result.empty:
            lines.append(f"{'':18}{result.error or result.expression}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every query of a dashboard and fail on an empty panel.")
    parser.add_argument("prometheus", help="base URL of the Prometheus, such as http://127.0.0.1:9090")
    parser.add_argument("--dashboard", type=Path, default=OUTPUT, help="JSON file (default: the chart's)")
    parser.add_argument("--window", type=int, default=600, metavar="SECONDS", help="how far to look back (600)")
    parser.add_argument("--step", type=int, default=5, metavar="SECONDS", help="distance of samples (5)")
    parser.add_argument("--rate-interval", default="1m", help="at least four scrape intervals (1m)")
    options = parser.parse_args()
    results = verify(
        json.loads(options.dashboard.read_text()),
        prometheus(options.prometheus),
        window_s=options.window,
        step_s=options.step,
        rate_interval=options.rate_interval,
    )
    empty = sum(result.empty for result in results)
    sys.stdout.write(f"{table(results)}\n{len(results)} queries, {empty} empty\n")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
