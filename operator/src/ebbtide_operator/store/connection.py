"""HTTP to etcd's gateway, asynchronous: failover, credentials, time limits, and whether the store answers."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp

from ebbtide.etcd import wire
from ebbtide.etcd.endpoints import Endpoint
from ebbtide.etcd.errors import (
    BadAnswer,
    Closed,
    EtcdError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    error_of,
)
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.framing import FramingError, LineSplitter
from ebbtide_operator.store.session import Session

MOST_CONNECTIONS = 64
MOST_ANSWER_BYTES = 64 * 1024 * 1024


class Connection:
    """Requests to whichever endpoint answers.

    Args:
        endpoints: Base URLs.
        tls: Asked for the context of each request to https endpoints; None: the system's authorities.
        username: Log in with this name, and again when the store forgets the login.
        password: Asked for the name's password at each login.
        timeout_s: Limit of each call, over all endpoints it tries.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: Callable[[], ssl.SSLContext] | None,
        username: str | None,
        password: Callable[[], str] | None,
        timeout_s: float,
    ) -> None:
        self.session = Session(
            endpoints, username=username, password=password, timeout_s=timeout_s, log_in=self._log_in
        )
        self._tls = tls
        self._http: aiohttp.ClientSession | None = None
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        if self._http is not None:
            await self._http.close()
            # A transport with TLS closes its socket in a later turn of the loop, which may be about to end.
            for _ in range(3):
                await asyncio.sleep(0)

    async def call(self, what: str, path: str, body: bytes, *, write: bool, optional: bool = False) -> bytes:
        """Send one request and return the answer's body.

        Args:
            what: What is asked for, for error messages.
            path: Path of the gateway.
            body: The request.
            write: Whether sending it twice could do harm: then it is sent again only where it surely did nothing.
            optional: Whether we can do without it: that it is refused says nothing about the store.

        Raises:
            EtcdError: It failed at every endpoint that could be asked within the time limit.
        """
        with self.session.answered(optional=optional):
            return await self._call(what, path, body, write=write)

    @contextlib.asynccontextmanager
    async def stream(self, what: str, path: str, body: bytes) -> AsyncIterator[Lines]:
        """Send a request whose answer has no end, and give its lines.

        Raises:
            EtcdError: The endpoint at hand cannot be reached, does not begin to answer in time, or refuses.
        """
        session = self.session
        deadline_at = time.monotonic() + session.timeout_s
        token = await session.authorization(deadline_at)
        endpoint = session.rotation.current
        try:
            tls = self._context(endpoint)
            async with asyncio.timeout(deadline_at - time.monotonic()):
                response = await self._open().post(
                    endpoint.url + path,
                    data=body,
                    headers=_headers(token),
                    ssl=tls,
                    timeout=aiohttp.ClientTimeout(total=None),
                )
            try:
                if response.status != 200:
                    failure = wire.decode_failure(await response.content.read(wire.MOST_FAILURE_BYTES))
                    raise error_of(what, response.status, failure, endpoint=endpoint.url, write=False)
                yield Lines(response, endpoint)
            finally:
                # A watch ends in the middle of its answer: a TLS farewell would wait for one from the other side.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()
                response.close()
        except EtcdError as error:
            session.note(error, endpoint, token)
            raise
        except (OSError, aiohttp.ClientError) as error:
            failed = _failure(what, endpoint, error, write=False)
            session.note(failed, endpoint, token)
            raise failed from error

    async def _call(self, what: str, path: str, body: bytes, *, write: bool) -> bytes:
        session, rotation = self.session, self.session.rotation
        deadline_at = time.monotonic() + session.timeout_s
        renewed = False
        hung_up = False
        tried = 0
        while True:
            token = await session.authorization(deadline_at)
            # After the login, which may have found out who answers.
            endpoint = rotation.current
            share_s = (deadline_at - time.monotonic()) / max(len(rotation) - tried, 1)
            total_s = deadline_at - time.monotonic() if write else share_s
            try:
                return await self._attempt(what, endpoint, path, body, token, share_s, total_s, write=write)
            except Unauthenticated as error:
                session.note(error, endpoint, token)
                if renewed or not session.has_login:
                    raise
                renewed = True
            except (Unavailable, TimedOut) as error:
                if not write and not hung_up and isinstance(error.__cause__, aiohttp.ServerDisconnectedError):
                    # The peer may close a kept connection at the moment of its reuse.
                    hung_up = True
                    continue
                session.note(error, endpoint, token)
                tried += 1
                if error.may_have_happened or tried >= len(rotation) or time.monotonic() >= deadline_at:
                    raise

    async def _attempt(
        self,
        what: str,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        token: str | None,
        connect_s: float,
        total_s: float,
        *,
        write: bool,
    ) -> bytes:
        tls = self._context(endpoint)
        try:
            async with self._open().post(
                endpoint.url + path,
                data=body,
                headers=_headers(token),
                ssl=tls,
                timeout=aiohttp.ClientTimeout(total=max(total_s, 0.001), sock_connect=max(connect_s, 0.001)),
            ) as response:
                answer = (
                    await response.content.read(MOST_ANSWER_BYTES) if response.status != 200 else await response.read()
                )
                status = response.status
        except (OSError, aiohttp.ClientError) as error:
            raise _failure(what, endpoint, error, write=write) from error
        if status == 200:
            return answer
        raise error_of(what, status, wire.decode_failure(answer), endpoint=endpoint.url, write=write)

    async def _log_in(self, endpoint: Endpoint, limit_s: float) -> str:
        body = wire.encode_authenticate(*self.session.login())
        answer = await self._attempt("log in", endpoint, wire.AUTHENTICATE, body, None, limit_s, limit_s, write=False)
        try:
            return wire.decode_token(answer)
        except WireError as error:
            raise BadAnswer(f"log in: {error}", endpoint=endpoint.url) from error

    def _context(self, endpoint: Endpoint) -> ssl.SSLContext | bool:
        if self._tls is None or not endpoint.tls:
            return True
        try:
            return self._tls()
        except OSError as error:
            raise Unavailable(f"the certificate cannot be read: {error}", endpoint=endpoint.url) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Closed("the store was closed")
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=20),
                trust_env=False,
            )
        return self._http


