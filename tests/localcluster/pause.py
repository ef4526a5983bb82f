"""The program that holds a sandbox open, and the image of it that containerd starts pods with."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.localcluster import binaries
from tests.localcluster.configuration import PAUSE_IMAGE
from tests.localcluster.errors import ClusterError

_SOURCE = binaries.SOURCES / "pause" / "pause.c"


def program() -> Path:
    """Return the compiled program; it takes a blink to compile."""
    folder = binaries.cache_root() / f"pause-{binaries.content_hash([_SOURCE])}"
    target = folder / "pause"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        output = Path(temporary) / "pause"
        done = subprocess.run(
            ["gcc", "-Os", "-static", "-s", "-o", str(output), str(_SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"compiling {_SOURCE.name} failed:\n{done.stderr}")
        output.rename(target)
    return target


def image() -> Path:
    """Return a docker-archive of the program alone."""
    binary = program()
    target = binary.with_name("pause.tar")
    if not target.exists():
        temporary = target.with_suffix(".new")
        configuration: dict[str, object] = {"Entrypoint": ["/pause"], "User": "65535:65535"}
        temporary.write_bytes(archive(PAUSE_IMAGE, {"pause": (binary.read_bytes(), 0o755)}, configuration))
        temporary.rename(target)
    return target


def archive(reference: str, files: dict[str, tuple[bytes, int]], configuration: dict[str, object]) -> bytes:
    """Return a docker-archive of one layer: files with their modes, and what the image runs."""
    layer = _tar(files)
    document = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": configuration,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    name = f"{hashlib.sha256(document).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).encode()
    return _tar({"layer.tar": (layer, 0o644), name: (document, 0o644), "manifest.json": (manifest, 0o644)})


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
