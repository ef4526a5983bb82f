"""File locks between programs that build or change the same thing."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.localcluster.layout import Layout
from tests.localcluster.progress import say


def of_cluster(layout: Layout, *, remove: bool = False) -> AbstractContextManager[None]:
    """Hold the lock of whoever starts or stops a cluster; it lies beside the state folder, which comes and goes."""
    lock = layout.root.with_name(f".{layout.root.name}.lock")
    return exclusive(lock, f"another program that starts or stops cluster {layout.root.name}", remove=remove)


@contextmanager
def exclusive(lock: Path, holder: str, *, remove: bool = False) -> Iterator[None]:
    """Hold a file lock, and say whom we wait for when it is taken.

    Args:
        holder: completes "waiting for …".
        remove: take the file away at the end, before the lock is let go.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(lock, holder)
    try:
        yield
    finally:
        if remove:
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock: Path, holder: str) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {holder}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # The holder before us may have removed the file: then this lock is on a name that nobody else will find.
        try:
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)
