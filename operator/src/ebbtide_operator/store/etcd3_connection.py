"""gRPC channels of the PyPI package `etcd3`: loading it, failover, login, time limits, and a thread for each watch.

The package has not been released since 2020. What it does wrong is handled here; docs/store.md says what that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from ebbtide.etcd import wire
from ebbtide.etcd.endpoints import Endpoint
from ebbtide.etcd.errors import (
    Closed,
    EtcdError,
    TimedOut,
    Unauthenticated,
    Unavailable,
    error_of,
)
from ebbtide_operator.store.session import Session

MOST_ANSWER_BYTES = 64 * 1024 * 1024
"""gRPC's own limit of 4 MiB is below what a watch may have to catch up with."""
OPTIONS = (
    ("grpc.max_receive_message_length", MOST_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),
    # A channel that is made anew must not inherit the pause that the broken one had reached.
    ("grpc.use_local_subchannel_pool", 1),
    # etcd hangs up on whoever asks more often than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.enable_http_proxy", 0),
)
UNSENT = "failed to connect to all addresses"
"""How gRPC says that a request never left this machine."""
CONNECTION_CODES = {"CANCELLED", "UNKNOWN", "INTERNAL", "DATA_LOSS"}
"""gRPC's codes for a connection that broke; etcd gives none of them for a reason of its own that asks for more care."""


class Etcd3Missing(Exception):
    """The package `etcd3` cannot be imported; says what to install."""


class Pem(NamedTuple):
    """What TLS needs, as PEM: whom to trust, and who we are."""

    authority: bytes
    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Package:
    """The parts of the package that are used."""

    client: Any
    """`etcd3.Etcd3Client`: channel, TLS and the stubs of the services."""
    rpc: Any
    """`etcd3.etcdrpc`: messages and stubs."""
    grpc: Any


def load() -> Package:
    """Import the package.

    Raises:
        Etcd3Missing: It is not installed, or something else in this process has loaded another protobuf first.
    """
    # Its messages were generated for a protobuf of 2020; newer ones take them in their implementation in Python only.
    # That switch counts for the whole process, which is why this is never done in an application's pod.
    os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
    try:
        with warnings.catch_warnings():
            # Some hundred, about how its messages are made.
            warnings.simplefilter("ignore", DeprecationWarning)
            import etcd3
            import grpc
            from etcd3 import etcdrpc
    except (ImportError, TypeError) as error:
        raise Etcd3Missing(f"the etcd3 adapter needs `pip install 'ebbtide[operator,etcd3]'`: {error}") from error

    class Client(etcd3.Etcd3Client):  # type: ignore[misc] # the package has no types
        """Takes PEM where the package takes names of files, so that a renewed certificate needs no file."""

        def _get_secure_creds(self, ca_cert: bytes, cert_key: bytes, cert_cert: bytes) -> Any:
            return grpc.ssl_channel_credentials(ca_cert, cert_key, cert_cert)

    return Package(Client, etcdrpc, grpc)


class _Peer:
    """The channel to one endpoint; closed once nobody needs it."""

    def __init__(self, package: Package, endpoint: Endpoint, pem: Pem | None) -> None:
        self.pem = pem
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        authority, certificate, key = pem or (None, None, None)
        # Without user and password: the package would log in here and now, once, and refuse to do it without TLS.
        self.client = package.client(
            host, endpoint.port, ca_cert=authority, cert_key=key, cert_cert=certificate, grpc_options=OPTIONS
        )
        self._users = 0
        self._retired = False

    @contextlib.contextmanager
    def used(self) -> Iterator[Any]:
        self._users += 1
        try:
            yield self.client
        finally:
            self._users -= 1
            self._close_unused()

    def retire(self) -> None:
        """Close it when its last call has ended: closing cancels calls."""
        self._retired = True
        self._close_unused()

    def _close_unused(self) -> None:
        if self._retired and not self._users:
            self.client.close()


