"""When a watch that does not tell what we wrote ourselves is to be doubted. Pure: times are arguments.

A connection that swallows everything is as silent as a store where nothing happens. The answer to a write of our own
tells the two apart: it carries a revision that the watch has to tell within moments.
"""

from __future__ import annotations

PATIENCE_S = 0.2
"""How long a watch may say nothing at all while a write of ours is to be told. A healthy etcd takes milliseconds."""
MOST_PATIENCE_S = 6.4
AGAIN_S = 1.0
"""The least time between two doubts, however well founded."""
CALM_S = 60.0
"""So long after the last doubt, those that proved wrong are forgotten."""


class Doubt:
    """What one watch owes us.

    A doubt needs a write that was acknowledged since the last one, or a sign of life: a store that does not answer
    causes one and no more. Each doubles the patience until one proves right: a busy machine is left alone.

    Args:
        told: Revision up to which the watch has told everything.

    Attributes:
        patience_s: How long the watch may be silent at present, in seconds.
    """

    def __init__(self, told: int) -> None:
        self.patience_s = PATIENCE_S
        self._told = told
        self._owed = 0
        self._since: float | None = None
        self._last_at = float("-inf")

    @property
    def due_at(self) -> float | None:
        """When to doubt, if nothing is heard until then; None: there is no reason to."""
        if self._since is None:
            return None
        return max(self._since + self.patience_s, self._last_at + AGAIN_S)

    def wrote(self, revision: int, now: float) -> None:
        """Take note of a write of our own that the watch has to tell."""
        if revision <= self._told:
            return
        self._owed = max(self._owed, revision)
        if self._since is None:
            if now - self._last_at > CALM_S:
                self.patience_s = PATIENCE_S
            self._since = now

    def heard(self, told: int, now: float) -> None:
        """Take note of a sign of life: the watch has told everything up to a revision by now."""
        self._told = max(self._told, told)
        # It lives: what it still owes is on its way.
        self._since = now if self._owed > self._told else None

    def began_anew(self, told: int) -> None:
        """Forget what is owed: everything was listed, as of a revision that may be a lower one."""
        self._told = told
        self._owed = 0
        self._since = None

    def excuse(self, now: float) -> None:
        """Begin to wait anew: we were not there to listen."""
        if self._since is not None:
            self._since = now

    def raised(self, now: float) -> None:
        """Take note that the watch is doubted, now."""
        self._since = None
        self._last_at = now
        self.patience_s = min(2 * self.patience_s, MOST_PATIENCE_S)

    def right(self) -> None:
        """Take note that the last doubt was right: another connection told what this one owed."""
        self.patience_s = PATIENCE_S
