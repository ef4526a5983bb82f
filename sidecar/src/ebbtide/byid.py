"""What can be done to one unit of work by its id, which dumps, logs and `Scope.adopt` tell."""

from __future__ import annotations

from ebbtide.cancelling import cancel_by_id
from ebbtide.registry import Registry


class ById:
    """The part of a runtime that works on single entries; from any thread."""

    _registry: Registry

    def cancel(self, number: int, reason: str = "") -> bool:
        """Cancel one unit of work, as a drain would: softly, and counted by how it ends.

        Args:
            number: Its id.
            reason: For the task, and for who reads its error.

        Returns:
            False where nothing of that id is in flight, or it is work in a thread, which cannot be cancelled.
        """
        return cancel_by_id(self._registry, number, reason or "cancelled by its id")

    def release(self, number: int, reason: str = "") -> bool:
        """Stop waiting for one unit of work: it goes on, counted as abandoned, and no drain waits for it.

        The log names it with the place where it is. Dumps show it as `abandoned` until it ends.

        Args:
            number: Its id.
            reason: For the log.

        Returns:
            False where nothing of that id is in flight, or it is abandoned already.
        """
        item = self._registry.live.get(number)
        if item is None or number in self._registry.abandoned:
            return False
        self._registry.abandon([item], reason or "released by its id")
        return True
