from pathlib import Path

import pytest

from tests.localcluster.errors import ClusterError
from tests.localcluster.images.engines import Docker

REFERENCE = "registry.example/etcd"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client of an engine that has what is in `images`, and pulls what is in `registry`."""
    for folder in ("images/registry.example", "registry/registry.example"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "api").write_text("1.41")
    (tmp_path / "docker").write_text(
        f"""#!/bin/sh
        set -eu
        cd {tmp_path}
        case "$*" in
            "version --format {{{{.Client.APIVersion}}}}") cat api ;;
            "image inspect --format {{{{.Os}}}}/{{{{.Architecture}}}} {REFERENCE}") echo linux/riscv64 ;;
            "image inspect {REFERENCE}") test -e images/{REFERENCE} ;;
            "pull --quiet {REFERENCE}") echo pulled >> log; mv registry/{REFERENCE} images/{REFERENCE} ;;
            "save --output "*" {REFERENCE}") cp images/{REFERENCE} "$3" ;;
            "save --platform linux/riscv64 --output "*" {REFERENCE}") sed s/all/one/ images/{REFERENCE} > "$5" ;;
            *) exit 2 ;;
        esac
        """
    )
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_a_published_image_is_pulled_once(docker: Path, tmp_path: Path) -> None:
    (docker / "registry" / REFERENCE).write_text("content")
    for archive in (tmp_path / "one.tar", tmp_path / "two.tar"):
        Docker().pull(REFERENCE, archive)
        assert archive.read_text() == "content"
    assert (docker / "log").read_text() == "pulled\n"


def test_an_image_that_the_engine_was_given_needs_no_registry(docker: Path, tmp_path: Path) -> None:
    (docker / "images" / REFERENCE).write_text("content")
    Docker().pull(REFERENCE, tmp_path / "image.tar")
    assert (tmp_path / "image.tar").read_text() == "content"


@pytest.mark.parametrize(("api", "saved"), [("1.41", "all"), ("1.47", "all"), ("1.48", "one"), ("1.52\n", "one")])
def test_one_platform_is_saved_where_the_engine_can(docker: Path, tmp_path: Path, api: str, saved: str) -> None:
    (docker / "api").write_text(api)
    (docker / "images" / REFERENCE).write_text("all")
    Docker().pull(REFERENCE, tmp_path / "image.tar")
    assert (tmp_path / "image.tar").read_text() == saved


@pytest.mark.usefixtures("docker")
def test_an_image_that_cannot_be_had_is_an_error_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"docker pull --quiet {REFERENCE} failed"):
        Docker().pull(REFERENCE, tmp_path / "image.tar")
