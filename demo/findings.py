"""What the demo found out, and whether Ebbtide kept its promises."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from charts.dashboards.verify import QueryResult

from .dashboard import as_json
from .manifests import SUBJECTS
from .results import Row
from .scenes import Pace


@dataclass(slots=True)
class Findings:
    """What the demo found out, so far."""

    began_at: float = field(default_factory=time.time)
    rows: list[Row] = field(default_factory=list)
    dashboard: list[QueryResult] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def judge(self) -> None:
        """Turn what must not be into problems; only the managed Deployment has promises to keep."""
        managed = {subject.name for subject in SUBJECTS if subject.managed}
        for row in self.rows:
            if row.deployment in managed and not row.kept:
                what = f"{row.lost} lost, {row.duplicated} duplicated, {row.open} undecided"
                when = "not over in time" if row.over_s is None else "over in time"
                self.problems.append(f"{row.scene}: {row.deployment}: {what}, {when}")
        empty = sorted({result.panel for result in self.dashboard if result.empty})
        if empty:
            self.problems.append(f"dashboard: no data in {', '.join(empty)}")

    def to_json(self, pace: Pace) -> dict[str, Any]:
        return {
            "began_at": self.began_at,
            "pace": asdict(pace),
            "rows": [row.to_json() for row in self.rows],
            "dashboard": as_json(self.dashboard),
            "problems": self.problems,
        }
