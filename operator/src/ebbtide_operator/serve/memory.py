"""Give memory back to the system that connections which closed have left with the C library.

glibc keeps it for the next ones, which may never come. docs/decisions/0021 says how much that is. Nothing is done where
there is another C library.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

LEAST = 100
"""Connections that have to close before it is worth looking for what they left: some 3 MiB."""
M_MMAP_THRESHOLD = -3
"""glibc's name for a parameter (malloc.h)."""
MAPPED_BYTES = 128 * 1024
"""What is at least as large is mapped, and given back as it is freed. glibc's default, which it raises for good, up to
32 MiB, at the first large piece that is freed, unless it was set."""


class Trimming:
    """Trim the heap after many connections have closed.

    Args:
        trim: Gives memory back.
        least: Connections that have to close before; and a wave goes on where so many close between two looks.
    """

    def __init__(self, trim: Callable[[], None], least: int = LEAST) -> None:
        self._trim = trim
        self._least = least
        self._most = 0
        """Since the last time."""
        self._last = 0

    def look(self, count: int) -> None:
        """Take note of how many connections are open; trim once a wave of them has closed."""
        self._most = max(self._most, count)
        ebbing = self._last - count >= self._least
        self._last = count
        if self._most - count >= self._least and not ebbing:
            self._most = count
            self._trim()


def map_large_pieces() -> None:
    """Let every large piece of memory be given back as it is freed, for the life of this process."""
    set_option = _glibc("mallopt")
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, MAPPED_BYTES)


def trim() -> None:
    """Give free memory back to the system; takes some milliseconds."""
    give_back = _glibc("malloc_trim")
    if give_back is not None:
        give_back(ctypes.c_size_t(0))


@functools.cache
def _glibc(name: str) -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found
