"""Requests to whichever endpoint answers, with credentials: time limits, failover, and what a fork needs."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import random
import ssl
import time
import weakref
from collections.abc import Callable, Sequence

from ebbtide.etcd import wire
from ebbtide.etcd.auth import Anonymous, BearerToken, Credentials, PasswordLogin
from ebbtide.etcd.dial import never
from ebbtide.etcd.endpoints import Endpoint, Rotation
from ebbtide.etcd.errors import BadAnswer, Closed, EtcdError, TimedOut, Unauthenticated, Unavailable, error_of
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.pool import Limits, Lost, Pool, Request
from ebbtide.etcd.stream import Stream, begin


class Transport:
    """Send requests. Safe to use from several threads, and in a forked child, which makes its own connections."""

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None,
        token: Callable[[], str] | None,
        username: str | None,
        password: str | None,
        timeout_s: float,
    ) -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s: must be above 0, not {timeout_s}")
        self.chance = random.Random()  # noqa: S311 (spreads load)
        self.rotation = Rotation(endpoints, self.chance)
        self.timeout_s = timeout_s
        self.closed = False
        self._pool = Pool(tls)
        self._takes_beats: set[Endpoint] = set()
        self._credentials = self._choose_credentials(token, username, password)
        _alive.add(self)

    def _choose_credentials(
        self, token: Callable[[], str] | None, username: str | None, password: str | None
    ) -> Credentials:
        if token is not None and username is not None:
            raise ValueError("token and username: give one of them")
        if (username is None) != (password is None):
            raise ValueError("username and password: give both or none")
        if token is not None:
            return BearerToken(token)
        if username is not None and password is not None:
            body = wire.encode_authenticate(username, password)
            return PasswordLogin(functools.partial(self._log_in, body))
        return Anonymous()

    def close(self) -> None:
        """Close the kept connections; running streams end within a fraction of a second."""
        self.closed = True
        self._pool.close()

    def after_fork(self) -> None:
        """Let go, in a child, of what belongs to the parent."""
        self._pool.after_fork()
        self._credentials.after_fork()
        # Children of one parent must not all take the same "random" turns.
        self.chance.seed()

    def call(self, what: str, path: str, body: bytes, *, write: bool, interrupted: Callable[[], bool] = never) -> bytes:
        """Send one request and return the answer's body.

        Args:
            what: What is asked for, for error messages.
            path: Path of the gateway.
            body: The request.
            write: Whether sending it twice could do harm: then it is sent again only where it surely did nothing.
            interrupted: Asked often while waiting; true ends the wait with `Interrupted`.

        Raises:
            EtcdError: It failed at every endpoint that could be asked within the time limit.
        """
        deadline_at = time.monotonic() + self.timeout_s
        renewed = False
        tried = 0
        while True:
            header = self._credentials.header(deadline_at, interrupted)
            # After the login, which may have found out who answers.
            endpoint = self.rotation.current
            share_at = self._share_at(deadline_at, tried)
            # A write that was sent is not tried elsewhere, so its answer may take all the time there is.
            limits = Limits(share_at, deadline_at if write else share_at, interrupted)
            answer = self._attempt(what, endpoint, Request(path, body, _headers(header)), limits, write=write)
            if isinstance(answer, bytes):
                return answer
            if isinstance(answer, Unauthenticated) and not renewed and self._credentials.renew(header):
                renewed = True
                continue
            if not isinstance(answer, Unavailable | TimedOut):
                raise answer
            self.rotation.fail(endpoint)
            tried += 1
            if answer.may_have_happened or tried >= len(self.rotation) or time.monotonic() >= deadline_at:
                raise answer

    def prune(self) -> None:
        """Close connections that nobody has used for long."""
        self._pool.prune()

    def open_stream(
        self, what: str, path: str, body: bytes, interrupted: Callable[[], bool], *, beats: bool = False
    ) -> Stream:
        """Send a request whose answer has no end.

        Args:
            what: What is asked for, for error messages.
            path: Path of the gateway.
            body: The request.
            interrupted: Asked often while waiting; true ends the wait with `Interrupted`.
            beats: Leave the request open for beats, where the endpoint is known to take them.

        Raises:
            EtcdError: The endpoint at hand cannot be reached, does not begin to answer in time, or refuses.
        """
        if self.closed:
            raise Closed(f"{what}: the client was closed")
        deadline_at = time.monotonic() + self.timeout_s
        header = self._credentials.header(deadline_at, interrupted)
        endpoint = self.rotation.current
        try:
            connection = self._pool.connect(endpoint, deadline_at, interrupted)
            # An answer without a length makes the connection forget its socket.
            sock = connection.sock
        except OSError as error:
            self.rotation.fail(endpoint)
            raise _unreachable(what, endpoint, error) from error
        try:
            request = Request(path, body, _headers(header))
            head = begin(connection, request, deadline_at, interrupted, beats=beats and endpoint in self._takes_beats)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.rotation.fail(endpoint)
            kind = TimedOut if isinstance(error, TimeoutError) else Unavailable
            raise kind(f"{what}: {_reason(error)}", endpoint=endpoint.url) from error
        except BaseException:
            connection.close()
            raise
        self._note_beats(endpoint, takes_beats=head.announced)
        if head.status != 200:
            connection.close()
            failure = error_of(what, head.status, wire.decode_failure(head.refusal), endpoint=endpoint.url, write=False)
            self.note(failure, endpoint, header)
            raise failure
        return Stream(connection, sock, endpoint, header, head)

    def note(self, failure: EtcdError, endpoint: Endpoint, header: str | None) -> None:
        """Draw the consequences of a stream's failure: other credentials, or another endpoint, next time."""
        if isinstance(failure, Unauthenticated):
            # A failed renewal shows up again, with its reason, at the next request.
            with contextlib.suppress(EtcdError):
                self._credentials.renew(header)
        elif isinstance(failure, Unavailable | TimedOut):
            self.rotation.fail(endpoint)

    def _note_beats(self, endpoint: Endpoint, *, takes_beats: bool) -> None:
        # Replicas behind one address may differ for the time of an upgrade.
        if takes_beats:
            self._takes_beats.add(endpoint)
        else:
            self._takes_beats.discard(endpoint)

    def _share_at(self, deadline_at: float, tried: int) -> float:
        """Leave time for the endpoints that were not tried yet."""
        now = time.monotonic()
        return now + (deadline_at - now) / max(len(self.rotation) - tried, 1)

    def _attempt(
        self, what: str, endpoint: Endpoint, request: Request, limits: Limits, *, write: bool
    ) -> bytes | EtcdError:
        if self.closed:
            raise Closed(f"{what}: the client was closed")
        try:
            answer = self._pool.exchange(endpoint, request, limits, again=not write)
        except Lost as lost:
            kind = TimedOut if isinstance(lost.__cause__, TimeoutError) else Unavailable
            return kind(f"{what}: {_reason(lost.__cause__)}", endpoint=endpoint.url, may_have_happened=write)
        except OSError as error:
            return _unreachable(what, endpoint, error)
        self._note_beats(endpoint, takes_beats=answer.takes_beats)
        if answer.status == 200:
            return answer.body
        return error_of(what, answer.status, wire.decode_failure(answer.body), endpoint=endpoint.url, write=write)

    def _log_in(self, body: bytes, deadline_at: float, interrupted: Callable[[], bool]) -> str:
        what = "log in"
        request = Request(wire.AUTHENTICATE, body, _headers(None))
        tried = 0
        while True:
            endpoint = self.rotation.current
            share_at = self._share_at(deadline_at, tried)
            answer = self._attempt(what, endpoint, request, Limits(share_at, share_at, interrupted), write=False)
            if isinstance(answer, bytes):
                try:
                    return wire.decode_token(answer)
                except WireError as error:
                    raise BadAnswer(f"{what}: {error}", endpoint=endpoint.url) from error
            self.rotation.fail(endpoint)
            tried += 1
            if not isinstance(answer, Unavailable | TimedOut) or tried >= len(self.rotation):
                raise answer


def _headers(authorization: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    return headers


def _unreachable(what: str, endpoint: Endpoint, error: OSError) -> EtcdError:
    kind = TimedOut if isinstance(error, TimeoutError) else Unavailable
    return kind(f"{what}: cannot connect: {_reason(error)}", endpoint=endpoint.url)


def _reason(error: BaseException | None) -> str:
    return str(error) or type(error).__name__


_alive: weakref.WeakSet[Transport] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for transport in list(_alive):
        transport.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
