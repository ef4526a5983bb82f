from collections.abc import AsyncIterator
from typing import Any

import pytest

from ebbtide_operator.store.memory import MemoryStore
from tests.unit.store.stand import Clock, running


@pytest.fixture
def clock() -> Any:
    return Clock()


@pytest.fixture
def store() -> Any:
    return MemoryStore()


@pytest.fixture
async def state(store: Any, clock: Clock) -> AsyncIterator[Any]:
    async with running(store, clock) as running_state:
        yield running_state
