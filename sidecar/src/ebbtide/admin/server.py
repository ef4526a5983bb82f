"""The HTTP server for probes, for the preStop hook, and for people.

It has threads of its own: a blocked event loop still answers, and is seen. `/livez`, `/readyz` and `/metrics` are open;
`/drain` and `/debug/...` ask for the bearer token, or where there is none, for a caller on the loopback.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from ebbtide.admin.connections import Connection, Server
from ebbtide.admin.exposition import Numbers, render
from ebbtide.lifecycle.drainreport import DrainReport
from ebbtide.lifecycle.machine import Source
from ebbtide.vocabulary import PodState

logger = logging.getLogger("ebbtide")

RETRY_S = 0.05
LONGEST_WAIT_S = 7 * 86400.0


class AdminView(Protocol):
    """What the server asks of the runtime.

    Every method may be called from any thread; all but `wait_drained` and `dump` return at once.
    """

    @property
    def state(self) -> PodState: ...

    @property
    def ready(self) -> bool: ...

    def alive(self) -> bool:
        """Say whether the thread that drives the drain lives."""

    def drain_view(self) -> Mapping[str, Any]:
        """Return the drain as JSON: state, reason, tasks, times."""

    def drain_report(self) -> DrainReport | None:
        """Return the report of the last drain, so far where it is under way; None: there was none."""

    def dump(self, query: Mapping[str, str]) -> str:
        """Return every task in flight, as `ebbtide.admin.dump.Question` has it.

        Raises:
            ValueError: The message names the parameter that cannot be used.
        """

    def leaks_view(self, query: Mapping[str, str]) -> str:
        """Return what looks like a leak, as text or JSON.

        Raises:
            ValueError: There is no such format.
        """

    def trace_origins(self, on: bool) -> None:
        """Remember where tasks are created from now on, or do so no more."""

    def cancel(self, number: int, reason: str) -> bool:
        """Cancel one unit of work; False where there is none of that number that can be cancelled.

        Raises:
            ValueError: The number does not say which; the message says why.
        """

    def request_drain(self, source: Source, text: str, *, leave: bool) -> None:
        """Start a drain; `leave`: exit once drained."""

    def request_undrain(self) -> bool:
        """Take the drain back; False where that is not possible any more."""

    def wait_drained(self, timeout_s: float) -> bool:
        """Wait until the process is drained; False when the time is over."""

    def limits_view(self) -> Sequence[Mapping[str, Any]]:
        """Return the limits of the process and its scopes, and how much of them is used."""

    def change_limits(self, scope: str, texts: Mapping[str, str]) -> Mapping[str, Any]:
        """Change limits by name; return what holds then.

        Raises:
            ValueError: The message names what cannot be used.
        """

    def sample(self) -> Numbers: ...


class AdminServer:
    """Serve a view until stopped.

    Args:
        view: The runtime.
        host, port: Where to listen; `::`: at every address, IPv4 ones too; port 0: any free one.
        token: Bearer token; empty: callers on this machine only.
    """

    def __init__(self, view: AdminView, host: str, port: int, token: str = "") -> None:
        self._view = view
        self._host = host
        self._port = port
        self._token = token
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, patience_s: float = 0.0) -> int | None:
        """Listen and return the port; None where it is taken: that is logged, and the application goes on without.

        Args:
            patience_s: Seconds for which it may be taken, by one that is about to leave it.
        """
        try:
            self._server = self._listen(time.monotonic() + patience_s)
        except (OSError, TypeError) as error:  # TypeError: what can be no host's name
            logger.error(  # noqa: TRY400 (the address says it all)
                "ebbtide: no admin server on %r, port %d (%s): probes and preStop will not reach this process; "
                "set EBBTIDE_ADMIN_ADDRESS to a free address",
                self._host,
                self._port,
                error,
            )
            return None
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="ebbtide-admin", daemon=True
        )
        self._thread.start()
        port: int = self._server.server_address[1]
        return port

    def _listen(self, give_up_at: float) -> Server:
        handler = _handler(self._view, self._token)
        while True:
            try:
                return Server((self._host, self._port), handler)
            except OSError:
                if time.monotonic() >= give_up_at:
                    raise
                time.sleep(RETRY_S)

    def forget(self) -> None:
        """Close the port in a forked child, for the parent to be the only one who has it."""
        if self._server is not None:
            self._server.socket.close()
            self._server = None

    def stop(self) -> None:
        """Stop listening; answers that are under way are finished by their own threads."""
        if self._server is None or self._thread is None:
            return
        # On Linux that ends the wait for the next connection at once; elsewhere it lasts until the next poll.
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        self._server = None


def _is_local(address: str) -> bool:
    caller = ipaddress.ip_address(address.partition("%")[0])
    # A server on `::` sees IPv4 callers mapped into IPv6.
    mapped = getattr(caller, "ipv4_mapped", None)
    return (mapped or caller).is_loopback


def _handler(view: AdminView, token: str) -> type[Connection]:
    class Handler(Connection):
        def do_GET(self) -> None:  # noqa: N802 (the base class's name)
            self._route(
                {
                    "/livez": self._livez,
                    "/readyz": self._readyz,
                    "/metrics": self._metrics,
                    "/drain": self._guarded(self._get_drain),
                    "/debug/drain": self._guarded(self._drain_report),
                    "/debug/tasks": self._guarded(lambda query: self._text_or_json(view.dump, query)),
                    "/debug/leaks": self._guarded(lambda query: self._text_or_json(view.leaks_view, query)),
                    "/debug/limits": self._guarded(self._limits),
                }
            )

        def do_POST(self) -> None:  # noqa: N802 (the base class's name)
            self._route(
                {
                    "/drain": self._guarded(self._start),
                    "/debug/leaks": self._guarded(self._trace),
                    "/debug/limits": self._guarded(self._change_limits),
                }
            )

        def do_DELETE(self) -> None:  # noqa: N802 (the base class's name)
            self._route({"/drain": self._guarded(self._undrain), "/debug/tasks": self._with_token(self._cancel)})

        def _route(self, routes: Mapping[str, Callable[[Mapping[str, str]], None]]) -> None:
            url = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            action = routes.get(url.path)
            if self.headers.get("Content-Length", "0") != "0" or self.headers.get("Transfer-Encoding"):
                # No call has a body; one that is not read would be taken for the next request.
                self.close_connection = True
            if action is None:
                self._text(HTTPStatus.NOT_FOUND, f"no such path: {self.command} {url.path}\n")
            else:
                action(query)

        def _guarded(self, action: Callable[[Mapping[str, str]], None]) -> Callable[[Mapping[str, str]], None]:
            if token:
                given = self.headers.get("Authorization", "")
                if hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                    return self._holding(action)
                return lambda _query: self._text(HTTPStatus.UNAUTHORIZED, "needs the bearer token of this pod\n")
            # Both ends: a proxy in the pod forwards what comes from elsewhere from an address of the loopback, too.
            if _is_local(self.client_address[0]) and _is_local(self.connection.getsockname()[0]):
                return self._holding(action)
            return lambda _query: self._text(
                HTTPStatus.FORBIDDEN, "without EBBTIDE_ADMIN_TOKEN only callers on this machine may ask\n"
            )

        def _holding(self, action: Callable[[Mapping[str, str]], None]) -> Callable[[Mapping[str, str]], None]:
            def held(query: Mapping[str, str]) -> None:
                self.hold()
                action(query)

            return held

        def _with_token(self, action: Callable[[Mapping[str, str]], None]) -> Callable[[Mapping[str, str]], None]:
            # Every container of a pod is on its loopback: that is enough for looking, and for nothing that ends work.
            if token:
                return self._guarded(action)
            return lambda _query: self._text(
                HTTPStatus.FORBIDDEN, "only with a token: set EBBTIDE_ADMIN_TOKEN, and send it as a bearer token\n"
            )

        def _livez(self, _query: Mapping[str, str]) -> None:
            # Liveness is independent of the drain: a probe that failed now would kill what it is to protect.
            alive = view.alive()
            self._text(HTTPStatus.OK if alive else HTTPStatus.INTERNAL_SERVER_ERROR, "ok\n" if alive else "dead\n")

        def _readyz(self, _query: Mapping[str, str]) -> None:
            self._text(HTTPStatus.OK if view.ready else HTTPStatus.SERVICE_UNAVAILABLE, f"{view.state}\n")

        def _metrics(self, _query: Mapping[str, str]) -> None:
            self._send(HTTPStatus.OK, render(view.sample()), "text/plain; version=0.0.4; charset=utf-8")

        def _get_drain(self, query: Mapping[str, str]) -> None:
            start = query.get("start")
            if start is None:
                self._json(HTTPStatus.OK, view.drain_view())
                return
            if start != "prestop":
                self._text(
                    HTTPStatus.BAD_REQUEST, f"start: must be prestop, not {start!r}; other drains start by POST\n"
                )
                return
            try:
                wait_s = float(query.get("wait", "0"))
            except ValueError:
                wait_s = -1.0
            if not 0 <= wait_s <= LONGEST_WAIT_S:
                self._text(HTTPStatus.BAD_REQUEST, f"wait: must be seconds, not {query['wait']!r}\n")
                return
            view.request_drain(Source.PRESTOP, "", leave=True)
            drained = view.wait_drained(wait_s)
            self._json(HTTPStatus.OK if drained else HTTPStatus.ACCEPTED, view.drain_view())

        def _start(self, query: Mapping[str, str]) -> None:
            view.request_drain(Source.API, query.get("reason", ""), leave=False)
            self._json(HTTPStatus.ACCEPTED, view.drain_view())

        def _undrain(self, _query: Mapping[str, str]) -> None:
            back = view.request_undrain()
            self._json(HTTPStatus.OK if back else HTTPStatus.CONFLICT, view.drain_view())

        def _drain_report(self, _query: Mapping[str, str]) -> None:
            report = view.drain_report()
            if report is None:
                self._text(HTTPStatus.NOT_FOUND, "no drain has begun in this process\n")
            else:
                self._json(HTTPStatus.OK, report.as_json())

        def _text_or_json(self, look: Callable[[Mapping[str, str]], str], query: Mapping[str, str]) -> None:
            try:
                text = look(query)
            except ValueError as error:
                self._text(HTTPStatus.BAD_REQUEST, f"{error}\n")
                return
            kind = "application/json" if query.get("format") == "json" else "text/plain; charset=utf-8"
            self._send(HTTPStatus.OK, text, kind)

        def _trace(self, query: Mapping[str, str]) -> None:
            if query.get("origins") not in {"on", "off"}:
                self._text(HTTPStatus.BAD_REQUEST, f"origins: must be on or off, not {query.get('origins', '')!r}\n")
                return
            view.trace_origins(query["origins"] == "on")
            self._json(HTTPStatus.ACCEPTED, {"origins": query["origins"]})

        def _cancel(self, query: Mapping[str, str]) -> None:
            number = query.get("id", "")
            if not number.isdecimal():
                self._text(HTTPStatus.BAD_REQUEST, f"id: must be the id of a task in flight, not {number!r}\n")
                return
            try:
                found = view.cancel(int(number), query.get("reason", ""))
            except ValueError as error:
                self._text(HTTPStatus.CONFLICT, f"{error}\n")
                return
            self._json(HTTPStatus.ACCEPTED if found else HTTPStatus.NOT_FOUND, {"id": int(number), "cancelled": found})

        def _limits(self, _query: Mapping[str, str]) -> None:
            self._json(HTTPStatus.OK, {"limits": list(view.limits_view())})

        def _change_limits(self, query: Mapping[str, str]) -> None:
            texts = {name: value for name, value in query.items() if name != "scope"}
            try:
                self._json(HTTPStatus.OK, view.change_limits(query.get("scope", ""), texts))
            except ValueError as error:
                self._text(HTTPStatus.BAD_REQUEST, f"{error}\n")

        def _text(self, status: HTTPStatus, text: str) -> None:
            self._send(status, text, "text/plain; charset=utf-8")

        def _json(self, status: HTTPStatus, document: Mapping[str, Any]) -> None:
            self._send(status, json.dumps(document, default=str) + "\n", "application/json")

        def _send(self, status: HTTPStatus, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
