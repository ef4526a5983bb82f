"""`tools/bootstrap` in small clones: how it chooses a Python, and when it makes `.venv` anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable).resolve()
VENV = """
import os, pathlib, sys
if __name__ == "__main__":
    base, folder = pathlib.Path(sys._base_executable).resolve(), pathlib.Path(sys.argv[1])
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(base)
    (folder / "bin" / "python").symlink_to("python3")
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}")
    (folder / "made").write_text(os.getcwd())
"""
TOOLS = ("bash", "cat", "cut", "dirname", "env", "id", "rm", "sha256sum")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What bootstrap reads, and modules in place of pip's and venv's work: `python -m` looks here first."""
    root = tmp_path / "clone"
    (root / "tools").mkdir(parents=True)
    shutil.copy2(ROOT / "tools" / "bootstrap", root / "tools")
    for name in ("requirements-dev.lock", "pyproject.toml"):
        (root / name).touch()
    (root / "pip.py").touch()
    (root / "venv.py").write_text(VENV)
    return root


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """All that is on PATH, without any Python."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def bootstrap(clone: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [str(clone / "tools" / "bootstrap")], env=environment, capture_output=True, text=True, check=False
    )


def made_in(clone: Path) -> Path:
    return Path((clone / ".venv" / "made").read_text())


@pytest.mark.parametrize("name", ["python3.11", "python3.14", "python3", "python"])
def test_any_one_python_will_do(clone: Path, programs: Path, name: str) -> None:
    (programs / name).symlink_to(PYTHON)
    done = bootstrap(clone, programs)
    assert done.returncode == 0, done.stderr
    assert made_in(clone) == clone


def test_without_a_python_it_says_what_it_needs(clone: Path, programs: Path) -> None:
    done = bootstrap(clone, programs)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr


def test_it_does_nothing_where_all_is_there(clone: Path, programs: Path) -> None:
    (programs / "python3").symlink_to(PYTHON)
    bootstrap(clone, programs)
    (clone / ".venv" / "made").write_text("/mine")
    assert bootstrap(clone, programs).returncode == 0
    assert made_in(clone) == Path("/mine")


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
def test_a_clone_elsewhere_gets_an_environment_of_its_own(clone: Path, programs: Path, moved: bool) -> None:
    (programs / "python3").symlink_to(PYTHON)
    bootstrap(clone, programs)
    other = clone.with_name("other")
    if moved:
        clone.rename(other)
    else:
        shutil.copytree(clone, other, symlinks=True)
    assert bootstrap(other, programs).returncode == 0
    assert made_in(other) == other


def test_an_active_environment_is_made_anew_with_the_python_it_was_made_from(clone: Path, programs: Path) -> None:
    (programs / "python3").symlink_to(PYTHON)
    bootstrap(clone, programs)
    (clone / "requirements-dev.lock").write_text("# another")
    done = bootstrap(clone, clone / ".venv" / "bin", programs)
    assert done.returncode == 0, done.stderr
    assert bootstrap(clone, programs).stdout == ""
