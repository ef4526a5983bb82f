"""Client of etcd's key-value store over its v3 JSON gateway: standard library only, for threads and forks."""

from ebbtide.etcd.client import EtcdClient
from ebbtide.etcd.errors import (
    BadAnswer,
    Closed,
    Compacted,
    EtcdError,
    GatewayDisabled,
    LeaseExists,
    LeaseNotFound,
    Overloaded,
    PermissionDenied,
    Refused,
    TimedOut,
    Unauthenticated,
    Unavailable,
)
from ebbtide.etcd.heartbeat import Heartbeat
from ebbtide.etcd.messages import (
    Batch,
    Changed,
    Compare,
    Delete,
    KeyValue,
    Put,
    RangeResult,
    Removed,
    Resync,
    TxnResult,
)
from ebbtide.etcd.watch import Watch

__all__ = [
    "BadAnswer",
    "Batch",
    "Changed",
    "Closed",
    "Compacted",
    "Compare",
    "Delete",
    "EtcdClient",
    "EtcdError",
    "GatewayDisabled",
    "Heartbeat",
    "KeyValue",
    "LeaseExists",
    "LeaseNotFound",
    "Overloaded",
    "PermissionDenied",
    "Put",
    "RangeResult",
    "Refused",
    "Removed",
    "Resync",
    "TimedOut",
    "TxnResult",
    "Unauthenticated",
    "Unavailable",
    "Watch",
]
