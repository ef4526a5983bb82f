"""The chart's alert rules, for the Prometheus operator: what goes wrong in the operator and in pods.

They need the operator and the pods to be scraped, with the labels that the chart's monitors give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).resolve().parent / "ebbtide/templates/alerts.yaml"
DOCS = "docs/alerts.md"

_HEAD = """\
{{- /* Generated from charts/alerts.py by `make generate`: edit that. */ -}}
{{- $alerts := .Values.monitoring.alerts }}
{{- if include "ebbtide.monitor" (dict "root" . "enabled" $alerts.enabled "kind" "PrometheusRule") }}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ include "ebbtide.fullname" . }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "ebbtide.labels" (dict "root" . "component" "operator" "more" $alerts.labels) | nindent 4 }}
spec:
  groups:
"""
_GROUP = """\
    - name: {name}
      {{{{- with $alerts.interval }}}}
      interval: {{{{ . }}}}
      {{{{- end }}}}
      rules:
{{{{ `{rules}` | indent 8 }}}}
"""
_TAIL = "{{- end }}\n"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule.

    Attributes:
        name: Of the alert.
        expression: PromQL; its value goes into the summary.
        lasting: How long it must hold, so that a deploy or a burst is none.
        severity: `warning` (look at it in working hours) or `info`.
        summary: One sentence for people, with Prometheus' own placeholders.
    """

    name: str
    expression: str
    lasting: str
    severity: str
    summary: str

    def rule(self) -> Mapping[str, Any]:
        """Return it as Prometheus has it."""
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.lasting,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "description": f"What to do: {DOCS} of Ebbtide."},
        }


_POD = "{{ $labels.namespace }}/{{ $labels.pod }}"
_WORKLOAD = "{{ $labels.namespace }}/{{ $labels.workload }}"
_COUNT = '{{ printf "%.0f" $value }}'


def _lately(counter: str, window: str) -> str:
    # A counter comes into being with its first event, which `increase` cannot see: it knows no value before.
    return f"increase({counter}[{window}]) > 0 or ({counter} unless {counter} offset {window}) > 0"


OPERATOR = (
    Alert(
        "EbbtideNobodyPlans",
        # Without any replica there is no series to be 0.
        "(sum(ebbtide_leader) or vector(0)) < 1",
        "5m",
        "warning",
        "No replica of the operator plans: no pod is told to drain, and each that is held goes at its own deadline.",
    ),
    Alert(
        "EbbtideStoreAway",
        "ebbtide_store_healthy == 0",
        "5m",
        "warning",
        f"{_POD} does not reach etcd: no new drains; deletions pass, and pods drain by themselves.",
    ),
    Alert(
        "EbbtideStoreNearlyFull",
        'ebbtide_store_database_bytes{part="file"} / ignoring (part) ebbtide_store_database_bytes{part="quota"} > 0.8',
        "15m",
        "warning",
        "etcd's file has {{ $value | humanizePercentage }} of its quota; when it is full, etcd refuses every write.",
    ),
    Alert(
        "EbbtideStoreVersionBad",
        'ebbtide_store_version_info{judgement="bad"} == 1',
        "1h",
        "info",
        "etcd {{ $labels.version }} has a known fault: its users reach beyond their rights.",
    ),
    Alert(
        "EbbtideFailsOpen",
        f"sum by (cause) ({_lately('ebbtide_fail_open_total', '15m')}) > 0",
        "0m",
        "warning",
        f"{_COUNT} pods were let go before they were drained, because a part was away ({{{{ $labels.cause }}}}).",
    ),
    Alert(
        "EbbtideDrainsIncomplete",
        "sum by (namespace, kind, workload, outcome) ("
        + _lately('ebbtide_drains_total{outcome=~"cancelled|abandoned|unknown|lost"}', "1h")
        + ") > 0",
        "0m",
        "warning",
        f"{_COUNT} drains of {_WORKLOAD} ended as {{{{ $labels.outcome }}}} within an hour: work was cut or lost.",
    ),
    Alert(
        "EbbtideAnnotationInvalid",
        "ebbtide_invalid_annotations > 0",
        "15m",
        "warning",
        f"{_WORKLOAD} runs as without Ebbtide: its annotation {{{{ $labels.annotation }}}} cannot be used.",
    ),
    Alert(
        "EbbtideReconcileFails",
        "sum by (reason) (rate(ebbtide_reconcile_errors_total[5m])) > 0",
        "15m",
        "warning",
        "The operator has tried again and again for a quarter of an hour ({{ $labels.reason }}): see its log.",
    ),
    Alert(
        "EbbtideCertificateExpires",
        # Renewed with 30 days left.
        "ebbtide_certificate_expiration_timestamp_seconds - time() < 14 * 86400",
        "1h",
        "warning",
        "The certificate {{ $labels.certificate }} ends in {{ $value | humanizeDuration }} and was not renewed.",
    ),
)
TASKS = (
    Alert(
        "EbbtideTasksLeak",
        # The rate is the value; the class says whether it is a leak or load that comes and goes.
        'ebbtide_tasks_growth_per_second > 0 and ignoring (shape) ebbtide_tasks_trend{shape="growth"} == 1',
        "30m",
        "warning",
        f'{_POD} starts more tasks than end: {{{{ printf "%.3g" $value }}}} per second, for half an hour.',
    ),
    Alert(
        "EbbtideTasksChurn",
        'ebbtide_tasks_trend{shape="sawtooth"} == 1',
        "1h",
        "info",
        f"In {_POD} tasks pile up and go at once, again and again: a queue that is flushed, or restarts.",
    ),
    Alert(
        "EbbtideLeaksSuspected",
        "ebbtide_leaks_suspected > 0",
        "15m",
        "warning",
        f"{_POD} has {{{{ $value }}}} tasks that look like leaks ({{{{ $labels.rule }}}}): see its /debug/leaks.",
    ),
)
GROUPS = {"ebbtide-operator": OPERATOR, "ebbtide-tasks": TASKS}


def rules(alerts: Iterable[Alert]) -> list[Mapping[str, Any]]:
    """Return rules as Prometheus has them."""
    return [alert.rule() for alert in alerts]


def render() -> str:
    """Return the template's text."""
    # Raw, because Helm would take Prometheus' placeholders for its own.
    texts = {
        name: yaml.safe_dump(rules(alerts), sort_keys=False, width=1000).rstrip() for name, alerts in GROUPS.items()
    }
    return _HEAD + "".join(_GROUP.format(name=name, rules=text) for name, text in texts.items()) + _TAIL
