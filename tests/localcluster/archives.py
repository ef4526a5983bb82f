"""Image archives in the format of `docker save`: written for tiny images, read for their names and digests."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError


@dataclass(frozen=True)
class Image:
    """One image in an archive.

    Attributes:
        config_digest: `sha256:…` of its configuration; what Kubernetes calls the image's id.
        names: its full names with tags, registry included.
    """

    config_digest: str
    names: tuple[str, ...]


def render(
    reference: str,
    files: Mapping[str, tuple[bytes, int]],
    configuration: Mapping[str, object],
    links: Mapping[str, str] | None = None,
) -> bytes:
    """Return the archive of an image of one layer; the same content gives the same digest.

    Args:
        files: path in the image, without the leading slash, to content and mode.
        configuration: what the image runs: `Entrypoint`, `Cmd`, `Env`, `User`.
        links: path of a symbolic link to what it points at.
    """
    layer = _tar(files, links or {})
    document = json.dumps(
        {
            "architecture": architecture(),
            "os": "linux",
            "config": dict(configuration),
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    ).encode()
    name = f"{hashlib.sha256(document).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    return _tar({"layer.tar": (layer, 0o644), name: (document, 0o644), "manifest.json": (manifest, 0o644)}, {})


def read(archive: Path) -> list[Image]:
    """Return the images of an archive.

    Raises:
        ClusterError: it is missing, or not of the `docker save` format.
    """
    try:
        with tarfile.open(archive) as tar:
            manifest = json.loads(_content(tar, "manifest.json"))
            return [
                Image(_digest(_content(tar, entry["Config"])), tuple(map(full_name, entry["RepoTags"] or ())))
                for entry in manifest
            ]
    except FileNotFoundError as error:
        raise ClusterError(f"image archive {archive} does not exist") from error
    except (tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise ClusterError(
            f"{archive} is no image archive; write it with `docker save` or as docker-archive: {error}"
        ) from error


def extract(archive: Path, paths: Iterable[str], folder: Path) -> None:
    """Write programs of the first image of an archive to a folder, by their own names.

    Args:
        paths: in the image, without the leading slash.

    Raises:
        ClusterError: the archive cannot be read, or the image lacks one of them.
    """
    missing = set(paths)
    try:
        with tarfile.open(archive) as tar:
            layers = json.loads(_content(tar, "manifest.json"))[0]["Layers"]
            # A path of a later layer hides that of an earlier one.
            for name in reversed(layers):
                with tarfile.open(fileobj=tar.extractfile(name)) as layer:
                    for path in missing & set(layer.getnames()):
                        program = folder / Path(path).name
                        program.write_bytes(_content(layer, path))
                        program.chmod(0o755)
                        missing.remove(path)
    except (OSError, tarfile.TarError, LookupError, TypeError, ValueError) as error:
        raise ClusterError(f"{archive} cannot be read as an image archive: {error}") from error
    if missing:
        raise ClusterError(f"{archive}: the image lacks {', '.join(sorted(missing))}")


def architecture() -> str:
    """Return this machine's architecture as images and Go call it, for example `amd64`."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def is_present(image: Image, listing: str) -> bool:
    """Tell whether a node has an image, from what `ctr images list` prints there.

    The runtime lists an image by its names and by the digest of its configuration: all must lead to the same target,
    or a name is still another build's.
    """
    targets = {fields[0]: fields[2] for line in listing.splitlines()[1:] if len(fields := line.split()) > 2}
    target = targets.get(image.config_digest)
    return target is not None and all(targets.get(name) == target for name in image.names)


def full_name(name: str) -> str:
    """Write an image name out with registry, repository and tag, as the container runtime stores it.

    >>> full_name("busybox")
    'docker.io/library/busybox:latest'
    """
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif first != "localhost" and not {".", ":"} & set(first):
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _tar(files: Mapping[str, tuple[bytes, int]], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        for path, destination in links.items():
            link = tarfile.TarInfo(path)
            link.type, link.linkname = tarfile.SYMTYPE, destination
            tar.addfile(link)
    return buffer.getvalue()


def _content(tar: tarfile.TarFile, path: str) -> bytes:
    file = tar.extractfile(path)
    if file is None:
        raise KeyError(path)
    return file.read()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
