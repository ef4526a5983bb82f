"""A real Kubernetes cluster on this machine for the tests and the demo.

from tests import localcluster
cluster = localcluster.up("ebbtide", nodes=2)
cluster.kubectl("get", "nodes")
cluster.down()
"""

from tests.localcluster.adapters import attach, down, prepare, status, up
from tests.localcluster.cluster import Cluster, CommandFailed, Status
from tests.localcluster.errors import ClusterError
from tests.localcluster.guard import ensure_ours

__all__ = [
    "Cluster",
    "ClusterError",
    "CommandFailed",
    "Status",
    "attach",
    "down",
    "ensure_ours",
    "prepare",
    "status",
    "up",
]
