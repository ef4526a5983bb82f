"""The chart's alert rules, for the Prometheus operator: what goes wrong inside the pods of a workload.

They are about the library's own metrics, so they need nothing but the pods to be scraped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TEMPLATE = Path(__file__).resolve().parent / "ebbtide/templates/alerts.yaml"
DOCS = "docs/library/leaks.md"

_HEAD = """\
{{- /* Generated from charts/alerts.py by `make generate`: edit that. */ -}}
{{- $alerts := .Values.monitoring.alerts }}
{{- if include "ebbtide.monitor" (dict "root" . "enabled" $alerts.enabled "kind" "PrometheusRule") }}
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: {{ include "ebbtide.fullname" . }}-tasks
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "ebbtide.labels" (dict "root" . "component" "operator") | nindent 4 }}
    {{- with $alerts.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  groups:
    - name: ebbtide-tasks
      {{- with $alerts.interval }}
      interval: {{ . }}
      {{- end }}
      rules:
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
ALERTS = (
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


def rules() -> list[Mapping[str, Any]]:
    """Return all rules as Prometheus has them."""
    return [alert.rule() for alert in ALERTS]


def render() -> str:
    """Return the template's text."""
    text = yaml.safe_dump(rules(), sort_keys=False, width=1000).rstrip()
    # Raw, because Helm would take Prometheus' placeholders for its own.
    return f"{_HEAD}{{{{ `{text}` | indent 8 }}}}\n{_TAIL}"
