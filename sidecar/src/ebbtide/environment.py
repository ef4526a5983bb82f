"""Names of the environment variables and paths through which a pod is told about its operator.

The operator's create webhook sets them, `settings.py` reads them. Durations are decimal seconds.
"""

from __future__ import annotations

POD_NAME = "EBBTIDE_POD_NAME"
POD_NAMESPACE = "EBBTIDE_POD_NAMESPACE"
POD_UID = "EBBTIDE_POD_UID"
WORKLOAD = "EBBTIDE_WORKLOAD"
"""`kind/name`, the kind in lower case: `deployment/orders`."""
ENDPOINTS = "EBBTIDE_ENDPOINTS"
"""Comma-separated base URLs of the relay or of etcd; empty: no store, the floor only."""
CA = "EBBTIDE_CA"
"""PEM text of the authorities to trust at the endpoints."""
TOKEN_FILE = "EBBTIDE_TOKEN_FILE"  # noqa: S105 (a path)
PREFIX = "EBBTIDE_PREFIX"
ADMIN_ADDRESS = "EBBTIDE_ADMIN_ADDRESS"
"""`host:port` of the admin server; default: in a pod `[::]:8471`, every address; elsewhere `127.0.0.1:8471`."""
ADMIN_TOKEN = "EBBTIDE_ADMIN_TOKEN"  # noqa: S105 (a name)
"""Bearer token for everything but /livez, /readyz and /metrics; unset: loopback callers only."""
QUIESCE = "EBBTIDE_QUIESCE_S"
DRAIN_TIMEOUT = "EBBTIDE_DRAIN_TIMEOUT_S"
CANCEL_GRACE = "EBBTIDE_CANCEL_GRACE_S"
GRACE_PERIOD = "EBBTIDE_GRACE_PERIOD_S"
"""The pod's terminationGracePeriodSeconds, against which the other durations are checked."""
MAX_TASKS = "EBBTIDE_MAX_TASKS"
"""Tasks at the same time, here and in the next three; 0: no limit."""
TASKS_PER_S = "EBBTIDE_TASKS_PER_S"
TASKS_BURST = "EBBTIDE_TASKS_BURST"
BREAKER_TIMEOUTS = "EBBTIDE_BREAKER_TIMEOUTS"
BREAKER_PAUSE = "EBBTIDE_BREAKER_PAUSE_S"
ADMISSION = "EBBTIDE_ADMISSION"
"""`refuse`, `wait` or `shed`."""
ADMISSION_WAIT = "EBBTIDE_ADMISSION_WAIT_S"
LEAK_AGE = "EBBTIDE_LEAK_AGE_S"
"""Age below which work is not suspected to be a leak, except for missing heartbeats and swallowed cancels."""
LEAK_IGNORE = "EBBTIDE_LEAK_IGNORE"
"""Comma-separated patterns of names of tasks or functions that may run outside any scope."""
ORIGINS = "EBBTIDE_ORIGINS"
"""`1`: remember where tasks are created."""
WORKERS = "EBBTIDE_WORKERS"
"""`auto`, `single` or `shared`: whether processes of one pod find each other."""
WORKERS_SOCKET = "EBBTIDE_WORKERS_SOCKET"
"""Where they do: `@` and an abstract name, or an absolute path."""

ADMIN_PORT = 8471
TOKEN_AUDIENCE = "ebbtide"  # noqa: S105 (a name)
TOKEN_MOUNT = "/var/run/secrets/ebbtide.dev"  # noqa: S105 (a path)

DEFAULT_QUIESCE_S = 5.0
DEFAULT_DRAIN_TIMEOUT_S = 60.0
DEFAULT_CANCEL_GRACE_S = 10.0
DEFAULT_LEAK_AGE_S = 60.0
EXIT_MARGIN_S = 5.0
"""Seconds between the end of the drain budget and the kubelet's SIGKILL: time for stop hooks."""
