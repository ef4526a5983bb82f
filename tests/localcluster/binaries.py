"""Compiles the programs of the cluster from pinned Go modules, once, and caches them by content."""

import functools
import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster import go
from tests.localcluster.errors import ClusterError
from tests.localcluster.locks import exclusive
from tests.localcluster.progress import duration, say, step

SOURCES = Path(__file__).parent / "src"
KUBERNETES_VERSION = "v1.36.3"

_KUBERNETES_LDFLAGS = " ".join(
    [
        "-s -w",
        f"-X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}",
        "-X k8s.io/component-base/version.gitMajor=1",
        "-X k8s.io/component-base/version.gitMinor=36",
        "-X k8s.io/component-base/version.gitTreeState=clean",
        f"-X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES_VERSION}",
    ]
)


@dataclass(frozen=True, eq=False)
class Module:
    """A folder of pinned Go sources and the programs it yields.

    Attributes:
        packages: program name to Go package.
        links: further names of the first program, which acts by the name it is called by.
        cold_s: measured compile time on 2 cores with an empty Go build cache, in seconds.
    """

    name: str
    packages: dict[str, str]
    cold_s: int
    links: tuple[str, ...] = ()
    ldflags: str = "-s -w"

    @property
    def programs(self) -> tuple[str, ...]:
        return (*self.packages, *self.links)

    @property
    def source(self) -> Path:
        return SOURCES / self.name


MODULES = (
    Module(
        "kubernetes",
        {"kubernetes": "."},
        cold_s=280,
        links=("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"),
        ldflags=_KUBERNETES_LDFLAGS,
    ),
    Module(
        "containerd",
        {
            name: f"github.com/containerd/containerd/v2/cmd/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        },
        cold_s=50,
    ),
    Module(
        "etcd",
        {"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"},
        cold_s=25,
    ),
    Module("coredns", {"coredns": "github.com/coredns/coredns"}, cold_s=85),
    Module("helm", {"helm": "helm.sh/helm/v4/cmd/helm"}, cold_s=60),
)
KIND = Module("kind", {"kind": "sigs.k8s.io/kind", "kind-validate": "./validate"}, cold_s=20)
_MODULE_OF = {program: module for module in (*MODULES, KIND) for program in module.programs}


def path(program: str) -> Path:
    """Return the executable of a program and compile its module first where that has not been done.

    Args:
        program: for example `kubectl`, `etcd`, `helm`, `containerd`.

    Raises:
        ClusterError: no such program, no Go at hand nor to be fetched, or the compiler failed.
    """
    if program not in _MODULE_OF:
        raise ClusterError(f"no program {program!r}; there are {', '.join(sorted(_MODULE_OF))}")
    return folder(_MODULE_OF[program]) / program


def build(modules: Iterable[Module] = MODULES) -> None:
    """Compile what is not in the cache yet, and say in advance how long that takes."""
    missing = [module for module in modules if not (cache_root() / key(module)).is_dir()]
    if len(missing) > 1:
        total = duration(sum(module.cold_s for module in missing))
        say(f"to compile, once: {', '.join(module.name for module in missing)}; about {total} on 2 cores")
    for module in missing:
        folder(module)


def cache_root() -> Path:
    """Return the folder of compiled programs, `$XDG_CACHE_HOME/ebbtide/bin` or `~/.cache/ebbtide/bin`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebbtide" / "bin"


def content_hash(files: Iterable[Path], *parameters: str) -> str:
    """Hash file names, file contents and build parameters to 16 hex digits."""
    digest = hashlib.sha256(json.dumps(parameters).encode())
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def key(module: Module) -> str:
    """Name the cache folder of a module's present content and flags."""
    files = (file for file in module.source.rglob("*") if file.suffix in {".go", ".mod", ".sum"})
    return f"{module.name}-{content_hash(files, module.ldflags, *module.programs, *_platform())}"


@functools.cache
def folder(module: Module) -> Path:
    """Return the folder that holds a module's programs and compile them where it is missing."""
    target = cache_root() / key(module)
    if target.is_dir():
        return target
    compiler = go.program(module.source, cache_root().parent / "go")
    # One build at a time over all modules: two linkers at once need more memory than small machines have.
    with exclusive(cache_root() / ".lock", f"another build (wanted: {module.name})"):
        if target.is_dir():
            return target
        with step(f"compiling {module.name} (about {duration(module.cold_s)} on 2 cores, once)"):
            _compile(module, target, compiler)
    return target


def _compile(module: Module, target: Path, compiler: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        output = Path(temporary) / "out"
        output.mkdir()
        for program, package in module.packages.items():
            options = ["-trimpath", "-ldflags", module.ldflags, "-o", str(output / program)]
            command = [str(compiler), "build", *options, package]
            done = subprocess.run(
                command, cwd=module.source, env=go.environment(), capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise ClusterError(f"compiling {program} failed ({' '.join(command)}):\n{done.stderr[-4000:]}")
        for link in module.links:
            (output / link).symlink_to(next(iter(module.packages)))
        output.rename(target)


def _platform() -> tuple[str, str]:
    return platform.system(), platform.machine()
