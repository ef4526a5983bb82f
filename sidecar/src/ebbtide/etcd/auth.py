"""How the client proves who it is: a token that somebody else renews, or a login that the client renews itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from ebbtide.etcd.dial import SLICE_S, Interrupted
from ebbtide.etcd.errors import EtcdError, TimedOut, Unauthenticated


class Credentials(Protocol):
    """Give the Authorization header of a request."""

    def header(self, deadline_at: float, interrupted: Callable[[], bool]) -> str | None:
        """Return the header's value; None: send none.

        Args:
            deadline_at: Monotonic time until which it must be there.
            interrupted: Asked often while waiting.

        Raises:
            EtcdError: There is none by then.
            Interrupted: `interrupted` said so.
        """

    def renew(self, refused: str | None) -> bool:
        """Take note that the store refused a header; say whether another try is worth it."""

    def after_fork(self) -> None:
        """Forget locks that another thread of the parent may have held."""


class Anonymous:
    def header(self, deadline_at: float, interrupted: Callable[[], bool]) -> str | None:  # noqa: ARG002 (Credentials)
        return None

    def renew(self, refused: str | None) -> bool:  # noqa: ARG002 (Credentials)
        return False

    def after_fork(self) -> None:
        """Nothing to forget."""


class BearerToken:
    """Ask for the token at each request: a projected token is replaced on disk while the process runs."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def header(self, deadline_at: float, interrupted: Callable[[], bool]) -> str | None:  # noqa: ARG002 (Credentials)
        return self._read()

    def renew(self, refused: str | None) -> bool:
        return self._read() != refused

    def after_fork(self) -> None:
        """Nothing to forget."""

    def _read(self) -> str:
        try:
            token = self._token().strip()
        except OSError as error:
            raise Unauthenticated(f"the token cannot be read: {error}") from error
        if not token or not token.isascii() or not token.isprintable():
            raise Unauthenticated("the token is empty or has characters that no token has")
        return f"Bearer {token}"


class _Attempt:
    """One login, which several threads may wait for."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.failure: EtcdError | None = None
        """Why it failed; None also where its thread lost interest."""


class PasswordLogin:
    """Log in when needed; many threads that find the token too old cause one login, and all learn how it failed.

    Args:
        login: Logs in until a monotonic time, as long as it is not interrupted, and returns the token.
    """

    def __init__(self, login: Callable[[float, Callable[[], bool]], str]) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._token: str | None = None
        self._attempt: _Attempt | None = None

    def header(self, deadline_at: float, interrupted: Callable[[], bool]) -> str | None:
        while True:
            with self._lock:
                if self._token is not None:
                    return self._token
                attempt, ours = self._attempt, self._attempt is None
                if attempt is None:
                    attempt = self._attempt = _Attempt()
            if ours:
                return self._run(attempt, deadline_at, interrupted)
            _wait(attempt, deadline_at, interrupted)
            if attempt.failure is not None:
                raise attempt.failure

    def renew(self, refused: str | None) -> bool:
        with self._lock:
            if self._token == refused:
                self._token = None
        return True

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._attempt = None

    def _run(self, attempt: _Attempt, deadline_at: float, interrupted: Callable[[], bool]) -> str:
        token: str | None = None
        try:
            token = self._login(deadline_at, interrupted)
        except EtcdError as error:
            attempt.failure = error
            raise
        finally:
            with self._lock:
                self._token = token
                self._attempt = None
            attempt.over.set()
        return token


def _wait(attempt: _Attempt, deadline_at: float, interrupted: Callable[[], bool]) -> None:
    while not attempt.over.wait(min(max(deadline_at - time.monotonic(), 0.0), SLICE_S)):
        if interrupted():
            raise Interrupted
        if time.monotonic() >= deadline_at:
            raise TimedOut("log in: timed out")
