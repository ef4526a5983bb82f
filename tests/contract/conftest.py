from collections.abc import Iterator

import pytest

from tests.contract.counting import HEAD
from tests.contract.member import Member

HISTORY_HEAD = (
    "| adapter | fault | histories | answered | without an answer | in order |",
    "| --- | --- | ---: | ---: | ---: | ---: |",
)


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the suites counted: faults, histories, a stale leader's writes, what servers did with a drain."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    for name, head in (("fault", HEAD), ("history", HISTORY_HEAD), ("fencing", ()), ("servers", ())):
        rows = [row for report in reports for key, row in report.user_properties if key == name]
        if rows:
            terminalreporter.section(name)
            terminalreporter.write_line("\n".join([*head, *rows]))
