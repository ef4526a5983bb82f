import http.client
import json
import logging
import select
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from ebbtide.admin import connections
from ebbtide.admin.connections import MOST_CONNECTIONS
from ebbtide.admin.exposition import Numbers
from ebbtide.admin.server import AdminServer
from ebbtide.lifecycle.drainreport import DrainReport
from ebbtide.lifecycle.machine import Source
from ebbtide.protocol import Outcome, PodState
from ebbtide.settings import EVERYWHERE


class View:
    """A runtime that serves, drains when told to, and is drained when the test says so."""

    def __init__(self) -> None:
        self.state = PodState.SERVING
        self.drained = threading.Event()
        self.asked: list[tuple[Source, bool]] = []
        self.returns = True
        self.report: DrainReport | None = DrainReport(
            outcome=Outcome.CLEAN, reason="api", started_at=1.0, took_s=0.1234, budget_s=75.0
        )
        self.lives = True
        self.traced: list[bool] = []
        self.cancelled: list[tuple[int, str]] = []

    @property
    def ready(self) -> bool:
        return self.state is PodState.SERVING

    def alive(self) -> bool:
        return self.lives

    def drain_view(self) -> Mapping[str, Any]:
        return {"state": self.state, "active": 2}

    def drain_report(self) -> DrainReport | None:
        return self.report

    def dump(self, query: Mapping[str, str]) -> str:
        if "state" in query:
            raise ValueError(f"state: not {query['state']!r}")
        return json.dumps({"asked": query})

    def leaks_view(self, query: Mapping[str, str]) -> str:
        if query.get("format") == "xml":
            raise ValueError("format: must be text or json, not 'xml'")
        return json.dumps({"asked": query})

    def trace_origins(self, on: bool) -> None:
        self.traced.append(on)

    def cancel(self, number: int, reason: str) -> bool:
        self.cancelled.append((number, reason))
        return number == 42

    def request_drain(self, source: Source, text: str, *, leave: bool) -> None:
        self.asked.append((source, leave))
        self.state = PodState.DRAINING

    def request_undrain(self) -> bool:
        return self.returns

    def wait_drained(self, timeout_s: float) -> bool:
        return self.drained.wait(timeout_s)

    def limits_view(self) -> Sequence[Mapping[str, Any]]:
        return [{"scope": "", "in_flight": 2}]

    def change_limits(self, scope: str, texts: Mapping[str, str]) -> Mapping[str, Any]:
        if scope != "orders":
            raise ValueError(f"scope: there is no {scope!r} in this process")
        return {"scope": scope, **texts}

    def sample(self) -> Numbers:
        return Numbers(state=self.state, active=2, oldest_age_s=1.5, tally={"finished": 3})


@pytest.fixture
def view() -> View:
    return View()


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, token: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def serve(view: View, token: str = "") -> Iterator[Client]:
    server = AdminServer(view, "127.0.0.1", 0, token)
    port = server.start()
    assert port is not None
    yield Client(port)
    server.stop()


@pytest.fixture
def client(view: View) -> Iterator[Client]:
    yield from serve(view)


@pytest.fixture
def guarded(view: View) -> Iterator[Client]:
    yield from serve(view, "secret")


def test_readiness_follows_the_state_and_liveness_does_not(view: View, client: Client) -> None:
    assert client.ask("GET", "/readyz") == (200, "Serving\n")
    view.state = PodState.QUIESCING
    assert client.ask("GET", "/readyz") == (503, "Quiescing\n")
    assert client.ask("GET", "/livez") == (200, "ok\n")
    view.lives = False
    assert client.ask("GET", "/livez")[0] == 500


def test_prestop_starts_a_drain_and_answers_when_it_is_over(view: View, client: Client) -> None:
    answers: list[tuple[int, str]] = []
    hook = threading.Thread(target=lambda: answers.append(client.ask("GET", "/drain?start=prestop&wait=30")))
    hook.start()
    while not view.asked:
        assert hook.is_alive()
    assert not answers
    view.drained.set()
    hook.join(10)
    assert answers[0][0] == 200
    assert view.asked == [(Source.PRESTOP, True)]


def test_prestop_gives_up_when_its_time_is_over(client: Client) -> None:
    assert client.ask("GET", "/drain?start=prestop&wait=0.01")[0] == 202


def test_a_person_can_start_a_drain_and_take_it_back(view: View, client: Client) -> None:
    assert client.ask("POST", "/drain")[0] == 202
    assert view.asked == [(Source.API, False)]
    assert client.ask("DELETE", "/drain")[0] == 200
    view.returns = False
    assert client.ask("DELETE", "/drain")[0] == 409


def test_looking_at_the_drain_starts_none(view: View, client: Client) -> None:
    status, body = client.ask("GET", "/drain")
    assert (status, json.loads(body)) == (200, {"state": "Serving", "active": 2})
    assert view.asked == []


