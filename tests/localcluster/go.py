"""The Go compiler: the one at hand where it is new enough, else Go's own toolchain module, fetched once."""

import base64
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from tests.localcluster.archives import architecture
from tests.localcluster.errors import ClusterError
from tests.localcluster.locks import exclusive
from tests.localcluster.progress import step

FETCHED = "1.26.8"
SUMS = {
    "linux-amd64": "h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM=",
    "linux-arm64": "h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc=",
}
"""Hashes of `golang.org/toolchain@v0.0.1-go<FETCHED>.<platform>`, as the checksum database sum.golang.org has them."""
USUAL = Path("/usr/local/go/bin/go")
"""Where go.dev's instructions put it; login shells have it on PATH, services often have not."""

_PROXY = "https://proxy.golang.org"
_TIMEOUT_S = 60


def environment() -> dict[str, str]:
    """Return the environment of the compiler: the caller's flags and workspace change no program."""
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}


def program(source: Path, cache: Path) -> Path:
    """Return a `go` that is new enough for a module: on PATH, in its usual place, or fetched into the cache.

    Args:
        source: Folder with the module's go.mod.
        cache: Folder for the fetched toolchain (270 MB unpacked).

    Raises:
        ClusterError: There is none, and none can be fetched; the message names the version and where to get it.
    """
    needed = required((source / "go.mod").read_text())
    problems = []
    for candidate in dict.fromkeys(filter(None, (shutil.which("go"), str(USUAL) if USUAL.exists() else None))):
        # Asked in the module's folder, a Go that may fetch newer toolchains answers with the one it will use.
        asked = subprocess.run(
            [candidate, "env", "GOVERSION"], cwd=source, env=environment(), capture_output=True, text=True, check=False
        )
        found = asked.stdout.strip().removeprefix("go")
        if asked.returncode == 0 and version(found) >= version(needed):
            return Path(candidate)
        problems.append(asked.stderr.strip() if asked.returncode else f"{candidate} is Go {found}")
    try:
        return _toolchain(cache) / "bin" / "go"
    except (OSError, ClusterError) as error:
        at_hand = "; ".join(problems) or "there is no `go` on PATH"
        raise ClusterError(
            f"compiling {source.name} needs Go {needed}: {at_hand}, and Go {FETCHED} could not be fetched ({error}): "
            f"install Go {needed} or newer (https://go.dev/dl/) and put it on PATH"
        ) from error


def required(go_mod: str) -> str:
    """Return the version in the `go` line of a go.mod."""
    found = re.search(r"^go (\S+)$", go_mod, re.MULTILINE)
    if found is None:
        raise ClusterError("go.mod has no `go` line; add one with the oldest Go version that builds it")
    return found[1]


def version(text: str) -> tuple[int, ...]:
    """Parse `1.26`, `1.26.8` or `1.27rc1` so that they compare; what follows the numbers does not count."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def module_hash(archive: zipfile.ZipFile) -> str:
    """Return the `h1:` hash of a module's zip file, by the rule of golang.org/x/mod/sumdb/dirhash."""
    names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    lines = (f"{hashlib.sha256(archive.read(name)).hexdigest()}  {name}\n" for name in names)
    return f"h1:{base64.b64encode(hashlib.sha256(''.join(lines).encode()).digest()).decode()}"


@functools.cache
def _toolchain(cache: Path) -> Path:
    """Return the folder of the fetched toolchain."""
    name = f"linux-{architecture()}"
    if name not in SUMS:
        raise ClusterError(f"its hash is not known for {name}")
    target = cache / f"go-{FETCHED}"
    with exclusive(cache / ".go.lock", "another fetch of Go"):
        if not target.is_dir():
            with step(f"fetching Go {FETCHED} (70 MB, once)"), tempfile.TemporaryDirectory(dir=cache) as temporary:
                _fetch(name, Path(temporary)).rename(target)
    return target


def _fetch(name: str, folder: Path) -> Path:
    url = f"{_proxy()}/golang.org/toolchain/@v/v0.0.1-go{FETCHED}.{name}.zip"
    download = folder / "go.zip"
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, download.open("wb") as copy:
        shutil.copyfileobj(answer, copy)
    with zipfile.ZipFile(download) as archive:
        found = module_hash(archive)
        if found != SUMS[name]:
            raise ClusterError(f"{url} has the hash {found}, not {SUMS[name]}")
        archive.extractall(folder)
    root = folder / "golang.org" / f"toolchain@v0.0.1-go{FETCHED}.{name}"
    # As the go command unpacks it: a module's zip holds neither the right to execute nor another module's go.mod.
    for file in (*(root / "bin").iterdir(), *(root / "pkg" / "tool").rglob("*")):
        file.chmod(0o755)
    for file in root.rglob("_go.mod"):
        file.rename(file.with_name("go.mod"))
    return root


def _proxy() -> str:
    """Return the first proxy of `GOPROXY`, as the go command would ask it."""
    wanted = os.environ.get("GOPROXY", "").replace("|", ",").split(",")[0]
    return wanted.rstrip("/") if wanted.startswith(("https://", "http://")) else _PROXY
