from collections.abc import Iterator

import pytest

from tests.contract.member import Member


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[Member]:
    """One etcd for every test that does not harm it; a test keeps to keys of its own."""
    member = Member("--watch-progress-notify-interval=1s")
    try:
        member.start()
        yield member
    finally:
        member.close()


@pytest.fixture
def etcd() -> Iterator[Member]:
    """An etcd of the test's own, to be killed and frozen."""
    member = Member("--watch-progress-notify-interval=1s")
    try:
        member.start()
        yield member
    finally:
        member.close()
