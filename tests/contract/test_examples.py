"""The examples of the library's pages run as they are printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs/library"
# The reference is made from docstrings, whose examples are parts of something.
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.name != "api.md")
EXAMPLES = [
    pytest.param(example, id=f"{page.stem}-{place}")
    for page in PAGES
    for place, example in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE), 1)
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # An example may crash a task to show what comes of it; it leaves nothing behind.
    assert "never" not in ran.stderr, ran.stderr


def test_every_page_has_an_example() -> None:
    assert PAGES
    for page in PAGES:
        assert "```python\n" in page.read_text(), page.name
