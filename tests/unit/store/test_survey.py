"""Which versions of etcd are bad, and that the operator says so once and runs all the same."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide_operator.ports import StoreStatus
from ebbtide_operator.store.memory import MemoryStore
from ebbtide_operator.store.survey import Survey
from ebbtide_operator.store.versions import fault_of


@pytest.mark.parametrize(
    "version", ["3.5.30", "3.5.31", "3.6.11", "3.6.16", "3.7.0", "4.0.0", "3.7.0-rc.1", "3.6.12-a"]
)
def test_a_version_with_the_fixes_is_fine(version: str) -> None:
    assert fault_of(version) == ""


@pytest.mark.parametrize(
    "version", ["3.5.29", "3.6.10", "3.6.0", "3.4.44", "2.3.8", "3.5.30-rc.0", "3.6.11-alpha", "3.5.3+git"]
)
def test_a_version_without_the_fixes_is_bad(version: str) -> None:
    assert fault_of(version)


def test_what_to_take_instead_is_of_the_same_line() -> None:
    assert "3.5.30" in fault_of("3.5.2")
    assert "3.6.11" in fault_of("3.6.2")


@given(st.text() | st.from_regex(r"\A[0-9]{0,9}(\.[0-9]{0,9}){0,4}[-+a-z]?\Z"))
def test_any_text_is_judged(version: str) -> None:
    assert isinstance(fault_of(version), str)


@pytest.mark.parametrize("version", ["", "latest", "3.5", "v3.5.1", "not a version"])
def test_what_is_no_version_is_not_judged(version: str) -> None:
    assert fault_of(version) == ""


class Aged(MemoryStore):
    version = "3.5.12"

    async def status(self) -> StoreStatus:
        return StoreStatus(self.version, (await super().status()).file)


async def test_a_bad_version_is_logged_once_and_shown_each_time(caplog: pytest.LogCaptureFixture) -> None:
    store, shown = Aged(), []
    survey = Survey(store, lambda status, fault: shown.append((status.version, bool(fault))))
    with caplog.at_level(logging.WARNING):
        for version in ("3.5.12", "3.5.12", "3.6.16", "3.5.12", "3.6.2"):
            store.version = version
            assert await survey.look()
    warned: list[Any] = [vars(record)["version"] for record in caplog.records]
    assert warned == ["3.5.12", "3.6.2"]
    assert shown == [("3.5.12", True), ("3.5.12", True), ("3.6.16", False), ("3.5.12", True), ("3.6.2", True)]


async def test_a_store_that_is_away_is_asked_again() -> None:
    store = MemoryStore()
    store.available = False
    survey = Survey(store, lambda status, fault: None)
    assert not await survey.look()
    store.available = True
    assert await survey.look()
