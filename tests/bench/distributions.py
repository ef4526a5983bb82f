"""Pythons as Debian and Ubuntu build them: optimized by profile and at link time, which a plain `pyenv install` is not.

Their packages are fetched by debootstrap into the cache and unpacked beside this system, not installed: the interpreter
is started by its own dynamic loader, with its own libraries. Nothing is run as another user or in another root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "bench-distributions"
PATIENCE_S = 300.0
NEEDED = (
    *("python3", "libpython3", "libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi", "libssl"),
    *("libsqlite3", "libbz2", "liblzma", "libzstd", "libcrypt1", "libuuid1", "base-files"),
)
"""How the names of the packages begin that an interpreter needs, and what tells that /lib is /usr/lib."""

_WRAPPER = """#!/bin/sh
exec '{root}/lib64/ld-linux-x86-64.so.2' --argv0 "$0" --library-path '{root}/usr/lib/x86_64-linux-gnu' '{python}' "$@"
"""


@dataclass(frozen=True, slots=True)
class Release:
    """One release of a distribution.

    Attributes:
        name: As its archive has it.
        minor: Version of its Python.
        archive: Where its packages are.
        components: Of the archive.
        script: Of debootstrap; newer releases than it knows are made like this one.
    """

    name: str
    minor: tuple[int, int]
    archive: str
    components: str
    script: str


_UBUNTU, _DEBIAN = "http://archive.ubuntu.com/ubuntu", "http://deb.debian.org/debian"
RELEASES = (
    Release("noble", (3, 12), _UBUNTU, "main,universe", "gutsy"),
    Release("trixie", (3, 13), _DEBIAN, "main", "sid"),
    Release("resolute", (3, 14), _UBUNTU, "main,universe", "gutsy"),
)
"""Ubuntu 24.04, Debian 13, Ubuntu 26.04."""


NEWEST = RELEASES[-1]


def distributed(releases: Sequence[Release] = RELEASES) -> list[Path]:
    """Return their interpreters; those that are not in the cache are fetched, and what fails is told and left out."""
    return [python for release in releases if (python := _python_of(release)) is not None]


def _python_of(release: Release) -> Path | None:
    root = CACHE / release.name
    program = root / "usr" / "bin" / "bench-python"
    if not program.exists():
        try:
            _unpack(release, root)
            python = next(path for path in sorted((root / "usr/bin").glob("python3.*")) if path.suffix[1:].isdecimal())
            program.write_text(_WRAPPER.format(root=root, python=python))
            program.chmod(0o755)
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            sys.stderr.write(f"no Python of {release.name}: {getattr(error, 'stderr', None) or error!r}\n")
            shutil.rmtree(root, ignore_errors=True)
            return None
    return program


def _unpack(release: Release, root: Path) -> None:
    debootstrap, scripts = _debootstrap()
    fetched = CACHE / f"{release.name}-packages"
    # No signature is asked for: this system need not have the keys of another, and nothing of it is installed.
    options = ("--download-only", "--variant=minbase", "--no-check-gpg", "--include=python3")
    _run(
        str(debootstrap),
        *options,
        f"--components={release.components}",
        *(release.name, str(fetched), release.archive, str(scripts / release.script)),
    )
    for package in sorted((fetched / "var/cache/apt/archives").glob("*.deb")):
        if package.name.startswith(NEEDED):
            _run("dpkg-deb", "-x", str(package), str(root))
    shutil.rmtree(fetched)


def _debootstrap() -> tuple[Path, Path]:
    """Return the program and the folder of its scripts; fetched and unpacked where it is not installed."""
    if (installed := shutil.which("debootstrap")) is not None:
        return Path(installed), Path("/usr/share/debootstrap/scripts")
    own = CACHE / "debootstrap"
    if not own.exists():
        own.mkdir(parents=True)
        _run("apt-get", "download", "debootstrap", folder=own)
        _run("dpkg-deb", "-x", str(next(own.glob("*.deb"))), str(own))
    os.environ["DEBOOTSTRAP_DIR"] = str(own / "usr/share/debootstrap")
    return own / "usr/sbin/debootstrap", own / "usr/share/debootstrap/scripts"


def _run(*command: str, folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=PATIENCE_S)
