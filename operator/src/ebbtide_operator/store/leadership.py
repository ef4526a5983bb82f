"""The leader key: who may write orders, proven in the store itself by its create revision, the epoch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from ebbtide.protocol import Keys, Leader
from ebbtide_operator.ports import Compare, Delete, Deposed, LeaseEnded, Put, Store, StoreUnavailable

RETRY_S = 1.0

logger = logging.getLogger(__name__)


class Leadership:
    """Hold the leader key, and write nothing without it.

    Who may lead is decided elsewhere (a Kubernetes Lease); this makes sure that whoever was deposed cannot write.

    Args:
        store: Where the key is.
        keys: How it is spelled.
        ttl_s: Seconds after which the key of a leader that vanished is gone.
    """

    def __init__(self, store: Store, keys: Keys, ttl_s: int) -> None:
        self._store = store
        self._key = keys.leader
        self._ttl_s = ttl_s
        self._lease = 0
        self._lost = asyncio.Event()
        self.epoch = 0
        """Create revision of our leader key; 0: we do not lead."""

    async def take(self, identity: str) -> int:
        """Become the leader, in place of whoever was, and return the epoch.

        Raises:
            Deposed: Others keep taking it away.
            StoreUnavailable: The store did not answer.
        """
        lease = await self._store.grant(self._ttl_s)
        value = Leader(identity=identity).encode()
        for _ in range(5):
            current = await self._store.get(self._key)
            if current is not None:
                # etcd takes no deletion and creation of one key in one transaction.
                await self._store.transact([Compare(self._key, mod_revision=current.mod_revision)], [Delete(self._key)])
            try:
                epoch = await self._store.transact(
                    [Compare(self._key, create_revision=0)], [Put(self._key, value, lease)]
                )
            except LeaseEnded as error:
                raise StoreUnavailable(f"the leader's lease of {self._ttl_s} s ended before its use") from error
            if epoch is not None:
                self._lease = lease
                self.epoch = epoch
                self._lost.clear()
                logger.info("leader.began", extra={"identity": identity, "epoch": epoch})
                return epoch
        raise Deposed("others keep taking the leader key")

    async def renew(self) -> None:
        """Keep the leader key for another `ttl_s` seconds.

        Raises:
            Deposed: It is gone.
            StoreUnavailable: The store did not answer; try again soon.
        """
        if not self.epoch:
            raise Deposed("not the leader")
        if not await self._store.keep_alive(self._lease):
            self._lose()
            raise Deposed("the leader's lease ended")

    async def resign(self) -> None:
        """Give the leader key away; where the store is away, its lease ends it."""
        lease, self._lease = self._lease, 0
        self._lose()
        if lease:
            with contextlib.suppress(StoreUnavailable):
                await self._store.revoke(lease)

    async def write(
        self, then: Sequence[Put | Delete], *, epoch: int | None = None, compare: Sequence[Compare] = ()
    ) -> int | None:
        """Apply a transaction as the leader and return its revision; None where one of `compare` did not hold.

        Args:
            then: What to write.
            epoch: The epoch in which it was decided; None: the present one.
            compare: Further conditions.

        Raises:
            Deposed: Another leads, or we lead anew since it was decided.
            StoreUnavailable: The store did not answer.
        """
        if not self.epoch or (epoch is not None and epoch != self.epoch):
            raise Deposed(f"epoch {epoch or 0}: not the leader")
        # The lease too: a store that lost its data counts from the beginning, and may give our epoch to another.
        ours = [Compare(self._key, create_revision=self.epoch), Compare(self._key, lease=self._lease)]
        revision = await self._store.transact([*ours, *compare], then)
        if revision is not None:
            return revision
        current = await self._store.get(self._key) if compare else None
        if current is not None and (current.create_revision, current.lease) == (self.epoch, self._lease):
            return None
        self._lose()
        raise Deposed("another operator leads")

    async def hold(self, identity: str, may_lead: Callable[[], bool], began: Callable[[int], object]) -> None:
        """Lead until cancelled: take the key, keep it, and take it again where it was lost; resign at the end.

        Args:
            identity: Who we are.
            may_lead: Whether we are still the elected one; a deposed leader that wakes up must not take it back.
            began: Called with each new epoch.
        """
        try:
            while True:
                try:
                    if not self.epoch and may_lead():
                        began(await self.take(identity))
                    if self.epoch:
                        await self._until_lost(self._ttl_s / 3)
                        await self.renew()
                    else:
                        await asyncio.sleep(RETRY_S)
                except Deposed as error:
                    logger.warning("leader.deposed", extra={"error": str(error)})
                except StoreUnavailable as error:
                    logger.warning("leader.store_away", extra={"error": str(error)})
                    await asyncio.sleep(RETRY_S)
        finally:
            await self.resign()

    async def _until_lost(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._lost.wait()

    def _lose(self) -> None:
        self.epoch = 0
        self._lost.set()
