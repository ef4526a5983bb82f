"""The synchronous client against a server that misbehaves on command."""

import os
import socket
import threading
import time
from typing import Any

import pytest

from ebbtide.etcd import (
    Closed,
    EtcdClient,
    GatewayDisabled,
    Overloaded,
    PermissionDenied,
    TimedOut,
    Unauthenticated,
    Unavailable,
)
from ebbtide.etcd.dial import dial, never
from ebbtide.etcd.endpoints import Endpoint
from tests.unit.etcd.fake_etcd import Fake, farewell, unused_url


def test_keeps_its_connection(fake: Fake) -> None:
    with EtcdClient([fake.url]) as client:
        for _ in range(3):
            client.put("/a", b"1")
    assert len({address for *_, address in fake.requests}) == 1


def test_a_kept_connection_that_was_closed_costs_no_call(fake: Fake) -> None:
    with EtcdClient([fake.url]) as client:
        client.put("/a", b"1")
        fake.replies = lambda path, headers: None if len(fake.requests) == 2 else (200, {"header": {"revision": "6"}})
        assert client.get("/a") is None  # hung up on, sent again
    assert len(fake.requests) == 3


@pytest.mark.parametrize("chunked", [None, True, False])
def test_an_answer_that_ends_its_connection_is_an_answer(fake: Fake, chunked: Any) -> None:
    fake.replies = farewell(200, {"header": {"revision": "7"}}, chunked=chunked)
    with EtcdClient([fake.url]) as client:
        assert client.put("/a", b"1") == 7
        assert client.get("/a") is None
    assert len(fake.requests) == 2


@pytest.mark.parametrize("chunked", [None, True, False])
def test_a_refusal_that_ends_its_connection_says_that_nothing_happened(fake: Fake, chunked: Any) -> None:
    fake.replies = farewell(413, {"code": 8, "message": "a report has at most 32 KiB"}, chunked=chunked)
    with EtcdClient([fake.url]) as client, pytest.raises(Overloaded, match="at most 32 KiB") as raised:
        client.put("/a", b"1")
    assert not raised.value.may_have_happened
    assert len(fake.requests) == 1


def test_a_renewed_token_is_tried_at_once_after_a_refusal_that_ends_its_connection(fake: Fake) -> None:
    fake.replies = lambda path, headers: (
        (200, {"header": {"revision": "5"}})
        if headers["Authorization"] == "Bearer new"
        else farewell(401, {"code": 16, "message": "no"})
    )
    tokens = iter(["old", "new", "new"])
    with EtcdClient([fake.url], token=lambda: next(tokens)) as client:
        assert client.put("/a", b"1") == 5


@pytest.mark.parametrize("chunked", [True, False])
def test_a_watch_that_ends_its_connection_one_day_is_followed_until_then(fake: Fake, chunked: Any) -> None:
    header = {"revision": "5"}
    event = {"kv": {"key": "L2E=", "create_revision": "6", "mod_revision": "6"}}
    said = (
        {"result": {"header": header, "watch_id": "1", "created": True}},
        {"result": {"header": {"revision": "6"}, "watch_id": "1", "events": [event]}},
    )
    fake.replies = lambda path, headers: (
        farewell(200, *said, chunked=chunked) if path == "/v3/watch" else (200, {"header": header})
    )
    with EtcdClient([fake.url]) as client:
        watch = client.watch(["/a"], stop=threading.Event())
        assert [next(watch).revision for _ in range(2)] == [5, 6]
        watch.close()


def test_a_watch_refused_by_an_answer_that_ends_its_connection_says_why(fake: Fake) -> None:
    fake.replies = farewell(403, {"code": 7, "message": "not yours"})
    with EtcdClient([fake.url]) as client, pytest.raises(PermissionDenied, match="not yours"):
        client._transport.open_stream("watch", "/v3/watch", b"{}", never)


def test_a_write_that_got_no_answer_is_not_sent_twice(fake: Fake, other: Fake) -> None:
    fake.replies = other.replies = None
    with EtcdClient([fake.url, other.url]) as client, pytest.raises(Unavailable) as raised:
        client.put("/a", b"1")
    assert raised.value.may_have_happened
    assert len(fake.requests) + len(other.requests) == 1


def test_a_read_that_got_no_answer_is_asked_elsewhere(fake: Fake, other: Fake) -> None:
    fake.replies = None
    with EtcdClient([fake.url, other.url]) as client:
        for _ in range(4):
            assert client.get("/a") is None
    # Whichever came first, the good one is kept.
    assert len(fake.requests) <= 1
    assert len(other.requests) == 4


