"""Spawn, cancel, drain, undrain, over and over: `python tests/bench/soak.py [--seconds 300]`, or `make soak`.

After a warm-up nothing may grow: neither the objects and buffers that the process holds, nor its resident set, nor any
container that can be reached from the runtime or from a module of the library. Samples are taken where nothing is in
flight. Blocks of Python's allocator and bytes of C's are exact: a leak is seen there first. The resident set says what
the kernel gives for them, after C has given back what it only kept; it also has the holes between them.

A table that is resized once is no leak: Python's own table of interned strings takes half a MiB more at once, after
69,000 cycles, and is not resized again. So memory is judged by the median of the steps from one part of the time to
the next.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import os
import random
import sys
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import ebbtide
from ebbtide.lifecycle.machine import Durations
from ebbtide.protocol import PodState

CONTAINERS = (dict, list, set, frozenset, deque, WeakSet, WeakValueDictionary)
BOUNDED = 2
"""A container may be longer at one sample than at another by so many: a sample meets it here or there."""
PARTS, WARM = 7, 2
"""Of the time, and those of them that are the warm-up: five medians, and four steps between them."""
MOST_GROWTH = {"blocks": 300, "malloc_kib": 32, "resident_kib": 128}
"""From one part to the next."""
KEPT = 500
"""Samples of a third that are kept, of all that were taken: chosen at random, so that the soak itself does not grow."""
CROWD = 100
REPORTED_EVERY = 1000


class Kept:
    """A fixed number of samples, each of those taken with the same chance to be among them (a reservoir)."""

    def __init__(self) -> None:
        self._values = array("q", bytes(8 * KEPT))
        self._chance = random.Random(1)
        self.taken = 0

    def add(self, value: int) -> None:
        place = self.taken if self.taken < KEPT else self._chance.randrange(self.taken + 1)
        if place < KEPT:
            self._values[place] = value
        self.taken += 1

    def median(self) -> float:
        return median(self._values[: self.taken])


def _parts() -> tuple[Kept, ...]:
    return tuple(Kept() for _ in range(PARTS))


@dataclass(slots=True)
class Samples:
    """What was seen, by parts of the time, in a memory of its own that does not grow; the containers by its thirds."""

    resident_kib: tuple[Kept, ...] = field(default_factory=_parts)
    malloc_kib: tuple[Kept, ...] = field(default_factory=_parts)
    blocks: tuple[Kept, ...] = field(default_factory=_parts)
    longest: tuple[Counter[str], ...] = field(default_factory=lambda: (Counter(), Counter(), Counter()))
    cycles: int = 0
    last: tuple[int, ...] = ()
    """Blocks, and KiB of C and of the process, at the last sample."""

    def take(self, roots: Iterable[object], passed: float) -> None:
        """Look now; `passed`: how much of the time is over, from 0 to 1."""
        third, part = int(3 * passed), int(PARTS * passed)
        for name, length in lengths(roots).items():
            self.longest[third][name] = max(self.longest[third][name], length)
        gc.collect()
        self.last = sys.getallocatedblocks(), _malloc_kib(), _resident_kib()
        for kept, value in zip((self.blocks, self.malloc_kib, self.resident_kib), self.last, strict=True):
            kept[part].add(value)

    def grown(self) -> dict[str, tuple[int, int]]:
        """Return what was longer in the last third than ever in the second: name to both lengths."""
        _, before, after = self.longest
        return {name: (before[name], length) for name, length in after.items() if length > before[name] + BOUNDED}

    def growth(self) -> dict[str, float]:
        """Return by how much more the process holds in one part of the time than in the one before: the median step."""
        found = {}
        for name in MOST_GROWTH:
            medians = [part.median() for part in getattr(self, name)[WARM:]]
            found[name] = median(after - before for before, after in pairwise(medians))
        return found


def lengths(roots: Iterable[object]) -> Counter[str]:
    """Return the length of every container among the library's attributes, by class and name; equal ones add up."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    left = [*roots, *(module for name, module in sys.modules.items() if name.partition(".")[0] == "ebbtide")]
    while left:
        owner = left.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        for name, value in _attributes(owner):
            left += _followed(value)
            if isinstance(value, CONTAINERS):
                # Of a value, which is what it is; there are as many values as something else has room for. And a deque
                # with a limit takes ten minutes to fill, and then keeps to it.
                if not _is_value(owner) and getattr(value, "maxlen", None) is None:
                    found[f"{_name(owner)}.{name}"] += len(value)
                left += [each for item in _items(value) for each in _followed(item)]
    return found


