"""A watch that does not lose events: it resumes by revision, lists again after a compaction, and notices silence.

The rules are those of etcd's own Go client (client/v3/watch.go): go on after the last event's or progress
notification's revision, never after the revision in a `created` answer, which may be far ahead of what was delivered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from ebbtide.etcd import wire
from ebbtide.etcd.dial import SLICE_S, Interrupted
from ebbtide.etcd.endpoints import Backoff
from ebbtide.etcd.errors import BadAnswer, Closed, Compacted, EtcdError, TimedOut, Unavailable, error_of
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.messages import Batch, Changed, RangeResult, Removed, Resync
from ebbtide.etcd.stream import Stream
from ebbtide.etcd.transport import Transport

INACTIVITY_S = 45.0
"""Three times the interval in which the relay says that there is nothing to say."""
REFUSED_MOST_S = 15.0
"""Longest wait after a refusal, which another try soon after will hardly change."""
STEADY_S = 5.0
"""A connection that lived this long was a good one: its end is a first failure again."""
RESTART_PROOF_S = 5.0
"""How long a store must stay behind what was seen before it counts as begun anew; a member that lags catches up."""

logger = logging.getLogger("ebbtide.etcd")


class _Silence(Exception):
    """A connection that delivered has been quiet for long: it may be dead, or there is nothing to say."""


@dataclass(slots=True)
class _Position:
    """How far one watched key or prefix has come."""

    key: str
    next_revision: int = 0
    known: set[str] = field(default_factory=set)
    """Keys that exist as far as the iterating side was told."""
    created: bool = False


class Watch(Iterator[Batch]):
    """What `EtcdClient.watch` returns: iterate in one thread, look at it from any."""

    def __init__(
        self,
        transport: Transport,
        read: Callable[[str, Callable[[], bool]], RangeResult],
        keys: Sequence[str],
        *,
        stop: threading.Event,
        prefix: bool,
        inactivity_s: float,
    ) -> None:
        if isinstance(keys, str) or not keys:
            raise ValueError("keys: must be a sequence of at least one key")
        self._transport = transport
        self._read = read
        self._stop = stop
        self._prefix = prefix
        self._inactivity_s = inactivity_s
        self._positions = [_Position(key) for key in dict.fromkeys(keys)]
        self._seen = 0
        self._behind_since: float | None = None
        self._connected = False
        self._last_error: EtcdError | None = None
        self._backoff = Backoff(transport.chance)
        self._batches = self._run()

    @property
    def connected(self) -> bool:
        """True from the store's confirmation of the watch until its connection fails."""
        return self._connected

    @property
    def last_error(self) -> EtcdError | None:
        """Why it is not connected; None where it is."""
        return self._last_error

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Drop the connection; only for the thread that iterates, between two batches."""
        self._batches.close()

    def _interrupted(self) -> bool:
        return self._stop.is_set() or self._transport.closed

    def _run(self) -> Generator[Batch, None, None]:
        relist = True
        try:
            while True:
                try:
                    if relist:
                        batch = self._resync()
                        relist = False
                        yield batch
                    yield from self._follow()
                except Compacted:
                    relist = True
                except _Silence:
                    continue  # a fresh connection settles it, and resumes without a gap
                except Closed:
                    raise
                except EtcdError as error:
                    self._pause(error)
        except Interrupted:
            if not self._stop.is_set():
                raise Closed("watch: the client was closed") from None
        finally:
            self._connected = False

    def _resync(self) -> Batch:
        """List everything, and find out what is gone since the last time."""
        results = [self._read(position.key, self._interrupted) for position in self._positions]
        revision = min(result.revision for result in results)
        restarted = revision < self._seen
        if restarted and not self._proven_behind():
            raise self._behind(revision)
        if restarted:
            logger.warning("the store began anew: it is at revision %d, after %d was seen", revision, self._seen)
        before: set[str] = set()
        now = {}
        for position, result in zip(self._positions, results, strict=True):
            before |= position.known
            now.update({key_value.key: key_value for key_value in result.key_values})
            position.known = {key_value.key for key_value in result.key_values}
            position.next_revision = result.revision + 1
        self._seen = revision
        self._behind_since = None
        gone = (Removed(key, revision) for key in sorted(before - now.keys()))
        key_values = tuple(now[key] for key in sorted(now))
        return Batch((Resync(key_values, revision, restarted), *gone), revision)

    def _follow(self) -> Generator[Batch, None, None]:
        """Open a connection and deliver what it says until it fails."""
        for position in self._positions:
            position.created = False
        targets = [
            wire.WatchTarget(number, position.key, self._prefix, position.next_revision)
            for number, position in enumerate(self._positions, 1)
        ]
        stream = self._transport.open_stream("watch", wire.WATCH, wire.encode_watch(targets), self._interrupted)
        opened_at = time.monotonic()
        try:
            while True:
                confirmed = all(position.created for position in self._positions)
                patience_s = self._inactivity_s if confirmed else self._transport.timeout_s
                try:
                    lines = stream.lines(patience_s, self._interrupted)
                except TimedOut:
                    if confirmed:
                        raise _Silence from None
                    raise
                for line in lines:
                    batch = self._take(line, stream)
                    if batch is not None:
                        yield batch
        except EtcdError as error:
            self._transport.note(error, stream.endpoint, stream.header)
            if time.monotonic() - opened_at > STEADY_S:
                self._backoff.reset()
            raise
        finally:
            stream.close()

    def _take(self, line: bytes, stream: Stream) -> Batch | None:
        try:
            answer = wire.decode_watch_line(line)
        except wire.StreamFailure as error:
            raise error_of("watch", 200, error.failure, endpoint=stream.endpoint.url, write=False) from error
        except WireError as error:
            raise BadAnswer(f"watch: {error}", endpoint=stream.endpoint.url) from error
        # A refused watch is answered with both `created` and `canceled`.
        if answer.canceled:
            raise self._cancelled(answer, stream)
        if not 1 <= answer.watch_id <= len(self._positions):
            raise BadAnswer(f"watch: answer for a watch {answer.watch_id} that nobody asked for")
        position = self._positions[answer.watch_id - 1]
        if answer.created:
            self._confirm(position, answer.revision)
            return None
        if not answer.events:
            position.next_revision = max(position.next_revision, answer.revision + 1)
            return None
        changes = tuple(event for event in answer.events if self._is_news(position, event))
        position.next_revision = max(position.next_revision, answer.events[-1].revision + 1)
        self._seen = max(self._seen, position.next_revision - 1)
        return Batch(changes, position.next_revision - 1) if changes else None

    @staticmethod
    def _is_news(position: _Position, event: Changed | Removed) -> bool:
        if event.revision < position.next_revision:
            return False
        if isinstance(event, Changed):
            position.known.add(event.key_value.key)
            return True
        # The relay repeats deletions that it is not sure the client saw.
        known = event.key in position.known
        position.known.discard(event.key)
        return known

    def _confirm(self, position: _Position, revision: int) -> None:
        # A watch from a future revision is accepted in silence: events up to there would be lost.
        if revision < position.next_revision - 1:
            raise Compacted("watch: the store began anew") if self._proven_behind() else self._behind(revision)
        position.created = True
        if not all(position.created for position in self._positions):
            return
        self._behind_since = None
        if self._last_error is not None:
            logger.info("watch is back")
        self._connected = True
        self._last_error = None

    def _proven_behind(self) -> bool:
        now = time.monotonic()
        if self._behind_since is None:
            self._behind_since = now
        return now - self._behind_since >= RESTART_PROOF_S

    def _behind(self, revision: int) -> EtcdError:
        return Unavailable(f"watch: the store is at revision {revision}, behind {self._seen}, which was seen")

    @staticmethod
    def _cancelled(answer: wire.WatchAnswer, stream: Stream) -> EtcdError:
        if answer.compact_revision:
            return Compacted(f"watch: compacted up to {answer.compact_revision}", endpoint=stream.endpoint.url)
        failure = wire.Failure(wire.UNAVAILABLE, answer.cancel_reason or "cancelled by the store")
        return error_of("watch", 200, failure, endpoint=stream.endpoint.url, write=False)

    def _pause(self, error: EtcdError) -> None:
        if self._last_error is None:
            logger.warning("watch is lost, trying again: %s", error)
        self._connected = False
        self._last_error = error
        passing = isinstance(error, Unavailable | TimedOut)
        until = time.monotonic() + self._backoff.next_s(None if passing else REFUSED_MOST_S)
        while not self._interrupted():
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            self._stop.wait(min(left_s, SLICE_S))
        raise Interrupted
