"""Run the library's unit tests on every other Python at hand: `python -m tests.each_python`.

The rest of the tests runs on the Python of `.venv` only. The library promises more: asyncio differs from version to
version where it matters here (eager tasks, how tasks are made and named, groups, when a quick thread is waited for).
The newest version is fetched where none at hand is as new.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.distributions import ROOT
from tests.bench.pythons import Python, make_environment, pythons, why

CACHE = ROOT / ".cache" / "test-pythons"
LOCK = ROOT / "requirements-dev.lock"
TESTS = ("tests/unit/library", "tests/unit/etcd", "tests/contract/processes")
PATIENCE_S = 600.0
SHOWN = 60


def prepared(python: Python) -> Path:
    """Return the interpreter of an environment that has what `.venv` has; made once, and cached.

    Raises:
        OSError: As `make_environment`.
        subprocess.SubprocessError: Something of the lock file cannot be installed on this version.
    """
    folder = CACHE / python.version
    # With the path: in a copy of the clone the environment would still lead to the sources of the original.
    content = LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes() + bytes(ROOT)
    wanted = hashlib.sha256(content).hexdigest()
    locked = ("--require-hashes", "-r", str(LOCK))
    own = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    make_environment(python, folder, wanted, locked, own, patience_s=PATIENCE_S)
    return folder / "bin" / "python"


def tested(python: Python) -> tuple[bool, str]:
    """Return whether the tests pass on a Python, or cannot be run there, and what to say of it."""
    began = time.monotonic()
    try:
        program = prepared(python)
    except (OSError, subprocess.SubprocessError) as error:
        return True, f"{python.version}: NOT RUN, because its environment could not be made: {why(error)}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    command = [str(program), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, f"{python.version}: FAILED\n{error}"
    said = done.stdout.strip().splitlines()
    if done.returncode:
        return False, "\n".join([f"{python.version}: FAILED", *said[-SHOWN:]])
    return True, f"{python.version}: {said[-1]} ({time.monotonic() - began:.0f} s in all)"


def main() -> int:
    others = [python for python in pythons(newest=True) if not python.home]
    if not others:
        sys.stdout.write(f"NOT RUN: there is no other Python here than {sys.version.split()[0]}\n")
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(tested, others))
    for _, text in results:
        sys.stdout.write(f"{text}\n")
    return 0 if all(passed for passed, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main())
