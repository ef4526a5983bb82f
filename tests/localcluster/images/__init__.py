"""The container images of tests and demo, built the way users build them and cached by all that goes into them.

Docker builds them where it runs. Elsewhere buildah does, as root, on a base image that is made from Debian packages
under the name that the Dockerfiles ask for; etcd and Prometheus, which can then not be pulled, are packed from their
programs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.localcluster.images import catalog, engines, prometheus, wheels
from tests.localcluster.images.cache import archive_of

__all__ = ["all", "build", "prepare", "prometheus_binaries", "reference"]


def reference(name: str) -> str:
    """Return the full name of an image, registry and tag included.

    Args:
        name: `operator`, `orders`, `etcd` or `prometheus`.
    """
    return catalog.find(name).reference


def build(name: str) -> Path:
    """Return the docker-archive of an image and make it first where its inputs changed since it was made.

    Raises:
        ClusterError: there is no such image, neither Docker nor root is there, or a step failed.
    """
    return archive_of(catalog.find(name), engines.present())


def all() -> dict[str, Path]:  # noqa: A001 (images.all() says it best)
    """Return the docker-archives of all images by name."""
    return {name: build(name) for name in catalog.IMAGES}


def prepare() -> None:
    """Fill `build/wheelhouse` and `build/dist`, which the Dockerfiles copy."""
    wheels.prepare()


def prometheus_binaries() -> dict[str, Path]:
    """Return `prometheus` and `promtool` for this machine; neither is installed.

    They come from Debian's package, and where there is no apt-get from the image that Docker pulls.

    Raises:
        ClusterError: there is neither, or it cannot be had.
    """
    if shutil.which("apt-get") is None and engines.present().pulls:
        return prometheus.binaries_of(build("prometheus"))
    return prometheus.binaries()
