"""The Debian packages that a node needs."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.progress import say, step

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_CNI_PLUGINS = ("ptp", "host-local", "portmap", "loopback")
_SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# Package to what it has to bring: programs on PATH, or files. Where these are there, it does not matter whose they are.
_CONTENTS: Mapping[str, tuple[str, ...]] = {
    "iptables": ("iptables", "iptables-restore"),
    "iproute2": ("ip",),
    "util-linux": ("nsenter",),
    "mount": ("mount", "umount"),
    "kmod": ("modprobe",),
    "libc6-dev": ("/usr/include/stdlib.h",),
}
NODE = (
    "runc",
    "containernetworking-plugins",
    "iptables",
    "iproute2",
    "util-linux",
    "mount",
    "kmod",
    "gcc",
    "libc6-dev",
)


def program(name: str) -> Path:
    """Return where a program of a package is.

    Raises:
        ClusterError: it is not installed.
    """
    found = shutil.which(name, path=_SEARCH_PATH)
    if found is None:
        raise ClusterError(f"{name} is not on PATH; install its package")
    return Path(found).resolve()


def cni_folder(exists: Callable[[str], bool] | None = None) -> Path | None:
    """Return the folder of the pod network plugins."""
    exists = exists or _exists
    return next((folder for folder in CNI_FOLDERS if all(exists(str(folder / name)) for name in _CNI_PLUGINS)), None)


def missing(packages: Iterable[str], exists: Callable[[str], bool] | None = None) -> list[str]:
    """Return the packages whose programs are not there."""
    exists = exists or _exists
    return [
        package
        for package in packages
        if not (
            cni_folder(exists)
            if package == "containernetworking-plugins"
            else all(map(exists, _CONTENTS.get(package, (package,))))
        )
    ]


def ensure(packages: Iterable[str]) -> None:
    """Install the packages whose programs are missing.

    Raises:
        ClusterError: there are some and we may not install, or the installation failed; the message names them.
    """
    packages = list(packages)
    wanted = missing(packages)
    if wanted:
        install(wanted)
        still = missing(packages)
        if still:
            raise ClusterError(f"the packages {', '.join(still)} are installed and yet lack what is needed of them")


def refresh() -> None:
    """Fetch the lists of packages; without them nothing can be downloaded on a fresh machine."""
    _apt_get("update")


def install(packages: list[str]) -> None:
    """Install Debian packages without starting any service of theirs.

    Raises:
        ClusterError: not root, no apt-get, or it failed.
    """
    names = " ".join(packages)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(f"these packages (Debian's names) are missing: {names}; install them, then try again")
    with step(f"installing {names} (Debian packages)"):
        # The second try is for a machine whose package lists are missing or old.
        if _apt_get("install", *packages).returncode:
            say("updating the package lists")
            refresh()
            done = _apt_get("install", *packages)
            if done.returncode:
                raise ClusterError(f"apt-get install {names} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _apt_get(command: str, *packages: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["apt-get", command, "--yes", "--quiet", "--no-install-recommends", *packages],
        # RUNLEVEL=1 is what invoke-rc.d looks at: no service starts in it.
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _exists(item: str) -> bool:
    return Path(item).exists() if item.startswith("/") else shutil.which(item, path=_SEARCH_PATH) is not None
