"""What the demo shows while it runs: a block that is drawn again on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TextIO

import aiohttp

from .cluster_api import CommandError
from .history import Pod
from .scenes import Stage

TERMINAL_EVERY_S = 1.0
LOG_EVERY_S = 5.0
HEADINGS = ("", "pods", "new", "serving", "leaving", "in flight", "finished", "refused", "lost")


class Progress:
    """Print messages, and the state of the Deployments between them.

    Args:
        stream: Where to; a terminal gets a block that is drawn again in its place.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_place = stream.isatty()
        self._began_at = time.monotonic()
        self._drawn = 0

    def say(self, text: str) -> None:
        """Print one line with the time since the start."""
        self._clear()
        self._stream.write(f"[{time.monotonic() - self._began_at:6.1f} s] {text}\n")
        self._stream.flush()

    async def follow(self, stage: Stage) -> None:
        """Show the state of the present scene until cancelled."""
        every_s = TERMINAL_EVERY_S if self._in_place else LOG_EVERY_S
        while True:
            await asyncio.sleep(every_s)
            if not stage.run:
                continue
            try:
                summary = await stage.load.show(stage.run)
            except (aiohttp.ClientError, TimeoutError, CommandError) as error:
                self.say(f"load generator: {error}")
                continue
            self._draw(block(stage, summary["deployments"]))

    def _draw(self, lines: list[str]) -> None:
        self._clear()
        elapsed = f"[{time.monotonic() - self._began_at:6.1f} s] "
        self._stream.write("\n".join([elapsed + lines[0], *lines[1:]]) + "\n")
        self._stream.flush()
        self._drawn = len(lines) if self._in_place else 0

    def _clear(self) -> None:
        if self._drawn:
            # Up to the first line of the block, and erase from there to the end of the screen.
            self._stream.write(f"\x1b[{self._drawn}F\x1b[J")
            self._drawn = 0


def block(stage: Stage, counts: dict[str, Any]) -> list[str]:
    """Return the state of every Deployment as lines of equal layout."""
    names = [subject.name for subject in stage.subjects]
    first = max(len(stage.scene), *map(len, names)) + 2
    lines = [stage.scene.ljust(first) + "".join(heading.rjust(11) for heading in HEADINGS[1:])]
    for name in names:
        cells = [*_pod_cells(stage.watch.of(name), stage.before.get(name)), *_order_cells(counts.get(name, {}))]
        lines.append(name.ljust(first) + "".join(str(cell).rjust(11) for cell in cells))
    return lines


def _pod_cells(pods: list[Pod], before: str | None) -> list[int]:
    return [
        len(pods),
        sum(pod.template != before for pod in pods),
        sum(pod.serving for pod in pods),
        sum(pod.terminating or pod.draining_since is not None for pod in pods),
    ]


def _order_cells(counts: dict[str, int]) -> list[int]:
    return [counts.get(key, 0) for key in ("in_flight", "finished", "refusals", "lost")]
