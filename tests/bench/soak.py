"""Spawn, cancel, drain, undrain, over and over: `python tests/bench/soak.py [--seconds 300]`, or `make soak`.

After a warm-up nothing may grow: neither the process (resident set) nor any container that can be reached from the
runtime or from a module of the library. Samples are taken where nothing is in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
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
MOST_GROWTH_KIB = 512
CROWD = 100


@dataclass(slots=True)
class Samples:
    """What was seen, by thirds of the time; no more of it is kept than that, or the soak would see itself grow."""

    resident_kib: tuple[list[int], ...] = field(default_factory=lambda: ([], [], []))
    longest: tuple[Counter[str], ...] = field(default_factory=lambda: (Counter(), Counter(), Counter()))
    cycles: int = 0

    def take(self, roots: Iterable[object], third: int) -> None:
        """Look now; the first third (0) is the warm-up."""
        gc.collect()
        self.resident_kib[third].append(_resident_kib())
        for name, length in lengths(roots).items():
            self.longest[third][name] = max(self.longest[third][name], length)

    def grown(self) -> dict[str, tuple[int, int]]:
        """Return what was longer in the last third than ever in the second: name to both lengths."""
        _, before, after = self.longest
        return {name: (before[name], length) for name, length in after.items() if length > before[name] + BOUNDED}

    def growth_kib(self) -> int:
        """Return by how much the process was larger in the last third than in the second, by the medians."""
        return round(median(self.resident_kib[2]) - median(self.resident_kib[1]))


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


async def soak(seconds: float) -> Samples:
    """Go on for so long; a second runtime joins and leaves as another worker of the pod."""
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
            samples.take([runtime], int(3 * passed_s / seconds))
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable()
    samples = asyncio.run(soak(options.seconds))
    found = {
        "cycles": samples.cycles,
        "samples": sum(map(len, samples.resident_kib)),
        "containers": len(samples.longest[2]),
        "resident_kib": [median(third) for third in samples.resident_kib],
        "growth_kib": samples.growth_kib(),
        "grown": samples.grown(),
    }
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:14} {value}")
    return 0 if not found["grown"] and samples.growth_kib() <= MOST_GROWTH_KIB else 1


if __name__ == "__main__":
    sys.exit(main())
