"""One login for many threads, one of which may lose interest in it."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ebbtide.etcd.auth import PasswordLogin
from ebbtide.etcd.dial import Interrupted, never
from ebbtide.etcd.errors import EtcdError, TimedOut, Unavailable

PATIENCE_S = 20.0


class Logins:
    """Logins that go on until the test says how they end."""

    def __init__(self) -> None:
        self.begun: list[Future[str]] = []
        self.credentials = PasswordLogin(self._log_in)
        self.threads = ThreadPoolExecutor(8)

    def _log_in(self, deadline_at: float, interrupted: Callable[[], bool]) -> str:
        outcome: Future[str] = Future()
        self.begun.append(outcome)
        return outcome.result(PATIENCE_S)

    def ask(self, interrupted: Callable[[], bool] = never) -> Future[str | None]:
        """Ask for the header in a thread."""
        return self.threads.submit(self.credentials.header, time.monotonic() + PATIENCE_S, interrupted)

    def wait_for_another(self, interrupted: Callable[[], bool] = never) -> Future[str | None]:
        """Ask for it in a thread, and return once that one waits for the login of another."""
        waits = threading.Event()

        def noticed() -> bool:
            waits.set()
            return interrupted()

        asked = self.ask(noticed)
        assert waits.wait(PATIENCE_S)
        return asked

    def until(self, number: int) -> None:
        """Wait until so many logins have begun."""
        deadline = time.monotonic() + PATIENCE_S
        while len(self.begun) < number:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def logins() -> Iterator[Any]:
    made = Logins()
    with made.threads:
        yield made


def failure_of(asked: Future[str | None]) -> BaseException | None:
    return asked.exception(PATIENCE_S)


def test_all_who_wait_for_a_login_learn_how_it_failed(logins: Logins) -> None:
    first = logins.ask()
    logins.until(1)
    others = [logins.wait_for_another() for _ in range(4)]
    failed = Unavailable("log in: gone")
    logins.begun[0].set_exception(failed)
    assert [failure_of(asked) for asked in [first, *others]] == [failed] * 5
    assert len(logins.begun) == 1


def test_the_next_request_after_a_failed_login_tries_again(logins: Logins) -> None:
    first = logins.ask()
    logins.until(1)
    logins.begun[0].set_exception(Unavailable("log in: gone"))
    assert isinstance(failure_of(first), EtcdError)
    second = logins.ask()
    logins.until(2)
    logins.begun[1].set_result("token")
    assert second.result(PATIENCE_S) == "token"


def test_who_waits_for_the_login_of_another_keeps_its_own_deadline(logins: Logins) -> None:
    first = logins.ask()
    logins.until(1)
    with pytest.raises(TimedOut, match="log in"):
        logins.credentials.header(time.monotonic() + 0.02, never)
    logins.begun[0].set_result("token")
    assert first.result(PATIENCE_S) == "token"


def test_who_waits_for_the_login_of_another_may_lose_interest(logins: Logins) -> None:
    first = logins.ask()
    logins.until(1)
    assert isinstance(failure_of(logins.wait_for_another(lambda: True)), Interrupted)
    logins.begun[0].set_result("token")
    assert first.result(PATIENCE_S) == "token"


def test_a_login_whose_thread_loses_interest_is_begun_anew_by_one_that_waits(logins: Logins) -> None:
    first = logins.ask()
    logins.until(1)
    others = [logins.wait_for_another() for _ in range(2)]
    logins.begun[0].set_exception(Interrupted())
    assert isinstance(failure_of(first), Interrupted)
    logins.until(2)
    logins.begun[1].set_result("token")
    assert [asked.result(PATIENCE_S) for asked in others] == ["token"] * 2
    assert len(logins.begun) == 2


def test_a_child_does_not_wait_for_the_login_of_a_thread_that_stayed_with_the_parent(logins: Logins) -> None:
    first = logins.ask()
    logins.until(1)
    logins.credentials.after_fork()
    second = logins.ask()
    logins.until(2)
    for outcome in logins.begun:
        outcome.set_result("token")
    assert [asked.result(PATIENCE_S) for asked in (first, second)] == ["token"] * 2
