"""The Pythons that the library's benchmarks run on, each with what the library is measured against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.distributions import NEWEST, ROOT, distributed

CACHE = ROOT / ".cache" / "bench-pythons"
PACKAGES = ("aiojobs==1.4.0", "uvloop==0.23.0")
OLDEST = (3, 11)
NEWEST_TRIED = 20
PATIENCE_S = 120.0

_WHO = (
    "import platform, sys; print(platform.python_implementation(), '%d.%d.%d' % sys.version_info[:3], sys.base_prefix)"
)


@dataclass(frozen=True, slots=True)
class Python:
    """One interpreter.

    Attributes:
        program: Its executable.
        version: As `3.12.1`.
        home: Whether it has what the tests of this project need: the one of `.venv`.
    """

    program: Path
    version: str
    home: bool = False

    @property
    def minor(self) -> tuple[int, int]:
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)


def candidates(*, distributions: bool = False) -> list[Path]:
    """Return where interpreters may be: what runs this first, then pyenv's, the newest first, then those on PATH.

    With distributions theirs and the system's come before pyenv's.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    mine = sorted(pyenv.glob("3.*/bin/python"), key=lambda path: _parts(path.parents[1].name), reverse=True)
    names = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST_TRIED)] + ["python3"]
    on_path = [Path(found) for name in names if (found := shutil.which(name))]
    built = [*distributed(), *Path("/usr/bin").glob("python3.*[0-9]")] if distributions else []
    return [Path(sys.executable), *built, *mine, *on_path]


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def usable(found: Iterable[tuple[Path, str]], *, apart: bool = False) -> list[Python]:
    """Return one interpreter for each minor version that the library supports, the oldest version first.

    Args:
        found: Interpreters and what they say of themselves, the preferred first; the very first is that of `.venv`.
        apart: Whether that of `.venv` stands beside another of its minor version, and not for it.
    """
    chosen: dict[tuple[tuple[int, int], bool], Python] = {}
    for place, (program, said) in enumerate(found):
        implementation, _, rest = said.partition(" ")
        version = rest.partition(" ")[0]
        if implementation != "CPython":
            continue
        python = Python(program, version, home=place == 0)
        if python.minor >= OLDEST:
            chosen.setdefault((python.minor, apart and python.home), python)
    return [chosen[key] for key in sorted(chosen)]


def pythons(*, distributions: bool = False, newest: bool = False) -> list[Python]:
    """Return the interpreters at hand, this one among them.

    Args:
        distributions: Those of distributions as well, where they can be had; they stand before others.
        newest: That of the newest release of a distribution, where none at hand is as new.
    """
    found = _asked(candidates(distributions=distributions))
    if newest and all(python.minor < NEWEST.minor for python in usable(found)):
        found += _asked(distributed([NEWEST]))
    return usable(found, apart=distributions)


def _asked(found: Iterable[Path]) -> list[tuple[Path, str]]:
    return [(program, said) for program in found if (said := _ask(program)) is not None]


def _ask(program: Path) -> str | None:
    try:
        ran = subprocess.run([program, "-c", _WHO], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # a shim of pyenv for a version that is not chosen, for one
    return ran.stdout.strip()


def furnished(python: Python) -> tuple[Path, str]:
    """Return an interpreter with the peers that the library is measured against, and what to say of it.

    It is made once and cached; where that fails, the interpreter is used as it is.
    """
    folder = CACHE / python.version
    program = folder / "bin" / "python"
    peers = " and ".join(PACKAGES)
    try:
        new = make_environment(python, folder, "\n".join(PACKAGES), PACKAGES)
    except (OSError, subprocess.SubprocessError) as error:
        return python.program, f"without {peers}: {why(error)}"
    where = folder.relative_to(ROOT)
    return program, f"with {peers}, put into {where} just now" if new else f"with {peers} from {where}"


def make_environment(
    python: Python, folder: Path, wanted: str, *installs: Sequence[str], patience_s: float = PATIENCE_S
) -> bool:
    """Make a virtual environment, unless what is wanted is there; return whether that was to be done.

    Args:
        python: Whose environment it is.
        folder: Where it is; what else is there goes.
        wanted: What stands for its content: another text makes it anew.
        installs: What is said to `pip install`, one after the other.
        patience_s: Longest for each step, in seconds.

    Raises:
        OSError: A program could not be started; nothing is left of the environment.
        subprocess.SubprocessError: A step failed or took too long; the same.
    """
    stamp = folder / ".stamp"
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    # By the pip of this interpreter: a distribution's has none.
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    venv = [str(python.program), "-m", "venv", "--without-pip", str(folder)]
    try:
        for command in (venv, *([*pip, *arguments] for arguments in installs)):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=patience_s)
    except (OSError, subprocess.SubprocessError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    stamp.write_text(wanted)
    return True


def why(error: Exception) -> str:
    """Return the last line that a failed command said."""
    said = (getattr(error, "stderr", None) or str(error)).strip()
    return said.splitlines()[-1] if said else type(error).__name__


def environment() -> Mapping[str, str]:
    """Return the environment in which any of them finds the library and the benchmarks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EBBTIDE_"))}
    passed = {name: os.environ[name] for name in ("EBBTIDE_ETCD", "EBBTIDE_ZOO_RUNS") if name in os.environ}
    return kept | passed | {"PYTHONPATH": f"{ROOT / 'sidecar' / 'src'}{os.pathsep}{ROOT}"}
