"""The three scenes: what is done to each Deployment, and what is recorded meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from examples.orders.orders.accounts import OrderRecord
from examples.orders.orders.marks import Mark

from .audit import AuditTail
from .cluster_api import CommandError, Kubectl, LoadControl
from .history import Goal
from .manifests import SHOP, Subject
from .releases import read_operator_log, release_decisions
from .results import Course, Recording
from .watch import PodWatch, WatchTimeoutError

SETTLE_S = 2.0
"""Load goes on for this long after the last Deployment is there, so that late losses are seen."""
DECIDED_WITHIN_S = 120.0
"""Every order is decided within this time after the last one was sent."""

logger = logging.getLogger("demo")

Say = Callable[[str], None]


class SceneError(Exception):
    """A scene cannot begin or go on; says why."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How large and how long the scenes are."""

    replicas: int = 12
    rate: float = 9.0
    """Orders per second for each Deployment; times the mean work of 4.6 s, over 12 pods: 3.5 in flight on each."""
    warm_up_s: float = 20.0
    """Load before the first command: the longest order, so that the number in flight is steady."""
    limit_s: float = 420.0
    """For one Deployment to get where it should, beyond the longest grace period."""
    median_work_s: float = 3.0


@dataclass(slots=True)
class Stage:
    """What scenes act with."""

    kubectl: Kubectl
    watch: PodWatch
    load: LoadControl
    audit: AuditTail
    subjects: Sequence[Subject]
    pace: Pace
    say: Say
    operator_namespace: str
    run: str = ""
    """Name of the load generator's present run; empty between scenes."""
    scene: str = ""
    before: dict[str, str] = field(default_factory=dict)
    """Template hash by Deployment, as it was when the scene began."""
    versions: int = 1

    def remember_templates(self) -> None:
        """Take down every Deployment's template; each has but one between scenes.

        Raises:
            SceneError: One has several.
        """
        for subject in self.subjects:
            found = {pod.template for pod in self.watch.of(subject.name)}
            if len(found) != 1:
                raise SceneError(f"{subject.name}: its pods must be of one template before a scene, not {len(found)}")
            (self.before[subject.name],) = found


Play = Callable[[Stage, str], Awaitable[Course]]


@dataclass(frozen=True, slots=True)
class Scene:
    """One scene; `play` does it to one Deployment and returns when that got where it should, or not in time."""

    name: str
    play: Play


async def roll_out(stage: Stage, deployment: str) -> Course:
    """Give the Deployment a new template, and wait until the last old pod is gone."""
    before, began_at = stage.before[deployment], time.time()
    await _new_template(stage, deployment)
    goal = Goal(stage.pace.replicas, before, changed=True)
    return await _finish(stage, deployment, before, goal, began_at, surplus=None)


async def roll_back(stage: Stage, deployment: str) -> Course:
    """Give the Deployment a new template, and take it back when half of the new pods serve."""
    before, began_at = stage.before[deployment], time.time()
    await _new_template(stage, deployment)
    half = stage.pace.replicas // 2

    def half_way() -> bool:
        return sum(pod.serving and pod.template != before for pod in stage.watch.of(deployment)) >= half

    try:
        await stage.watch.until(f"{deployment}: {half} new pods serve", half_way, stage.pace.limit_s)
    except WatchTimeoutError as error:
        raise SceneError(f"the rollout never came half-way: {error}") from error
    await stage.kubectl("-n", SHOP, "rollout", "undo", f"deployment/{deployment}")
    stage.say(f"{deployment}: half-way after {time.time() - began_at:.1f} s, rolled back")
    goal = Goal(stage.pace.replicas, before)
    return await _finish(stage, deployment, before, goal, began_at, surplus=0)


async def scale_down(stage: Stage, deployment: str) -> Course:
    """Halve the Deployment."""
    before, began_at = stage.before[deployment], time.time()
    replicas = stage.pace.replicas // 2
    await stage.kubectl("-n", SHOP, "scale", f"deployment/{deployment}", f"--replicas={replicas}")
    goal = Goal(replicas, before)
    return await _finish(stage, deployment, before, goal, began_at, surplus=stage.pace.replicas - replicas)


