"""`python -m tests.localcluster`: the cluster from the command line."""

import argparse
import sys

from tests.localcluster import adapters
from tests.localcluster.cluster import CommandFailed
from tests.localcluster.errors import ClusterError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (ClusterError, CommandFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            cluster = adapters.up(options.name, options.nodes, controller_manager_qps=options.controller_manager_qps)
            print(cluster.kubeconfig)
        case "down":
            adapters.down(options.name)
        case "status":
            return _print_status(options.name)
        case "kubeconfig":
            found = adapters.attach(options.name)
            if found is None:
                raise ClusterError(f"there is no cluster {options.name}; start it: python -m tests.localcluster up")
            print(found.kubeconfig)
        case "check":
            adapters.check()
        case _:
            adapters.prepare()
    return 0


def _print_status(name: str) -> int:
    status = adapters.status(name)
    if not status.exists:
        print(f"there is no cluster {name}")
        return 1
    for component, pid in (status.pids or {}).items():
        print(f"{component:<28} {pid}")
    for problem in status.problems:
        print(f"problem: {problem}")
    print("healthy" if status.healthy else "not healthy")
    return 0 if status.healthy else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.localcluster", description="A real Kubernetes cluster here.")
    commands = parser.add_subparsers(dest="command", required=True)
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default="ebbtide", help="which cluster (default: %(default)s)")
    up = commands.add_parser("up", parents=[named], help="start it, or reuse the healthy one; prints its kubeconfig")
    up.add_argument("--nodes", type=int, default=1, help="how many nodes (default: %(default)s)")
    up.add_argument(
        "--controller-manager-qps", type=float, help="client rate of the controller-manager (its own default: 20/s)"
    )
    commands.add_parser("down", parents=[named], help="stop it and remove everything of it")
    commands.add_parser("status", parents=[named], help="say what runs; exit status 1 where it is not healthy")
    commands.add_parser("kubeconfig", parents=[named], help="print the path of its kubeconfig")
    commands.add_parser("check", help="say whether a cluster can run here; exit status 1 and the reason where not")
    commands.add_parser("build", help="install the packages and compile the programs, and start nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