class Lines:
    """The lines of an endless answer."""

    def __init__(self, response: aiohttp.ClientResponse, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._response = response
        self._splitter = LineSplitter()

    async def next(self, patience_s: float) -> list[bytes]:
        """Wait for the next complete lines.

        Raises:
            TimedOut: None came within `patience_s` seconds.
            Unavailable: The connection ended or broke.
            BadAnswer: What came is no line.
        """
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    data = await self._response.content.readany()
                    if not data:
                        raise Unavailable("watch: the server ended it", endpoint=self.endpoint.url)
                    if lines := self._splitter.feed(data):
                        return lines
        except FramingError as error:
            raise BadAnswer(f"watch: {error}", endpoint=self.endpoint.url) from error
        except EtcdError:
            raise
        except TimeoutError as error:
            raise TimedOut(f"watch: silent for {patience_s:g} s", endpoint=self.endpoint.url) from error
        except (OSError, aiohttp.ClientError) as error:
            raise _failure("watch", self.endpoint, error, write=False) from error


def _headers(token: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = token
    return headers


def _failure(what: str, endpoint: Endpoint, error: Exception, *, write: bool) -> EtcdError:
    """Turn a broken exchange into the error that fits; what never left this machine cannot have happened."""
    unsent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    kind = TimedOut if isinstance(error, TimeoutError) else Unavailable
    reason = str(error) or type(error).__name__
    return kind(f"{what}: {reason}", endpoint=endpoint.url, may_have_happened=write and not unsent)