def _attributes(owner: object) -> Iterator[tuple[str, Any]]:
    yield from dict(getattr(owner, "__dict__", {})).items()
    for kind in type(owner).__mro__:
        for name in getattr(kind, "__slots__", ()):
            with suppress(AttributeError):
                yield name, getattr(owner, name)


def _followed(value: object) -> list[object]:
    """Return the value where it is an object of the library's, not a class or a function."""
    ours = type(value).__module__.partition(".")[0] == "ebbtide"
    return [value] if ours else []


def _is_value(owner: object) -> bool:
    parameters = getattr(owner, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


def _items(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, Mapping) else container)


def _name(owner: object) -> str:
    return getattr(owner, "__name__", None) or type(owner).__qualname__


class _Mallinfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


def _malloc_kib() -> int:
    """Return what C holds, and give back to the kernel what it only keeps; 0 without glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.malloc_trim(0)
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd) // 1024


def _resident_kib() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


# --- the work


async def cycle(runtime: ebbtide.Runtime, chance: random.Random, number: int) -> None:
    """Start a crowd in every way there is, cancel some of it, drain, and take the drain back."""
    scope = runtime.scope("soak").scope(f"cycle-{number}", timeout_s=0.02 if number % 2 else None)
    for _ in range(CROWD):
        with suppress(ebbtide.Refused):
            scope.spawn(asyncio.sleep(chance.uniform(0, 0.03)), meta={"number": number})
    with scope.track("block"):
        await asyncio.sleep(0)
    threads = [scope.thread(time.sleep, 0.001) for _ in range(3)]
    if number % 3 == 0:
        scope.cancel("for a change")
    await asyncio.gather(*map(asyncio.wrap_future, threads))
    runtime.drain("soak", leave=False)
    with suppress(ebbtide.Refused):
        scope.spawn(asyncio.sleep(0))
    runtime.dump()
    while runtime.state is not PodState.DRAINED:  # noqa: ASYNC110 (the conductor's thread makes it so)
        await asyncio.sleep(0.001)
    runtime.undrain()
    assert runtime.state is PodState.SERVING


async def soak(seconds: float, share: float) -> Samples:
    """Go on for so long, on so much of a core; a second runtime joins and leaves as another worker of the pod."""
    settings = ebbtide.Settings(
        admin_port=0, pod_uid=f"soak-{os.getpid()}", durations=Durations(0, 30, 5), limits=ebbtide.Limits()
    )
    chance = random.Random(1)
    samples = Samples()
    began_at = time.monotonic()
    async with ebbtide.Runtime(settings, watchdog=False) as runtime:
        while (passed_s := time.monotonic() - began_at) < seconds:
            for _ in range(10):
                samples.cycles += 1
                await cycle(runtime, chance, samples.cycles)
            async with ebbtide.Runtime(settings, watchdog=False) as other:
                await other.scope("soak").spawn(asyncio.sleep(0))
            samples.take([runtime], passed_s / seconds)
            if samples.cycles % REPORTED_EVERY == 0:
                sys.stderr.write(f"{samples.cycles} cycles, {passed_s:.0f} s, {samples.last}\n")
            await asyncio.sleep(max(0.0, began_at + time.process_time() / share - time.monotonic()))
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--share", type=float, default=1.0, help="of a core, which it may take")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable()
    samples = asyncio.run(soak(options.seconds, options.share))
    growth = samples.growth()
    found = {
        "cycles": samples.cycles,
        "samples": sum(part.taken for part in samples.resident_kib),
        "containers": len(samples.longest[2]),
        **{name: [part.median() for part in getattr(samples, name)] for name in MOST_GROWTH},
        "growth": growth,
        "grown": samples.grown(),
        "cpu_s": round(time.process_time(), 1),
    }
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:14} {value}")
    return int(bool(found["grown"]) or any(growth[name] > most for name, most in MOST_GROWTH.items()))


if __name__ == "__main__":
    sys.exit(main())
