"""The programs that build images: Docker where its engine runs, else buildah."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

from tests.localcluster import go, kind, packages
from tests.localcluster.errors import ClusterError
from tests.localcluster.images import debian
from tests.localcluster.images.commands import run
from tests.localcluster.images.sources import RECIPES, SCRATCH, cache_root, parents
from tests.localcluster.progress import step

_SAVES_A_PLATFORM = (1, 48)
"""Version of the engine's API from which `docker save --platform` works; that of Docker 28.0."""


class Engine(Protocol):
    """Builds images and writes them as docker-archives."""

    pulls: bool
    """Whether images that others publish are to be had."""

    def key(self, dockerfile: str) -> str:
        """Name what goes into every image that this engine builds from a Dockerfile."""
        ...

    def setup_s(self) -> int:
        """Return how long the engine's own preparations will take, in seconds."""
        ...

    def prepare(self, dockerfile: Path) -> None:
        """Get what builds from this Dockerfile need."""
        ...

    def build(self, dockerfile: Path, context: Path, reference: str, archive: Path) -> None:
        """Build an image and write it to a new file."""
        ...

    def pull(self, reference: str, archive: Path) -> None:
        """Pull an image and write it to a new file."""
        ...


def present() -> Engine:
    """Return the engine of this machine."""
    return Docker() if kind.available() else Buildah()


class Docker:
    """The engine that `docker` speaks to; it keeps what it builds and pulls."""

    pulls = True

    def key(self, dockerfile: str) -> str:
        return f"docker {' '.join(sorted(parents(dockerfile)))}"

    def setup_s(self) -> int:
        return 0

    def prepare(self, dockerfile: Path) -> None:
        """Do nothing: Docker pulls what a Dockerfile starts from."""

    def build(self, dockerfile: Path, context: Path, reference: str, archive: Path) -> None:
        run(["docker", "build", "--quiet", "--file", str(dockerfile), "--tag", reference, str(context)])
        self._save(reference, archive)

    def pull(self, reference: str, archive: Path) -> None:
        # A reference names a version, which does not move: what the engine has is not asked for again, and a machine
        # without a way to the registry can be given it with `docker load`.
        if not self._has(reference):
            run(["docker", "pull", "--quiet", reference])
        self._save(reference, archive)

    def _save(self, reference: str, archive: Path) -> None:
        run(["docker", "save", *self._platform(reference), "--output", str(archive), reference])

    def _platform(self, reference: str) -> list[str]:
        """Choose the platform that was pulled, where the engine keeps the list of all: kind loads no part of one."""
        api = run(["docker", "version", "--format", "{{.Client.APIVersion}}"])
        if go.version(api) < _SAVES_A_PLATFORM:
            return []
        found = run(["docker", "image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", reference])
        return ["--platform", found.strip()]

    def _has(self, reference: str) -> bool:
        try:
            run(["docker", "image", "inspect", reference])
        except ClusterError:
            return False
        return True


class Buildah:
    """Needs root and no daemon. Its storage, in the cache, holds the base image and nothing else between builds."""

    pulls = False

    def key(self, dockerfile: str) -> str:
        return " ".join(["buildah", *(debian.key() for _ in parents(dockerfile))])

    def setup_s(self) -> int:
        return 0 if debian.tarball().exists() else debian.COLD_S

    def prepare(self, dockerfile: Path) -> None:
        """Install buildah, and put the base image into its storage.

        Raises:
            ClusterError: not root, or the Dockerfile starts from an image that cannot be made here.
        """
        if os.geteuid() != 0:
            raise ClusterError(
                "images are built by Docker, whose engine does not answer here, or by root: run this as root"
            )
        if shutil.which("buildah") is None or shutil.which("unshare") is None:
            packages.install(["buildah", "util-linux"])
        wanted = parents(dockerfile.read_text())
        if wanted - {debian.REFERENCE}:
            raise ClusterError(
                f"{dockerfile} starts from {wanted}; without Docker only {debian.REFERENCE} can be made here"
            )
        self._run("rm", "--all")
        if wanted and not self._run("images", "--quiet", "--filter", f"reference={_base_tag()}").strip():
            self._import(debian.make())

    def build(self, dockerfile: Path, context: Path, reference: str, archive: Path) -> None:
        self._bud("--pull-never", "--file", str(dockerfile), "--tag", reference, str(context))
        self._run("push", "--quiet", reference, f"docker-archive:{archive}:{reference}")
        self._run("rmi", reference)

    def pull(self, reference: str, archive: Path) -> None:
        raise ClusterError(f"{reference} cannot be pulled to {archive} without Docker")

    def _import(self, base: Path) -> None:
        with step("unpacking the base image"), tempfile.TemporaryDirectory(dir=cache_root(), prefix=SCRATCH) as context:
            self._run("rmi", "--all", "--force")
            Path(context, "base.tar").hardlink_to(base)
            recipe = str(RECIPES / "python.Dockerfile")
            tags = ("--tag", debian.FULL_REFERENCE, "--tag", _base_tag())
            self._bud("--file", recipe, *tags, context)

    def _bud(self, *arguments: str) -> None:
        # Nothing of the day and the tool: the same inputs give the same digest.
        reproducible = ("--timestamp", "0", "--identity-label=false")
        self._run("bud", "--quiet", "--isolation", "chroot", *reproducible, *arguments)

    def _run(self, *arguments: str) -> str:
        return _buildah(_driver(), *arguments)


def _base_tag() -> str:
    """Name the base image by its recipe: the name in the Dockerfiles stays when the recipe changes."""
    return f"localhost/ebbtide/python-base:{debian.key()}"


@functools.cache
def _driver() -> str:
    """Return the storage driver: `vfs`, which copies all files, where layers cannot be laid over one another."""
    try:
        _buildah("overlay", "info")
    except ClusterError:
        return "vfs"
    return "overlay"


def _buildah(driver: str, *arguments: str) -> str:
    storage = cache_root() / f"storage-{driver}"
    storage.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix=SCRATCH) as run_root:
        options = ["--root", str(storage), "--runroot", run_root, "--storage-driver", driver]
        # In a mount namespace of its own, so that what it mounts ends with it, however it ends.
        isolated = ["unshare", "--mount", "--propagation", "private", "buildah", *options]
        return run([*isolated, *arguments], env={"TMPDIR": run_root})
