"""Everything generated in the chart is up to date, and `make generate` says what it wrote."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from charts import generate


def test_nothing_is_out_of_date() -> None:
    assert [path.name for path, text in generate.outputs().items() if path.read_text() != text] == []


def test_check_fails_on_a_stale_file_and_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "a.json"
    stale.write_text("old")
    monkeypatch.setattr(generate, "outputs", lambda: {stale: "new"})
    monkeypatch.setattr(generate, "REPOSITORY", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate", "--check"])
    assert generate.main() == 1
    assert stale.read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["generate"])
    assert generate.main() == 0
    assert stale.read_text() == "new"
    assert capsys.readouterr().out == "out of date: a.json\nwritten: a.json\n"
