"""Run the library's unit tests on every other Python at hand: `python -m tests.each_python`.

The rest of the tests runs on the Python of `.venv` only. The library promises more: asyncio differs from version to
version where it matters here (eager tasks, how tasks are made and named, groups).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.pythons import Python, pythons

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "test-pythons"
LOCK = ROOT / "requirements-dev.lock"
TESTS = ("tests/unit/library", "tests/unit/etcd", "tests/contract/processes")
PATIENCE_S = 600.0
SHOWN = 60


class Failed(Exception):
    """A command failed; the message is what it said last."""


def run(command: Sequence[str | Path]) -> str:
    """Run a command in the checkout's root, and return what it printed.

    Raises:
        Failed: It failed, or took longer than `PATIENCE_S`.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
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
        raise Failed(str(error)) from error
    if done.returncode:
        raise Failed("\n".join(done.stdout.strip().splitlines()[-SHOWN:]))
    return done.stdout


def prepared(python: Python) -> Path:
    """Return the interpreter of an environment that has what `.venv` has; made once, and cached.

    Raises:
        Failed: Something of the lock file cannot be installed on this version.
    """
    folder = CACHE / python.version
    program, stamp = folder / "bin" / "python", folder / ".stamp"
    wanted = hashlib.sha256(LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return program
    shutil.rmtree(folder, ignore_errors=True)
    pip: list[str | Path] = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([python.program, "-m", "venv", folder])
    run([*pip, "--require-hashes", "-r", LOCK])
    run([*pip, "--no-deps", "--no-build-isolation", "--editable", "."])
    stamp.write_text(wanted)
    return program


def tested(python: Python) -> tuple[bool, str]:
    """Return whether the tests pass on a Python, or cannot be run there, and what to say of it."""
    began = time.monotonic()
    try:
        program = prepared(python)
    except Failed as error:
        return True, f"{python.version}: NOT RUN, because its environment could not be made: {error}"
    try:
        said = run([program, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS])
    except Failed as error:
        return False, f"{python.version}: FAILED\n{error}"
    return True, f"{python.version}: {said.strip().splitlines()[-1]} ({time.monotonic() - began:.0f} s in all)"


def main() -> int:
    others = [python for python in pythons() if not python.home]
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
