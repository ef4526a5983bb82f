"""PromQL of the dashboards, in pieces that carry the same matchers everywhere.

Only the leader sets the metrics of workloads, and a new leader sets them while Prometheus still remembers the old
one's: `max by` makes one of two, where a sum would show each pod twice.
"""

from __future__ import annotations

OPERATOR = 'job=~"$job"'
WORKLOAD = f'{OPERATOR}, namespace=~"$namespace", workload=~"$workload"'
PODS = 'job=~"$pods_job", namespace=~"$namespace", pod=~"($workload)-([a-z0-9]+-)?[a-z0-9]+"'
"""Pods carry no workload label; their names begin with it. After it come the hash of the template and what tells pods
apart, or a long name leaves no room for the dash between. So `orders` does not show the pods of `orders-plain`."""

WORKLOAD_LABELS = ("namespace", "kind", "workload")
OLDEST = "ebbtide_oldest_drain_start_timestamp_seconds"


def gauge(metric: str, *labels: str, matchers: str = "") -> str:
    """Return a workload gauge, one sample for each workload and value of the further labels."""
    by = ", ".join((*WORKLOAD_LABELS, *labels))
    return f"max by ({by}) ({metric}{{{_join(WORKLOAD, matchers)}}})"


def total(expression: str) -> str:
    """Return the sum of everything; 0 where there is nothing."""
    return f"sum({expression}) or vector(0)"


def by(labels: str, expression: str) -> str:
    """Return the sum by labels; a single 0 where there is nothing, so that a quiet panel is told from a broken one."""
    return f"sum by ({labels}) ({expression}) or on () vector(0)"


def rate(metric: str, matchers: str) -> str:
    return f"rate({metric}{{{matchers}}}[$__rate_interval])"


def per_minute(labels: str, metric: str, matchers: str) -> str:
    return f"sum by ({labels}) ({rate(metric, matchers)}) * 60 or on () vector(0)"


def quantile(q: float, histogram: str, matchers: str, *labels: str) -> str:
    """Return a quantile of a histogram's last minutes; absent (not a number) while nothing was observed."""
    grouped = ", ".join(("le", *labels))
    return f"histogram_quantile({q}, sum by ({grouped}) ({rate(f'{histogram}_bucket', matchers)}))"


def _join(*matchers: str) -> str:
    return ", ".join(filter(None, matchers))
