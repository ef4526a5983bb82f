"""What a workload is going through, read from its ReplicaSets."""

from __future__ import annotations

from ebbtide.protocol import RolloutPhase
from ebbtide_operator.core.model import WorkloadView


def rollout_phase(workload: WorkloadView, surplus: int) -> tuple[RolloutPhase, str]:
    """Return the phase and its reason (CamelCase).

    A rollout lasts as long as a ReplicaSet of another revision wants or has pods, so the pods that are held are a part
    of it. `surplus` is the number of pods over what their ReplicaSets ask for: it leads `status.replicas`, which its
    controller writes later.
    """
    if workload.paused:
        return RolloutPhase.PAUSED, "DeploymentPaused"
    current = [one for one in workload.sets if one.revision == workload.revision]
    others = [one for one in workload.sets if one.revision != workload.revision]
    if current and any(one.replicas > 0 or one.observed_replicas > 0 for one in others):
        if any(one.rolled_back for one in current):
            return RolloutPhase.ROLLING_BACK, "EarlierTemplate"
        return RolloutPhase.ROLLING_OUT, "NewTemplate"
    if surplus > 0 or any(one.replicas > workload.replicas for one in current):
        return RolloutPhase.SCALING_DOWN, "FewerReplicas"
    return RolloutPhase.STABLE, "AsSpecified"
