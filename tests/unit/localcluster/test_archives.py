import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.localcluster import archives
from tests.localcluster.archives import Image
from tests.localcluster.errors import ClusterError

FILES = {"bin/tool": (b"\x7fELF", 0o755), "etc/tool.conf": (b"a = 1\n", 0o644)}


def _written(folder: Path, content: bytes) -> Path:
    archive = folder / "image.tar"
    archive.write_bytes(content)
    return archive


def test_an_archive_is_read_as_it_was_rendered(tmp_path: Path) -> None:
    content = archives.render("local/tool:1", FILES, {"Entrypoint": ["/bin/tool"]}, {"bin/alias": "tool"})
    (image,) = archives.read(_written(tmp_path, content))
    assert image.names == ("docker.io/local/tool:1",)
    with tarfile.open(fileobj=io.BytesIO(content)) as outer:
        layer = outer.extractfile("layer.tar")
        assert layer is not None
        with tarfile.open(fileobj=layer) as inner:
            assert inner.getmember("bin/tool").mode == 0o755
            assert inner.getmember("bin/alias").linkname == "tool"


def test_the_same_content_gives_the_same_digest_and_other_content_another(tmp_path: Path) -> None:
    def digest(files: dict[str, tuple[bytes, int]]) -> str:
        return archives.read(_written(tmp_path, archives.render("a", files, {})))[0].config_digest

    assert digest(FILES) == digest(dict(FILES))
    assert digest(FILES) != digest(FILES | {"bin/tool": (b"other", 0o755)})


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1"),
        ("local/tool:1", "docker.io/local/tool:1"),
        ("quay.io/coreos/etcd:v3.6.16", "quay.io/coreos/etcd:v3.6.16"),
        ("localhost/tool", "localhost/tool:latest"),
        ("registry:5000/tool", "registry:5000/tool:latest"),
        ("registry:5000/a/b:2", "registry:5000/a/b:2"),
    ],
)
def test_writes_names_out_as_the_runtime_stores_them(short: str, full: str) -> None:
    assert archives.full_name(short) == full


@given(st.from_regex(r"[a-z]+(/[a-z]+){0,2}(:[a-z0-9]+)?", fullmatch=True))
def test_a_full_name_stays_as_it_is(name: str) -> None:
    full = archives.full_name(name)
    assert archives.full_name(full) == full


LISTING = """\
REF                       TYPE                                       DIGEST        SIZE    PLATFORMS   LABELS
docker.io/local/tool:1    application/vnd.oci.image.manifest.v1+json sha256:target 1.9 MiB linux/amd64 -
docker.io/local/tool:2    application/vnd.oci.image.manifest.v1+json sha256:other  1.9 MiB linux/amd64 -
sha256:config             application/vnd.oci.image.manifest.v1+json sha256:target 1.9 MiB linux/amd64 -
"""


@pytest.mark.parametrize(
    ("digest", "names", "present"),
    [
        ("sha256:config", ("docker.io/local/tool:1",), True),
        ("sha256:changed", ("docker.io/local/tool:1",), False),
        ("sha256:config", ("docker.io/local/tool:2",), False),
        ("sha256:config", ("docker.io/local/tool:1", "docker.io/local/tool:3"), False),
    ],
    ids=["same", "built anew", "name is another build's", "a name is missing"],
)
def test_an_image_is_present_where_digest_and_all_names_lead_to_one_target(
    digest: str, names: tuple[str, ...], present: bool
) -> None:
    assert archives.is_present(Image(digest, names), LISTING) is present


def test_says_so_when_a_file_is_no_image_archive(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="does not exist"):
        archives.read(tmp_path / "none.tar")
    with pytest.raises(ClusterError, match="docker save"):
        archives.read(_written(tmp_path, b"hello"))
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    with pytest.raises(ClusterError, match="docker save"):
        archives.read(_written(tmp_path, empty.getvalue()))


def test_programs_are_taken_out_of_an_image(tmp_path: Path) -> None:
    archive = _written(tmp_path, archives.render("a", FILES, {}))
    archives.extract(archive, ["bin/tool"], tmp_path)
    assert (tmp_path / "tool").read_bytes() == FILES["bin/tool"][0]
    assert (tmp_path / "tool").stat().st_mode & 0o777 == 0o755
    with pytest.raises(ClusterError, match=r"image\.tar: the image lacks bin/none"):
        archives.extract(archive, ["bin/none"], tmp_path)
    with pytest.raises(ClusterError, match="cannot be read"):
        archives.extract(_written(tmp_path, b"hello"), ["bin/tool"], tmp_path)


def test_of_two_layers_the_later_one_counts(tmp_path: Path) -> None:
    def layer(content: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(archives.render("a", {"bin/tool": (content, 0o755)}, {}))) as tar:
            file = tar.extractfile("layer.tar")
            assert file is not None
            return file.read()

    # Docker's newer stores keep layers compressed.
    contents = {"one": layer(b"old"), "two": gzip.compress(layer(b"new"))}
    contents["manifest.json"] = json.dumps([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["one", "two"]}]).encode()
    with tarfile.open(tmp_path / "image.tar", "w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    archives.extract(tmp_path / "image.tar", ["bin/tool"], tmp_path)
    assert (tmp_path / "tool").read_bytes() == b"new"
