from collections.abc import Iterator

import pytest

from tests.contract.chart.api_server import ApiServer


@pytest.fixture(scope="session")
def api() -> Iterator[ApiServer]:
    """One API server for every test of the chart; a test takes away what it installs."""
    server = ApiServer()
    try:
        server.start()
        yield server
    finally:
        server.close()