@pytest.mark.parametrize("path", ["/drain?start=now", "/drain?start=prestop&wait=soon", "/drain?start=prestop&wait=-1"])
def test_a_wrong_parameter_is_named_and_starts_nothing(view: View, client: Client, path: str) -> None:
    status, body = client.ask("GET", path)
    assert status == 400
    assert body.split(":")[0] in {"start", "wait"}
    assert view.asked == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/drain"),
        ("GET", "/drain?start=prestop&wait=1"),
        ("POST", "/drain"),
        ("DELETE", "/drain"),
        ("GET", "/debug/drain"),
        ("GET", "/debug/tasks"),
        ("GET", "/debug/limits"),
        ("POST", "/debug/limits?scope=orders&max_tasks=5"),
    ],
)
def test_everything_but_probes_and_metrics_needs_the_token(view: View, guarded: Client, method: str, path: str) -> None:
    assert guarded.ask(method, path)[0] == 401
    assert guarded.ask(method, path, token="wrong")[0] == 401
    assert view.asked == []
    view.drained.set()
    assert guarded.ask(method, path, token="secret")[0] in {200, 202}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_probes_and_metrics_need_no_token(guarded: Client, path: str) -> None:
    assert guarded.ask("GET", path)[0] == 200


def test_tasks_are_dumped_as_asked(client: Client) -> None:
    assert json.loads(client.ask("GET", "/debug/tasks?format=json&limit=5")[1]) == {
        "asked": {"format": "json", "limit": "5"}
    }
    assert client.ask("GET", "/debug/tasks?state=bored") == (400, "state: not 'bored'\n")


def test_the_report_of_a_drain_is_shown_where_there_was_one(view: View, client: Client) -> None:
    shown = json.loads(client.ask("GET", "/debug/drain")[1])
    assert (shown["outcome"], shown["took_s"], shown["stragglers"]) == ("clean", 0.123, [])
    view.report = None
    assert client.ask("GET", "/debug/drain") == (404, "no drain has begun in this process\n")


def test_limits_are_shown_and_changed_while_the_process_runs(client: Client) -> None:
    assert json.loads(client.ask("GET", "/debug/limits")[1])["limits"] == [{"scope": "", "in_flight": 2}]
    status, body = client.ask("POST", "/debug/limits?scope=orders&max_tasks=5")
    assert (status, json.loads(body)) == (200, {"scope": "orders", "max_tasks": "5"})
    assert client.ask("POST", "/debug/limits?scope=nowhere&max_tasks=5") == (
        400,
        "scope: there is no 'nowhere' in this process\n",
    )


