"""The container images of tests and demo: built by docker where there is one, else by buildah on a base made here.

The Dockerfiles are the users'. Without a registry, their base image is made from Debian packages under the same name,
and so are stand-ins for etcd and Prometheus. Every image is cached by the content of all that goes into it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster import binaries, kind, packages, pause
from tests.localcluster.errors import ClusterError
from tests.localcluster.progress import step

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
BASE_PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
ETCD = "quay.io/coreos/etcd:v3.6.16"
PROMETHEUS = "docker.io/prom/prometheus:v2.42.0"


@dataclass(frozen=True)
class Built:
    """An image of our own: its Dockerfile, its lock file, and the sources that it copies."""

    reference: str
    dockerfile: str
    lock: str
    sources: tuple[str, ...]


BUILT = {
    "operator": Built(
        "docker.io/ebbtide/operator:dev",
        "operator/Dockerfile",
        "operator/requirements.lock",
        ("sidecar/src", "operator/src", "pyproject.toml", "README.md"),
    ),
    "orders": Built(
        "docker.io/ebbtide/orders:dev",
        "examples/orders/Dockerfile",
        "examples/orders/requirements.lock",
        ("sidecar/src", "operator/src", "pyproject.toml", "README.md", "examples/orders/orders"),
    ),
}
REFERENCES = {name: one.reference for name, one in BUILT.items()} | {"etcd": ETCD, "prometheus": PROMETHEUS}


def reference(name: str) -> str:
    """Return the full name of an image."""
    return REFERENCES[name]


def build(name: str) -> Path:
    """Return an image as a docker-archive, made first where it is not in the cache.

    Raises:
        ClusterError: A tool is missing or failed; the message says which.
    """
    made: dict[str, Callable[[], Path]] = {"etcd": _etcd, "prometheus": _prometheus}
    if name in made:
        return made[name]()
    return _from_dockerfile(name, BUILT[name])


def all() -> dict[str, Path]:  # noqa: A001 (images.all() reads well)
    """Return every image."""
    return {name: build(name) for name in REFERENCES}


def prometheus_binaries() -> dict[str, Path]:
    """Return Prometheus' server and `promtool` from Debian's package, unpacked and not installed."""
    folder = _cache() / "prometheus-debian"
    if not folder.exists():
        packages.refresh()
        with step("unpacking Debian's prometheus"), tempfile.TemporaryDirectory(dir=_cache()) as temporary:
            _run(["apt-get", "download", "prometheus"], cwd=Path(temporary))
            (package,) = Path(temporary).glob("prometheus_*.deb")
            _run(["dpkg", "-x", str(package), f"{temporary}/out"])
            Path(temporary, "out").rename(folder)
    return {name: folder / "usr" / "bin" / name for name in ("prometheus", "promtool")}


def content_key(paths: Iterable[Path], *parameters: str) -> str:
    """Hash files, and all files below folders, with their names; byte code does not count."""
    digest = hashlib.sha256(json.dumps(parameters).encode())
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _from_dockerfile(name: str, image: Built) -> Path:
    inputs = [ROOT / part for part in (image.dockerfile, image.lock, *image.sources)]
    target = _cache() / f"{name}-{content_key(inputs, BASE, BASE_PACKAGES)}.tar"
    if target.exists():
        return target
    prepare(image)
    with step(f"building the image {image.reference} (about 30 s)"):
        temporary = target.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        if kind.available():
            _run(["docker", "build", "-q", "-f", image.dockerfile, "-t", image.reference, "."], cwd=ROOT)
            _run(["docker", "save", "-o", str(temporary), image.reference])
        else:
            _base()
            _buildah(
                "bud", "-q", "--pull-never", "--timestamp", "0", "-f", image.dockerfile, "-t", image.reference, "."
            )
            _buildah("push", "-q", image.reference, f"docker-archive:{temporary}:{image.reference}")
        temporary.rename(target)
    return target


def prepare(image: Built) -> None:
    """Fill build/wheelhouse from a lock file (hashes are checked) and build/dist from the sources."""
    wheelhouse, dist = ROOT / "build" / "wheelhouse", ROOT / "build" / "dist"
    with step(f"downloading the wheels of {image.lock}"):
        wheelhouse.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        # Both bases have Python 3.11, whatever runs here.
        platform = ["--python-version", "3.11", "--implementation", "cp", "--only-binary", ":all:"]
        platform += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
        locked = ["--require-hashes", "--no-deps", "-r", str(ROOT / image.lock)]
        _run([*pip, "download", *platform, *locked, "-d", str(wheelhouse)])
    with step("building the wheel"):
        shutil.rmtree(dist, ignore_errors=True)
        _run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(dist), str(ROOT)])


def _base() -> None:
    """Make the Dockerfiles' base image under its own name, unless it is there."""
    packages.ensure(["buildah", "mmdebstrap"])
    if _buildah("images", "-q", BASE, check=False).stdout.strip():
        return
    message = f"making a base image from Debian packages for {BASE} (about a minute, once)"
    with step(message), tempfile.TemporaryDirectory(dir=_cache()) as folder:
        link = "ln -s /usr/bin/python3 $1/usr/local/bin/python"
        _run(
            [
                *("mmdebstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", f"--customize-hook={link}"),
                *("--format=tar", "bookworm", f"{folder}/base.tar", *_sources()),
            ]
        )
        path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        Path(folder, "Dockerfile").write_text(
            f'FROM scratch\nADD base.tar /\nENV {path} LANG=C.UTF-8\nCMD ["python3"]\n'
        )
        _buildah("bud", "-q", "-t", BASE, folder)


