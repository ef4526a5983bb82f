"""What the Dockerfiles copy: the locked wheels in build/wheelhouse, this project's own in build/dist."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from tests.localcluster.images.commands import run
from tests.localcluster.images.sources import ROOT, content_key
from tests.localcluster.progress import step

LOCKS = ("operator/requirements.lock", "examples/orders/requirements.lock")
CONTENTS = ("LICENSE", "README.md", "operator/src/ebbtide_operator", "sidecar/src/ebbtide")
"""What is in the project's wheel besides the metadata of pyproject.toml."""

_PYTHON = "3.11"
_GLIBC_MINOR = 36
"""Of the images' Debian; wheels for an older one run too."""
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


def prepare() -> None:
    """Fill build/wheelhouse, unless it is up to date, and build/dist.

    Raises:
        ClusterError: a wheel cannot be had, has another hash than the lock file says, or the project does not build.
    """
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    stamp = build / "wheelhouse.key"
    wanted = content_key([ROOT / lock for lock in LOCKS], *platform_options())
    if not (stamp.exists() and stamp.read_text() == wanted):
        with step("downloading the wheels of the lock files (about 7 s)"):
            stamp.unlink(missing_ok=True)
            _download(build / "wheelhouse")
            stamp.write_text(wanted)
    with step("building the project's wheel (about 3 s)"):
        _wheel(build / "dist")


def _download(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary) / "wheels"
        for number, lock in enumerate(LOCKS):
            requirements = Path(temporary) / f"{number}.txt"
            requirements.write_text("".join(wanted_entries((ROOT / lock).read_text())))
            run(
                [
                    *(*_PIP, "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
                    *platform_options(),
                    *("--requirement", str(requirements), "--dest", str(folder)),
                ]
            )
        _replace(target, folder)


def _wheel(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary) / "dist"
        run([*_PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)])
        _replace(target, folder)


def _replace(target: Path, new: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    new.rename(target)


def wanted_entries(lock: str) -> Iterator[str]:
    """Yield the entries of a lock file that the images' Python may need, hashes included and markers removed.

    `pip download --python-version` judges markers by the Python that runs pip: under 3.13 it would leave out what only
    3.11 needs.
    """
    for entry in re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE):
        declared, continued, rest = entry.partition(" \\\n")
        if not continued:
            continue
        requirement = Requirement(declared)
        marker = requirement.marker
        versions = (f"{_PYTHON}.0", f"{_PYTHON}.99")
        if marker is None or any(marker.evaluate(_environment(version)) for version in versions):
            requirement.marker = None
            yield f"{requirement} \\\n{rest}"


def _environment(full_version: str) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "implementation_version": full_version,
        "os_name": "posix",
        "platform_machine": platform.machine(),
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": full_version,
        "python_version": _PYTHON,
        "sys_platform": "linux",
    }


def platform_options() -> list[str]:
    """Return the options that make pip choose wheels for the images, whatever Python and C library run here."""
    machine = platform.machine()
    # The newest first: pip prefers what is named first.
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, 16, -1)]
    tags += [f"manylinux2014_{machine}"]
    chosen = [option for tag in tags for option in ("--platform", tag)]
    return ["--implementation", "cp", "--python-version", _PYTHON, *chosen]
