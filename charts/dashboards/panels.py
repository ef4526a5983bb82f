"""The kinds of panels that the dashboards use, each with what every panel must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="$datasource")
Queries = str | Sequence[tuple[str, str]]
"""One expression, or pairs of expression and legend."""


def number(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str = "short",
    warn_at: float | None = None,
    low: bool = False,
) -> Any:
    """Return one number with its recent course: red from `warn_at` on, with `low` below it.

    `$__range` in the expression makes it the number over the whole time range, without a course.
    """
    calm, alarm = ("red", "green") if low else ("green", "red")
    steps = [models.Threshold(color=calm)]
    if warn_at is not None:
        steps.append(models.Threshold(value=warn_at, color=alarm))
    panel = (
        _common(stat.Panel(), title, description, unit, width=4, height=4)
        .thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .graph_mode(common.BigValueGraphMode.AREA)
        .color_mode(common.BigValueColorMode.VALUE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    query = _query(expression, title)
    return panel.with_target(query.instant() if "$__range" in expression else query)


def graph(
    title: str, description: str, queries: Queries, *, unit: str = "short", stacked: bool = False, width: int = 12
) -> Any:
    """Return a graph over time, from zero."""
    panel = (
        _common(timeseries.Panel(), title, description, unit, width=width, height=8)
        .min(0)
        .legend(
            common_builders.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(
            common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
        )
        .fill_opacity(20 if stacked else 5)
        .show_points(common.VisibilityMode.NEVER)
    )
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    for index, (expression, legend) in enumerate([(queries, title)] if isinstance(queries, str) else queries):
        panel = panel.with_target(_query(expression, legend, ref_id=chr(ord("A") + index)))
    return panel


def timeline(
    title: str, description: str, expression: str, legend: str, *, shown: Mapping[str, tuple[str, str]]
) -> Any:
    """Return one line for each series; `shown` maps a value to its text and colour."""
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(shown.items())
    }
    return (
        _common(statetimeline.Panel(), title, description, "short", width=12, height=8)
        .mappings([models.ValueMap(options=options)])
        .merge_values(True)
        .show_value(common.VisibilityMode.NEVER)
        .row_height(0.8)
        .with_target(_query(expression, legend))
    )


def buckets(title: str, description: str, expression: str, *, unit: str) -> Any:
    """Return a heatmap of a histogram's buckets."""
    return (
        _common(heatmap.Panel(), title, description, unit, width=12, height=8)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .show_tooltip()
        .hide_legend()
        .with_target(_query(expression, "{{le}}").format(PromQueryFormat.HEATMAP))
    )


def rows(
    title: str,
    description: str,
    columns: Mapping[str, str],
    *,
    units: Mapping[str, str],
    hidden: Sequence[str] = (),
    width: int = 24,
) -> Any:
    """Return a table of what is now: one column for each heading's expression, rows joined by their labels.

    `units` has the columns that are not plain counts; `hidden` those, by heading or label, that only join.
    """
    panel = _common(table.Panel(), title, description, "short", width=width, height=8)
    names: dict[str, str] = {}
    for index, (heading, expression) in enumerate(columns.items()):
        ref_id = chr(ord("A") + index)
        # Where there is only one query, Grafana does not append its letter to the name.
        names[f"Value #{ref_id}" if len(columns) > 1 else "Value"] = heading
        panel = panel.with_target(_query(expression, heading, ref_id=ref_id).instant().format(PromQueryFormat.TABLE))
    if len(columns) > 1:
        panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    organize = {"excludeByName": dict.fromkeys(("Time", *hidden), True), "renameByName": names}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=organize))
    for heading, unit in units.items():
        panel = panel.override_by_name(heading, [models.DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def _common(panel: Any, title: str, description: str, unit: str, *, width: int, height: int) -> Any:
    return panel.title(title).description(description).unit(unit).datasource(DATASOURCE).span(width).height(height)


def _query(expression: str, legend: str, *, ref_id: str = "A") -> Any:
    query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref_id).datasource(DATASOURCE)
    return query.range()
