"""Is there data in every panel of the shipped dashboard? Its queries are run on the demo's Prometheus."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence

from charts.dashboards.generate import OUTPUT
from charts.dashboards.verify import QueryResult, prometheus, table, verify

SCRAPES_S = 20.0
"""Seconds after the last scene for its last samples, and for the rates over them."""


def run_queries(url: str, since: float) -> list[QueryResult]:
    """Run every query of the dashboard over the time since the demo's first scene.

    Args:
        url: Base URL of the Prometheus.
        since: Unix time in seconds.
    """
    window_s = int(time.time() - since)
    return verify(json.loads(OUTPUT.read_text()), prometheus(url), window_s=window_s, step_s=5)


async def check_dashboard(url: str, since: float, say: Callable[[str], None]) -> list[QueryResult]:
    """Wait for the last samples, run the queries, and say what is empty; return all results."""
    await asyncio.sleep(SCRAPES_S)
    results = await asyncio.to_thread(run_queries, url, since)
    empty = [result for result in results if result.empty]
    titles = {result.panel for result in results}
    say(f"dashboard: {len(results)} queries of {len(titles)} panels and variables, {len(empty)} without data")
    if empty:
        say(table(empty))
    return results


def as_json(results: Sequence[QueryResult]) -> list[dict[str, object]]:
    """Return the results as the result file has them."""
    return [
        {"panel": result.panel, "query": result.expression, "series": result.window, "empty": result.empty}
        for result in results
    ]