def test_a_write_goes_elsewhere_where_nothing_listens(fake: Fake) -> None:
    with EtcdClient([unused_url(), unused_url(), fake.url]) as client:
        assert client.put("/a", b"1") == 5


def test_a_write_refused_without_a_leader_may_have_happened(fake: Fake) -> None:
    fake.replies = (503, {"code": 14, "message": "etcdserver: request timed out"})
    with EtcdClient([fake.url]) as client, pytest.raises(Unavailable) as raised:
        client.put("/a", b"1")
    assert raised.value.may_have_happened
    assert raised.value.endpoint == fake.url


def test_a_path_that_is_dead_is_noticed_by_the_kernel_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint.parse(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with dial(endpoint, None, time.monotonic() + 5) as sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, between, probes = (
                sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
                for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
            )
    assert idle + between * probes < 15


def test_nobody_listens(fake: Fake) -> None:
    url = unused_url()
    with EtcdClient([url]) as client, pytest.raises(ConnectionError) as raised:
        client.put("/a", b"1")
    assert isinstance(raised.value, Unavailable)
    assert not raised.value.may_have_happened
    assert raised.value.endpoint == url


def test_a_silent_server_is_given_up(fake: Fake) -> None:
    fake.replies = "hang"
    with EtcdClient([fake.url], timeout_s=0.1) as client:
        with pytest.raises(TimeoutError) as raised:
            client.put("/a", b"1")
        assert isinstance(raised.value, TimedOut)
        assert raised.value.may_have_happened
        with pytest.raises(TimedOut) as raised:
            client.get("/a")
        assert not raised.value.may_have_happened


def test_a_silent_server_leaves_time_for_the_next(fake: Fake, other: Fake) -> None:
    fake.replies = "hang"
    with EtcdClient([fake.url, other.url], timeout_s=0.5) as client:
        for _ in range(3):
            assert client.get("/a") is None


def test_a_missing_gateway_is_said_so(fake: Fake) -> None:
    fake.replies = (404, {"code": 5, "message": "Not Found"})
    with EtcdClient([fake.url]) as client, pytest.raises(GatewayDisabled):
        client.get("/a")


def test_the_token_is_read_at_each_request(fake: Fake) -> None:
    tokens = iter(["one", "two\n"])
    with EtcdClient([fake.url], token=lambda: next(tokens)) as client:
        client.get("/a")
        client.get("/a")
    assert [header for _, _, header, _ in fake.requests] == ["Bearer one", "Bearer two"]


def test_a_refused_token_is_tried_again_only_where_it_changed(fake: Fake) -> None:
    fake.replies = (401, {"code": 16, "message": "no"})
    tokens = iter(["old", "new", "new"])
    with EtcdClient([fake.url], token=lambda: next(tokens)) as client, pytest.raises(Unauthenticated):
        client.get("/a")
    assert [header for _, _, header, _ in fake.requests] == ["Bearer old", "Bearer new"]


@pytest.mark.parametrize("token", ["", "a\r\nX-Evil: 1", "ü"])
def test_an_impossible_token_is_not_sent(fake: Fake, token: str) -> None:
    with EtcdClient([fake.url], token=lambda: token) as client, pytest.raises(Unauthenticated):
        client.get("/a")
    assert fake.requests == []


def test_a_token_that_cannot_be_read_is_an_error_of_ours(fake: Fake) -> None:
    def missing() -> str:
        raise FileNotFoundError("/var/run/token")

    with EtcdClient([fake.url], token=missing) as client, pytest.raises(Unauthenticated, match="/var/run/token"):
        client.get("/a")


def test_many_threads_cause_one_login(fake: Fake) -> None:
    logins = []

    def replies(path: str, headers: Any) -> Any:
        if path == "/v3/auth/authenticate":
            logins.append(path)
            return 200, {"token": f"token-{len(logins)}"}
        if headers["Authorization"] != f"token-{max(len(logins), 2)}":  # the first one is no good
            return 401, {"code": 16, "message": "etcdserver: invalid auth token"}
        return 200, {"header": {"revision": "5"}}

    fake.replies = replies
    with EtcdClient([fake.url], username="u", password="p") as client:
        failures = []

        def get() -> None:
            try:
                client.get("/a")
            except Exception as error:  # noqa: BLE001
                failures.append(error)

        threads = [threading.Thread(target=get) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(logins) == 2


def test_a_login_that_was_answered_elsewhere_shows_where_to_ask(fake: Fake, other: Fake) -> None:
    fake.replies = None
    other.replies = lambda path, headers: (200, {"token": "t", "header": {"revision": "5"}})
    while True:
        with EtcdClient([fake.url, other.url], username="u", password="p") as client:
            if client._transport.rotation.current.url == fake.url:
                assert client.put("/a", b"1") == 5
                break
    assert [path for path, *_ in fake.requests] == ["/v3/auth/authenticate"]


def test_a_stopped_watch_ends_while_its_login_gets_no_answer(fake: Fake) -> None:
    fake.replies = "hang"
    stop = threading.Event()
    ended = threading.Event()
    with EtcdClient([fake.url], username="u", password="p", timeout_s=30) as client:

        def iterate() -> None:
            assert list(client.watch(["/a"], stop=stop)) == []
            ended.set()

        thread = threading.Thread(target=iterate)
        thread.start()
        while not fake.requests:
            time.sleep(0.005)
        stop.set()
        assert ended.wait(5)
        thread.join()


def test_a_wrong_password_is_not_tried_for_ever(fake: Fake) -> None:
    fake.replies = (400, {"code": 3, "message": "etcdserver: authentication failed, invalid user ID or password"})
    with EtcdClient([fake.url], username="u", password="p") as client, pytest.raises(Unauthenticated):
        client.get("/a")
    assert len(fake.requests) <= 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"token": lambda: "t", "username": "u", "password": "p"}, "token and username"),
        ({"username": "u"}, "username and password"),
        ({"password": "p"}, "username and password"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_contradictory_settings_are_refused(arguments: Any, named: Any) -> None:
    with pytest.raises(ValueError, match=named):
        EtcdClient(["http://127.0.0.1:1"], **arguments)


def test_a_closed_client_refuses(fake: Fake) -> None:
    client = EtcdClient([fake.url])
    client.put("/a", b"1")
    client.close()
    with pytest.raises(Closed):
        client.put("/a", b"1")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_makes_its_own_connection(fake: Fake) -> None:
    with EtcdClient([fake.url]) as client:
        client.put("/parent", b"")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if client.put("/child", b"") == 5 else 1
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        client.put("/parent", b"")
    first, child, last = (address for *_, address in fake.requests)
    assert first == last != child


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_is_not_held_by_a_lock_of_the_parents_threads(fake: Fake) -> None:
    with EtcdClient([fake.url]) as client:
        client.put("/parent", b"")
        with client._transport._pool._lock:  # a thread of the parent is just in there
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    status = 0 if client.put("/child", b"") == 5 else 1
                finally:
                    os._exit(status)
        deadline = time.monotonic() + 20
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(pid, 9)
                pytest.fail("the child hangs")
            time.sleep(0.01)


def test_a_stopped_watch_ends_while_the_server_says_nothing(fake: Fake) -> None:
    fake.replies = lambda path, headers: "hang" if path == "/v3/watch" else (200, {"header": {"revision": "5"}})
    stop = threading.Event()
    with EtcdClient([fake.url], timeout_s=30) as client:
        watch = client.watch(["/a"], stop=stop)
        next(watch)
        ended = threading.Event()

        def iterate() -> None:
            assert list(watch) == []
            ended.set()

        thread = threading.Thread(target=iterate)
        thread.start()
        while not any(path == "/v3/watch" for path, *_ in fake.requests):
            time.sleep(0.005)
        stop.set()
        assert ended.wait(5)
        thread.join()
        assert not watch.connected


def test_a_stopped_watch_does_not_wait_for_the_first_list(fake: Fake) -> None:
    fake.replies = "hang"
    stop = threading.Event()
    with EtcdClient([fake.url], timeout_s=30) as client:
        threading.Timer(0.05, stop.set).start()
        assert list(client.watch(["/a"], stop=stop)) == []


def test_a_watch_of_a_closed_client_says_so(fake: Fake) -> None:
    fake.replies = "hang"
    client = EtcdClient([fake.url], timeout_s=30)
    threading.Timer(0.05, client.close).start()
    with pytest.raises(Closed):
        next(client.watch(["/a"], stop=threading.Event()))


@pytest.mark.parametrize("keys", ["/a", []])
def test_a_watch_needs_keys(fake: Fake, keys: Any) -> None:
    with EtcdClient([fake.url]) as client, pytest.raises(ValueError, match="keys"):
        client.watch(keys, stop=threading.Event())
