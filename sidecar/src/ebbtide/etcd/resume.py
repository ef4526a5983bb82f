"""Where a watch stands, and what an answer means for it: the same for the synchronous and the asynchronous client.

The rules are those of etcd's own Go client (client/v3/watch.go): go on after the last event's or progress
notification's revision, never after the revision in a `created` answer, which may be far ahead of what was delivered.
Pure: times are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ebbtide.etcd import wire
from ebbtide.etcd.errors import BadAnswer, Compacted, EtcdError, Unavailable, error_of
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.messages import Batch, Changed, RangeResult, Removed, Resync

RESTART_PROOF_S = 10.0
"""How long a store must stay behind what was seen before it counts as begun anew; a member that lags catches up."""


@dataclass(slots=True)
class _Position:
    """How far one watched key or prefix has come."""

    key: str
    next_revision: int = 0
    known: set[str] = field(default_factory=set)
    """Keys that exist as far as the watch told."""
    created: bool = False


class Resumption:
    """The state of one watch over all its connections.

    Args:
        keys: The keys or prefixes that are watched.
        prefix: Whether they are prefixes.
        after: The revision after which to begin, where the caller has listed already.
        proof_s: How long the store must stay behind before it counts as begun anew; None: `RESTART_PROOF_S`. Whoever
            lists with reads that a majority confirms needs no time for it.
    """

    def __init__(
        self, keys: Sequence[str], *, prefix: bool, after: int | None = None, proof_s: float | None = None
    ) -> None:
        self._prefix = prefix
        self._proof_s = proof_s
        self._positions = [_Position(key) for key in dict.fromkeys(keys)]
        self._seen = 0
        self._behind_since: float | None = None
        self._cluster = 0
        # Who listed by himself knows keys that the watch does not: every deletion is news to him.
        self._knows_all = after is None
        if after is not None:
            self._seen = after
            for position in self._positions:
                position.next_revision = after + 1

    @property
    def keys(self) -> list[str]:
        return [position.key for position in self._positions]

    @property
    def confirmed(self) -> bool:
        """True once the store has confirmed every watch of the current connection."""
        return all(position.created for position in self._positions)

    @property
    def cluster(self) -> int:
        """Id of the store that the watch stands in; 0: it did not say."""
        return self._cluster

    @property
    def revision(self) -> int:
        """Everything up to this revision was told."""
        return min(position.next_revision for position in self._positions) - 1

    def begin(self) -> list[wire.WatchTarget]:
        """Return what to ask of a new connection."""
        for position in self._positions:
            position.created = False
        return self.beside()

    def beside(self) -> list[wire.WatchTarget]:
        """Return what to ask of a further connection; what both tell is taken once."""
        return [
            wire.WatchTarget(number, position.key, self._prefix, position.next_revision)
            for number, position in enumerate(self._positions, 1)
        ]

    def relist(self, results: Sequence[RangeResult], now: float) -> Batch:
        """Take a fresh list of every key, and say what it is and what is gone since the last time.

        Args:
            results: One for each of `keys`.
            now: Monotonic time in seconds.

        Raises:
            Unavailable: The list is older than what was seen.
        """
        revision = min(result.revision for result in results)
        cluster = results[0].cluster
        another = self._is_another(cluster)
        restarted = another or revision < self._seen
        if restarted and not another and not self._proven_behind(now):
            raise self._behind(revision)
        before: set[str] = set()
        current = {}
        for position, result in zip(self._positions, results, strict=True):
            before |= position.known
            current.update({key_value.key: key_value for key_value in result.key_values})
            if self._knows_all:
                position.known = {key_value.key for key_value in result.key_values}
            position.next_revision = result.revision + 1
        self._seen = revision
        self._cluster = cluster or self._cluster
        self._behind_since = None
        gone = (Removed(key, revision) for key in sorted(before - current.keys()))
        key_values = tuple(current[key] for key in sorted(current))
        return Batch((Resync(key_values, revision, restarted), *gone), revision)

    def take(self, answer: wire.WatchAnswer, now: float, endpoint: str) -> Batch | None:
        """Take one answer of the watch and return what is new in it.

        Args:
            answer: What the store sent.
            now: Monotonic time in seconds.
            endpoint: Who sent it, for error messages.

        Raises:
            Compacted: List again.
            EtcdError: Connect again.
        """
        # A refused watch is answered with both `created` and `canceled`.
        if answer.canceled:
            raise _cancelled(answer, endpoint)
        if not 1 <= answer.watch_id <= len(self._positions):
            raise BadAnswer(f"watch: nobody asked for a watch {answer.watch_id}", endpoint=endpoint)
        position = self._positions[answer.watch_id - 1]
        if answer.created:
            self._confirm(position, answer, now)
            return None
        if not answer.events:
            position.next_revision = max(position.next_revision, answer.revision + 1)
            return None
        changes = tuple(event for event in answer.events if self._is_news(position, event))
        position.next_revision = max(position.next_revision, answer.events[-1].revision + 1)
        self._seen = max(self._seen, position.next_revision - 1)
        return Batch(changes, position.next_revision - 1) if changes else None

    def _is_news(self, position: _Position, event: Changed | Removed) -> bool:
        if event.revision < position.next_revision:
            return False
        if not self._knows_all:
            return True
        if isinstance(event, Changed):
            position.known.add(event.key_value.key)
            return True
        # The relay repeats deletions that it is not sure the client saw.
        known = event.key in position.known
        position.known.discard(event.key)
        return known

    def _confirm(self, position: _Position, answer: wire.WatchAnswer, now: float) -> None:
        revision = answer.revision
        # Emptied while nobody looked, it may have counted beyond what was seen: revisions alone would not tell.
        if self._is_another(answer.cluster):
            raise Compacted("watch: another store")
        self._cluster = answer.cluster or self._cluster
        # A watch from a future revision is accepted in silence: events up to there would be lost.
        if revision < position.next_revision - 1:
            raise Compacted("watch: the store began anew") if self._proven_behind(now) else self._behind(revision)
        position.created = True
        if self.confirmed:
            self._behind_since = None

    def _is_another(self, cluster: int) -> bool:
        return bool(cluster and self._cluster) and cluster != self._cluster

    def _proven_behind(self, now: float) -> bool:
        if self._behind_since is None:
            self._behind_since = now
        return now - self._behind_since >= (RESTART_PROOF_S if self._proof_s is None else self._proof_s)

    def _behind(self, revision: int) -> EtcdError:
        return Unavailable(f"watch: the store is at revision {revision}, behind {self._seen}, which was seen")


def decode_answer(line: bytes, endpoint: str) -> wire.WatchAnswer:
    """Read one line of a watch.

    Raises:
        EtcdError: The store ended the watch, or the line is not what the gateway says.
    """
    try:
        return wire.decode_watch_line(line)
    except wire.StreamFailure as error:
        raise error_of("watch", 200, error.failure, endpoint=endpoint, write=False) from error
    except WireError as error:
        raise BadAnswer(f"watch: {error}", endpoint=endpoint) from error


def _cancelled(answer: wire.WatchAnswer, endpoint: str) -> EtcdError:
    if answer.compact_revision:
        return Compacted(f"watch: compacted up to {answer.compact_revision}", endpoint=endpoint)
    failure = wire.Failure(wire.UNAVAILABLE, answer.cancel_reason or "cancelled by the store")
    return error_of("watch", 200, failure, endpoint=endpoint, write=False)
