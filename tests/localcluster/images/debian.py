"""The base image where none can be pulled: Debian with Python, from this machine's own package sources."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.localcluster import packages
from tests.localcluster.images.commands import run
from tests.localcluster.images.sources import RECIPES, cache_root, content_key
from tests.localcluster.progress import step

REFERENCE = "python:3.11-slim-bookworm"
FULL_REFERENCE = f"docker.io/library/{REFERENCE}"
COLD_S = 45
"""Measured time to make it on 2 cores, in seconds."""

_RELEASE = "bookworm"
_PACKAGES = ("python3", "python3-pip-whl", "ca-certificates")
_PIP_WHEEL = "/usr/share/python-wheels/pip-*.whl"
_SITE_PACKAGES = "/usr/local/lib/python3.11/dist-packages"
_UNWANTED = ("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/doc")
# Each runs when the packages are installed, with the new root as $1.
_HOOKS = (
    # The official image has Python and pip in /usr/local.
    'ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
    'ln -s /usr/bin/python3 "$1/usr/local/bin/python3"',
    f'chroot "$1" sh -ec "python3 -m zipfile -e {_PIP_WHEEL} {_SITE_PACKAGES}"',
    # This machine's way to its package sources is of no use elsewhere.
    'rm -rf "$1"/etc/apt/sources.list* "$1"/etc/apt/apt.conf.d/99mmdebstrap',
    'rm -rf "$1"/usr/share/python-wheels "$1"/var/cache/debconf/* "$1"/var/log/*',
)
# What decides how apt reaches its sources and whether it believes them: proxies, certificates, clocks.
_ACCESS = re.compile(r"Acquire::((https?|ftp)::|Check-|Retries|ForceIP)", re.IGNORECASE)


def key() -> str:
    """Hash the recipe. Newer packages do not change it: remove the cache to take them."""
    return content_key([RECIPES / "python.Dockerfile"], *command(Path("root.tar"), None, []))


def tarball() -> Path:
    """Return where the root file system is, or will be."""
    return cache_root() / f"python-base-{key()}.tar"


def make() -> Path:
    """Return the root file system as a tar file and make it where it is missing. Needs root.

    Raises:
        ClusterError: packages cannot be had; the message has what the tool said.
    """
    target = tarball()
    if target.exists():
        return target
    if shutil.which("mmdebstrap") is None:
        packages.install(["mmdebstrap", "debian-archive-keyring"])
    with step(f"making the base image {REFERENCE} from Debian packages (about {COLD_S} s, once)"):
        lines = package_sources(_index_targets())
        sources = target.with_suffix(".list")
        sources.write_text("".join(f"{line}\n" for line in lines))
        new = target.with_suffix(".new.tar")
        try:
            # No sources: mmdebstrap knows Debian's own.
            run(command(new, sources if lines else None, access_options(run(["apt-config", "dump"]))), env=_ENVIRONMENT)
            for old in cache_root().glob("python-base-????????????????.tar"):
                old.unlink()
            new.rename(target)
        finally:
            sources.unlink()
            new.unlink(missing_ok=True)
    return target


# Times and byte code that do not depend on when it was made.
_ENVIRONMENT = {"SOURCE_DATE_EPOCH": "0"}


def command(target: Path, sources: Path | None, access: list[str]) -> list[str]:
    """Return the command that makes the root file system; its mounts are in a namespace that ends with it."""
    excluded = [f"--dpkgopt=path-exclude=/{folder}/*" for folder in _UNWANTED]
    return [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", f"--include={','.join(_PACKAGES)}"),
        # Without it, usrmerge brings 50 MB of perl for a merge that has nothing to merge.
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        *(f"--aptopt={option}" for option in access),
        *excluded,
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        *(f"--customize-hook={hook}" for hook in _HOOKS),
        *(_RELEASE, str(target)),
        *([str(sources)] if sources else []),
    ]


def access_options(dump: str) -> list[str]:
    """Choose from `apt-config dump` what a second apt needs to reach the same package sources."""
    return [line.strip() for line in dump.splitlines() if _ACCESS.match(line) and not line.rstrip().endswith(' "";')]


def package_sources(targets: str) -> list[str]:
    """Return this machine's sources of Debian packages as sources.list lines for the release of the image.

    Args:
        targets: lines of repository, release, codename, component and origin, as apt has them.
    """
    lines: dict[str, None] = {}
    for target in targets.splitlines():
        uri, release, codename, component, origin = target.split("\t")
        if origin != "Debian" or component != "main":
            continue
        own = codename.partition("-")[0]
        # `trixie-security` on a newer machine is `bookworm-security` here. A suite name such as `stable` stays behind.
        suite = codename.replace(own, _RELEASE, 1) if release.startswith(own) else _RELEASE
        lines[f"deb {uri} {suite} main"] = None
    return list(lines)


def _index_targets() -> str:
    fields = ("REPO_URI", "RELEASE", "CODENAME", "COMPONENT", "ORIGIN")
    question = [
        "apt-get",
        "indextargets",
        "--format",
        "\t".join(f"$({field})" for field in fields),
        "Created-By: Packages",
    ]
    known = run(question)
    if known.strip():
        return known
    # A machine that never fetched its package lists does not know the origins of its sources.
    run(["apt-get", "update"])
    return run(question)
