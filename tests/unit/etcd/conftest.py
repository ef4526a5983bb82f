from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.etcd.fake_etcd import Fake


@pytest.fixture
def fake() -> Iterator[Any]:
    server = Fake()
    yield server
    server.close()


@pytest.fixture
def other() -> Iterator[Any]:
    server = Fake()
    yield server
    server.close()
