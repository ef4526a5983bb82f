"""Cut an endless HTTP answer into lines: pure, fed with whatever the socket gave."""

from __future__ import annotations

MOST_LINE_BYTES = 64 * 1024 * 1024
"""One watch answer at most: far above etcd's own limit for a transaction, so that only nonsense reaches it."""


class FramingError(ValueError):
    """The bytes are no chunked HTTP body, or a line has no end."""


class LineSplitter:
    """Cut bytes into lines; a line may come in many pieces, and many lines in one."""

    def __init__(self, most_bytes: int = MOST_LINE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are now complete, without their ends; empty lines are left out.

        Raises:
            FramingError: A line is longer than `most_bytes`.
        """
        *complete, rest = data.split(b"\n")
        lines: list[bytes] = []
        for piece in complete:
            self._parts.append(piece)
            line = b"".join(self._parts).rstrip(b"\r")
            self._parts.clear()
            self._held = 0
            if line:
                lines.append(line)
        if rest:
            self._parts.append(rest)
            self._held += len(rest)
        if self._held > self._most_bytes:
            raise FramingError(f"a line is longer than {self._most_bytes} bytes")
        return lines


class ChunkedDecoder:
    """Take HTTP/1.1's chunked coding off a body."""

    def __init__(self) -> None:
        self.finished = False
        """True once the last chunk was seen."""
        self._buffer = b""
        self._left = 0
        """Bytes of the current chunk that are still to come."""
        self._between = False
        """True where the line end after a chunk is still to come."""

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`.

        Raises:
            FramingError: A chunk's size line is malformed.
        """
        self._buffer += data
        body: list[bytes] = []
        while self._buffer and not self.finished:
            if self._left:
                piece, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
                self._left -= len(piece)
                self._between = self._left == 0
                body.append(piece)
                continue
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                if len(line) > 1024:
                    raise FramingError("a chunk's size line has no end")
                break
            self._buffer = rest
            if self._between:
                if line:
                    raise FramingError(f"a chunk is longer than its size: {line[:40]!r}")
                self._between = False
                continue
            self._left = self._size(line)
            self.finished = self._left == 0
        return b"".join(body)

    @staticmethod
    def _size(line: bytes) -> int:
        text = line.split(b";", 1)[0].strip()
        # int() alone would also take signs, underscores and a 0x.
        if not text or len(text) > 16 or text.strip(b"0123456789abcdefABCDEF"):
            raise FramingError(f"a chunk's size is {line[:40]!r}")
        return int(text, 16)
