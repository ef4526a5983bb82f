"""Image archives by the content of what they were made from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.images import wheels
from tests.localcluster.images.catalog import Image, Own
from tests.localcluster.images.engines import Engine
from tests.localcluster.images.sources import ROOT, SCRATCH, cache_root, content_key
from tests.localcluster.locks import exclusive
from tests.localcluster.progress import duration, say, step

KEPT = 3
"""Archives of one image that stay in the cache: two work trees and a step back."""
_ATTEMPTS = 3


def archive_of(image: Image, engine: Engine) -> Path:
    """Return the archive of an image as its sources are now.

    Raises:
        ClusterError: it is not in the cache and cannot be built, or its sources do not come to rest.
    """
    target = _target(image, engine)
    if target.exists():
        return target
    # One build at a time: they share build/wheelhouse, build/dist and buildah's storage.
    with exclusive(cache_root() / ".lock", f"another build of images (wanted: {image.name})"):
        for left in cache_root().glob(f"{SCRATCH}*"):
            # Of a build that was killed; what it had mounted is gone with it.
            shutil.rmtree(left)
        for _ in range(_ATTEMPTS):
            target = _target(image, engine)
            if target.exists():
                return target
            with tempfile.TemporaryDirectory(dir=cache_root(), prefix=SCRATCH) as temporary:
                made = Path(temporary) / "image.tar"
                _make(image, engine, Path(temporary) / "context", made)
                # The archive must hold what its name says, and somebody may be at work in the sources.
                if _target(image, engine) == target:
                    made.rename(target)
                    _forget(image)
                    return target
            say(f"the sources of {image.name} changed while it was built: once more")
    raise ClusterError(
        f"the sources of {image.name} changed during each of {_ATTEMPTS} builds; try again when they rest"
    )


def announce(images: Sequence[Image], engine: Engine) -> None:
    """Say which of the images have to be built, and how long that takes."""
    missing = [image for image in images if not _target(image, engine).exists()]
    if missing:
        seconds = sum(image.cold_s for image in missing) + engine.setup_s()
        say(f"to build: {', '.join(image.name for image in missing)}; about {duration(seconds)} on 2 cores")


def _target(image: Image, engine: Engine) -> Path:
    return cache_root() / f"{image.name}-{content_key([], image.key(), engine.key(image.dockerfile.read_text()))}.tar"


def _make(image: Image, engine: Engine, context: Path, archive: Path) -> None:
    if isinstance(image, Own):
        wheels.prepare()
        engine.prepare(image.dockerfile)
        with step(f"building {image.reference}"):
            engine.build(image.dockerfile, ROOT, image.reference, archive)
    elif engine.pulls:
        with step(f"pulling {image.reference}"):
            engine.pull(image.reference, archive)
    else:
        engine.prepare(image.dockerfile)
        context.mkdir()
        image.fill(context)
        _let_all_read(context)
        with step(f"packing a stand-in for {image.reference}"):
            engine.build(image.dockerfile, context, image.reference, archive)


def _let_all_read(context: Path) -> None:
    """Give a build context the modes of a published image: its pods run as a user of their own.

    What was compiled and unpacked into it has what the umask of that moment left.
    """
    for path in (context, *context.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)


def _forget(image: Image) -> None:
    """Remove the older archives of an image, which are large."""
    archives = sorted(cache_root().glob(f"{image.name}-*.tar"), key=lambda file: file.stat().st_mtime, reverse=True)
    for archive in archives[KEPT:]:
        archive.unlink()
