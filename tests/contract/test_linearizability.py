"""The checker itself: what it accepts and what it must not."""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract import linearizability as module
from tests.contract.linearizability import (
    Answer,
    Held,
    Operation,
    Read,
    State,
    Undecided,
    Write,
    apply,
    is_linearizable,
)

LEADER = "leader"


def write(key: str, value: bytes, called_at: float, answered_at: float, revision: int) -> Operation:
    return Operation(Write(((key, value),)), called_at, answered_at, revision)


def order(value: bytes, epoch: int, called_at: float, answered_at: float, revision: int | None) -> Operation:
    return Operation(Write((("order", value),), ((LEADER, epoch),)), called_at, answered_at, revision)


def read(key: str, held: Held | None, called_at: float, answered_at: float) -> Operation:
    return Operation(Read(key), called_at, answered_at, held)


def lost(operation: Operation) -> Operation:
    """The same without an answer."""
    return Operation(operation.what, operation.called_at, known=False)


A, B = Held(b"a", 2, 2), Held(b"b", 2, 3)

ORDERLY = {
    "nothing": [],
    "one after the other": [
        write("x", b"a", 0, 1, 2),
        read("x", A, 2, 3),
        write("x", b"b", 4, 5, 3),
        read("x", B, 6, 7),
    ],
    "a read beside a write, before it": [write("x", b"a", 0, 3, 2), read("x", None, 1, 2)],
    "a read beside a write, after it": [write("x", b"a", 0, 3, 2), read("x", A, 1, 2)],
    "writes in the reverse order of their calls": [
        write("x", b"b", 0, 9, 3),
        write("x", b"a", 1, 8, 2),
        read("x", B, 10, 11),
    ],
    "without an answer, it happened": [lost(write("x", b"a", 0, 1, 0)), read("x", A, 2, 3)],
    "without an answer, it never happened": [lost(write("x", b"a", 0, 1, 0)), read("x", None, 2, 3)],
    "without an answer, it happened late": [
        lost(write("x", b"a", 0, 1, 0)),
        read("x", None, 2, 3),
        read("x", A, 4, 5),
    ],
    "a leader is followed by another": [
        write(LEADER, b"one", 0, 1, 2),
        order(b"1", 2, 2, 3, 3),
        Operation(Write(((LEADER, None),)), 4, 5, 4),
        write(LEADER, b"two", 6, 7, 5),
        order(b"2", 2, 8, 9, None),
        order(b"3", 5, 8, 9, 6),
        read("order", Held(b"3", 3, 6), 10, 11),
    ],
    "another key's write lies between two revisions": [
        write("x", b"a", 0, 1, 2),
        lost(write("y", b"-", 0, 1, 0)),
        write("x", b"b", 2, 3, 4),
    ],
}

DISORDERLY = {
    "a stale read": [write("x", b"a", 0, 1, 2), write("x", b"b", 2, 3, 3), read("x", A, 4, 5)],
    "a lost write": [write("x", b"a", 0, 1, 2), read("x", None, 2, 3)],
    "a value that nobody wrote": [write("x", b"a", 0, 1, 2), read("x", Held(b"c", 2, 2), 2, 3)],
    "two reads that disagree about the order": [
        write("x", b"a", 0, 9, 2),
        write("x", b"b", 0, 9, 3),
        read("x", B, 1, 2),
        read("x", A, 3, 4),
    ],
    "an unanswered write that comes and goes": [
        lost(write("x", b"a", 0, 1, 0)),
        read("x", A, 2, 3),
        read("x", None, 4, 5),
    ],
    "an unanswered write before its call": [read("x", A, 0, 1), lost(write("x", b"a", 2, 3, 0))],
    "a revision given twice": [write("x", b"a", 0, 1, 2), write("y", b"b", 0, 1, 2)],
    "a revision left out": [write("x", b"a", 0, 1, 2), write("x", b"b", 2, 3, 4)],
    "a write of a deposed leader": [
        write(LEADER, b"one", 0, 1, 2),
        Operation(Write(((LEADER, None),)), 2, 3, 3),
        write(LEADER, b"two", 4, 5, 4),
        order(b"stale", 2, 6, 7, 5),
    ],
    "a leader that is refused": [write(LEADER, b"one", 0, 1, 2), order(b"1", 2, 2, 3, None)],
}


@pytest.mark.parametrize("name", ORDERLY)
def test_a_history_with_an_order_is_accepted(name: str) -> None:
    assert is_linearizable(ORDERLY[name])