def test_metrics_have_help_and_type_and_every_state(client: Client) -> None:
    page = client.ask("GET", "/metrics")[1]
    names = {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    assert names == {line.split()[2] for line in page.splitlines() if line.startswith("# HELP")}
    assert 'ebbtide_tasks_total{outcome="finished"} 3' in page
    assert page.count("ebbtide_state{") == len(PodState)


def test_a_taken_port_is_reported_and_the_application_goes_on(view: View, client: Client, caplog: Any) -> None:
    with caplog.at_level(logging.ERROR, "ebbtide"):
        assert AdminServer(view, "127.0.0.1", client.port).start() is None
    assert "EBBTIDE_ADMIN_ADDRESS" in caplog.text


@pytest.mark.parametrize("ipv6", [True, False], ids=["ipv6", "no ipv6"])
def test_everywhere_is_every_ipv4_address_too_with_ipv6_or_without(
    view: View, ipv6: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ipv6:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    server = AdminServer(view, EVERYWHERE, 0)
    port = server.start()
    assert port is not None
    hosts = ["127.0.0.1", "::1"] if ipv6 and socket.has_dualstack_ipv6() else ["127.0.0.1"]
    try:
        for host in hosts:
            connection = http.client.HTTPConnection(host, port, timeout=5)
            connection.request("GET", "/debug/tasks")
            assert connection.getresponse().status == 200  # both are this machine
            connection.close()
    finally:
        server.stop()


def test_callers_that_hold_every_connection_keep_no_probe_out(client: Client) -> None:
    with ExitStack() as held:
        callers = [http.client.HTTPConnection("127.0.0.1", client.port, timeout=10) for _ in range(MOST_CONNECTIONS)]
        for number, caller in enumerate(callers):
            held.callback(caller.close)
            caller.connect()
            if number % 2:
                caller.request("GET", "/livez")
                assert caller.getresponse().read() == b"ok\n"
        for _ in range(3):
            for caller in callers:
                # One has made way for the probe before.
                with suppress(ConnectionError):
                    caller.sock.sendall(b"G")
            assert client.ask("GET", "/livez") == (200, "ok\n")


def test_callers_that_read_no_answers_keep_no_probe_out(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
    requests = b"GET /metrics HTTP/1.1\r\nHost: pod\r\n\r\n" * 1000
    with ExitStack() as held:
        callers = []
        for _ in range(connections.MOST_CONNECTIONS):
            caller = held.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=10))
            caller.setblocking(False)
            callers.append(caller)
        # Until nobody takes more: each thread waits for room for its answers, and reads no further request.
        while writable := select.select([], callers, [], 0.5)[1]:
            for caller in writable:
                caller.send(requests)
        for _ in range(3):
            assert client.ask("GET", "/livez") == (200, "ok\n")


def test_a_proxy_on_the_loopback_is_no_caller_on_the_loopback(view: View) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as routed:
        try:
            routed.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but the loopback's")
        outside = routed.getsockname()[0]
    server = AdminServer(view, EVERYWHERE, 0)
    port = server.start()
    assert port is not None
    try:
        connection = http.client.HTTPConnection(outside, port, timeout=5, source_address=("127.0.0.6", 0))
        connection.request("POST", "/drain")
        assert connection.getresponse().status == 403
        connection.close()
    finally:
        server.stop()
    assert not view.asked


def test_who_is_being_answered_makes_way_for_nobody(view: View, client: Client) -> None:
    answers: list[int] = []

    def wait_for_the_drain() -> None:
        answers.append(client.ask("GET", "/drain?start=prestop&wait=30")[0])

    hooks = [threading.Thread(target=wait_for_the_drain) for _ in range(MOST_CONNECTIONS)]
    for number, hook in enumerate(hooks, 1):
        hook.start()
        while len(view.asked) < number:
            assert hook.is_alive()
    with pytest.raises(ConnectionError):
        client.ask("GET", "/livez")
    view.drained.set()
    for hook in hooks:
        hook.join(10)
    assert answers == [200] * MOST_CONNECTIONS
    assert client.ask("GET", "/livez")[0] == 200


def test_listening_asks_no_resolver(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def getfqdn(name: str = "") -> str:
        asked.append(name)
        return name

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    server = AdminServer(view, "127.0.0.1", 0)
    assert server.start() is not None
    server.stop()
    assert asked == []


@pytest.mark.parametrize("host", ["Bücher..example", "shop\udcff"], ids=["not a name", "not a text"])
def test_a_host_that_can_be_none_is_reported_and_the_application_goes_on(view: View, host: str, caplog: Any) -> None:
    with caplog.at_level(logging.ERROR, "ebbtide"):
        assert AdminServer(view, host, 0).start() is None
    assert "EBBTIDE_ADMIN_ADDRESS" in caplog.text
    caplog.text.encode()  # as a log file does


def test_unknown_paths_and_methods_are_refused(client: Client) -> None:
    assert client.ask("GET", "/")[0] == 404
    assert client.ask("PUT", "/drain")[0] == 501


def test_a_task_is_cancelled_by_its_id_only_where_a_token_protects_that(
    view: View, client: Client, guarded: Client
) -> None:
    status, text = client.ask("DELETE", "/debug/tasks?id=42")
    assert (status, "EBBTIDE_ADMIN_TOKEN" in text) == (403, True)
    assert guarded.ask("DELETE", "/debug/tasks?id=42")[0] == 401
    assert not view.cancelled
    assert guarded.ask("DELETE", "/debug/tasks?id=42&reason=stuck", "secret")[0] == 202
    assert guarded.ask("DELETE", "/debug/tasks?id=7", "secret")[0] == 404
    assert view.cancelled == [(42, "stuck"), (7, "")]


@pytest.mark.parametrize("query", ["", "?id=", "?id=order-1", "?id=-1"])
def test_an_id_that_is_none_is_named(view: View, guarded: Client, query: str) -> None:
    status, text = guarded.ask("DELETE", f"/debug/tasks{query}", "secret")
    assert (status, text.startswith("id: must be")) == (400, True)
    assert not view.cancelled


def test_leaks_are_shown_and_origins_are_switched(view: View, client: Client, guarded: Client) -> None:
    assert json.loads(client.ask("GET", "/debug/leaks?format=json")[1]) == {"asked": {"format": "json"}}
    assert client.ask("GET", "/debug/leaks?format=xml") == (400, "format: must be text or json, not 'xml'\n")
    assert client.ask("POST", "/debug/leaks?origins=on")[0] == 202
    assert client.ask("POST", "/debug/leaks?origins=off")[0] == 202
    assert client.ask("POST", "/debug/leaks?origins=maybe") == (400, "origins: must be on or off, not 'maybe'\n")
    assert view.traced == [True, False]
    assert guarded.ask("GET", "/debug/leaks")[0] == 401