def scenes(pace: Pace, *, quick: bool) -> list[Scene]:
    """Return the scenes in their order; the last one leaves the Deployments halved."""
    rollout = Scene("rollout", roll_out)
    if quick:
        return [rollout]
    halved = f"scale-down {pace.replicas} -> {pace.replicas // 2}"
    return [rollout, Scene("rollback half-way", roll_back), Scene(halved, scale_down)]


async def _new_template(stage: Stage, deployment: str) -> None:
    # The loop does not switch between the two lines: three Deployments get three numbers.
    stage.versions += 1
    version = stage.versions
    await stage.kubectl("-n", SHOP, "set", "env", f"deployment/{deployment}", f"ORDERS_VERSION={version}")


async def _finish(
    stage: Stage, deployment: str, before: str, goal: Goal, began_at: float, surplus: int | None
) -> Course:
    last_command_at = time.time()
    status = asyncio.create_task(_rollout_status(stage, deployment))
    try:
        await stage.watch.until(
            f"{deployment} got where it should",
            lambda: goal.reached(stage.watch.of(deployment)),
            stage.pace.limit_s,
        )
        stage.say(f"{deployment}: really over after {time.time() - last_command_at:.1f} s")
        status_at = await status
    except WatchTimeoutError as error:
        # A row without a time says so; the other Deployments go on.
        logger.warning("%s", error)
        status.cancel()
        with suppress(asyncio.CancelledError):
            await status
        status_at = None
    return Course(deployment, before, goal.replicas, began_at, last_command_at, status_at, goal, surplus)


async def _rollout_status(stage: Stage, deployment: str) -> float | None:
    limit = f"--timeout={stage.pace.limit_s:.0f}s"
    try:
        await stage.kubectl("-n", SHOP, "rollout", "status", f"deployment/{deployment}", limit)
    except CommandError as error:
        logger.warning("%s", error)
        return None
    return time.time()


async def record(stage: Stage, scene: Scene, run: str, seed: int) -> Recording:
    """Play one scene on all Deployments at the same time, under the same load, and return what was seen.

    Args:
        stage: What to act with.
        scene: What to play.
        run: Name for the load generator's run, never used before.
        seed: Of the stream of orders.
    """
    pace = stage.pace
    await stage.load.start(
        {
            "name": run,
            "targets": {subject.name: subject.url for subject in stage.subjects},
            "rate": pace.rate,
            "duration_s": pace.warm_up_s + 2 * pace.limit_s + 60,
            "seed": seed,
            "work": {"median_s": pace.median_work_s},
        }
    )
    stage.run, stage.scene = run, f"{scene.name}: load"
    stage.audit.read()
    stage.remember_templates()
    began_at = time.time()
    await asyncio.sleep(pace.warm_up_s)
    stage.scene = scene.name
    stage.say(f"{scene.name} begins")
    courses = await asyncio.gather(*(scene.play(stage, subject.name) for subject in stage.subjects))
    await asyncio.sleep(SETTLE_S)
    ended_at = time.time()
    stage.scene = f"{scene.name}: last orders"
    await stage.load.stop(run)
    dump = await _decided(stage, run)
    stage.run = stage.scene = ""
    log = await read_operator_log(stage.kubectl, stage.operator_namespace, began_at)
    return Recording(
        scene=scene.name,
        ended_at=ended_at,
        courses=tuple(courses),
        orders=tuple(OrderRecord.from_json(item) for item in dump["orders"]),
        marks=tuple(Mark.from_json(item) for item in dump["pod_marks"]),
        events=tuple(stage.watch.events),
        writes=tuple(stage.audit.read()),
        releases=release_decisions(log, SHOP),
    )


async def _decided(stage: Stage, run: str) -> dict[str, list[dict[str, object]]]:
    """Wait until it is known of every order what became of it; what is open at the limit stays open in the result."""
    end_at = time.monotonic() + DECIDED_WITHIN_S
    while True:
        summary = await stage.load.show(run)
        undecided = sum(counts["open"] + counts["in_flight"] for counts in summary["deployments"].values())
        if not undecided or time.monotonic() > end_at:
            dump: dict[str, list[dict[str, object]]] = await stage.load.dump(run)
            return dump
        await asyncio.sleep(1)
