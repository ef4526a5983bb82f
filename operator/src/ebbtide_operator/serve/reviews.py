"""Who pays for a TokenReview: what a token says of itself decides which bucket it is taken from, and nothing else."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any

from ebbtide_operator.serve.limits import TokenBuckets

REVIEWS_PER_S, REVIEWS_AT_ONCE = 10.0, 100.0
"""From one address, of tokens that name no pod that we know; a node's pods may share one."""
POD_REVIEWS_PER_S, POD_REVIEWS_AT_ONCE = 0.1, 4.0
"""Of tokens that name one pod that we know."""
NAMESPACE_REVIEWS_PER_S, NAMESPACE_REVIEWS_AT_ONCE = 50.0, 200.0
"""Of tokens that name pods that we know in one namespace: whoever lists its pods may slow down its own alone."""
ALL_REVIEWS_PER_S, ALL_REVIEWS_AT_ONCE = 200.0, 400.0
"""Of all tokens that name pods that we know. Kubernetes' own servers ask as often for those whom they do not know."""


class ReviewLimits:
    """Decide whether an unknown token may be shown to Kubernetes.

    A token that names a pod that we know is paid for by the pod, by its namespace, and by all of them together: pods
    that share an address do not wait for each other. Any other, and one that they cannot pay for, is paid for by its
    address.

    Args:
        knows: Whether there is such a managed pod (namespace, UID), as far as this replica has heard.
        clock: Monotonic seconds.
    """

    def __init__(self, knows: Callable[[str, str], bool], clock: Callable[[], float]) -> None:
        self._knows = knows
        self._addresses: TokenBuckets[str] = TokenBuckets(REVIEWS_PER_S, REVIEWS_AT_ONCE, clock)
        self._pods: TokenBuckets[tuple[str, str]] = TokenBuckets(POD_REVIEWS_PER_S, POD_REVIEWS_AT_ONCE, clock)
        self._namespaces: TokenBuckets[str] = TokenBuckets(NAMESPACE_REVIEWS_PER_S, NAMESPACE_REVIEWS_AT_ONCE, clock)
        self._all: TokenBuckets[None] = TokenBuckets(ALL_REVIEWS_PER_S, ALL_REVIEWS_AT_ONCE, clock)

    def admit(self, address: str, token: str) -> bool:
        """Take what a review of the token costs; False: it is not to be reviewed now."""
        pod = claimed_pod(token)
        if pod is None or not self._knows(*pod):
            return self._addresses.take(address)
        namespace = pod[0]
        # All or none: who is refused for the others' sake has not spent his own.
        if self._pods.has(pod) and self._namespaces.has(namespace) and self._all.has(None):
            return self._pods.take(pod) and self._namespaces.take(namespace) and self._all.take(None)
        return self._addresses.take(address)


def claimed_pod(token: str) -> tuple[str, str] | None:
    """Return the namespace and the UID of the pod that a token says it is for; nobody has verified it.

    None: it does not look like a bound ServiceAccount token.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    kubernetes = _object(claims, "kubernetes.io")
    namespace, uid = kubernetes.get("namespace"), _object(kubernetes, "pod").get("uid")
    if not isinstance(namespace, str) or not isinstance(uid, str) or not namespace or not uid:
        return None
    return namespace, uid


def _object(document: Any, field: str) -> Mapping[str, Any]:
    value = document.get(field) if isinstance(document, dict) else None
    return value if isinstance(value, dict) else {}
