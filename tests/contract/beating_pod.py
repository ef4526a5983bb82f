"""A pod's agent in a process of its own, which a test may stop: `python -m tests.contract.beating_pod SETTINGS`."""

import json
import sys
from pathlib import Path
from typing import Any

from ebbtide import agent as module
from ebbtide.agent import Agent
from ebbtide.protocol import PodState, Report
from ebbtide.settings import Settings


def make(told: dict[str, Any]) -> Agent:
    """Return the agent that the settings describe; it is not started."""
    return Agent(
        Settings(
            pod_namespace="shop",
            pod_uid="uid-alice",
            workload="deployment/orders",
            endpoints=tuple(told["endpoints"]),
            ca=Path(told["ca"]).read_text(),
            token_file=told["token"],
            prefix=told["prefix"],
        ),
        make_report=lambda sequence, phase_revision: Report(
            state=PodState.SERVING, sequence=sequence, boot_id="boot", phase_revision=phase_revision
        ),
        count=lambda: 0,
        on_order=lambda _order: None,
    )


if __name__ == "__main__":
    module.LEASE_S, module.KEEP_ALIVE_S = 3, 0.9
    make(json.loads(sys.argv[1])).start()
    sys.stdin.read()