@pytest.mark.parametrize("name", DISORDERLY)
def test_a_history_without_an_order_is_rejected(name: str) -> None:
    assert not is_linearizable(DISORDERLY[name])


def test_a_history_may_begin_with_what_there_was() -> None:
    initial = State.of(7, {"x": Held(b"a", 3, 6)})
    assert is_linearizable([read("x", Held(b"a", 3, 6), 0, 1), write("x", b"b", 2, 3, 8)], initial)
    assert not is_linearizable([read("x", None, 0, 1)], initial)


def test_a_search_without_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 10)
    with pytest.raises(Undecided, match="30 operations"):
        is_linearizable([read("x", None, 0, 1) for _ in range(30)])


values = st.binary(min_size=1, max_size=2)
keys = st.sampled_from(["order", "report", LEADER])
writes = st.builds(
    Write,
    st.tuples(st.tuples(keys, st.none() | values)),
    st.just(()) | st.tuples(st.tuples(st.just(LEADER), st.integers(0, 6))),
)
operations = st.lists(st.builds(Read, keys) | writes, min_size=1, max_size=25)


def run(whats: list[Read | Write], chance: random.Random, width: float) -> list[Operation]:
    """Let a real store act one operation after the other, and blur when each was called and answered."""
    state, history = State(), []
    for moment, what in enumerate(whats):
        answer: Answer
        state, answer = apply(state, what)
        called_at, answered_at = moment - chance.random() * width, moment + chance.random() * width
        history.append(Operation(what, called_at, answered_at, answer))
    return history


@given(operations, st.randoms(use_true_random=False), st.sampled_from([0.4, 2.0, 6.0]))
def test_a_real_run_with_blurred_times_is_accepted(
    whats: list[Read | Write], chance: random.Random, width: float
) -> None:
    history = run(whats, chance, width)
    chance.shuffle(history)
    assert is_linearizable(history)


@given(operations, st.randoms(use_true_random=False))
def test_answers_that_were_lost_are_no_contradiction(whats: list[Read | Write], chance: random.Random) -> None:
    history = [lost(one) if chance.random() < 0.2 else one for one in run(whats, chance, 3.0)]
    assert is_linearizable(history)


@given(operations, st.randoms(use_true_random=False), st.sampled_from([0.4, 6.0]))
def test_a_read_that_was_changed_is_rejected(whats: list[Read | Write], chance: random.Random, width: float) -> None:
    history = run([*whats, Read("order")], chance, width)
    number = chance.choice([number for number, one in enumerate(history) if isinstance(one.what, Read)])
    changed = dataclasses.replace(history[number], answer=Held(b"nobody wrote this", 2, 2))
    assert not is_linearizable([*history[:number], changed, *history[number + 1 :]])


@given(operations, st.randoms(use_true_random=False))
def test_a_read_of_what_was_overwritten_before_is_rejected(whats: list[Read | Write], chance: random.Random) -> None:
    history = run([*whats, Write((("order", b"old"),)), Read("order"), Write((("order", b"new"),))], chance, 0.4)
    stale = dataclasses.replace(history[-2], called_at=len(history), answered_at=len(history) + 1)
    assert is_linearizable(history)
    assert not is_linearizable([*history, stale])


def has_an_order(history: list[Operation], state: State) -> bool:
    """The definition itself: try every operation next that no other has to precede."""
    known = [one for one in history if one.known]
    if not known:
        return True
    until = min(one.answered_at for one in known)
    for number, one in enumerate(history):
        if one.called_at <= until:
            after, answer = apply(state, one.what)
            if (not one.known or answer == one.answer) and has_an_order(
                history[:number] + history[number + 1 :], after
            ):
                return True
    return False


@given(
    st.lists(st.builds(Read, keys) | writes, min_size=1, max_size=6),
    st.randoms(use_true_random=False),
    st.integers(-1, 1),
)
def test_it_says_what_trying_every_order_says(whats: list[Read | Write], chance: random.Random, off: int) -> None:
    history = [lost(one) if chance.random() < 0.5 else one for one in run(whats, chance, 6.0)]
    reads = [number for number, one in enumerate(history) if isinstance(one.answer, Held)]
    if reads:
        told = history[reads[-1]]
        assert isinstance(told.answer, Held)
        wrong = told.answer._replace(mod_revision=told.answer.mod_revision + off)
        history[reads[-1]] = dataclasses.replace(told, answer=wrong)
    assert is_linearizable(history) == has_an_order(history, State())