def _sources() -> list[str]:
    """Return this machine's own package sources of Debian bookworm; none: mmdebstrap's default."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    return [str(file) for file in files if file.is_file() and "bookworm" in file.read_text(errors="replace")]


def _etcd() -> Path:
    programs = {f"usr/local/bin/{name}": binaries.path(name) for name in ("etcd", "etcdctl")}
    return _static("etcd", ETCD, programs, {"Cmd": ["/usr/local/bin/etcd"], "Env": ["PATH=/usr/local/bin"]})


def _prometheus() -> Path:
    found = prometheus_binaries()
    programs = {f"bin/{name}": path for name, path in found.items()}
    return _static("prometheus", PROMETHEUS, programs, {"Entrypoint": ["/bin/prometheus"], "User": "65534"})


def _static(name: str, image: str, programs: dict[str, Path], configuration: dict[str, object]) -> Path:
    """Pack programs, and the shared libraries that they need, into an image of one layer."""
    key = hashlib.sha256("".join(str(path) for path in programs.values()).encode()).hexdigest()[:16]
    target = _cache() / f"{name}-{key}.tar"
    if not target.exists():
        files = {inside: (path.read_bytes(), 0o755) for inside, path in programs.items()}
        for path in programs.values():
            files |= {library.lstrip("/"): (Path(library).read_bytes(), 0o755) for library in _libraries(path)}
        temporary = target.with_suffix(".new")
        temporary.write_bytes(pause.archive(image, files, configuration))
        temporary.rename(target)
    return target


def _libraries(program: Path) -> list[str]:
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    return [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def _cache() -> Path:
    folder = binaries.cache_root().parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _buildah(command: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    storage = _cache() / "storage"
    options = ["--root", str(storage / "root"), "--runroot", str(storage / "run"), "--storage-driver", "overlay"]
    isolation = ["--isolation", "chroot"] if command == "bud" else []
    # A mount namespace of its own: what buildah mounts ends with it, whatever happens.
    line = ["unshare", "--mount", "--propagation", "private", "buildah", *options, command, *isolation, *arguments]
    return _run(line, cwd=ROOT, check=check)


def _run(command: list[str], cwd: Path | None = None, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ})
    if check and done.returncode:
        raise ClusterError(f"{' '.join(command[:8])} … failed:\n{(done.stderr or done.stdout)[-3000:]}")
    return done


def main() -> int:
    """Build images; return 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.localcluster.images", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*REFERENCES, []], help="which (default: all)")
    names = parser.parse_args().names or list(REFERENCES)
    try:
        for name in names:
            print(f"{reference(name)}  {build(name)}")
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
