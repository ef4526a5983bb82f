"""Writes the dashboards that the chart ships: `python -m charts.dashboards.generate`."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from charts.dashboards.board import board

OUTPUT = Path(__file__).resolve().parent.parent / "ebbtide/dashboards/ebbtide.json"


def render() -> str:
    """Return the dashboard as JSON, the same bytes each time."""
    return json.dumps(board().build(), cls=JSONEncoder, sort_keys=True, indent=2) + "\n"


def main() -> None:
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(render())


if __name__ == "__main__":
    main()
