"""Where the workers of a pod meet: a local socket that one of them listens at.

On Linux its name is abstract: no file, so a read-only root is no matter, none is left behind, and the kernel frees the
name at the moment its owner dies, however that comes. Listening is the election. Elsewhere, or where asked for, it is a
path; then a lock beside it decides.

A worker that knows what holds for the pod also keeps a mark. So one that has just started, and finds that nobody
listens, can tell a pod that begins from one whose leader died: there those that have marks go first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

BACKLOG = 128
CONNECT_S = 1.0
MARKS = 64
"""More workers need no mark: the others have some."""
_CREDENTIALS = struct.Struct("3i")


class Place:
    """One name.

    Args:
        name: `@` and an abstract name, or an absolute path.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._abstract = name.startswith("@")
        self._address = f"\0{name[1:]}" if self._abstract else name
        self._lock: int | None = None
        self._mark: socket.socket | int | None = None

    def claim(self) -> socket.socket | None:
        """Listen there; None where somebody does.

        Raises:
            OSError: It is not possible here at all.
        """
        if not self._abstract and not self._claim_path():
            return None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self._address)
            if not self._abstract:
                Path(self.name).chmod(0o600)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                return None
            self.give_up(None)
            raise
        return listener

    def give_up(self, listener: socket.socket | None) -> None:
        """Let another one listen."""
        if listener is not None:
            listener.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def mark(self) -> None:
        """Show that this worker knows what holds for the pod, for as long as it lives."""
        if self._mark is not None:
            return
        if not self._abstract:
            self._mark = self._open_lock("workers")
            fcntl.flock(self._mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        for number in range(MARKS):
            self._mark = self._bind_mark(number)
            if self._mark is not None:
                return

    def marked(self) -> bool:
        """Say whether another worker shows a mark; for one that has none itself."""
        if self._abstract:
            for number in range(MARKS):
                mark = self._bind_mark(number)
                if mark is None:
                    return True
                mark.close()
            return False
        lock = self._open_lock("workers")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    def call(self) -> socket.socket:
        """Connect to whoever listens.

        Raises:
            OSError: Nobody does, or it is another user, which is no worker of ours.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_S)
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        if is_ours(connection):
            return connection
        connection.close()
        raise PermissionError(f"{self.name} belongs to another user")

    def release(self) -> None:
        """Give back what shows that this worker is there; in a forked child the parent keeps its own."""
        self.give_up(None)
        if isinstance(self._mark, socket.socket):
            self._mark.close()
        elif self._mark is not None:
            os.close(self._mark)
        self._mark = None

    def _claim_path(self) -> bool:
        lock = self._open_lock("lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        self._lock = lock
        # Left behind by one that was killed: who has the lock may take it away.
        with contextlib.suppress(FileNotFoundError):
            Path(self.name).unlink()
        return True

    def _open_lock(self, kind: str) -> int:
        return os.open(f"{self.name}.{kind}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _bind_mark(self, number: int) -> socket.socket | None:
        mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mark.bind(f"{self._address}/{number}")
        except OSError:
            mark.close()
            return None
        return mark


def is_ours(connection: socket.socket) -> bool:
    """Say whether the other end runs as our user, or as root, which could read our memory anyway."""
    if sys.platform != "linux":
        return True  # the file's mode keeps others out
    size = _CREDENTIALS.size
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in {os.geteuid(), 0}
