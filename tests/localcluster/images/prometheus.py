"""Prometheus from Debian's package, which is unpacked and not installed, or from the published image."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.localcluster import archives
from tests.localcluster.errors import ClusterError
from tests.localcluster.images.commands import run
from tests.localcluster.images.sources import cache_root, content_key
from tests.localcluster.locks import exclusive
from tests.localcluster.progress import step

REFERENCE = "docker.io/prom/prometheus:v2.42.0"
"""The version of Debian 12's package."""
PROGRAMS = ("prometheus", "promtool")

_TIME_ZONES = "moment-timezone-with-data.min.js"


def key() -> str:
    """Hash the recipe. A newer package does not change it."""
    return content_key([Path(__file__)])


def binaries() -> dict[str, Path]:
    """Return the programs by name, as they run on this machine.

    Raises:
        ClusterError: there is no apt-get here, or it cannot fetch the packages.
    """
    return {program: _unpacked() / "bin" / program for program in PROGRAMS}


def binaries_of(archive: Path) -> dict[str, Path]:
    """Return the programs by name out of the image's archive; they are linked statically, and run on any Linux.

    Raises:
        ClusterError: it is no archive of that image.
    """

    def unpack(scratch: Path) -> Path:
        archives.extract(archive, [f"bin/{program}" for program in PROGRAMS], scratch)
        return scratch

    folder = _once(archive.with_suffix(""), unpack)
    return {program: folder / program for program in PROGRAMS}


def fill(context: Path) -> None:
    """Lay out a build context with the paths of the published image."""
    root = context / "root"
    shutil.copytree(_unpacked(), root)
    for program in PROGRAMS:
        for library in libraries(run(["ldd", str(root / "bin" / program)])):
            target = root / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)
    (context / "data").mkdir()


def libraries(ldd: str) -> list[Path]:
    """Return the shared libraries, the dynamic loader included, that `ldd` lists."""
    return [Path(found) for found in re.findall(r"(/\S+) \(0x", ldd)]


def _unpacked() -> Path:
    """Return a folder with the programs in bin/ and what their pages need below usr/share/prometheus/."""
    target = cache_root() / f"prometheus-{key()}"
    if target.is_dir():
        return target
    if shutil.which("apt-get") is None:
        raise ClusterError(
            "Prometheus comes from Debian's package or through Docker, and neither apt-get nor a Docker engine is here"
        )

    def unpack(scratch: Path) -> Path:
        packages, debian, chosen = scratch / "packages", scratch / "debian", scratch / "chosen"
        packages.mkdir()
        _download(packages)
        for package in packages.glob("*.deb"):
            run(["dpkg-deb", "--extract", str(package), str(debian)])
        _choose(debian, chosen)
        return chosen

    with step("unpacking Debian's prometheus (40 MB, about 10 s)"):
        return _once(target, unpack)


def _once(target: Path, unpack: Callable[[Path], Path]) -> Path:
    """Return a folder of the cache that is made in a scratch folder where it is missing; older ones go."""
    with exclusive(cache_root() / ".prometheus.lock", "another process that unpacks Prometheus"):
        if not target.is_dir():
            for old in cache_root().glob("prometheus-????????????????/"):
                shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=cache_root(), prefix=".prometheus.") as temporary:
                scratch = Path(temporary) / "scratch"
                scratch.mkdir()
                unpack(scratch).rename(target)
    return target


def _download(folder: Path) -> None:
    # apt's own user could not write to the cache.
    download = ["apt-get", "--option", "APT::Sandbox::User=root", "download"]
    try:
        names = ["prometheus", *page_packages(run(["apt-cache", "depends", "--recurse", "--important", "prometheus"]))]
        run([*download, *names], cwd=folder)
    except ClusterError:
        # The package lists are missing or old.
        run(["apt-get", "update"])
        names = ["prometheus", *page_packages(run(["apt-cache", "depends", "--recurse", "--important", "prometheus"]))]
        run([*download, *names], cwd=folder)


def page_packages(depends: str) -> list[str]:
    """Choose from what `apt-cache depends --recurse` prints the packages of scripts, styles and fonts."""
    return [name for name in depends.splitlines() if re.match(r"(libjs|fonts)-", name)]


def _choose(debian: Path, target: Path) -> None:
    """Copy the programs, their pages with what these link to in other packages, and the configuration to begin with."""
    (target / "bin").mkdir(parents=True)
    for program in PROGRAMS:
        shutil.copy2(debian / "usr" / "bin" / program, target / "bin")
    shared = Path("usr/share/prometheus")
    shutil.copytree(debian / shared, target / shared, ignore=_unused)
    configuration = Path("etc/prometheus/prometheus.yml")
    (target / configuration).parent.mkdir(parents=True)
    shutil.copy2(debian / configuration, target / configuration)


def _unused(folder: str, names: list[str]) -> set[str]:
    here = Path(folder)
    # 217 MB of time zones in every combination, of which the pages load one file.
    variants = {name for name in names if here.name == "moment-timezone" and name != _TIME_ZONES}
    return variants | {name for name in names if not (here / name).exists()}
