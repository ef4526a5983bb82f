"""How the client proves who it is: a token that somebody else renews, or a login that the client renews itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ebbtide.etcd.errors import Unauthenticated


class Credentials(Protocol):
    """Give the Authorization header of a request."""

    def header(self) -> str | None:
        """Return the header's value; None: send none."""

    def renew(self, refused: str | None) -> bool:
        """Take note that the store refused a header; say whether another try is worth it."""

    def after_fork(self) -> None:
        """Forget locks that another thread of the parent may have held."""


class Anonymous:
    def header(self) -> str | None:
        return None

    def renew(self, refused: str | None) -> bool:  # noqa: ARG002 (Credentials)
        return False

    def after_fork(self) -> None:
        """Nothing to forget."""


class BearerToken:
    """Ask for the token at each request: a projected token is replaced on disk while the process runs."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def header(self) -> str | None:
        try:
            token = self._token().strip()
        except OSError as error:
            raise Unauthenticated(f"the token cannot be read: {error}") from error
        if not token or not token.isascii() or not token.isprintable():
            raise Unauthenticated("the token is empty or has characters that no token has")
        return f"Bearer {token}"

    def renew(self, refused: str | None) -> bool:
        return self.header() != refused

    def after_fork(self) -> None:
        """Nothing to forget."""


class PasswordLogin:
    """Log in when needed; many threads that find the token too old cause one login."""

    def __init__(self, login: Callable[[], str]) -> None:
        self._login = login
        self._lock = threading.Lock()
        self._token: str | None = None

    def header(self) -> str | None:
        with self._lock:
            if self._token is None:
                self._token = self._login()
            return self._token

    def renew(self, refused: str | None) -> bool:
        with self._lock:
            if self._token == refused:
                self._token = None
        return True

    def after_fork(self) -> None:
        self._lock = threading.Lock()
