"""What etcd says of itself, asked now and then: its size, and its version."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ebbtide_operator.ports import Store, StoreStatus, StoreUnavailable
from ebbtide_operator.store.versions import fault_of

EVERY_S = 60.0
AGAIN_S = 5.0
"""How soon to ask again where there was no answer."""

logger = logging.getLogger(__name__)


class Survey:
    """Ask the member at hand, so that after a failover another one is asked within a minute.

    Args:
        store: The store.
        show: Called with each answer, and with what is wrong with its version; empty: nothing that is known.
    """

    def __init__(self, store: Store, show: Callable[[StoreStatus, str], None]) -> None:
        self._store = store
        self._show = show
        self._warned: set[str] = set()

    async def run(self) -> None:
        """Ask until cancelled."""
        while True:
            answered = await self.look()
            await asyncio.sleep(EVERY_S if answered else AGAIN_S)

    async def look(self) -> bool:
        """Ask once; False: there was no answer. A bad version is logged once, and never a reason not to run."""
        try:
            status = await self._store.status()
        except StoreUnavailable as error:
            logger.debug("store.status_failed", extra={"error": str(error)})
            return False
        fault = fault_of(status.version)
        if fault and status.version not in self._warned:
            self._warned.add(status.version)
            logger.warning("store.version.bad", extra={"version": status.version, "error": fault})
        self._show(status, fault)
        return True
