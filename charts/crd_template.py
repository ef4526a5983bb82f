"""The chart's template of the resource definitions, made from `crds/`."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = REPOSITORY / "crds"
TEMPLATE = REPOSITORY / "charts/ebbtide/templates/crds.yaml"

_HEAD = """\
{{- /* Generated from crds/ by `make generate`: edit that. */ -}}
{{- if .Values.crds.enabled }}
"""
_METADATA = """\
  labels:
    {{- include "ebbtide.labels" (dict "root" . "component" "crds") | nindent 4 }}
  {{- if or .Values.crds.keep .Values.crds.annotations }}
  annotations:
    {{- $keep := ternary (dict "helm.sh/resource-policy" "keep") dict .Values.crds.keep }}
    {{- include "ebbtide.union" (list $keep .Values.crds.annotations) | nindent 4 }}
  {{- end }}
"""
_TAIL = "{{- end }}\n"


def render() -> str:
    """Return the template's text.

    Raises:
        ValueError: A source has text that Helm would take for an action, or no `metadata.name` line.
    """
    return _HEAD + "---\n".join(_templated(path) for path in sorted(SOURCES.glob("*.yaml"))) + _TAIL


def _templated(source: Path) -> str:
    text = source.read_text()
    if "{{" in text:
        raise ValueError(f"{source.name}: has '{{{{', which Helm would evaluate")
    before, name, after = text.partition(f"metadata:\n  name: {_definition_name(source)}\n")
    if not name:
        raise ValueError(f"{source.name}: needs the lines 'metadata:' and '  name: {_definition_name(source)}'")
    return before + name + _METADATA + after


def _definition_name(source: Path) -> str:
    group, _, plural = source.stem.partition("_")
    return f"{plural}.{group}"
