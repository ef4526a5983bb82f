"""How images are built, by an engine that only looks."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.localcluster import archives, images
from tests.localcluster.errors import ClusterError
from tests.localcluster.images import __main__ as command
from tests.localcluster.images import engines
from tests.localcluster.images.cache import archive_of
from tests.localcluster.images.catalog import Published
from tests.localcluster.images.commands import run
from tests.localcluster.images.sources import ROOT


class Looking:
    """Notes down the modes in the build context; its registry has one image, with two programs."""

    def __init__(self, *, pulls: bool = False) -> None:
        self.modes: dict[str, int] = {}
        self.pulls = pulls

    def key(self, dockerfile: str) -> str:
        return dockerfile

    def setup_s(self) -> int:
        return 0

    def prepare(self, dockerfile: Path) -> None:
        """Nothing is needed."""

    def build(self, dockerfile: Path, context: Path, reference: str, archive: Path) -> None:
        self.modes = {
            str(path.relative_to(context)): path.stat().st_mode & 0o7777 for path in (context, *context.rglob("*"))
        }
        archive.write_text(reference)

    def pull(self, reference: str, archive: Path) -> None:
        files = {f"bin/{name}": (f"#!/bin/sh\necho {name}".encode(), 0o755) for name in ("prometheus", "promtool")}
        archive.write_bytes(archives.render(reference, files, {}))


@pytest.fixture
def strict() -> Iterator[None]:
    """A umask that keeps everything from everybody else."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "ebbtide" / "images").mkdir(parents=True)


@pytest.mark.usefixtures("cache", "strict")
def test_an_image_is_for_all_users_where_the_umask_is_for_none() -> None:
    def fill(context: Path) -> None:
        folder = context / "root" / "bin"
        folder.mkdir(parents=True)
        (folder / "tool").touch(0o777)
        (folder / "tool.conf").touch()

    dockerfile = ROOT / "tests" / "localcluster" / "images" / "etcd.Dockerfile"
    engine = Looking()
    archive_of(Published("tool", "registry/tool:1", dockerfile, fill, lambda: "1", cold_s=1), engine)
    assert engine.modes == {
        ".": 0o755,
        "root": 0o755,
        "root/bin": 0o755,
        "root/bin/tool": 0o755,
        "root/bin/tool.conf": 0o644,
    }


@pytest.mark.usefixtures("strict")
def test_what_builds_images_makes_files_for_all_users(tmp_path: Path) -> None:
    run(["mkdir", str(tmp_path / "made")])
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


def test_the_example_runs_as_any_user_from_a_clone_that_only_its_owner_may_read(tmp_path: Path) -> None:
    """The Dockerfile's own line, on a folder with such modes."""
    app = tmp_path / "app"
    app.mkdir(0o700)
    (app / "orders").mkdir(0o700)
    (app / "orders" / "app.py").touch(0o600)
    dockerfile = (ROOT / "examples" / "orders" / "Dockerfile").read_text()
    _, copied, after = dockerfile.partition("COPY examples/orders/orders /app/orders\n")
    (line,) = re.findall(r"^RUN (chmod .*?) && ", after, re.MULTILINE)
    assert copied
    subprocess.run(["sh", "-c", line.replace("/app", str(app))], check=True)
    found = {str(path.relative_to(app)): path.stat().st_mode & 0o777 for path in (app, *app.rglob("*"))}
    assert found == {".": 0o755, "orders": 0o755, "orders/app.py": 0o644}


@pytest.mark.usefixtures("cache")
def test_the_alerts_are_tested_by_the_pulled_image_where_there_is_no_apt_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nothing")
    monkeypatch.setattr(engines, "present", lambda: Looking(pulls=True))
    for _ in range(2):
        program = images.prometheus_binaries()["promtool"]
        assert subprocess.run(["/bin/sh", str(program)], capture_output=True, check=True).stdout == b"promtool\n"


@pytest.mark.usefixtures("cache")
def test_without_apt_get_and_docker_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nothing")
    with pytest.raises(ClusterError, match="neither apt-get nor a Docker engine"):
        images.prometheus_binaries()


def test_the_names_of_images_are_told_without_an_engine_and_a_registry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nothing")
    assert command.main(["--list", "prometheus", "orders"]) == 0
    assert capsys.readouterr().out == "docker.io/prom/prometheus:v2.42.0\ndocker.io/ebbtide/orders:dev\n"
