"""Every unit of work in flight, grouped by where it waits: as text, as JSON, and as collapsed stacks.

A hundred thousand tasks take some hundred milliseconds, in a thread of its own that stands back every millisecond or
two, so that the event loop goes on meanwhile. What is shown is no snapshot of one moment: tasks may come and go in
between.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any, Self

from ebbtide.stacks.frames import Key, Stack, all_threads, key_of, key_of_task, place_of, stack_of
from ebbtide.stacks.waits import FUTURE, STATES, SUBPROCESS, state_of_stack, state_of_task, state_of_thread
from ebbtide.tasks.entries import KINDS, Live, ManagedTask, frames_of, kind_of, name_of, task_of
from ebbtide.tasks.registry import Registry
from ebbtide.tasks.states import state_of

MOST_GROUPS = 50
MOST_TASKS = 1000
EXAMPLES = 3
PORTION = 500
TURN = 500
PAUSE_S = 0.00005
"""How long a dump lets go of the interpreter after each `TURN` entries: a loop that has to ask for it waits 5 ms."""

FORMATS = ("text", "json", "collapsed")

_one_at_a_time = threading.Lock()


def _after_fork_in_child() -> None:
    # The thread that made a dump in the parent is not there to let go of it.
    global _one_at_a_time  # noqa: PLW0603 (it is the process's, and this is another process)
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked for.

    Attributes:
        format: `text`, `json` or `collapsed` (one line for each stack, as flame graph tools read it).
        scope: Only this one and those inside it; empty: all.
        state: Only what waits for this; empty: all.
        kind: Only `task`, `block`, `thread` or `process`; empty: all.
        name: Only names with this in them.
        older_s: Only what is at least that old.
        limit: Groups (text, collapsed) or tasks (JSON) that are shown at most; None: 50 groups, 1000 tasks.
    """

    format: str = "text"
    scope: str = ""
    state: str = ""
    kind: str = ""
    name: str = ""
    older_s: float = 0.0
    limit: int | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Self:
        """Read the parameters of a URL: `format`, `scope`, `state`, `kind`, `name`, `older` (seconds), `limit`.

        Raises:
            ValueError: A parameter cannot be used; the message names it.
        """
        choices = {"format": FORMATS, "state": ("", *STATES), "kind": ("", *KINDS)}
        for name, allowed in choices.items():
            if query.get(name, allowed[0]) not in allowed:
                raise ValueError(f"{name}: must be one of {', '.join(filter(None, allowed))}, not {query[name]!r}")
        try:
            older_s = float(query.get("older", "0"))
            limit = int(query["limit"]) if "limit" in query else None
        except ValueError as error:
            raise ValueError(f"older, limit: must be numbers: {error}") from None
        if limit is not None and limit < 0:
            raise ValueError(f"limit: must be 0 or more, not {limit}")
        texts = {name: query[name] for name in ("format", "scope", "state", "kind", "name") if name in query}
        return cls(older_s=older_s, limit=limit, **texts)

    @property
    def wants_all(self) -> bool:
        """Whether nothing is left out before its stack is known."""
        return not (self.scope or self.kind or self.name or self.older_s)

    def wants(self, item: Live, age_s: float) -> bool:
        """Say whether an entry is asked for, as far as that can be told without its stack."""
        scope = item.scope.name
        return (
            age_s >= self.older_s
            and (not self.scope or scope == self.scope or scope.startswith(f"{self.scope}."))
            and (not self.kind or kind_of(item) == self.kind)
            and (not self.name or self.name in name_of(item))
        )


@dataclass(slots=True)
class Group:
    """Work that waits in the same place for the same."""

    state: str
    stack: Stack
    count: int = 0
    oldest_s: float = 0.0
    scopes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Dump:
    """What was found."""

    question: Question
    in_flight: int
    matching: int
    groups: list[Group]
    """The largest first."""
    tasks: list[str]
    """As JSON, in the order of admission; empty except for that format."""

    def lines(self) -> Iterator[str]:
        """Return the text for people."""
        yield f"{self.in_flight} in flight, {self.matching} asked for, {len(self.groups)} places"
        limit = MOST_GROUPS if self.question.limit is None else self.question.limit
        for group in self.groups[:limit]:
            scopes = ", ".join(f"{name} {count}" for name, count in group.scopes.most_common(3))
            yield f"{group.count:>8}  {group.state:<10} oldest {group.oldest_s:>9.1f} s  {place_of(group.stack)}"
            yield f"          {scopes}{', ...' if len(group.scopes) > 3 else ''}: {', '.join(group.examples)}"
        if len(self.groups) > limit:
            yield f"... and {len(self.groups) - limit} places more; ask with limit={len(self.groups)}"

    def collapsed(self) -> Iterator[str]:
        """Return a line for each stack and scope: frames from the outside in, and how many are there."""
        for group in self.groups[: self.question.limit]:
            frames = ";".join(f"{step.code.co_qualname}:{step.line}".replace(";", ",") for step in group.stack)
            for scope, count in group.scopes.items():
                yield f"{';'.join(filter(None, (scope, frames, f'[{group.state}]')))} {count}"

    def pieces(self) -> Iterator[str]:
        """Return the JSON in pieces: the encoder does not let go of the interpreter within one."""
        head = {"count": self.in_flight, "matching": self.matching, "shown": len(self.tasks)}
        yield json.dumps(head)[:-1] + ', "groups": ['
        yield from _listed([json.dumps(_as_json(group)) for group in self.groups])
        yield '], "tasks": ['
        yield from _listed(self.tasks)
        yield "]}\n"


