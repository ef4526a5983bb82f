from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.localcluster import binaries, go
from tests.localcluster.binaries import Module
from tests.localcluster.errors import ClusterError


def _file(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_the_key_changes_with_content_name_and_flags(tmp_path: Path) -> None:
    one, two = _file(tmp_path, "main.go", "package main"), _file(tmp_path, "go.sum", "")
    known = binaries.content_hash([one, two], "-s")
    assert binaries.content_hash([two, one], "-s") == known
    others = {binaries.content_hash([one, two], "-w"), binaries.content_hash([one], "-s")}
    renamed = tmp_path / "other.go"
    renamed.write_text("package main")
    others.add(binaries.content_hash([renamed, two], "-s"))
    one.write_text("package main // changed")
    others.add(binaries.content_hash([one, two], "-s"))
    assert len(others | {known}) == 5


@given(st.text(), st.text(), st.text())
def test_the_border_between_parameters_counts(left: str, middle: str, right: str) -> None:
    if middle:
        assert binaries.content_hash([], left + middle, right) != binaries.content_hash([], left, middle + right)


def test_every_program_has_a_pinned_module() -> None:
    for module in (*binaries.MODULES, binaries.KIND):
        assert (module.source / "go.sum").stat().st_size > 0
        assert go.required((module.source / "go.mod").read_text()) >= "1.26"


def test_an_unknown_program_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="kubectl"):
        binaries.path("kubeadm")


GO = """#!/bin/sh
echo "$*" >> {log}
if [ "$1" = env ]; then echo go{version}; exit; fi
while [ "$1" != -o ]; do shift; done
echo "built $3" > "$2"
exit {status}
"""


class Compiler:
    """A `go` on PATH that writes down how it was called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._log = folder, folder / "log"
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def install(self, version: str = "1.26.8", status: int = 0) -> None:
        program = _file(self._folder, "go", GO.format(log=self._log, version=version, status=status))
        program.chmod(0o755)

    def builds(self) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if line.startswith("build")]


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(binaries, "SOURCES", tmp_path / "src")
    source = tmp_path / "src" / "tool"
    source.mkdir(parents=True)
    _file(source, "go.mod", "module tool\n\ngo 1.26.0\n")
    return Compiler(folder, monkeypatch)


def _module() -> Module:
    return Module("tool", {"tool": "example.org/tool"}, cold_s=1, links=("alias",))


def test_compiles_once_and_then_takes_what_is_there(compiler: Compiler) -> None:
    compiler.install()
    folder = binaries.folder(_module())
    assert (folder / "tool").read_text() == "built example.org/tool\n"
    assert (folder / "alias").resolve() == folder / "tool"
    assert binaries.folder(_module()) == folder
    assert len(compiler.builds()) == 1


def test_compiles_anew_when_a_source_changes(compiler: Compiler) -> None:
    compiler.install()
    module = _module()
    before = binaries.folder(module)
    _file(module.source, "main.go", "package main")
    assert binaries.folder(_module()) != before
    assert len(compiler.builds()) == 2


def test_a_failed_compilation_leaves_nothing_behind(compiler: Compiler, tmp_path: Path) -> None:
    compiler.install(status=1)
    with pytest.raises(ClusterError, match="compiling tool failed"):
        binaries.folder(_module())
    assert [entry.name for entry in binaries.cache_root().iterdir()] == [".lock"]
