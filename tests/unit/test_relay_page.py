"""docs/relay.md promises a test for each attack: they exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(test_\w+)`", (ROOT / "docs/relay.md").read_text())
TESTS = "".join(
    file.read_text()
    for folder in ("unit/etcd", "unit/operator", "contract")
    for file in (ROOT / "tests" / folder).glob("test_*.py")
)


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_page_names_exists(name: str) -> None:
    assert f"def {name}(" in TESTS


def test_every_attack_has_a_test() -> None:
    section = (ROOT / "docs/relay.md").read_text().partition("## Attacks")[2].partition("## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 15
    assert all("`test_" in row.split(" | ")[-1] for row in rows)
