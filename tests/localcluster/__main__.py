"""`python -m tests.localcluster up|down|status|kubeconfig|build`."""

from __future__ import annotations

import argparse
import sys

from tests import localcluster
from tests.localcluster import binaries
from tests.localcluster.layout import layout_of


def main() -> int:
    """Run one command; return 1 where it failed, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m tests.localcluster", description=localcluster.__doc__)
    parser.add_argument("command", choices=["up", "down", "status", "kubeconfig", "build"])
    parser.add_argument("--name", default="ebbtide", help="which cluster (default: ebbtide)")
    parser.add_argument("--nodes", type=int, default=1, help="how many nodes (default: 1)")
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "up":
                cluster = localcluster.up(arguments.name, arguments.nodes)
                print(f"export KUBECONFIG={cluster.kubeconfig}")
            case "down":
                localcluster.down(arguments.name)
            case "status":
                print(localcluster.status(arguments.name))
            case "kubeconfig":
                print(layout_of(arguments.name).kubeconfig)
            case _:
                binaries.build()
    except localcluster.ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
