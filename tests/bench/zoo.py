"""Bad citizens under a drain: `python tests/bench/zoo.py [--runs 1000]`, or `make zoo`; a minute or two.

Each run has a seed, which chooses citizens, durations and what starts the drain. Three things must hold in every run:
the process is drained within its budget, every unit of work that was admitted is in the tally, once, and no child
process is left behind.

What a process is to do that does not end after that is another matter: tests/contract/test_watchdog.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ebbtide
from ebbtide.lifecycle.machine import Durations, Ordered
from ebbtide.protocol import Desired, Order

SLACK_S = 0.5
"""A tenth of what the kubelet leaves behind the budget, for a machine that is not ours alone.

What a thread that does nothing but sleep was late in the same run comes on top.
"""
GLANCE_S = 0.01
BATCH = 25
TRIGGERS = ("call", "signal", "order", "leave")
RECORD = ("finished", "failed", "timed_out", "cancelled", "requeued", "abandoned")


class Outrage(BaseException):
    """No `Exception`, and nobody expects it."""


class Zoo:
    """One runtime, and what lives in it.

    Attributes:
        admitted: How many units of work were let in.
        over: Set when the drain was judged: whoever would go on for ever may end then.
    """

    def __init__(self, runtime: ebbtide.Runtime) -> None:
        self.runtime = runtime
        self.scope = runtime.scope("zoo")
        self.admitted = 0
        self.over = threading.Event()
        self.children: list[int] = []
        self.processes: list[int] = []
        self._lock = threading.Lock()

    def spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        with suppress(ebbtide.Refused):
            self.scope.spawn(coroutine)
            self._count()

    def thread(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(ebbtide.Refused):
            self.scope.thread(function, *arguments)
            self._count()

    async def process(self, *command: str) -> None:
        try:
            self.processes.append((await self.scope.process(*command)).pid)
        except ebbtide.Refused:
            return
        except asyncio.CancelledError:
            self._count()
            raise
        self._count()

    def _count(self) -> None:
        with self._lock:
            self.admitted += 1

    async def rest(self) -> None:
        """Wait until it is over, in a way that can be cancelled."""
        while not self.over.is_set():  # noqa: ASYNC110 (it is set in a thread, since the loop may be blocked)
            await asyncio.sleep(0.005)


# --- the citizens: each takes its place in a zoo, in the loop


def works_a_little(zoo: Zoo) -> None:
    zoo.spawn(asyncio.sleep(0.02))


def crashes(zoo: Zoo) -> None:
    async def crash() -> None:
        await asyncio.sleep(0.01)
        raise RuntimeError("on purpose")

    zoo.spawn(crash())


def swallows_one_cancel(zoo: Zoo) -> None:
    async def swallow() -> None:
        with suppress(asyncio.CancelledError):
            await zoo.rest()
        await zoo.rest()

    zoo.spawn(swallow())


def swallows_every_cancel(zoo: Zoo) -> None:
    async def swallow() -> None:
        while not zoo.over.is_set():
            with suppress(asyncio.CancelledError):
                await zoo.rest()

    zoo.spawn(swallow())


def hides_behind_a_shield(zoo: Zoo) -> None:
    async def hide() -> None:
        inner = asyncio.ensure_future(zoo.rest())
        try:
            await asyncio.shield(inner)
        finally:
            await inner

    zoo.spawn(hide())


def cleans_up_without_end(zoo: Zoo) -> None:
    async def clean_up() -> None:
        try:
            await zoo.rest()
        finally:
            await zoo.rest()

    zoo.spawn(clean_up())


def starts_more_when_cancelled(zoo: Zoo) -> None:
    async def more(generation: int) -> None:
        try:
            await zoo.rest()
        except asyncio.CancelledError:
            for _ in range(2 if generation < 3 else 0):
                zoo.spawn(more(generation + 1))
            raise

    zoo.spawn(more(0))


def sleeps_in_a_c_call(zoo: Zoo) -> None:
    zoo.thread(time.sleep, 0.6)


def waits_in_the_executor(zoo: Zoo) -> None:
    async def job() -> None:
        await asyncio.get_running_loop().run_in_executor(None, zoo.over.wait)

    zoo.spawn(job())


def waits_for_a_lock_for_ever(zoo: Zoo) -> None:
    first, second = threading.Lock(), threading.Lock()
    first.acquire()

    def take() -> None:
        with second:
            while not first.acquire(timeout=0.05):
                if zoo.over.is_set():
                    return

    zoo.thread(take)
    zoo.thread(take)


def blocks_the_loop(zoo: Zoo) -> None:
    async def block() -> None:
        await asyncio.sleep(0.03)
        time.sleep(0.5)  # noqa: ASYNC251 (that is what it is here for)

    zoo.spawn(block())


def hangs_in_a_hook(zoo: Zoo) -> None:
    zoo.runtime.on_drain(zoo.rest)


def raises_in_a_hook(zoo: Zoo) -> None:
    def rage() -> None:
        raise Outrage

    zoo.runtime.on_drain(rage)


def forks_in_flight(zoo: Zoo) -> None:
    async def fork() -> None:
        await asyncio.sleep(0.02)
        child = os.fork()
        if not child:
            os._exit(1 if zoo.runtime.tasks_left or zoo.runtime.drain_view()["tally"] else 0)
        zoo.children.append(child)
        await zoo.rest()

    zoo.spawn(fork())


def ignores_sigterm_in_a_process(zoo: Zoo) -> None:
    # What is ignored stays so over an exec.
    zoo.spawn(zoo.process("sh", "-c", 'trap "" TERM; exec sleep 60'))


CITIZENS: tuple[Callable[[Zoo], None], ...] = (
    works_a_little,
    crashes,
    swallows_one_cancel,
    swallows_every_cancel,
    hides_behind_a_shield,
    cleans_up_without_end,
    starts_more_when_cancelled,
    sleeps_in_a_c_call,
    waits_in_the_executor,
    waits_for_a_lock_for_ever,
    blocks_the_loop,
    hangs_in_a_hook,
    raises_in_a_hook,
    forks_in_flight,
    ignores_sigterm_in_a_process,
)


# --- one run


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run went."""

    seed: int
    citizens: tuple[str, ...]
    trigger: str
    budget_s: float
    took_s: float
    lag_s: float
    """By how much a bare thread was late meanwhile."""
    admitted: int
    accounted: int
    tally: dict[str, int]
    children_failed: int
    left_behind: int
    """Child processes that are still there, as zombies or alive."""

    @property
    def in_time(self) -> bool:
        return self.took_s <= self.budget_s + self.lag_s + SLACK_S

    @property
    def good(self) -> bool:
        return self.in_time and self.admitted == self.accounted and not self.children_failed and not self.left_behind


