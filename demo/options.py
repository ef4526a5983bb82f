"""The flags of `python -m demo`, and what follows from them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from examples.orders.orders.app import Mode

from .manifests import SUBJECTS, Subject
from .scenes import Pace

QUICK = Pace(replicas=6, rate=4.5, warm_up_s=10.0)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Three ways to end a pod, side by side, under load, on a real cluster."
    )
    parser.add_argument("--cluster", default="ebbtide-demo", metavar="NAME", help="local cluster (ebbtide-demo)")
    parser.add_argument("--quick", action="store_true", help="6 replicas, the rollout alone")
    parser.add_argument("--replicas", type=int, metavar="N", help="of each Deployment (12; quick: 6); the load follows")
    parser.add_argument(
        "--plain-as-process-1",
        action="store_true",
        help="run the plain service without an init: it then ignores SIGTERM and stays for its grace period",
    )
    parser.add_argument("--result", type=Path, metavar="FILE", help="JSON file (build/demo/result-<time>.json)")
    return parser.parse_args(argv)


def choose_pace(arguments: argparse.Namespace) -> Pace:
    """Return the pace; with other replicas the orders in flight on each pod stay the same."""
    pace = QUICK if arguments.quick else Pace()
    if arguments.replicas is None:
        return pace
    if not 2 <= arguments.replicas <= 100:
        raise ValueError(f"--replicas: must be between 2 and 100, not {arguments.replicas}")
    return Pace(arguments.replicas, pace.rate * arguments.replicas / pace.replicas, pace.warm_up_s)


def choose_subjects(arguments: argparse.Namespace) -> tuple[Subject, ...]:
    """Return the Deployments to compare."""
    return tuple(
        replace(subject, process_1=arguments.plain_as_process_1 and subject.mode is Mode.PLAIN) for subject in SUBJECTS
    )