class Etcd3Connection:
    """Calls to whichever endpoint answers.

    Args:
        endpoints: Base URLs.
        pem: Asked for the certificates before each connection; for https endpoints.
        username: Log in with this name, and again when the store forgets the login.
        password: Asked for the name's password at each login.
        timeout_s: Limit of each call, over all endpoints it tries.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        pem: Callable[[], Pem | None] | None,
        username: str | None,
        password: Callable[[], str] | None,
        timeout_s: float,
    ) -> None:
        self.session = Session(
            endpoints, username=username, password=password, timeout_s=timeout_s, log_in=self._log_in
        )
        self.package = load()
        self.rpc = self.package.rpc
        self._pem = pem
        self._peers: dict[Endpoint, _Peer] = {}
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for peer in self._peers.values():
            # Not retired: calls that still run are to end now.
            peer.client.close()
        self._peers.clear()

    async def call(
        self, what: str, pick: Callable[[Any], Any], request: Any, *, write: bool, optional: bool = False
    ) -> Any:
        """Send one request and return the answer.

        Args:
            what: What is asked for, for error messages.
            pick: Names the call of the package's client.
            request: The message.
            write: Whether sending it twice could do harm: then it is sent again only where it surely did nothing.
            optional: Whether we can do without it: that it is refused says nothing about the store.

        Raises:
            EtcdError: It failed at every endpoint that could be asked within the time limit.
        """
        with self.session.answered(optional=optional):
            return await self._call(what, pick, request, write=write)

    @contextlib.asynccontextmanager
    async def stream(self, what: str, pick: Callable[[Any], Any], *requests: Any) -> AsyncIterator[Stream]:
        """Send the requests of a stream, and give its answers, which may have no end.

        Raises:
            EtcdError: As for a call; it may also come from the stream.
        """
        token = await self.session.authorization(time.monotonic() + self.session.timeout_s)
        endpoint = self.session.rotation.current
        peer: _Peer | None = None
        try:
            peer = self._peer(endpoint)
            with peer.used() as client:
                # The package's own watcher is not used: its thread swallows how a watch ended, or ends itself.
                call = pick(client)(iter(requests), metadata=_metadata(token))
                thread = ThreadPoolExecutor(1, "ebbtide-etcd3-watch")
                stream = Stream(self.package.grpc, what, call, endpoint, thread)
                try:
                    yield stream
                finally:
                    # Ends the wait of the thread as well.
                    call.cancel()
                    thread.shutdown(wait=False)
                    if stream.silent:
                        self._retire(endpoint, peer)
        except EtcdError as error:
            self._note(error, endpoint, peer, token)
            raise

    async def _call(self, what: str, pick: Callable[[Any], Any], request: Any, *, write: bool) -> Any:
        session, rotation = self.session, self.session.rotation
        deadline_at = time.monotonic() + session.timeout_s
        renewed = False
        tried = 0
        while True:
            token = await session.authorization(deadline_at)
            # After the login, which may have found out who answers.
            endpoint = rotation.current
            left_s = deadline_at - time.monotonic()
            limit_s = left_s if write else left_s / max(len(rotation) - tried, 1)
            try:
                return await self._attempt(what, endpoint, pick, request, token, limit_s, write=write)
            except Unauthenticated:
                if renewed or not session.has_login:
                    raise
                renewed = True
            except (Unavailable, TimedOut) as error:
                tried += 1
                if error.may_have_happened or tried >= len(rotation) or time.monotonic() >= deadline_at:
                    raise

    async def _attempt(
        self,
        what: str,
        endpoint: Endpoint,
        pick: Callable[[Any], Any],
        request: Any,
        token: str | None,
        limit_s: float,
        *,
        write: bool,
    ) -> Any:
        peer: _Peer | None = None
        try:
            peer = self._peer(endpoint)
            with peer.used() as client:
                call = pick(client).future(request, timeout=max(limit_s, 0.001), metadata=_metadata(token))
                try:
                    return await _outcome(call)
                except self.package.grpc.RpcError as error:
                    raise failure_of(what, endpoint, error, write=write) from error
        except EtcdError as error:
            self._note(error, endpoint, peer, token)
            raise

    async def _log_in(self, endpoint: Endpoint, limit_s: float) -> str:
        name, password = self.session.login()
        answer = await self._attempt(
            "log in",
            endpoint,
            lambda client: self.rpc.AuthStub(client.channel).Authenticate,
            self.rpc.AuthenticateRequest(name=name, password=password),
            None,
            limit_s,
            write=False,
        )
        token: str = answer.token
        return token

    def _peer(self, endpoint: Endpoint) -> _Peer:
        if self._closed:
            raise Closed("the store was closed")
        try:
            pem = self._pem() if self._pem is not None and endpoint.tls else None
        except OSError as error:
            raise Unavailable(f"the certificate cannot be read: {error}", endpoint=endpoint.url) from error
        if endpoint.tls and pem is None:
            raise Unavailable("there is no certificate yet", endpoint=endpoint.url)
        known = self._peers.get(endpoint)
        if known is not None and known.pem == pem:
            return known
        if known is not None:
            known.retire()
        self._peers[endpoint] = made = _Peer(self.package, endpoint, pem)
        return made

    def _note(self, failure: EtcdError, endpoint: Endpoint, peer: _Peer | None, token: str | None) -> None:
        self.session.note(failure, endpoint, token)
        if peer is not None and isinstance(failure, Unavailable | TimedOut):
            self._retire(endpoint, peer)

    def _retire(self, endpoint: Endpoint, peer: _Peer) -> None:
        # Used again, it would wait up to two minutes before it connects anew, and it notices late that it is dead.
        if self._peers.get(endpoint) is peer:
            del self._peers[endpoint]
            peer.retire()


class Stream:
    """The answers of an endless call, read in a thread of their own."""

    def __init__(self, grpc: Any, what: str, call: Any, endpoint: Endpoint, thread: ThreadPoolExecutor) -> None:
        self.endpoint = endpoint
        self.silent = False
        """True once an answer did not come in time: the connection may be dead."""
        self._grpc = grpc
        self._what = what
        self._call = call
        self._thread = thread

    async def next(self, patience_s: float) -> Any:
        """Wait for the next answer.

        Raises:
            TimedOut: None came within `patience_s` seconds; the stream is of no further use.
            EtcdError: The stream ended or broke.
        """
        answer = await self._take(lambda: next(self._call, None), patience_s)
        if answer is None:
            raise Unavailable(f"{self._what}: the server ended it", endpoint=self.endpoint.url)
        return answer

    async def rest(self, patience_s: float) -> list[Any]:
        """Wait for all answers of a stream that the server ends.

        Raises:
            TimedOut: It did not end within `patience_s` seconds.
            EtcdError: The stream broke.
        """
        answers: list[Any] = await self._take(lambda: list(self._call), patience_s)
        return answers

    async def _take(self, read: Callable[[], Any], patience_s: float) -> Any:
        try:
            async with asyncio.timeout(patience_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, read)
        except TimeoutError as error:
            self.silent = True
            raise TimedOut(f"{self._what}: silent for {patience_s:g} s", endpoint=self.endpoint.url) from error
        except self._grpc.RpcError as error:
            raise failure_of(self._what, self.endpoint, error, write=False) from error


async def _outcome(call: Any) -> Any:
    """Wait for a gRPC future without a thread; cancelled, it cancels the call."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell(_call: Any) -> None:
        # The loop may be gone by now, and then nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended.set)

    call.add_done_callback(tell)
    try:
        await ended.wait()
    except asyncio.CancelledError:
        call.cancel()
        raise
    return call.result()


def failure_of(what: str, endpoint: Endpoint, error: Any, *, write: bool) -> EtcdError:
    """Turn a gRPC error into the exception that fits; what never left this machine cannot have happened."""
    status, details = error.code(), error.details() or ""
    code = wire.UNAVAILABLE if status.name in CONNECTION_CODES else status.value[0]
    unsent = details.startswith(UNSENT)
    failure = wire.Failure(code, details)
    return error_of(what, 200, failure, endpoint=endpoint.url, write=write and not unsent)


def _metadata(token: str | None) -> tuple[tuple[str, str], ...] | None:
    # As metadata, not as gRPC's call credentials, which it refuses to send without TLS.
    return None if token is None else (("token", token),)
