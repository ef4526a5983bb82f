"""What goes into an image, as one hash."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tests.localcluster import binaries

ROOT = Path(__file__).parents[3]
RECIPES = Path(__file__).parent
SCRATCH = ".build."
"""How folders in the cache begin that no build leaves behind. They are made while the lock of the builds is held."""


def cache_root() -> Path:
    """Return the folder of images, `$XDG_CACHE_HOME/ebbtide/images` or `~/.cache/ebbtide/images`."""
    return binaries.cache_root().with_name("images")


def content_key(paths: Iterable[Path], *parameters: str, root: Path = ROOT) -> str:
    """Hash files, whole folders and build parameters to 16 hex digits.

    Names count as well as contents; byte code, modes and times do not. The machine's architecture always counts.
    """
    digest = hashlib.sha256(json.dumps([platform.machine(), *parameters]).encode())
    for file in sorted(_files(paths)):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    for path in paths:
        if path.is_dir():
            yield from (one for one in path.rglob("*") if one.is_file() and "__pycache__" not in one.parts)
        else:
            yield path


def distribution(pyproject: str) -> str:
    """Return the part of a pyproject.toml that shapes the wheel; the settings of linters and tests do not."""
    tables = tomllib.loads(pyproject)
    parts = [tables["build-system"], tables["project"], tables.get("tool", {}).get("hatch", {})]
    return json.dumps(parts, sort_keys=True)


def parents(dockerfile: str) -> set[str]:
    """Return the names of the images that a Dockerfile starts from; its own stages and `scratch` are none."""
    found = re.findall(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", dockerfile, re.MULTILINE | re.IGNORECASE)
    stages = {stage.lower() for _, stage in found}
    return {image for image, _ in found if image.lower() not in stages | {"scratch"}}
