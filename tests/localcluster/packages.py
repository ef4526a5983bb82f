"""Debian packages that the cluster needs, installed where this process may."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from tests.localcluster.errors import ClusterError
from tests.localcluster.progress import step


def missing(packages: Sequence[str]) -> list[str]:
    """Return those of the packages that are not installed."""
    if shutil.which("dpkg-query") is None:
        return list(packages)
    asked = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    installed = {line.split()[0] for line in asked.stdout.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def refresh() -> None:
    """Fetch the lists of packages; without them nothing can be downloaded on a fresh machine."""
    subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)


def ensure(packages: Sequence[str]) -> None:
    """Install what is missing; no service is started.

    Raises:
        ClusterError: Not root, no apt-get, or apt-get failed; the message names the packages.
    """
    wanted = missing(packages)
    if not wanted:
        return
    names = " ".join(wanted)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(f"Debian packages are missing; as root: apt-get install {names}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with step(f"installing Debian packages: {names}"):
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted],
        ):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ClusterError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
