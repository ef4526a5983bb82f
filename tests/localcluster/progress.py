"""Plain progress lines on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_started = time.monotonic()


def say(text: str) -> None:
    """Print one line with the seconds since the program began."""
    print(f"[{time.monotonic() - _started:6.1f} s] {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step, then say how long it took; a step that raises says nothing more."""
    began = time.monotonic()
    say(f"{text} …")
    yield
    say(f"{text}: done in {duration(time.monotonic() - began)}")


def duration(seconds: float) -> str:
    """Write a duration the way people say it: `4.2 s`, `4 min 40 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
