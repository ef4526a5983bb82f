"""A look at every open watch every two seconds: who beat, who was told nothing for long, whose time is over.

One loop for all, because a pod that rests should cost next to nothing: no task of its own waits for its beats, no timer
runs for it, and the leases of all who beat are renewed in one request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import aiohttp

from ebbtide.etcd import wire
from ebbtide.etcd.fields import WireError
from ebbtide_operator.metrics import Metrics
from ebbtide_operator.ports import PodIdentity, Store, StoreUnavailable
from ebbtide_operator.serve.bodies import Beats
from ebbtide_operator.serve.relay_wire import Denial
from ebbtide_operator.serve.watcher import Watcher

LOOK_S = 2.0
PROGRESS_S = 15.0
"""How often a quiet watch says that it lives."""
BEATEN_PROGRESS_S = 36.0
"""The same where the pod beats, every 30 s at most: then the answers say so."""
SPARING_PROGRESS_S = 66.0
"""The same where every second beat is answered."""
ANSWER_S = 36.0
"""After an answer, how long beats of a pod that asks for few go without one: the next, and not the second."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Feeling:
    """One open watch."""

    pod: PodIdentity
    watcher: Watcher
    beats: Beats | None
    over: Callable[[], bool]
    answered: tuple[int, float] = (0, 0.0)
    """The lease that was answered last, and when its beat was taken, in monotonic seconds."""


class Pulse:
    """Keep the leases of pods that beat, and the connections of those that are quiet.

    Args:
        store: Asked for its adapter at each look: where leases are renewed.
        admit: Called with the pod and the lease of each beat; raises Denial where it may not, or not so often.
        metrics: Counts watches that are cut off.
        look_s: Seconds between two looks.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        admit: Callable[[PodIdentity, int], None],
        metrics: Metrics,
        look_s: float = LOOK_S,
    ) -> None:
        self._store = store
        self._admit = admit
        self._metrics = metrics
        self._look_s = look_s
        self._felt: set[Feeling] = set()

    @contextmanager
    def feeling(self, one: Feeling) -> Iterator[None]:
        """Look at a watch as long as the block lasts."""
        self._felt.add(one)
        try:
            yield
        finally:
            self._felt.discard(one)

    async def run(self) -> NoReturn:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._look_s)
            await self._look()

    async def _look(self) -> None:
        now = time.monotonic()
        beaten: defaultdict[int, list[Feeling]] = defaultdict(list)
        for one in self._felt:
            if one.beats is not None and one.beats.waiting:
                for lease in self._take(one, one.beats):
                    beaten[lease].append(one)
            if now - one.watcher.wrote_at > _progress_s(one.beats) or one.over():
                one.watcher.wake()
        if beaten:
            await self._renew(beaten, now)

    def _take(self, one: Feeling, beats: Beats) -> set[int]:
        try:
            leases = beats.take()
            for lease in leases:
                self._admit(one.pod, lease)
        except Denial as denial:
            self._cut(one, denial)
        except ConnectionError:
            # It is gone since it beat; its handler is about to see that.
            return set()
        except WireError as error:
            self._cut(one, Denial(400, wire.INVALID_ARGUMENT, str(error)))
        except (aiohttp.ClientError, aiohttp.http.HttpProcessingError) as error:
            self._cut(one, Denial(400, wire.INVALID_ARGUMENT, str(error)[:300]))
        except Exception:
            # A mistake of ours that one pod brings out must not end the loop for all.
            logger.exception("relay.beat_failed", extra={"namespace": one.pod.namespace, "pod": one.pod.name})
            self._cut(one, Denial(500, wire.UNAVAILABLE, "this beat cannot be taken"))
        else:
            return leases
        return set()

    def _cut(self, one: Feeling, denial: Denial) -> None:
        pod = {"namespace": one.pod.namespace, "pod": one.pod.name}
        logger.info("relay.watch_cut", extra={**pod, "error": denial.message})
        self._metrics.relay_cuts.labels(str(denial.status)).inc()
        one.watcher.cut(denial)

    async def _renew(self, beaten: Mapping[int, list[Feeling]], now: float) -> None:
        try:
            ended = await self._store().keep_all_alive(beaten.keys())
        except StoreUnavailable as error:
            logger.debug("relay.store_away", extra={"error": str(error)})
            for one in {one for many in beaten.values() for one in many}:
                # A sign of life, which is no answer: the pod asks again, or by another way.
                one.watcher.wake()
            return
        for lease, many in beaten.items():
            for one in many:
                # It may have ended meanwhile.
                if one in self._felt and (lease in ended or _is_due(one, lease, now)):
                    one.answered = lease, now
                    await one.watcher.answer(lease, alive=lease not in ended)


def _progress_s(beats: Beats | None) -> float:
    if beats is None:
        return PROGRESS_S
    return SPARING_PROGRESS_S if beats.sparing else BEATEN_PROGRESS_S


def _is_due(one: Feeling, lease: int, now: float) -> bool:
    """Say whether a beat is to be answered though its lease is alive."""
    assert one.beats is not None, "it beat"
    answered, at = one.answered
    return not one.beats.sparing or lease != answered or now - at > ANSWER_S
