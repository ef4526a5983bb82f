"""Every unit of work of the process, from its admission to its end.

The rule that makes the drain sound: an entry is inserted first and asked for admission after. A count that was taken
after intake closed can then miss no entry that was admitted.

The hot path is short on purpose. A spawned task is its own entry (a subclass with slots), its usual end is counted in
its last step (`counted`), and nobody is told of a change unless the last entry leaves a closed registry.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from ebbtide.environment import DEFAULT_CANCEL_GRACE_S
from ebbtide.errors import Refused
from ebbtide.tasks.admission import DRAINING, WHY, Gate
from ebbtide.tasks.beats import know
from ebbtide.tasks.counted import ended_as_usual
from ebbtide.tasks.entries import Live, ManagedTask, asker, error_of, name_of, task_of, where
from ebbtide.tasks.limits import Limits
from ebbtide.tasks.marks import Marks
from ebbtide.vocabulary import TASK_OUTCOMES

if TYPE_CHECKING:
    from ebbtide.tasks.scope import Scope

logger = logging.getLogger("ebbtide")

LATE = "late"
RESTARTED = "restarted"
BLOCK_BEGAN, BLOCK_LEFT = "block began", "block left"

MOST_NAMED = 20

KNOWS_LOOP = sys.version_info >= (3, 12)
"""Whether asyncio tells at once which loop runs; before, it asks for the process id first."""
asking: Callable[[], object] = asyncio._get_running_loop if KNOWS_LOOP else get_ident  # noqa: SLF001 (or it raises)
"""The cheapest way to find out whether the home loop is the one that runs: `asking() == registry.here`."""

_numbers = itertools.count(1)
"""Of the process, not of one registry: an entry's number then says whose it is."""
_inherited: list[object] = []
"""Kept for good in a forked child: a coroutine that is thrown away runs its `finally`, on the parent's sockets."""


def _nothing() -> None:
    pass


