"""HTTP to etcd's gateway, asynchronous: failover, credentials, time limits, and whether the store answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import AsyncIterator, Sequence

import aiohttp

from ebbtide.etcd import wire
from ebbtide.etcd.endpoints import Endpoint, Rotation
from ebbtide.etcd.errors import (
    BadAnswer,
    Closed,
    EtcdError,
    LeaseExists,
    LeaseNotFound,
    TimedOut,
    Unauthenticated,
    Unavailable,
    error_of,
)
from ebbtide.etcd.fields import WireError
from ebbtide.etcd.framing import FramingError, LineSplitter

MOST_CONNECTIONS = 64
MOST_ANSWER_BYTES = 64 * 1024 * 1024


class Connection:
    """Requests to whichever endpoint answers.

    Args:
        endpoints: Base URLs.
        tls: For https endpoints; its certificates may be replaced while it is in use.
        username: Log in with this name, and again when the store forgets the login.
        password: The name's password.
        timeout_s: Limit of each call, over all endpoints it tries.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None,
        username: str | None,
        password: str | None,
        timeout_s: float,
    ) -> None:
        if (username is None) != (password is None):
            raise ValueError("username and password: give both or none")
        self.chance = random.Random()  # noqa: S311 (spreads load)
        self.rotation = Rotation(endpoints, self.chance)
        self.timeout_s = timeout_s
        self.answers = False
        """Whether the last call was answered."""
        self._tls = tls
        self._login = None if username is None or password is None else wire.encode_authenticate(username, password)
        self._token: str | None = None
        self._login_lock = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()
            # A transport with TLS closes its socket in a later turn of the loop, which may be about to end.
            for _ in range(3):
                await asyncio.sleep(0)

    async def call(self, what: str, path: str, body: bytes, *, write: bool) -> bytes:
        """Send one request and return the answer's body.

        Args:
            what: What is asked for, for error messages.
            path: Path of the gateway.
            body: The request.
            write: Whether sending it twice could do harm: then it is sent again only where it surely did nothing.

        Raises:
            EtcdError: It failed at every endpoint that could be asked within the time limit.
        """
        try:
            answer = await self._call(what, path, body, write=write)
        except (LeaseNotFound, LeaseExists):
            self.answers = True
            raise
        except EtcdError:
            self.answers = False
            raise
        self.answers = True
        return answer

    @contextlib.asynccontextmanager
    async def stream(self, what: str, path: str, body: bytes) -> AsyncIterator[Lines]:
        """Send a request whose answer has no end, and give its lines.

        Raises:
            EtcdError: The endpoint at hand cannot be reached, does not begin to answer in time, or refuses.
        """
        endpoint = self.rotation.current
        token: str | None = None
        try:
            token = await self._authorization()
            async with asyncio.timeout(self.timeout_s):
                response = await self._open().post(
                    endpoint.url + path,
                    data=body,
                    headers=_headers(token),
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
            self._note(error, endpoint, token)
            raise
        except (OSError, aiohttp.ClientError) as error:
            failed = _failure(what, endpoint, error, write=False)
            self._note(failed, endpoint, token)
            raise failed from error

    async def _call(self, what: str, path: str, body: bytes, *, write: bool) -> bytes:
        deadline_at = time.monotonic() + self.timeout_s
        renewed = False
        hung_up = False
        tried = 0
        while True:
            endpoint = self.rotation.current
            token = await self._authorization()
            share_s = (deadline_at - time.monotonic()) / max(len(self.rotation) - tried, 1)
            total_s = deadline_at - time.monotonic() if write else share_s
            try:
                return await self._attempt(what, endpoint, path, body, token, share_s, total_s, write=write)
            except Unauthenticated as error:
                self._note(error, endpoint, token)
                if renewed or self._login is None:
                    raise
                renewed = True
            except (Unavailable, TimedOut) as error:
                if not write and not hung_up and isinstance(error.__cause__, aiohttp.ServerDisconnectedError):
                    # The peer may close a kept connection at the moment of its reuse.
                    hung_up = True
                    continue
                self.rotation.fail(endpoint)
                tried += 1
                if error.may_have_happened or tried >= len(self.rotation) or time.monotonic() >= deadline_at:
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
        try:
            async with self._open().post(
                endpoint.url + path,
                data=body,
                headers=_headers(token),
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

    async def _authorization(self) -> str | None:
        if self._login is None:
            return None
        # Many calls that find the token too old cause one login.
        async with self._login_lock:
            if self._token is None:
                self._token = await self._log_in(self._login)
            return self._token

    async def _log_in(self, body: bytes) -> str:
        tried = 0
        while True:
            endpoint = self.rotation.current
            share_s = self.timeout_s / len(self.rotation)
            try:
                answer = await self._attempt(
                    "log in", endpoint, wire.AUTHENTICATE, body, None, share_s, share_s, write=False
                )
                return wire.decode_token(answer)
            except WireError as error:
                raise BadAnswer(f"log in: {error}", endpoint=endpoint.url) from error
            except (Unavailable, TimedOut):
                self.rotation.fail(endpoint)
                tried += 1
                if tried >= len(self.rotation):
                    raise

    def _note(self, failure: EtcdError, endpoint: Endpoint, token: str | None) -> None:
        if isinstance(failure, Unauthenticated):
            if self._token == token:
                self._token = None
        elif isinstance(failure, Unavailable | TimedOut):
            self.rotation.fail(endpoint)

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise Closed("the store was closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=20, ssl=self._tls or True),
                trust_env=False,
            )
        return self._session


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
