"""Labels, annotations and other names that users and other programs see, each spelled once."""

from __future__ import annotations

DOMAIN = "ebbtide.dev"
API_VERSION = "v1alpha1"

# On a workload, written by users.
DRAIN = f"{DOMAIN}/drain"
DRAIN_TIMEOUT = f"{DOMAIN}/drain-timeout"
CANCEL_GRACE = f"{DOMAIN}/cancel-grace"
QUIESCE = f"{DOMAIN}/quiesce"
MAX_DRAINING = f"{DOMAIN}/max-draining"
CONTAINER = f"{DOMAIN}/container"

# On a pod, written by the create webhook and the operator.
MANAGED = f"{DOMAIN}/managed"
"""Label: `true` (floor and hold) or `floor`. The delete webhook selects `true`."""
FLOOR = f"{DOMAIN}/floor"
"""Annotation: what the create webhook added, or why it added nothing."""
DRAINING_SINCE = f"{DOMAIN}/draining-since"
"""Annotation: when the drain was ordered, RFC 3339 with milliseconds, UTC."""
DRAIN_DEADLINE = f"{DOMAIN}/drain-deadline"
"""Annotation: when the hold ends whatever the pod says, RFC 3339 with milliseconds, UTC."""
RELEASED = f"{DOMAIN}/released"
"""Annotation: the outcome; the delete webhook lets the pod go."""
ORIGINAL_COST = f"{DOMAIN}/original-deletion-cost"
"""Annotation: the user's own deletion cost while ours is in its place; empty: there was none."""

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
RELEASED_COST = -2147483648
"""A released pod goes first, even where surplus shrank meanwhile."""
DRAINING_COST = -2147483647

REVISION = "deployment.kubernetes.io/revision"
REVISION_HISTORY = "deployment.kubernetes.io/revision-history"
TEMPLATE_HASH = "pod-template-hash"

REPLICASET_CONTROLLER = "system:serviceaccount:kube-system:replicaset-controller"
CONTROLLER_MANAGER = "system:kube-controller-manager"
"""The user that deletes in clusters whose controllers share one identity."""
