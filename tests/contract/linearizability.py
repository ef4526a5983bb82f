"""Decide whether what clients of a store saw has an order: each operation at a moment between its call and its answer.

The search is that of Wing and Gong with Lowe's memory of configurations (https://doi.org/10.1002/cpe.3928), as in
Porcupine: go through the orders that the times allow, one operation after the other, as long as the model agrees, and
never twice from the same set of done operations and the same state.

Writes without an answer would multiply the orders to try. Most need no trying: one whose value was read happened at the
revision that was read with it, and of several that differ only in values that nobody read, the first goes first.

The model is etcd as Ebbtide uses it: keys with create and modification revisions, and transactions that write where
comparisons hold. Orders are written so (they compare the create revision of the leader's key, the epoch), reports
without a comparison. Revisions are part of the answers: a store that skips or repeats one has no order either.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

MOST_STEPS = 500_000
UNSEEN = b"\0unseen"
"""In place of a value that no read was told: which of them a key holds then makes no difference."""


class Undecided(Exception):
    """The search took too many steps: it cannot be said."""


class Held(NamedTuple):
    """What a key holds."""

    value: bytes
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class State:
    """The store at one moment."""

    revision: int = 1
    keys: frozenset[tuple[str, Held]] = frozenset()

    @classmethod
    def of(cls, revision: int, keys: Mapping[str, Held]) -> "State":
        return cls(revision, frozenset(keys.items()))


@dataclass(frozen=True, slots=True)
class Read:
    """Get one key. The answer is a `Held`, or None where there is none."""

    key: str


@dataclass(frozen=True, slots=True)
class Write:
    """Write keys in one transaction where each of `epochs`, create revisions by key (0: none), holds.

    The answer is the new revision, or None where a comparison did not hold. A value of None deletes.
    """

    values: tuple[tuple[str, bytes | None], ...]
    epochs: tuple[tuple[str, int], ...] = ()


Answer = Held | int | None


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client asked for, and what it was told; times are of one clock.

    An operation without an answer (`known` is False) may have happened, at any time after its call, or never.
    """

    what: Read | Write
    called_at: float
    answered_at: float = math.inf
    answer: Answer = None
    known: bool = True


def apply(state: State, what: Read | Write) -> tuple[State, Answer]:
    """Return what a store in a state answers, and its next state."""
    keys = dict(state.keys)
    if isinstance(what, Read):
        return state, keys.get(what.key)
    if any((keys[key].create_revision if key in keys else 0) != wanted for key, wanted in what.epochs):
        return state, None
    revision = state.revision + 1
    changed = False
    for key, value in what.values:
        old = keys.pop(key, None)
        changed = changed or old is not None or value is not None
        if value is not None:
            keys[key] = Held(value, old.create_revision if old else revision, revision)
    # A transaction that only deletes what is not there has no revision of its own.
    return (State.of(revision, keys), revision) if changed else (state, state.revision)


def is_linearizable(history: Iterable[Operation], initial: State | None = None) -> bool:
    """Say whether a history has an order.

    Args:
        history: All operations that may have had an effect on the keys, in any order.
        initial: The state before the first one; None: an empty etcd.

    Raises:
        Undecided: It takes more than `MOST_STEPS` steps to find out.
    """
    return _Search(sorted(history, key=lambda one: one.called_at)).run(initial or State())


class _Search:
    def __init__(self, operations: Sequence[Operation]) -> None:
        self._known = [one for one in operations if one.known]
        unknown = [one for one in operations if not one.known and isinstance(one.what, Write)]
        self._unknown, self._places, self._before = _without_an_answer(unknown, operations)
        self._placed = {place: number for number, place in enumerate(self._places) if place is not None}
        # A revision belongs to one write: none without an answer can have one that somebody was told.
        self._taken = {one.answer for one in self._known if isinstance(one.what, Write) and _puts(one.what)}
        self._steps = 0

    def run(self, state: State) -> bool:
        # Done operations: all known ones before `first`, and the sets of those beyond it and of unknown ones.
        begin = (0, frozenset[int](), frozenset[int](), state)
        seen = {begin}
        stack = [begin]
        while stack:
            first, done, used, state = stack.pop()
            if first == len(self._known):
                return True
            for following in self._next(first, done, used, state):
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
        return False

    def _next(
        self, first: int, done: frozenset[int], used: frozenset[int], state: State
    ) -> list[tuple[int, frozenset[int], frozenset[int], State]]:
        """Return the configurations after one more operation; the most likely ones last, where the search goes on."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise Undecided(f"{len(self._known)} operations, {len(self._unknown)} without an answer")
        candidates: list[int] = []
        # Whatever was called after something was answered comes after it.
        until = math.inf
        for number in range(first, len(self._known)):
            operation = self._known[number]
            if operation.called_at > until:
                break
            if number not in done:
                candidates.append(number)
                until = min(until, operation.answered_at)
        found = []
        for number, operation in enumerate(self._unknown):
            if number not in used and operation.called_at <= until and self._before[number] in {None, *used}:
                after, _ = apply(state, operation.what)
                if after != state and self._has_room(number, after.revision):
                    found.append((first, done, used | {number}, after))
        for number in reversed(candidates):
            operation = self._known[number]
            after, answer = apply(state, operation.what)
            if answer == operation.answer:
                found.append((*self._advance(first, done | {number}), used, after))
        return found

    def _has_room(self, number: int, revision: int) -> bool:
        """Say whether a revision can be that of a write without an answer."""
        free = revision not in self._taken and self._placed.get(revision, number) == number
        return free and self._places[number] in {None, revision}

    @staticmethod
    def _advance(first: int, done: frozenset[int]) -> tuple[int, frozenset[int]]:
        while first in done:
            done -= {first}
            first += 1
        return first, done


def _without_an_answer(
    unknown: Sequence[Operation], history: Sequence[Operation]
) -> tuple[list[Operation], list[int | None], list[int | None]]:
    """Prepare writes without an answer.

    Returns:
        The writes, with `UNSEEN` for values that nobody read; the revision of each, where a read tells it; and the
        number of the one that is to go before it, where they differ in nothing that anybody saw.
    """
    writers = Counter(pair for one in history if isinstance(one.what, Write) for pair in one.what.values)
    told = {
        (one.what.key, one.answer.value): one.answer.mod_revision
        for one in history
        if isinstance(one.what, Read) and isinstance(one.answer, Held)
    }
    prepared: list[Operation] = []
    places: list[int | None] = []
    before: list[int | None] = []
    last: dict[Write, int] = {}
    for number, one in enumerate(unknown):
        assert isinstance(one.what, Write)
        pairs = [(key, value) for key, value in one.what.values if value is not None]
        places.append(next((told[pair] for pair in pairs if pair in told and writers[pair] == 1), None))
        values = tuple(
            (key, value if value is None or (key, value) in told else UNSEEN) for key, value in one.what.values
        )
        write = replace(one.what, values=values)
        prepared.append(replace(one, what=write))
        unseen = all((key, value) not in told for key, value in pairs)
        before.append(last.get(write) if unseen else None)
        last[write] = number
    return prepared, places, before


def _puts(write: Write) -> bool:
    return any(value is not None for _key, value in write.values)
