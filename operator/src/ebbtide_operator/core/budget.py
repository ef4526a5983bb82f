"""How many pods of one workload may drain at once. Integers only."""

from __future__ import annotations

from ebbtide_operator.core.model import WorkloadView


def drain_limit(workload: WorkloadView, pods: int) -> int:
    """Return how many pods may drain at once; at least 1, or nothing would ever end.

    Args:
        workload: Its `max_draining` is a count, or a percentage of its replicas rounded up. Without one the limit is
            what one rolling step may take away: `maxSurge + maxUnavailable`.
        pods: Pods that there are. A workload that is scaled to zero has no capacity to protect and no replicas to
            take a percentage of: without a `max_draining` all of them may drain, and a percentage is one of these.
    """
    wanted = workload.policy.max_draining
    if wanted is None:
        limit = pods if workload.replicas == 0 else workload.max_surge + workload.max_unavailable
    elif isinstance(wanted, str) and wanted.endswith("%"):
        limit = -(-(workload.replicas or pods) * int(wanted[:-1]) // 100)
    else:
        limit = int(wanted)
    return max(1, limit)
