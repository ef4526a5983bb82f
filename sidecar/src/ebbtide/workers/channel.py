"""One JSON object per line over a local connection."""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
from collections.abc import Mapping
from typing import Any

SEND_S = 0.5
"""A worker that takes nothing for so long is frozen: it may come back and connect anew."""
LONGEST = 64 * 2**20
PORTION = 2**16

Message = Mapping[str, Any]


class Channel:
    """Send from any thread, receive in one."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_S)
        self._connection = connection
        self._lock = threading.Lock()
        self._rest = b""

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, message: Message) -> bool:
        """Send a message; False where the other end is gone, which `receive` finds out as well."""
        data = json.dumps(message, default=str).encode() + b"\n"
        with self._lock:
            try:
                self._connection.sendall(data)
            except OSError:
                # Half a message may be out: nothing after it could be read.
                with contextlib.suppress(OSError):
                    self._connection.shutdown(socket.SHUT_RDWR)
                return False
        return True

    def receive(self) -> list[Message] | None:
        """Return the messages that came, perhaps none yet; None at the end of the connection."""
        try:
            data = self._connection.recv(PORTION)
        except TimeoutError:
            return []
        except OSError:
            return None
        if not data or len(self._rest) > LONGEST:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None

    def close(self) -> None:
        self._connection.close()


class Bell:
    """Wakes a thread that waits for connections; from any thread."""

    def __init__(self) -> None:
        self._ear, self._cord = socket.socketpair()
        self._ear.setblocking(False)
        self._cord.setblocking(False)

    def fileno(self) -> int:
        return self._ear.fileno()

    def ring(self) -> None:
        # Full: it rings already. Closed: nobody listens any more.
        with contextlib.suppress(OSError):
            self._cord.send(b"\0")

    def still(self) -> None:
        with contextlib.suppress(OSError):
            while self._ear.recv(4096):
                pass

    def close(self) -> None:
        self._ear.close()
        self._cord.close()


def wait_for(selector: selectors.BaseSelector, timeout_s: float) -> list[Any]:
    """Return what there is to read from."""
    return [key.fileobj for key, _ in selector.select(max(0.0, timeout_s))]
