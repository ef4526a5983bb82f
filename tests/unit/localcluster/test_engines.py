from pathlib import Path

import pytest

from tests.localcluster.errors import ClusterError
from tests.localcluster.images.engines import Docker

REFERENCE = "registry.example/etcd:v1"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client of an engine that has what is in `images`, and pulls what is in `registry`."""
    (tmp_path / "images").mkdir()
    (tmp_path / "registry").mkdir()
    (tmp_path / "docker").write_text(
        f"""#!/bin/sh
        set -eu
        cd {tmp_path}
        for last; do :; done
        name=$(echo "$last" | tr / _)
        case "$1 $2" in
            "image inspect") test -e images/$name ;;
            "pull --quiet") echo pulled >> log; mv registry/$name images/ ;;
            "save --output") cp images/$name "$3" ;;
        esac
        """
    )
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_a_published_image_is_pulled_once(docker: Path, tmp_path: Path) -> None:
    (docker / "registry" / "registry.example_etcd:v1").write_text("content")
    for archive in (tmp_path / "one.tar", tmp_path / "two.tar"):
        Docker().pull(REFERENCE, archive)
        assert archive.read_text() == "content"
    assert (docker / "log").read_text() == "pulled\n"


def test_an_image_that_the_engine_was_given_needs_no_registry(docker: Path, tmp_path: Path) -> None:
    (docker / "images" / "registry.example_etcd:v1").write_text("content")
    Docker().pull(REFERENCE, tmp_path / "image.tar")
    assert (tmp_path / "image.tar").read_text() == "content"


@pytest.mark.usefixtures("docker")
def test_an_image_that_cannot_be_had_is_an_error_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"docker pull --quiet {REFERENCE} failed"):
        Docker().pull(REFERENCE, tmp_path / "image.tar")
