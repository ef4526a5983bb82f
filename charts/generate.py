"""Makes what the chart has that is generated: `python -m charts.generate`, or `--check` to compare only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from charts import alerts, crd_template, readme
from charts.dashboards import generate as dashboards

REPOSITORY = Path(__file__).resolve().parent.parent


def outputs() -> Mapping[Path, str]:
    """Return each generated file's path with the text that it should have."""
    return {
        alerts.TEMPLATE: alerts.render(),
        crd_template.TEMPLATE: crd_template.render(),
        dashboards.OUTPUT: dashboards.render(),
        readme.README: readme.render(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the chart's alerts, CRD template, dashboard and README table.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if not check:
            path.write_text(outputs()[path])
        sys.stdout.write(f"{'out of date' if check else 'written'}: {path.relative_to(REPOSITORY)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
