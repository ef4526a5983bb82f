"""A small image with a shell and a web server, for tests of the cluster itself."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.localcluster import archives, binaries, packages
from tests.localcluster.locks import exclusive

REFERENCE = "docker.io/ebbtide/busybox:test"
_APPLETS = ("cat", "echo", "httpd", "nc", "nslookup", "sh", "sleep", "touch")


def archive(reference: str = REFERENCE, entrypoint: str = "sh") -> Path:
    """Return the image archive, made of Debian's static busybox.

    Args:
        entrypoint: what the image runs; another one makes another image.
    """
    content = archives.render(
        reference,
        {"bin/busybox": (_program().read_bytes(), 0o755)},
        {"Entrypoint": [f"/bin/{entrypoint}"], "Env": ["PATH=/bin"]},
        {f"bin/{applet}": "busybox" for applet in _APPLETS},
    )
    target = _cache() / f"busybox-{entrypoint}.tar"
    temporary = target.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(target)
    return target


def _program() -> Path:
    program = _cache() / "busybox"
    with exclusive(_cache() / "busybox.lock", "another download of busybox"):
        if not program.exists():
            _download(program)
    return program


def _download(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        download = ["apt-get", "download", "--quiet", "busybox-static"]
        try:
            if subprocess.run(download, cwd=folder, capture_output=True, check=False).returncode:
                packages.refresh()
                subprocess.run(download, cwd=folder, capture_output=True, check=True)
            (package,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg", "-x", str(package), f"{folder}/out"], capture_output=True, check=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            pytest.skip(f"needs Debian's package busybox-static: {error}")
        Path(folder, "out", "bin", "busybox").rename(target)


def _cache() -> Path:
    folder = binaries.cache_root().with_name("busybox")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
