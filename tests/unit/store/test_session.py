"""One login for many calls, one of which may be cancelled."""

import asyncio
import time
from typing import Any

import pytest

from ebbtide.etcd.endpoints import Endpoint
from ebbtide.etcd.errors import TimedOut, Unavailable
from ebbtide_operator.store.session import Session

PATIENCE_S = 20.0


class Logins:
    """Logins that go on until the test says how they end."""

    def __init__(self, *urls: str) -> None:
        self.begun: list[tuple[str, float, asyncio.Future[str]]] = []
        self._news = asyncio.Event()
        self.session = Session(
            urls or ["http://a:1"], username="u", password=lambda: "p", timeout_s=PATIENCE_S, log_in=self._log_in
        )

    async def _log_in(self, endpoint: Endpoint, limit_s: float) -> str:
        outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.begun.append((endpoint.url, limit_s, outcome))
        self._news.set()
        return await outcome

    async def ask(self, limit_s: float = PATIENCE_S) -> Any:
        """Ask for the token in a task, and return once that waits."""
        asked = asyncio.create_task(self.session.authorization(time.monotonic() + limit_s))
        for _ in range(3):
            await asyncio.sleep(0)
        return asked

    async def until(self, number: int) -> None:
        """Wait until so many logins have begun."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.begun) < number:
                self._news.clear()
                await self._news.wait()

    def end(self, outcome: str | Exception) -> None:
        """End the login that was begun last."""
        *_, future = self.begun[-1]
        if isinstance(outcome, str):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)


async def test_all_who_wait_for_a_login_learn_how_it_failed() -> None:
    logins = Logins()
    asked = [await logins.ask() for _ in range(12)]
    failed = Unavailable("log in: gone")
    logins.end(failed)
    assert await asyncio.gather(*asked, return_exceptions=True) == [failed] * 12
    assert len(logins.begun) == 1


async def test_all_who_wait_for_a_login_get_its_token() -> None:
    logins = Logins()
    asked = [await logins.ask() for _ in range(12)]
    logins.end("token")
    assert await asyncio.gather(*asked) == ["token"] * 12
    assert len(logins.begun) == 1


async def test_who_waits_for_the_login_of_another_keeps_its_own_deadline() -> None:
    logins = Logins()
    first = await logins.ask()
    with pytest.raises(TimedOut, match="log in"):
        await (await logins.ask(0.02))
    logins.end("token")
    assert await first == "token"


async def test_a_login_whose_call_is_cancelled_is_begun_anew_by_one_that_waits() -> None:
    logins = Logins()
    first, second, third = [await logins.ask() for _ in range(3)]
    first.cancel()
    await logins.until(2)
    logins.end("token")
    assert await asyncio.gather(second, third) == ["token"] * 2
    assert len(logins.begun) == 2


async def test_a_login_leaves_time_for_the_endpoints_that_were_not_tried() -> None:
    logins = Logins("http://a:1", "http://b:1")
    asked = await logins.ask(8.0)
    logins.end(Unavailable("gone"))
    await logins.until(2)
    logins.end("token")
    assert await asked == "token"
    (first, first_s, _), (second, second_s, _) = logins.begun
    assert {first, second} == {"http://a:1", "http://b:1"}
    assert first_s <= 4 < second_s <= 8
