"""Runs the programs that images are made with."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.localcluster.errors import ClusterError


def run(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run a command and return what it printed. What it makes may be read by all, whatever the umask here.

    Args:
        env: added to the environment.

    Raises:
        ClusterError: the program is missing or failed; the message has the end of what it said.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            umask=0o022,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not on PATH; install it") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ClusterError(f"{shlex.join(command)} failed with status {done.returncode}:\n{said[-4000:]}")
    return done.stdout
