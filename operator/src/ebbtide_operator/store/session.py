"""What a way to etcd keeps between calls, whatever the protocol: endpoints, login, and whether the store answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from ebbtide.etcd.endpoints import Endpoint, Rotation
from ebbtide.etcd.errors import (
    EtcdError,
    GatewayDisabled,
    LeaseExists,
    LeaseNotFound,
    PermissionDenied,
    Refused,
    TimedOut,
    Unauthenticated,
    Unavailable,
)


class _Attempt:
    """One login, which several calls may wait for."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.failure: EtcdError | None = None
        """Why it failed; None also where its call was cancelled."""


class Session:
    """The state of one client.

    Args:
        endpoints: Base URLs.
        username: None: no login.
        password: Asked for the name's password at each login.
        timeout_s: Limit of each call, over all endpoints it tries.
        log_in: Logs in at an endpoint within so many seconds and returns the token; raises EtcdError.

    Attributes:
        answers: Whether the last call was answered.
        has_login: Whether requests carry a token.

    Raises:
        ValueError: A user without password or the reverse, or endpoints that are none.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        username: str | None,
        password: Callable[[], str] | None,
        timeout_s: float,
        log_in: Callable[[Endpoint, float], Awaitable[str]],
    ) -> None:
        if (username is None) != (password is None):
            raise ValueError("username and password: give both or none")
        self.chance = random.Random()  # noqa: S311 (spreads load)
        self.rotation = Rotation(endpoints, self.chance)
        self.timeout_s = timeout_s
        self.answers = False
        self.has_login = username is not None
        self._username = username
        self._password = password
        self._log_in = log_in
        self._token: str | None = None
        self._attempt: _Attempt | None = None

    @contextlib.contextmanager
    def answered(self, *, optional: bool = False) -> Iterator[None]:
        """Take note of whether the call inside is answered; that a lease exists, or does not, is an answer.

        Args:
            optional: Whether we can do without the call: that it is refused says nothing, neither good nor bad.
        """
        try:
            yield
        except (LeaseNotFound, LeaseExists):
            self.answers = True
            raise
        except EtcdError as error:
            if optional and isinstance(error, PermissionDenied | GatewayDisabled | Refused):
                raise
            self.answers = False
            raise
        self.answers = True

    async def authorization(self, deadline_at: float) -> str | None:
        """Return the token for a request, after a login where there is none; None: no login is wanted.

        Many calls that find the token too old cause one login, and all learn how it failed.

        Args:
            deadline_at: Monotonic time until which it must be there.

        Raises:
            EtcdError: There is none by then.
        """
        while self.has_login and self._token is None:
            attempt = self._attempt
            if attempt is None:
                await self._begin(deadline_at)
                continue
            try:
                async with asyncio.timeout(deadline_at - time.monotonic()):
                    await attempt.over.wait()
            except TimeoutError as error:
                raise TimedOut("log in: timed out") from error
            if attempt.failure is not None:
                raise attempt.failure
        return self._token

    async def _begin(self, deadline_at: float) -> None:
        self._attempt = attempt = _Attempt()
        try:
            self._token = await self._try_all(deadline_at)
        except EtcdError as error:
            attempt.failure = error
            raise
        finally:
            self._attempt = None
            attempt.over.set()

    async def _try_all(self, deadline_at: float) -> str:
        tried = 0
        while True:
            endpoint = self.rotation.current
            left_s = deadline_at - time.monotonic()
            try:
                return await self._log_in(endpoint, left_s / max(len(self.rotation) - tried, 1))
            except (Unavailable, TimedOut):
                self.rotation.fail(endpoint)
                tried += 1
                if tried >= len(self.rotation):
                    raise

    def login(self) -> tuple[str, str]:
        """Return the name and its password as it is now; only with a login.

        Raises:
            Unauthenticated: The password cannot be read.
        """
        assert self._username is not None, "only who has a login logs in"
        assert self._password is not None, "the constructor refuses a name without password"
        try:
            return self._username, self._password()
        except (OSError, UnicodeError) as error:
            raise Unauthenticated(f"the password cannot be read: {error}") from error

    def note(self, failure: EtcdError, endpoint: Endpoint, token: str | None) -> None:
        """Draw the conclusions of a failure: another login, or another endpoint."""
        if isinstance(failure, Unauthenticated):
            if self._token == token:
                self._token = None
        elif isinstance(failure, Unavailable | TimedOut):
            self.rotation.fail(endpoint)
