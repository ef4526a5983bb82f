"""What the kernel and whoever confines this process must allow before a local cluster can run: nothing to install."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.localcluster import cgroups
from tests.localcluster.errors import ClusterError

_ISOLATION = ("--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--propagation", "private")


def check() -> None:
    """Try what a cluster needs of this machine.

    Raises:
        ClusterError: something is refused; the message says what, and what allows it.
    """
    if sys.platform != "linux":
        raise ClusterError(f"a local cluster needs Linux, and this is {sys.platform}: start a Docker engine")
    if os.geteuid() != 0:
        raise ClusterError("a local cluster needs root (namespaces, mounts, control groups): run as root")
    command = ["unshare", *_ISOLATION, "mount", "-t", "tmpfs", "none", "/tmp"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError("unshare is not on PATH; install Debian's package util-linux") from error
    if tried.returncode:
        raise ClusterError(f"namespaces and mounts: {tried.stderr.strip()}; in a container this needs --privileged")
    cgroups.probe()
