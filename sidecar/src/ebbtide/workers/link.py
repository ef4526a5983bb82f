"""The end of a worker that does not lead: tells of itself, does as it is told, and knows what all know."""

from __future__ import annotations

import logging
import math
import selectors
import time
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

from ebbtide.lifecycle.machine import Source
from ebbtide.protocol import DRAIN_STATES, Desired, Order
from ebbtide.workers.channel import Bell, Channel, Message, wait_for
from ebbtide.workers.due import Due
from ebbtide.workers.group import Group, Told, durations_left, order_left
from ebbtide.workers.local import Local
from ebbtide.workers.snapshot import Snapshot

logger = logging.getLogger("ebbtide")

TELL_S = 1.0
"""How often a worker looks whether it has anything new to tell; a change of state is told at once."""
TELL_DRAINING_S = 0.2


class Link:
    """One connection to the worker that leads.

    Args:
        local: This worker.
        channel: The connection.
        bell: Rung at each change of state, and to stop.
        joined: Set once everything that holds for the pod holds here.
        mark: Called before that.
        due: What this worker does once every worker is drained.
        before: The one to an earlier leader, for what was known.

    Attributes:
        group: What was heard last of the pod; None: nothing yet.
        to_drain: Whether the pod as a whole is to drain.
    """

    def __init__(
        self,
        local: Local,
        channel: Channel,
        bell: Bell,
        joined: Event,
        mark: Callable[[], None],
        due: Due,
        before: Link | None,
    ) -> None:
        self.group: Group | None = None if before is None else before.group
        self.to_drain: bool = before is not None and before.to_drain
        self._due = due
        self._mark = mark
        self._local = local
        self._channel = channel
        self._bell = bell
        self._joined = joined
        self._dismissed = False
        self._done = False
        self._told: tuple[Any, ...] = ()

    def run(self, leaving: Event) -> bool:
        """Stay connected until the other end is gone, or took note that this worker is `leaving`; then return True."""
        said_goodbye = False
        sequence = 0 if self.group is None else self.group.sequence
        self._channel.send({"kind": "hello", "worker": self._local.worker, "sequence": sequence})
        with selectors.PollSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            selector.register(self._bell, selectors.EVENT_READ)
            while not self._dismissed:
                draining = self._local.conductor.machine.state in DRAIN_STATES
                ready = wait_for(selector, TELL_DRAINING_S if draining else TELL_S)
                if self._bell in ready:
                    self._bell.still()
                    self._tell(self._local.snapshot())
                elif not ready:
                    self._tell(self._local.glance())
                if self._channel in ready and not self._listen():
                    return self._dismissed
                self._due.carry_out(math.inf if self._done else time.monotonic())
                if leaving.is_set() and not said_goodbye:
                    said_goodbye = True
                    self._channel.send({"kind": "goodbye", "snapshot": self._local.snapshot().encode()})
        return True

    def _tell(self, snapshot: Snapshot) -> None:
        report = snapshot.report
        news = (report.state, report.generation, report.active, report.forced, snapshot.awaited, snapshot.counts)
        if self._joined.is_set() and news != self._told:
            self._told = news
            self._channel.send({"kind": "snapshot", "snapshot": snapshot.encode()})

    def _listen(self) -> bool:
        messages = self._channel.receive()
        for message in messages or ():
            try:
                self._take(message)
            except Exception:
                # Of another version, say: the others must not lose this worker for it.
                logger.exception("ebbtide: cannot do what the leading worker asks: %.200s", message)
        return messages is not None

    def _take(self, message: Message) -> None:
        match message:
            case {"kind": "welcome", "group": group}:
                self.group = Group.decode(group)
                self._catch_up(self.group.told)
                self._told = ()
                self._mark()
                self._joined.set()
                self._tell(self._local.snapshot())
            case {"kind": "group", "group": group}:
                self.group = Group.decode(group)
            case {"kind": "order", "order": order}:
                self._obey(Order.decode(order.encode()))
            case {"kind": "dismissed"}:
                self._dismissed = True
            case {"kind": "done", "done": done}:
                self._done = done
            case {"kind": "drain", "source": source, "text": text, "leave": leave}:
                self.to_drain = True
                self._local.drain(Source(source), text, None, leave=leave)
            case {"kind": "store_restarted"}:
                self._local.store_restarted()
            case {"kind": "ask", "number": number, "what": what, "arguments": arguments}:
                self._answer(number, what, arguments)
            case _:
                logger.debug("ebbtide: the leading worker says what is not known here: %.200s", message)

    def _obey(self, order: Order) -> None:
        # Before it takes hold, for the machine may exit in the same moment.
        self.to_drain = order.desired is not Desired.SERVE
        self._local.obey(order)

    def _catch_up(self, told: Told) -> None:
        now = time.monotonic()
        self.to_drain = told.to_drain
        if told.drain is not None:
            left = durations_left(self._local.durations, now - told.drain.asked_at)
            self._local.drain(told.drain.source, told.drain.text, left, leave=told.drain.leave)
        if told.order is not None:
            self._local.obey(order_left(told.order, now - told.order_at))
        if told.returned:
            self._local.undrain()

    def _answer(self, number: int, what: str, arguments: Mapping[str, Any]) -> None:
        if what == "undrain":
            # As the pod as a whole, which stays if it leaves; before it takes hold, as with an order.
            self.to_drain = bool(arguments["to_drain"])
        try:
            answer = {"answer": self._local.answer(what, arguments)}
        except ValueError as error:
            answer = {"error": str(error)}
        self._channel.send({"kind": "answer", "number": number, "what": what, **answer})
