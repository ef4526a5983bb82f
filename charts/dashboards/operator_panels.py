"""The row on the operator's own health."""

from __future__ import annotations

from typing import Any

from charts.dashboards import panels
from charts.dashboards.queries import OPERATOR, by, per_minute, quantile, rate, total


def operator() -> list[Any]:
    """Return the panels of the row, in order."""
    expires = f"ebbtide_certificate_expiration_timestamp_seconds{{{OPERATOR}}}"
    heard = f"ebbtide_watch_last_event_timestamp_seconds{{{OPERATOR}}}"
    return [
        panels.number(
            "Operators",
            "Replicas that are scraped. Normal: 2, as the chart sets. Fewer: kubectl describe the missing pod.",
            f"count(ebbtide_build_info{{{OPERATOR}}}) or vector(0)",
            warn_at=1,
            low=True,
        ),
        panels.number(
            "Leaders",
            "Replicas that plan. Normal: exactly 1, and 0 for some seconds after a leader died. 0 that lasts: nobody "
            "gets the Lease; see the operators' logs.",
            total(f"ebbtide_leader{{{OPERATOR}}}"),
            warn_at=1,
            low=True,
        ),
        panels.number(
            "Store",
            "Whether every replica reaches etcd. Normal: 1. At 0, after ten seconds, deletions pass undrained; look at "
            "the etcd pod.",
            f"min(ebbtide_store_healthy{{{OPERATOR}}}) or vector(0)",
            warn_at=1,
            low=True,
        ),
        panels.number(
            "Certificate left",
            "Time until the first certificate expires. Normal: weeks; the leader renews it long before. Falling below "
            "a week: see the leader's log for why it cannot.",
            f"min({expires} - time()) or vector(0)",
            unit="s",
            warn_at=604800,
            low=True,
        ),
        panels.number(
            "Epoch",
            "Grows with each change of leader. Normal: stands still. If it climbs, replicas lose their Lease: look at "
            "their CPU and at the API server's latency.",
            f"max(ebbtide_epoch{{{OPERATOR}}}) or vector(0)",
        ),
        panels.number(
            "Pods connected",
            "Watches that pods hold open at the relay. Normal: one for each managed pod that embeds the library. 0 "
            "with managed pods running: they use another endpoint or cannot reach the operator's Service.",
            total(f"ebbtide_relay_connections{{{OPERATOR}}}"),
        ),
        panels.graph(
            "Watches cut off",
            "Watches of pods that the relay ended for what the pod sent up, by status. Normal: none. Any: a pod that "
            "speaks to the relay with something else than the library; the operator's log names it.",
            [(by("status", rate("ebbtide_relay_watches_cut_total", OPERATOR)), "{{status}}")],
        ),
        panels.graph(
            "Admission answers",
            "Admission requests by webhook and verdict. Normal: deny in bursts while pods drain (controllers ask "
            "again and again), allow at the end of each drain, nothing at rest.",
            [(by("webhook, verdict", rate("ebbtide_admission_requests_total", OPERATOR)), "{{webhook}} {{verdict}}")],
            unit="reqps",
        ),
        panels.graph(
            "Admission latency",
            "p99 of the time to answer. Normal: below 10 ms; the API server waits 2 s (create) and 3 s (delete) and "
            "then lets the request pass. Rising: the operator is short of CPU.",
            [(quantile(0.99, "ebbtide_admission_duration_seconds", OPERATOR, "webhook"), "{{webhook}}")],
            unit="s",
        ),
        panels.graph(
            "Released to deleted",
            "Time from the release of a pod to its deletion. Normal: below 0.1 s, since the operator deletes it. "
            "Seconds: the API server is slow, or deleteReleasedPods is off and the pod waits for its controller.",
            [(quantile(q, "ebbtide_released_to_deleted_seconds", OPERATOR), f"p{q * 100:.0f}") for q in (0.5, 0.99)],
            unit="s",
        ),
        panels.graph(
            "Reconciliation",
            "Time to gather, decide and apply for one workload. Normal: p99 below 0.25 s. Rising: slow answers from "
            "the API server or etcd.",
            [(quantile(q, "ebbtide_reconcile_duration_seconds", OPERATOR), f"p{q * 100:.0f}") for q in (0.5, 0.99)],
            unit="s",
        ),
        panels.graph(
            "Queue and errors",
            "Workloads that wait, and reconciliations that have to be tried again. Normal: near 0, single errors at a "
            "change of leader. Errors that go on: the reason is in the leader's log.",
            [
                (f"max(ebbtide_queue_depth{{{OPERATOR}}}) or vector(0)", "waiting"),
                (per_minute("reason", "ebbtide_reconcile_errors_total", OPERATOR), "errors/min {{reason}}"),
            ],
        ),
        panels.graph(
            "Silence of watches",
            "Time since each watch last heard from the API server. Normal: below a minute or two, since bookmarks "
            "come also at rest. Growing without end: a dead watch; the replica restarts by itself, or delete its pod.",
            [(f"time() - max by (resource) ({heard}) or on () vector(0)", "{{resource}}")],
            unit="s",
        ),
        panels.graph(
            "Writes",
            "Writes to Kubernetes by resource and to etcd by record. Normal: nothing at rest, two pod patches and a "
            "few etcd writes for each drained pod. Writes at rest are a fault of ours: please report them.",
            [
                (by("verb, resource", rate("ebbtide_api_writes_total", OPERATOR)), "{{verb}} {{resource}}"),
                (by("record", rate("ebbtide_store_writes_total", OPERATOR)), "etcd {{record}}"),
            ],
            unit="wps",
        ),
        panels.graph(
            "Database of etcd",
            "Its file, what is in use of it, and the quota at which etcd refuses every write. Normal: the file far "
            "below the quota. Towards it: docs/store.md says how to defragment, and whose keys they are.",
            [(f"max by (part) (ebbtide_store_database_bytes{{{OPERATOR}}}) or on () vector(0)", "{{part}}")],
            unit="bytes",
        ),
        panels.graph(
            "Floor",
            "New pods by what the create webhook did. Normal: as many as pods created for managed workloads. Skipped "
            "ones have a reason in their annotation ebbtide.dev/floor.",
            [(per_minute("result", "ebbtide_floor_patches_total", OPERATOR), "{{result}}")],
            unit="cpm",
        ),
        panels.rows(
            "Versions",
            "What runs. Normal: one version on all replicas. Two: an upgrade is under way or stuck.",
            {"Replicas": f"count by (version, python) (ebbtide_build_info{{{OPERATOR}}})"},
            units={},
            width=12,
        ),
        panels.rows(
            "Version of etcd",
            "The member that each replica asked last. Normal: one version, fine. Bad: docs/store.md says what it "
            "lacks; nothing stops working.",
            {"Replicas": f"count by (version, judgement) (ebbtide_store_version_info{{{OPERATOR}}})"},
            units={},
            width=12,
        ),
    ]