def run(seed: int) -> Outcome:
    """Run one zoo in this process; everything in it has ended when this returns."""
    return asyncio.run(_run(seed))


async def _run(seed: int) -> Outcome:
    chance = random.Random(seed)
    citizens = [chance.choice(CITIZENS) for _ in range(chance.randint(3, 8))]
    trigger = chance.choice(TRIGGERS)
    durations = Durations(0.0, chance.uniform(0.05, 0.15), chance.uniform(0.05, 0.15))
    runtime = ebbtide.Runtime(ebbtide.Settings(admin_port=0, durations=durations), watchdog=False)
    zoo = Zoo(runtime)
    async with runtime:
        for citizen in citizens:
            citizen(zoo)
        await asyncio.sleep(chance.uniform(0, 0.04))
        watcher = _Watcher(zoo, durations.budget_s)
        _start(runtime, trigger, durations)
        await zoo.rest()
    while runtime.tasks_left:  # noqa: ASYNC110 (threads end as well)
        await asyncio.sleep(0.005)
    tally = runtime.drain_view()["tally"]
    return Outcome(
        seed=seed,
        citizens=tuple(citizen.__name__ for citizen in citizens),
        trigger=trigger,
        budget_s=durations.budget_s,
        took_s=watcher.took_s,
        lag_s=watcher.lag_s,
        admitted=zoo.admitted,
        accounted=sum(tally.get(outcome, 0) for outcome in RECORD),
        tally=tally,
        children_failed=sum(not _ended_well(child) for child in zoo.children),
        left_behind=sum(map(_is_there, zoo.processes)),
    )


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _ended_well(child: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class _Watcher:
    """Measure the drain in a thread, and end the zoo after it."""

    def __init__(self, zoo: Zoo, budget_s: float) -> None:
        self.took_s = 0.0
        self.lag_s = 0.0
        self._zoo = zoo
        self._started_at = time.monotonic()
        self._patience_s = budget_s + 10
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        give_up_at = self._started_at + self._patience_s
        before_at = self._started_at
        drained = False
        while not drained and before_at < give_up_at:
            drained = self._zoo.runtime.wait_drained(GLANCE_S)
            now = time.monotonic()
            self.lag_s = max(self.lag_s, now - before_at - GLANCE_S)
            before_at = now
        self.took_s = before_at - self._started_at
        self._zoo.over.set()


def _start(runtime: ebbtide.Runtime, trigger: str, durations: Durations) -> None:
    match trigger:
        case "signal":
            signal.raise_signal(signal.SIGTERM)
        case "order":
            order = Order(
                desired=Desired.DRAIN,
                generation=1,
                epoch=1,
                drain_timeout_s=durations.drain_timeout_s,
                cancel_grace_s=durations.cancel_grace_s,
            )
            runtime._conductor.post(Ordered(order))
        case _:
            runtime.drain("the zoo closes", leave=trigger == "leave")


# --- many runs


def batch(first: int, count: int) -> subprocess.Popen[str]:
    """Start so many runs in a process of their own."""
    command = [sys.executable, __file__, "--batch", str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def many(runs: int, at_once: int) -> list[Outcome]:
    """Run so many, in batches."""
    starts = list(range(0, runs, BATCH))
    outcomes: list[Outcome] = []
    while starts:
        batches = [(first, batch(first, min(BATCH, runs - first))) for first in starts[:at_once]]
        del starts[:at_once]
        for first, process in batches:
            text, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"the runs from seed {first} on ended with {process.returncode}")
            outcomes += [Outcome(**json.loads(line)) for line in text.splitlines()]
    return outcomes


def report(outcomes: Sequence[Outcome]) -> str:
    """Return what was seen, as a table."""
    lines = [f"{'citizen':28} {'runs':>6} {'late by (ms): median':>22} {'most':>8}"]
    for citizen in CITIZENS:
        mine = [each for each in outcomes if citizen.__name__ in each.citizens]
        late_ms = sorted(1000 * max(0.0, each.took_s - each.budget_s) for each in mine) or [0.0]
        lines.append(f"{citizen.__name__:28} {len(mine):6} {late_ms[len(late_ms) // 2]:22.1f} {late_ms[-1]:8.1f}")
    total: Counter[str] = Counter()
    for each in outcomes:
        total.update(each.tally)
    lines.append(f"{len(outcomes)} runs: {sum(each.admitted for each in outcomes)} admitted, {dict(total)}")
    lines.append(f"a bare thread was late by up to {1000 * max(each.lag_s for each in outcomes):.1f} ms")
    bad = [each for each in outcomes if not each.good]
    lines += [f"BAD: {asdict(each)}" for each in bad]
    lines.append(f"{len(outcomes) - len(bad)} of {len(outcomes)} in budget and accounted for")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--batch", type=int, nargs=2, metavar=("FIRST", "COUNT"))
    options = parser.parse_args()
    if options.batch:
        logging.disable()
        first, count = options.batch
        for seed in range(first, first + count):
            print(json.dumps(asdict(run(seed))), flush=True)
        return 0
    outcomes = many(options.runs, options.at_once)
    print(report(outcomes))
    return 0 if all(each.good for each in outcomes) and len(outcomes) == options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
