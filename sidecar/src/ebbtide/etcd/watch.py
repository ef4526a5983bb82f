"""A synchronous watch that does not lose events: it reconnects, resumes, lists again, and notices silence."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Self

from ebbtide.etcd import wire
from ebbtide.etcd.dial import SLICE_S, Interrupted
from ebbtide.etcd.endpoints import Backoff
from ebbtide.etcd.errors import Closed, Compacted, EtcdError, TimedOut, Unavailable
from ebbtide.etcd.heartbeat import Heartbeat
from ebbtide.etcd.messages import Batch, RangeResult
from ebbtide.etcd.resume import Resumption, decode_answer
from ebbtide.etcd.stream import Stream
from ebbtide.etcd.transport import Transport

INACTIVITY_S = 45.0
"""Three times the interval in which the relay says that there is nothing to say."""
REFUSED_MOST_S = 15.0
"""Longest wait after a refusal, which another try soon after will hardly change."""
STEADY_S = 5.0
"""A connection that lived this long was a good one: its end is a first failure again."""

logger = logging.getLogger("ebbtide.etcd")


class _Silence(Exception):
    """A connection that delivered has been quiet for long: it may be dead, or there is nothing to say."""


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
        heartbeat: Heartbeat | None = None,
    ) -> None:
        if isinstance(keys, str) or not keys:
            raise ValueError("keys: must be a sequence of at least one key")
        self._transport = transport
        self._read = read
        self._stop = stop
        self._inactivity_s = inactivity_s
        self._heartbeat = heartbeat
        self._beat_at = float("inf")
        self._heard_at = 0.0
        self._resumption = Resumption(keys, prefix=prefix)
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
                        results = [self._read(key, self._interrupted) for key in self._resumption.keys]
                        batch = self._resumption.relist(results, time.monotonic())
                        relist = False
                        yield batch
                    yield from self._follow()
                except Compacted as error:
                    relist = True
                    self._pause(error)
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

    def _follow(self) -> Generator[Batch, None, None]:
        """Open a connection and deliver what it says until it fails."""
        body = wire.encode_watch(self._resumption.begin())
        beats = self._heartbeat is not None
        stream = self._transport.open_stream("watch", wire.WATCH, body, self._interrupted, beats=beats)
        opened_at = self._heard_at = time.monotonic()
        confirmed = False
        inactivity_s = self._inactivity_s
        if self._heartbeat is not None and stream.takes_beats:
            self._beat_at = opened_at + self._heartbeat.carry()
            inactivity_s = max(inactivity_s, self._heartbeat.silence_s)
        try:
            while True:
                try:
                    lines = self._lines(stream, inactivity_s if confirmed else self._transport.timeout_s)
                except TimedOut:
                    if confirmed:
                        raise _Silence from None
                    raise
                self._heard_at = time.monotonic()
                for line in lines:
                    url = stream.endpoint.url
                    answer = decode_answer(line, url)
                    if answer.lease and self._heartbeat is not None:
                        self._heartbeat.answered(answer.lease, alive=answer.ttl_s > 0)
                        continue
                    batch = self._resumption.take(answer, time.monotonic(), url)
                    if not confirmed and self._resumption.confirmed:
                        confirmed = True
                        self._note_connected()
                    if batch is not None:
                        yield batch
        except EtcdError as error:
            self._transport.note(error, stream.endpoint, stream.header)
            if time.monotonic() - opened_at > STEADY_S:
                self._backoff.reset()
            raise
        finally:
            self._beat_at = float("inf")
            if self._heartbeat is not None:
                self._heartbeat.lose()
            stream.close()

    def _lines(self, stream: Stream, patience_s: float) -> list[bytes]:
        """Wait for lines, and beat when it is time.

        Raises:
            TimedOut: No line came for too long.
            _Silence: None came, and a request was answered.
        """
        silent_at = time.monotonic() + patience_s
        while True:
            now = time.monotonic()
            if now >= self._beat_at:
                self._beat(stream, now)
            try:
                return stream.lines(min(silent_at, self._beat_at) - now, self._interrupted)
            except TimedOut:
                if time.monotonic() >= silent_at:
                    raise

    def _beat(self, stream: Stream, now: float) -> None:
        assert self._heartbeat is not None, "only then it is ever time"
        if self._heartbeat.doubts(self._heard_at):
            raise _Silence
        self._beat_at = now + self._heartbeat.pause_s()
        if lease := self._heartbeat.lease:
            stream.beat(lease)
        # At rest one connection is enough.
        self._transport.prune()

    def _note_connected(self) -> None:
        if self._last_error is not None:
            logger.info("watch is back")
        self._connected = True
        self._last_error = None

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