def dump(registry: Registry, question: Question) -> Dump:
    """Look at everything in flight; in a thread that is not the loop's."""
    with _one_at_a_time:
        return _dump(registry, question)


def render(found: Dump) -> str:
    """Return a dump in the format that was asked for."""
    match found.question.format:
        case "json":
            return "".join(found.pieces())
        case "collapsed":
            return "".join(f"{line}\n" for line in found.collapsed())
        case _:
            return "\n".join(found.lines()) + "\n"


def _dump(registry: Registry, question: Question) -> Dump:
    now = monotonic()
    threads = all_threads()
    groups: dict[tuple[str, int], Group] = {}
    known: dict[Key, tuple[int, Stack, str]] = {}
    places: dict[Stack, int] = {}
    wants_all = question.wants_all
    # Text at once: a hundred thousand dictionaries would set the garbage collector to work, which stops everything.
    tasks: list[str] = []
    most_tasks = 0
    if question.format == "json":
        most_tasks = MOST_TASKS if question.limit is None else question.limit
    matching = 0
    entries = registry.entries()
    beside_the_loop = not registry.is_home()
    for count, item in enumerate(entries):
        if beside_the_loop and not count % TURN:
            sleep(PAUSE_S)
        age_s = now - item.started_at
        if item.number not in registry.live or not (wants_all or question.wants(item, age_s)):
            continue
        task = item if type(item) is ManagedTask else task_of(item)
        key = None if task is None else key_of_task(task)
        found = None if key is None else known.get(key)
        if found is None:
            # By its frames, which may be others by now: what is kept for a key has to be of that key.
            frames = frames_of(item, threads)
            key = key_of(frames)
            found = known.get(key)
            if found is None:
                stack = stack_of(frames)
                place = places.setdefault(stack, len(places))
                by_stack = (state_of_stack if task is not None else state_of_thread)(stack)
                found = known[key] = place, stack, by_stack
        place, stack, by_stack = found
        # `state_of_task` spelled out for the usual case.
        usual = task is item and by_stack != FUTURE and getattr(item, "_fut_waiter", None) is not None
        state = by_stack if usual else _waits_for(item, task, by_stack)
        if question.state and state != question.state:
            continue
        matching += 1
        group = groups.get((state, place))
        if group is None:
            group = groups[state, place] = Group(state, stack)
        group.count += 1
        if age_s > group.oldest_s:  # noqa: PLR1730 (`max` costs a call)
            group.oldest_s = age_s
        group.scopes[item.scope.name] += 1
        if len(group.examples) < EXAMPLES:
            group.examples.append(name_of(item))
        if len(tasks) < most_tasks:
            tasks.append(_task_as_json(item, age_s, state, place_of(stack), state_of(registry, item, now)))
    largest_first = sorted(groups.values(), key=lambda group: -group.count)
    return Dump(question, len(entries), matching, largest_first, tasks)


def _waits_for(item: Live, task: asyncio.Task[Any] | None, by_stack: str) -> str:
    if kind_of(item) == "process":
        return SUBPROCESS
    return by_stack if task is None else state_of_task(task, by_stack)


def _task_as_json(item: Live, age_s: float, waits_for: str, place: str, state: str) -> str:
    document = {
        "id": item.number,
        "name": name_of(item),
        "kind": kind_of(item),
        "scope": item.scope.name,
        "age_s": round(age_s, 3),
        "state": state,
        "waits_for": waits_for,
        "where": place,
        "meta": item.meta,
    }
    return json.dumps(document, default=str)


def _as_json(group: Group) -> dict[str, Any]:
    return {
        "state": group.state,
        "where": place_of(group.stack),
        "count": group.count,
        "oldest_s": round(group.oldest_s, 3),
        "scopes": dict(group.scopes),
        "examples": group.examples,
        "stack": [str(step) for step in group.stack],
    }


def _listed(documents: Sequence[str]) -> Iterator[str]:
    # In portions: one join of everything would hold the interpreter for its whole length.
    for start in range(0, len(documents), PORTION):
        yield (", " if start else "") + ", ".join(documents[start : start + PORTION])
