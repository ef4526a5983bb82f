"""The images there are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.localcluster import binaries
from tests.localcluster.errors import ClusterError
from tests.localcluster.images import prometheus, wheels
from tests.localcluster.images.sources import RECIPES, ROOT, content_key, distribution

_MODES = "u=rwX,go=rX"
"""Of what `fill` puts into a build context. Archives with another key were made with modes that the umask chose."""


@dataclass(frozen=True)
class Own:
    """An image of this repository, built from the Dockerfile that users build it from.

    Attributes:
        parts: what it takes from the repository besides the wheel, relative to its root.
        cold_s: measured time of a build on 2 cores, in seconds.
    """

    name: str
    reference: str
    dockerfile: Path
    parts: tuple[str, ...]
    cold_s: int

    def key(self) -> str:
        """Hash the inputs as they are now."""
        inputs = [self.dockerfile, ROOT / ".dockerignore", *(ROOT / part for part in (*self.parts, *wheels.CONTENTS))]
        return content_key(inputs, distribution((ROOT / "pyproject.toml").read_text()))


@dataclass(frozen=True)
class Published:
    """An image that others publish, and how to pack a stand-in where it cannot be pulled.

    Attributes:
        fill: puts what `dockerfile` copies into a build context.
        stamp: names the version of what `fill` puts there.
    """

    name: str
    reference: str
    dockerfile: Path
    fill: Callable[[Path], None]
    stamp: Callable[[], str]
    cold_s: int

    def key(self) -> str:
        """Hash the inputs of the stand-in as they are now."""
        return content_key([self.dockerfile], self.reference, self.stamp(), _MODES)


Image = Own | Published


def find(name: str) -> Image:
    """Return an image by its short name.

    Raises:
        ClusterError: there is none; the message lists those that there are.
    """
    if name not in IMAGES:
        raise ClusterError(f"no image {name!r}; there are {', '.join(IMAGES)}")
    return IMAGES[name]


def chart_image(values: str) -> str:
    """Return the name of the etcd image that the chart's values ask for."""
    image = yaml.safe_load(values)["etcd"]["image"]
    return f"{image['repository']}:{image['tag']}"


def _etcd_module() -> binaries.Module:
    return next(module for module in binaries.MODULES if module.name == "etcd")


def _fill_etcd(context: Path) -> None:
    programs = context / "root" / "usr" / "local" / "bin"
    programs.mkdir(parents=True)
    for program in ("etcd", "etcdctl"):
        shutil.copy2(binaries.path(program), programs)


IMAGES: dict[str, Image] = {
    image.name: image
    for image in (
        Own(
            "operator",
            "docker.io/ebbtide/operator:dev",
            ROOT / "operator" / "Dockerfile",
            ("operator/requirements.lock",),
            cold_s=15,
        ),
        Own(
            "orders",
            "docker.io/ebbtide/orders:dev",
            ROOT / "examples" / "orders" / "Dockerfile",
            ("examples/orders/requirements.lock", "examples/orders/orders"),
            cold_s=12,
        ),
        Published(
            "etcd",
            chart_image((ROOT / "charts" / "ebbtide" / "values.yaml").read_text()),
            RECIPES / "etcd.Dockerfile",
            _fill_etcd,
            lambda: binaries.key(_etcd_module()),
            cold_s=5,
        ),
        Published(
            "prometheus",
            prometheus.REFERENCE,
            RECIPES / "prometheus.Dockerfile",
            prometheus.fill,
            prometheus.key,
            cold_s=15,
        ),
    )
}
