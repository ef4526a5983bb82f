from pathlib import Path
from typing import Any

import pytest

from tests import each_python
from tests.bench.pythons import Python

PYTHON = Python(Path("python3.12"), "3.12.1")


def test_a_copied_clone_does_not_test_the_original_by_its_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(_python: Python, _folder: Path, content: str, *_installs: Any, **_options: Any) -> bool:
        wanted.append(content)
        return True

    wanted: list[str] = []
    monkeypatch.setattr(each_python, "make_environment", made)
    for name in ("original", "copy", "original"):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        (root / "pyproject.toml").touch()
        monkeypatch.setattr(each_python, "ROOT", root)
        each_python.prepared(PYTHON)
    original, copy, again = wanted
    assert original == again != copy
