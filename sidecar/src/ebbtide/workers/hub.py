"""The end of the worker that leads: hears of all others, and tells them what holds for the pod."""

from __future__ import annotations

import itertools
import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ebbtide.lifecycle.machine import Source
from ebbtide.protocol import Order, PodState, Report
from ebbtide.workers.channel import Bell, Channel, Message, wait_for
from ebbtide.workers.due import Due
from ebbtide.workers.group import Group
from ebbtide.workers.local import Local
from ebbtide.workers.place import is_ours
from ebbtide.workers.snapshot import DONE, Snapshot, least_advanced

logger = logging.getLogger("ebbtide")

SPREAD_S = 1.0
"""How old a copy of the group may be that another worker takes over with."""
REGROUP_S = 3.0
"""Seconds that the others have to find a new leader before they count as gone."""
ASK_S = 0.3


class Hub:
    """Lead the workers of a pod. Methods may be called from any thread, except `ask` from the hub's own.

    Args:
        local: This worker.
        group: What is known; this worker becomes its leader.
        listener: Where the others connect.
        due: What this worker does once every worker is drained.
        changed: Called without arguments and without locks when the pod's state changed, or a worker came or went.
    """

    def __init__(
        self, local: Local, group: Group, listener: socket.socket, due: Due, changed: Callable[[], None]
    ) -> None:
        self._local = local
        self._group = group
        self._listener = listener
        self._due = due
        self._changed = changed
        self._bell: Bell | None = None
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)
        self._channels: dict[str, Channel] = {}
        self._names: dict[Channel, str] = {}
        self._numbers = itertools.count(1)
        self._answers: dict[int, dict[str, Message]] = {}
        self._resigned = False
        self._told_done: bool | None = None
        self._spread_due = False
        before = group.leader
        group.leader = local.worker
        if before:
            # Its death is why there is a new one. The others are on their way.
            group.leave(before, os.urandom(16).hex())
        self._missing = set(group.workers) - {local.worker}
        group.update(local.snapshot())

    @property
    def alone(self) -> bool:
        """Whether no other worker belongs to the pod."""
        return len(self._group.workers) == 1

    @property
    def to_drain(self) -> bool:
        """Whether the pod as a whole is to drain, and there is more than this worker."""
        return not self.alone and self._group.told.to_drain

    # --- what the pod is

    def refresh(self) -> None:
        """Look at this worker again, after a change of state; the others are told of as they tell."""
        self._take_in(self._local.snapshot())

    def state(self) -> PodState:
        with self._lock:
            self._group.update(self._local.glance())
            return least_advanced(each.report.state for each in self._group.workers.values())

    def workers(self) -> tuple[Snapshot, ...]:
        """Return every worker as it was seen last."""
        with self._lock:
            self._group.update(self._local.glance())
            return tuple(self._group.workers.values())

    def gone(self) -> Mapping[str, Mapping[str, int]]:
        """Return the counters of workers that are gone."""
        with self._lock:
            return self._group.gone

    def report(self, phase_revision: int) -> Report:
        """Return the next report of the pod, with fresh numbers of every worker that answers at once."""
        self.ask("snapshot", {}, ASK_S)
        with self._lock:
            self._group.update(self._local.snapshot())
            self._group.sequence += 1
            # Before it is written: whoever takes over knows all that was said, and uses no number again.
            self._spread()
            return self._group.report(phase_revision)

    def wait_done(self, timeout_s: float) -> bool:
        """Wait until every worker is drained; False when the time is over."""
        with self._news:
            return self._news.wait_for(lambda: self.state() in DONE, min(timeout_s, threading.TIMEOUT_MAX))

    def outlives_all(self, timeout_s: float) -> bool:
        """Wait for those that exit at the same time; False where another worker stays, and is to lead."""
        with self._news:
            self._news.wait_for(lambda: self.alone or not self._others_exit(), timeout_s)
            # From here on nobody is let go: somebody has to be the last.
            self._resigned = not self.alone
            return self.alone

    # --- what the pod is told

    def order(self, order: Order) -> None:
        with self._lock:
            self._group.told = self._group.told.ordered(order, time.monotonic())
            self._tell({"kind": "order", "order": order.encode().decode()})
        self._local.obey(order)
        self._spread_soon()

    def drain(self, source: Source, text: str, *, leave: bool) -> None:
        with self._lock:
            self._group.told = self._group.told.asked(source, text, leave=leave, now=time.monotonic())
            self._tell({"kind": "drain", "source": source, "text": text, "leave": leave})
        self._local.drain(source, text, None, leave=leave)
        self._spread_soon()

    def undrain(self) -> bool:
        """Take a drain of the pod back; False where some worker cannot."""
        with self._lock:
            self._group.told = told = self._group.told.undrained()
        mine = self._local.undrain()
        answers = self.ask("undrain", {"to_drain": told.to_drain}, ASK_S)
        self._spread_soon()
        return mine and all(answer.get("answer") for answer in answers.values())

    def store_restarted(self) -> None:
        with self._lock:
            self._group.told = self._group.told.forgotten()
            self._tell({"kind": "store_restarted"})
        self._local.store_restarted()

    def ask(self, what: str, arguments: Mapping[str, Any], timeout_s: float) -> Mapping[str, Message]:
        """Ask all others; return their answers by worker, as far as they came in time.

        Returns:
            `{"answer": ...}`, or `{"error": message}` where the question made no sense there.
        """
        with self._news:
            asked = set(self._channels)
            if not asked:
                return {}
            number = next(self._numbers)
            answers = self._answers[number] = {}
            self._tell({"kind": "ask", "number": number, "what": what, "arguments": arguments})
            self._news.wait_for(lambda: asked & set(self._channels) <= set(answers), timeout_s)
            return self._answers.pop(number)

    # --- the thread

    def run(self, stop: threading.Event) -> None:
        """Serve the others until `stop`; then tell them so, and let one of them lead."""
        self._listener.setblocking(False)
        self._bell = Bell()
        regroup_at = time.monotonic() + REGROUP_S
        spread_at = 0.0
        with selectors.PollSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while not stop.is_set():
                for ready in wait_for(selector, self._pause_s()):
                    self._serve(ready, selector)
                now = time.monotonic()
                if self._missing and now >= regroup_at:
                    self._give_up_missing()
                if now >= spread_at and self._spread_due:
                    spread_at = now + SPREAD_S
                    self._spread()
                self._due.carry_out(float("inf") if self._tell_done() else now)
        with self._lock:
            # Not counted as dead by whoever comes next: what it did is in the copy that they get.
            self._group.update(self._local.snapshot())
            self._group.leave(self._local.worker, os.urandom(16).hex())
            self._group.leader = ""
        self._spread()
        self.close()

    def wake(self) -> None:
        """Let the thread look around: whether it is to end, and what is due."""
        if self._bell is not None:
            self._bell.ring()

    def close(self) -> None:
        """Close everything; in a forked child that leaves the parent's alone."""
        self._listener.close()
        for channel in list(self._names):
            channel.close()
        if self._bell is not None:
            self._bell.close()

    def _others_exit(self) -> bool:
        others = [each for each in self._group.workers.values() if each.worker != self._local.worker]
        return all(each.report.state is PodState.EXITING for each in others)

    def _pause_s(self) -> float:
        return min(SPREAD_S, max(0.0, self._due.next_at() - time.monotonic()))

    def _serve(self, ready: Any, selector: selectors.BaseSelector) -> None:
        if isinstance(ready, Bell):
            ready.still()
        elif ready is self._listener:
            self._accept(selector)
        else:
            messages = ready.receive()
            for message in messages or ():
                try:
                    self._hear(ready, message)
                except Exception:
                    logger.exception("ebbtide: cannot understand a worker: %.200s", message)
            if messages is None:
                selector.unregister(ready)
                self._hang_up(ready)

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if not is_ours(connection):
            logger.warning("ebbtide: somebody who runs as another user wanted to be a worker of this pod")
            connection.close()
            return
        channel = Channel(connection)
        self._names[channel] = ""
        selector.register(channel, selectors.EVENT_READ)

    def _hear(self, channel: Channel, message: Message) -> None:
        match message:
            case {"kind": "hello", "worker": worker, "sequence": sequence}:
                with self._lock:
                    self._names[channel] = worker
                    self._channels[worker] = channel
                    self._group.sequence = max(self._group.sequence, sequence)
                    # With everything that holds so far; what comes later goes to all channels, this one among them.
                    channel.send({"kind": "welcome", "group": self._group.encode()})
                    self._told_done = None
            case {"kind": "snapshot", "snapshot": document}:
                self._take_in(Snapshot.decode(document))
            case {"kind": "goodbye", "snapshot": document}:
                with self._lock:
                    self._group.update(Snapshot.decode(document))
                    if not self._resigned:
                        # Only now it may go: who hears nothing is the one to speak for the pod.
                        channel.send({"kind": "dismissed"})
            case {"kind": "answer", "number": number, "what": what}:
                if what == "snapshot":
                    self._take_in(Snapshot.decode(message["answer"]))
                with self._news:
                    if number in self._answers:
                        self._answers[number][self._names[channel]] = message
                    self._news.notify_all()
            case _:
                logger.debug("ebbtide: a worker says what is not known here: %.200s", message)

    def _take_in(self, snapshot: Snapshot) -> None:
        with self._news:
            before = self._group.workers.get(snapshot.worker)
            self._group.update(snapshot)
            self._missing.discard(snapshot.worker)
            changed = before is None or _news(before) != _news(snapshot)
            self._news.notify_all()
        self._spread_due = True
        if changed:
            self._changed()
            self.wake()

    def _hang_up(self, channel: Channel) -> None:
        worker = self._names.pop(channel)
        channel.close()
        with self._news:
            if self._channels.get(worker) is not channel:
                return  # it has another one by now
            del self._channels[worker]
            self._forget(worker)
            self._news.notify_all()
        self._changed()

    def _give_up_missing(self) -> None:
        with self._news:
            for worker in self._missing:
                self._forget(worker)
            self._missing.clear()
            self._news.notify_all()
        # Also because a report that the earlier leader sent in its last moment may have come after our first.
        self._changed()

    def _forget(self, worker: str) -> None:
        last = self._group.leave(worker, os.urandom(16).hex())
        if last is not None and last.awaited:
            logger.error("ebbtide: worker %d is gone with %d tasks", last.pid, last.awaited)
        self._spread_due = True

    def _spread_soon(self) -> None:
        self._spread_due = True
        self.wake()

    def _spread(self) -> None:
        self._spread_due = False
        with self._lock:
            self._tell({"kind": "group", "group": self._group.encode()})

    def _tell(self, message: Message) -> None:
        for channel in list(self._channels.values()):
            channel.send(message)

    def _tell_done(self) -> bool:
        """Return, and tell the others where it changed, whether a pod that is to drain is drained."""
        with self._lock:
            done = self._group.told.to_drain and self.state() in DONE
            if done is not self._told_done:
                self._tell({"kind": "done", "done": done})
            self._told_done = done
            return done


def _news(snapshot: Snapshot) -> tuple[Any, ...]:
    """Return what the operator is told of at once."""
    report = snapshot.report
    return report.state, report.generation, report.forced