class Registry:
    """The entries in flight, and how those that ended did.

    Entries may come and go in any thread. Counting is free of locks in the home thread, which is the event loop's.

    Args:
        on_empty: Called, from whatever thread, when the last entry leaves while intake is closed.
        limits: How much the process may start.
        grace_s: Seconds that cancelled work has for its cleanup.

    Attributes:
        live: The entries in flight by number; None stands for one that is being admitted.
        intake_open: False while new work is refused.
        gate: The process's limits.
        home: Identity of the thread that counts without a lock; 0: none.
        loop: The loop that runs there.
        here: What `asking` returns where that loop runs; 0: nowhere.
        task_factory: Asks that loop for its task factory.
        factory_set: What it answered lately.
        queue: Who waits for room in the process; public for its truth, which is asked at each end of a task.
    """

    def __init__(
        self, on_empty: Callable[[], None], limits: Limits | None = None, grace_s: float = DEFAULT_CANCEL_GRACE_S
    ) -> None:
        self.grace_s = grace_s
        self.live: dict[int, Live | None] = {}
        self.numbers = _numbers
        self.intake_open = True
        self.home = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.here: object = 0
        self.task_factory: Callable[[], object] = _nothing
        self.factory_set = False
        # What is called when a task ends: bound once, and not anew for each task.
        self.on_task_ended = self._task_ended
        self.on_task_ended_at_home = self._task_ended_at_home
        self._on_empty = on_empty
        # All keys from the start: a dict that does not grow may be read in one thread and counted up in another.
        self._tally = dict.fromkeys((*TASK_OUTCOMES, LATE, RESTARTED, BLOCK_BEGAN, BLOCK_LEFT, *WHY), 0)
        self._elsewhere = dict(self._tally)
        self._lock = threading.Lock()
        self.finished = 0
        """Of the tally, tasks that ended the usual way (`counted`)."""
        self.blocks_begun = 0
        """Blocks that were entered in the home thread; all others in the tally."""
        self.blocks_finished = 0
        """Of the tally, blocks that ended the usual way."""
        self.marks = Marks(grace_s)
        self.odd: set[int] = set()
        """Numbers of entries in flight whose end is not usual: marked, abandoned, or cancelled by themselves."""
        self.abandoned: set[int] = set()
        """Numbers of those that are counted already, and not waited for any more."""
        self.released: set[int] = set()
        """Of those, what somebody released: not waited for however often it is started again."""
        self.on_end: Callable[[Live, str], None] | None = None
        """Called with each end and its outcome, from whatever thread; usual ends only once intake is closed."""
        self._parents: frozenset[int] = frozenset()
        """Numbers of what was in flight in the parent when this process was forked."""
        self.gate = Gate(self, limits or Limits())
        self.bucket = self.gate.bucket
        self.queue = self.gate.waiters.queue
        self.beats: dict[int, float] = {}
        """When entries last said that they are alive, monotonic seconds, by number; some may have ended meanwhile."""
        know(self)

    def begin_anew(self) -> None:
        """Forget, in a forked child, what runs in the parent; what of it ends here all the same is not counted."""
        _inherited.append((self.live, self.gate.begin_anew()))
        self.queue = self.gate.waiters.queue
        self._parents = frozenset(self.live)
        self.live = {}
        self.on_end = None
        for numbers in (self.abandoned, self.released, self.odd, self.beats):
            numbers.clear()
        self.marks = Marks(self.grace_s)
        self.intake_open = True
        self.home, self.loop, self.here, self.task_factory = 0, None, 0, _nothing
        self._tally = dict.fromkeys(self._tally, 0)
        self._elsewhere = dict(self._tally)
        self.finished = self.blocks_begun = self.blocks_finished = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.live)

    @property
    def blocks(self) -> int:
        """How many of the entries in flight are blocks: they run in what is there already, and no limit counts them."""
        left = self.blocks_finished + self._total(BLOCK_LEFT)
        return self.blocks_begun + self._total(BLOCK_BEGAN) - left

    def awaited(self) -> int:
        """Return how many are in flight that a drain waits for."""
        # In this order: one that ends in between is counted once too often, and never too seldom.
        held = len(self.live)
        # Looked for, since of those that ended while another thread abandoned them some are taken out later.
        return held - len(self.live.keys() & self.abandoned) if self.abandoned else held

    @property
    def tally(self) -> dict[str, int]:
        """How many ended, by outcome; outcomes that did not happen are left out."""
        return {outcome: count for outcome in TASK_OUTCOMES if (count := self._total(outcome))}

    @property
    def refusals(self) -> dict[str, int]:
        """How many were refused, by reason."""
        return {why: self._total(why) for why in WHY}

    @property
    def late_arrivals(self) -> int:
        """How many were admitted after intake closed, because live work started them."""
        return self._total(LATE)

    @property
    def restarts(self) -> int:
        """How often supervised work was started again after a crash."""
        return self._total(RESTARTED)

    def settle(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the calling thread, which runs `loop`, the home thread."""
        self.loop = loop
        self.home = get_ident()
        self.here = loop if KNOWS_LOOP else self.home
        # Bound once: it is asked at each start, and a loop has more attributes than Python looks up fast.
        self.task_factory = loop.get_task_factory

    def is_home(self) -> bool:
        """Say whether this is the home thread."""
        return get_ident() == self.home

    def close_intake(self) -> None:
        """Refuse new roots from now on, those that wait to be admitted among them."""
        self.intake_open = False
        self.gate.wake_everybody()

    def entries(self) -> list[Live]:
        """Return the entries in flight in the order of their admission: one atomic copy."""
        return [item for item in list(self.live.values()) if item is not None]

    def question(self, number: int, scope: Scope, *, block: bool = False) -> None:
        """Decide on an inserted entry while intake is closed.

        Work that live work starts belongs to it and is admitted, or nothing could ever be finished.

        Raises:
            Refused: No live entry asks, or there are too many; the entry is out again.
        """
        refusal: Refused | None = Refused(DRAINING, scope=scope.name)
        asking = asker(self.live)
        if asking in self.live and asking not in self.abandoned:
            refusal = None if block else scope.gate.admit_late(number, scope)
        if refusal is None:
            self.count(LATE)
            return
        self.withdraw(number)
        if block:
            self.count(BLOCK_LEFT)
        raise self.turned_away(refusal)

    def turned_away(self, refusal: Refused) -> Refused:
        """Count a refusal, and return it."""
        self.count("refused")
        self.count(refusal.why)
        return refusal

    def withdraw(self, number: int) -> None:
        """Take an entry out, as the last step of its end."""
        del self.live[number]
        if not self.intake_open:
            self.look_whether_empty()

    def look_whether_empty(self) -> None:
        """Tell of it where nothing is left that a drain waits for."""
        if len(self.live) <= len(self.abandoned):
            self._on_empty()

    def _task_ended_at_home(self, task: ManagedTask) -> None:
        """Count a managed task of the home loop that is one of a crowd."""
        if task.cancelled() or task.exception() is not None or not ended_as_usual(task):
            self._task_ended(task)

    def _task_ended(self, task: ManagedTask) -> None:
        """Count a managed task, however and wherever it ended: its done-callback, which may be called twice."""
        if task.number in self.live or task.number in self._parents:
            task.scope.task_ended(task, error_of(task))

    def raised_in_task(self) -> None:
        """Count the managed task that runs here by the exception that is being handled.

        It is found here and not given: a name for it, and a place on the stack, would make each task's frame longer.
        """
        self.ended_in_task(sys.exception())

    def ended_in_task(self, error: BaseException | None) -> None:
        """Count the managed task that runs here, in its last step; `error`: what it is about to raise."""
        task = asyncio.current_task()
        assert isinstance(task, ManagedTask)
        if error is None and getattr(task, "_must_cancel", False):
            error = asyncio.CancelledError()  # by itself, in this step: asyncio has it cancelled although it returns
        elif error is not None and not isinstance(error, asyncio.CancelledError):
            # Looking at the exception tells asyncio that somebody did: it is in the log.
            task.add_done_callback(error_of)
        if task.number in self.live or task.number in self._parents:
            task.scope.task_ended(task, error)

    def end(self, number: int, outcome: str, gate: Gate | None) -> None:
        """Count how an entry ended and take it out; one that was abandoned is counted already.

        Args:
            number: Of the entry.
            outcome: One of `TASK_OUTCOMES`.
            gate: The one it came in by; None: none, it is a block.
        """
        if number in self._parents:
            return
        item = self.live.get(number)
        if gate is not None and item is not None and (task := task_of(item)) is not None:
            self.marks.forget(task)
        self.odd.discard(number)
        if number in self.abandoned:
            # In this order: who abandons it in another thread at this moment learns by it that nothing was counted.
            self.released.discard(number)
            self.abandoned.discard(number)
        else:
            self.count(outcome)
            if self.on_end is not None and item is not None:
                self.on_end(item, outcome)
        # Last: who sees that nothing is left must find everything counted.
        self.withdraw(number)
        if gate is None:
            self.count(BLOCK_LEFT)
        else:
            gate.leave(number, outcome)

    def count(self, outcome: str) -> None:
        """Add one to a tally, from any thread."""
        if get_ident() == self.home:
            self._tally[outcome] += 1
        else:
            with self._lock:
                self._elsewhere[outcome] += 1

    def abandon(self, items: Sequence[Live], why: str) -> None:
        """Count entries as abandoned, and name them with the place where they are; a drain does not wait for them."""
        left: list[Live] = []
        for item in items:
            number = item.number
            if number in self.abandoned:
                continue
            # First, and then whether it is in flight: who ends in another thread meanwhile sees it, or is seen. Who has
            # asked already, and is not out yet, is counted twice.
            self.odd.add(number)
            self.abandoned.add(number)
            if number in self.live:
                self.count("abandoned")
                left.append(item)
                continue
            if number not in self.abandoned:
                self.count("abandoned")  # it saw that, and has ended since
            self.odd.discard(number)
            self.abandoned.discard(number)
        if not left:
            return
        shown = "; ".join(f"{name_of(item)} of {item.scope.name} at {where(item)}" for item in left[:MOST_NAMED])
        more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
        logger.error("ebbtide: abandoned %d, %s: %s%s", len(left), why, shown, more)
        if not self.intake_open:
            self.look_whether_empty()

    def mark_cancelled(self, task: asyncio.Task[Any]) -> None:
        """Remember that a task of entries in flight is asked to end."""
        self.marks.put(task)
        if isinstance(task, ManagedTask) and task.number in self.live:
            self.odd.add(task.number)

    def begin_again(self, item: Live) -> None:
        """Take note that supervised work is started again, in its task: it is neither on its way out nor given up now.

        The run that was given up stays counted as abandoned, and how the work ends in the end is counted as well.
        """
        self.count(RESTARTED)
        if (task := task_of(item)) is not None:
            self.marks.forget(task)
        item.scope.gate.given_up.discard(item.number)
        if item.number not in self.released:
            self.odd.discard(item.number)
            self.abandoned.discard(item.number)

    def oldest_age_s(self) -> float:
        """Return the age of the oldest entry; 0 without one."""
        now = monotonic()
        return max((now - item.started_at for item in self.entries()), default=0.0)

    def forget_ended(self) -> None:
        """Let go of what is kept of entries that have ended: once in a while, since at each end it would cost more."""
        for number in list(self.beats):
            if number not in self.live:
                self.beats.pop(number, None)
        for numbers in (self.odd, self.abandoned, self.released):
            numbers.difference_update(numbers.difference(self.live))

    def _total(self, outcome: str) -> int:
        count = self._tally[outcome] + self._elsewhere[outcome]
        return count + self.finished + self.blocks_finished if outcome == "finished" else count
