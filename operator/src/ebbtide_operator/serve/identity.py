"""Who a bearer token speaks for, without asking Kubernetes at every request."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ebbtide_operator.ports import PodIdentity

Value = TypeVar("Value")

KNOWN_S = 60.0
UNKNOWN_S = 5.0
MOST = 10_000
AT_ONCE = 16
"""TokenReviews under way, so that a flood of bad tokens does not become one on the API server."""


class IdentityCache:
    """Remember the answers of TokenReview, by the token's hash.

    Args:
        review: Asks Kubernetes; None: the token is not valid for us. What it raises is not remembered.
        clock: Monotonic seconds.
    """

    def __init__(self, review: Callable[[str], Awaitable[PodIdentity | None]], clock: Callable[[], float]) -> None:
        self._review = review
        self._clock = clock
        # Apart, so that bad tokens cannot push good ones out.
        self._known: OrderedDict[bytes, tuple[float, PodIdentity]] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Future[PodIdentity | None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def remembers(self, token: str) -> bool:
        """Say whether `identify` will answer without asking Kubernetes, or ask again about a token that was good.

        Such a token is asked about once in `KNOWN_S`, and once more when it is good no longer.
        """
        digest = _digest(token)
        return digest in self._known or self._look(digest) is not None

    async def identify(self, token: str) -> PodIdentity | None:
        """Return the pod that a token speaks for; None: no pod of this cluster."""
        digest = _digest(token)
        found = self._look(digest)
        if found is not None:
            return found[0]
        under_way = self._under_way.get(digest)
        if under_way is None:
            under_way = asyncio.ensure_future(self._ask(digest, token))
            self._under_way[digest] = under_way
            under_way.add_done_callback(lambda future: self._ended(digest, future))
        # Shielded: one of several that wait for the same review may go away.
        return await asyncio.shield(under_way)

    def _look(self, digest: bytes) -> tuple[PodIdentity | None] | None:
        now = self._clock()
        known = self._known.get(digest)
        if known is not None and now < known[0]:
            return (known[1],)
        unknown_until = self._unknown.get(digest)
        if unknown_until is not None and now < unknown_until:
            return (None,)
        return None

    async def _ask(self, digest: bytes, token: str) -> PodIdentity | None:
        async with self._slots:
            identity = await self._review(token)
        now = self._clock()
        if identity is None:
            self._known.pop(digest, None)
            _remember(self._unknown, digest, now + UNKNOWN_S)
        else:
            _remember(self._known, digest, (now + KNOWN_S, identity))
        return identity

    def _ended(self, digest: bytes, future: asyncio.Future[PodIdentity | None]) -> None:
        self._under_way.pop(digest, None)
        if not future.cancelled():
            future.exception()  # whoever waited has it; where nobody did, it is of no interest


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _remember(cache: OrderedDict[bytes, Value], digest: bytes, value: Value) -> None:
    cache[digest] = value
    cache.move_to_end(digest)
    while len(cache) > MOST:
        cache.popitem(last=False)
