"""Small programs of children and a body, to be run in `asyncio.TaskGroup` and in `Scope.group`.

Everything that can be observed of a run is written down; the two must not differ in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

PATIENCE = 60
"""Turns of the loop after which whoever still runs is cancelled, again and again."""


@dataclass(frozen=True)
class Pause:
    turns: int


@dataclass(frozen=True)
class Fail:
    pass


@dataclass(frozen=True)
class Rest:
    """Wait for what never comes."""


@dataclass(frozen=True)
class CancelTask:
    which: int


@dataclass(frozen=True)
class CancelParent:
    pass


@dataclass(frozen=True)
class Await:
    """Await one that started earlier: asyncio cannot cancel tasks that await each other."""

    which: int


@dataclass(frozen=True)
class Spawn:
    child: Program


@dataclass(frozen=True)
class SpawnTwice:
    """Start one after a failure to start the other."""

    child: Program


@dataclass(frozen=True)
class Inner:
    """A group in the group."""

    body: Program


@dataclass(frozen=True)
class Limited:
    """A pause with `asyncio.timeout` around it that is over at once."""


Step = Pause | Fail | Rest | CancelTask | CancelParent | Await | Spawn | SpawnTwice | Inner | Limited


@dataclass(frozen=True)
class Program:
    """What a child or a body does, and what it does when it is cancelled."""

    steps: tuple[Step, ...]
    on_cancel: str = "obey"
    clean_up: int = 0


def programs(depth: int = 2) -> st.SearchStrategy[Program]:
    simple: list[st.SearchStrategy[Step]] = [
        st.builds(Pause, st.integers(0, 3)),
        st.builds(Pause, st.integers(0, 3)),
        st.builds(Fail),
        st.builds(Rest),
        st.builds(CancelTask, st.integers(0, 3)),
        st.builds(CancelParent),
        st.builds(Await, st.integers(0, 3)),
        st.builds(Limited),
    ]
    if depth:
        simple += [st.builds(Spawn, programs(depth - 1))] * 4
        simple += [st.builds(SpawnTwice, programs(depth - 1)), st.builds(Inner, programs(depth - 1))]
    return st.builds(
        Program,
        st.lists(st.one_of(simple), max_size=5 if depth else 3).map(tuple),
        st.sampled_from(["obey", "swallow", "fail", "spawn", "uncancel"]),
        st.integers(0, 3),
    )


class Ordered(dict[Any, None]):
    """A set that remembers the order: `TaskGroup` cancels in the order of its set, which is another in each run."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)

    def difference_update(self, items: Any) -> None:
        for item in list(items):
            self.discard(item)

    def update(self, items: Any) -> None:  # type: ignore[override]
        for item in items:
            self.add(item)


@dataclass
class Stage:
    """Where a program runs, and what was seen."""

    make_group: Any
    options: dict[str, Any] = field(default_factory=dict)
    seen: list[object] = field(default_factory=list)
    tasks: list[asyncio.Task[object]] = field(default_factory=list)
    names: Iterator[int] = field(default_factory=lambda: iter(range(10_000)))
    parent: asyncio.Task[object] | None = None
    started: int = 0

    def group(self) -> Any:
        group = self.make_group()
        group._tasks = Ordered()
        return group

    async def play(self, program: Program, group: Any, who: str) -> object:
        try:
            for step in program.steps:
                await self._do(step, group, who)
        except asyncio.CancelledError as error:
            self.seen.append((who, "cancelled", error.args, _cancelling()))
            for _ in range(program.clean_up):
                await asyncio.sleep(0)
            self.seen.append((who, "cleaned up"))
            match program.on_cancel:
                case "swallow":
                    return "swallowed"
                case "uncancel":
                    task = asyncio.current_task()
                    assert task is not None
                    self.seen.append((who, "uncancelled to", task.uncancel()))
                    return "uncancelled"
                case "fail":
                    raise ValueError(who) from None
                case "spawn":
                    self._spawn(Program((Pause(1),)), group, who)
                case _:
                    pass
            raise
        return "done"

    async def _do(self, step: Step, group: Any, who: str) -> None:
        self.seen.append((who, type(step).__name__))
        match step:
            case Pause(turns):
                for _ in range(turns):
                    await asyncio.sleep(0)
            case Fail():
                raise RuntimeError(who)
            case Rest():
                await asyncio.get_running_loop().create_future()
            case CancelTask(which) if which < len(self.tasks):
                self.seen.append((who, "cancels", self.tasks[which].cancel("by name")))
            case CancelParent():
                assert self.parent is not None
                self.seen.append((who, "cancels the parent", self.parent.cancel("the parent")))
            case Await(which) if which < self._place():
                self.seen.append((who, "awaited", await self.tasks[which]))
            case Spawn(child):
                self._spawn(child, group, who)
            case SpawnTwice(child):
                with suppress(RuntimeError):
                    self._spawn(child, group, who)
                self._spawn(child, group, who)
            case Inner(body):
                await self._in_group(body, f"{who}:inner")
            case Limited():
                with suppress(TimeoutError):
                    async with asyncio.timeout(0):
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)
            case CancelTask() | Await():
                pass

    def _place(self) -> int:
        task: Any = asyncio.current_task()
        return self.tasks.index(task) if task in self.tasks else len(self.tasks)

    def _spawn(self, child: Program, group: Any, who: str) -> None:
        name = f"{who}.{next(self.names)}"
        playing = self.play(child, group, name)
        try:
            task = group.create_task(playing, name=name, **self.options)
        except RuntimeError as error:
            playing.close()  # until 3.13 asyncio leaves that to others
            self.seen.append((who, "cannot spawn", str(error).split("> ")[-1]))
            raise
        self.started += 1
        self.tasks.append(task)

    async def _in_group(self, body: Program, who: str) -> object:
        group = self.group()
        try:
            async with group:
                return await self.play(body, group, who)
        finally:
            self.seen.append((who, "is over", _cancelling(), [task.done() for task in self.tasks]))

    async def main(self, body: Program) -> object:
        self.parent = asyncio.current_task()
        try:
            return await self._in_group(body, "body")
        finally:
            # A cancel that is still to come would come here.
            await asyncio.sleep(0)
            self.seen.append(("after", _cancelling()))


def _cancelling() -> int:
    task = asyncio.current_task()
    return -1 if task is None else task.cancelling()


def outcome(task: asyncio.Task[object]) -> object:
    """Return how a task ended, as a value that can be compared."""
    if not task.done():
        return "pending"
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return ("result", task.result()) if error is None else shape(error)


def shape(error: BaseException) -> object:
    if isinstance(error, BaseExceptionGroup):
        return (type(error).__name__, error.message, [shape(inner) for inner in error.exceptions])
    return (type(error).__name__, str(error))


async def observed(stage: Stage, body: Program) -> object:
    """Run a program, and return all that can be seen of it."""
    loop = asyncio.get_running_loop()
    complaints: list[object] = []
    loop.set_exception_handler(lambda _loop, said: complaints.append(said["message"].split("<")[0]))
    main = loop.create_task(stage.main(body))
    for turn in range(PATIENCE * 2):
        if main.done():
            break
        if turn >= PATIENCE:
            for task in (main, *stage.tasks):
                task.cancel("patience is over")
        await asyncio.sleep(0)
    assert main.done()
    for _ in range(5):
        await asyncio.sleep(0)
    return outcome(main), [outcome(task) for task in stage.tasks], stage.seen, complaints
