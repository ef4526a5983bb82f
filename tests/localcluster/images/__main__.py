"""`python -m tests.localcluster.images [name…]`: builds images and prints where they are."""

from __future__ import annotations

import argparse
import sys

from tests.localcluster import images
from tests.localcluster.errors import ClusterError
from tests.localcluster.images import catalog, engines
from tests.localcluster.images.cache import announce


def main(argv: list[str] | None = None) -> int:
    """Build what was asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.localcluster.images", description="Build container images.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(catalog.IMAGES)} (default: all)")
    parser.add_argument(
        "--prepare", action="store_true", help="only fill build/wheelhouse and build/dist, for a build by hand"
    )
    parser.add_argument("--list", action="store_true", help="only print their full names; nothing is built or pulled")
    told = parser.parse_args(argv)
    try:
        if told.list:
            print(*(images.reference(name) for name in told.names or catalog.IMAGES), sep="\n")
            return 0
        if told.prepare:
            images.prepare()
            return 0
        names = told.names or list(catalog.IMAGES)
        announce([catalog.find(name) for name in names], engines.present())
        for name in names:
            archive = images.build(name)
            print(f"{images.reference(name)}  {archive.stat().st_size / 1e6:.0f} MB  {archive}", flush=True)
    except ClusterError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
