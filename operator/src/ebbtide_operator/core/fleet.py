"""The facts that every rule needs: each pod with its order and report, each ReplicaSet with its surplus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ebbtide.protocol import DRAIN_STATES, Desired, Order, Outcome, PodState, Report
from ebbtide_operator.core.budget import drain_limit
from ebbtide_operator.core.marks import cost
from ebbtide_operator.core.model import PodView, Policy, ReplicaSetView, ReportView, Snapshot


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One pod with what the store says about it; there is one for each pod, so identity is equality."""

    pod: PodView
    order: Order | None
    view: ReportView | None
    policy: Policy

    @property
    def counts(self) -> bool:
        return self.pod.counts

    @property
    def ordered(self) -> bool:
        return self.order is not None and self.order.desired is not Desired.SERVE

    @property
    def marked(self) -> bool:
        pod = self.pod
        return any(mark is not None for mark in (pod.draining_since, pod.deadline_at, pod.released, pod.original_cost))

    @property
    def draining(self) -> bool:
        """Whether it is on its way out: ordered to drain, or marked where the store lost the order.

        An order to serve beats marks: they are what a crash left of a return, which is then finished.
        """
        if not self.counts:
            return False
        if self.order is not None:
            return self.ordered
        return self.pod.draining_since is not None or self.pod.released is not None

    @property
    def spends_budget(self) -> bool:
        """Whether it takes a drain slot. A pod that was released without ever having started never drained."""
        return self.draining and (self.ordered or self.pod.draining_since is not None)

    @property
    def report(self) -> Report | None:
        return None if self.view is None else self.view.report

    @property
    def live_report(self) -> Report | None:
        """What it says now; None: unknown."""
        return self.view.report if self.view is not None and self.view.live else None

    @property
    def tasks(self) -> int | None:
        """Tasks in flight; None: unknown."""
        report = self.live_report
        return None if report is None else report.active

    @property
    def unborn(self) -> bool:
        """Whether nothing of it ever ran: no container started, and nothing was ever heard of it or said to it."""
        return (not self.pod.scheduled or not self.pod.started) and self.order is None and self.view is None

    @property
    def out_of_reach(self) -> bool:
        """Whether no order can reach it: it was made without the floor, and no library in it ever spoke."""
        return not self.pod.floored and self.order is None and self.view is None

    @property
    def forced(self) -> bool:
        """Whether its tasks were cancelled, so that it restarts rather than serves again."""
        report = self.report
        if self.order is not None and self.order.desired is Desired.CANCEL:
            return True
        return report is not None and (report.forced or report.state is PodState.CANCELLING)

    @property
    def astray(self) -> bool:
        """Whether it drains though neither an order nor a mark says so.

        It obeyed an order that the store lost, or its container is about to restart: then it ignores what it is told.
        """
        report = self.live_report
        unasked = self.counts and self.order is None and not self.draining
        return unasked and report is not None and report.state in DRAIN_STATES

    @property
    def unaware(self) -> bool:
        """Whether it is being deleted, and works on as if it were not."""
        report = self.live_report
        leaving = self.pod.terminating and not self.pod.finished and not self.ordered
        return leaving and report is not None and report.state in {PodState.STARTING, PodState.SERVING}

    @property
    def untold(self) -> bool:
        """Whether it must be told to serve if it is taken back; also true where the store lost its order."""
        return self.ordered or self.astray or (self.order is None and self.pod.draining_since is not None)

    @property
    def knows_that_it_serves(self) -> bool:
        """Whether nothing is left to be told to it; a pod without a live report will not hear it anyway."""
        return not self.untold and (self.order is None or self.live_report is None or self.obeyed)

    @property
    def obeyed(self) -> bool:
        """Whether its report answers the order that stands."""
        return self.order is not None and self.report is not None and self.report.generation >= self.order.generation

    @property
    def drained(self) -> Outcome | None:
        """How the drain that was ordered ended, in the pod's own words; None while it has not said so."""
        return None if self.order is None else answer_to(self.order, self.report)

    @property
    def started_at(self) -> float | None:
        """When its drain began; None where neither pod nor order says."""
        if self.pod.draining_since is not None:
            return self.pod.draining_since
        return self.order.issued_at if self.ordered and self.order is not None and self.order.issued_at else None

    @property
    def budget_s(self) -> float:
        """Seconds that its drain may take: the durations that it was ordered with, not those of a later policy."""
        return self.timeout_s + (self.order.cancel_grace_s if self.order is not None else self.policy.cancel_grace_s)

    @property
    def timeout_s(self) -> float:
        """Seconds until its tasks are cancelled."""
        if self.order is not None:
            return self.order.quiesce_s + self.order.drain_timeout_s
        return self.policy.quiesce_s + self.policy.drain_timeout_s

    @property
    def deadline_at(self) -> float | None:
        """When its hold ends whatever it says; None where it is not known to drain."""
        if self.pod.deadline_at is not None:
            return self.pod.deadline_at
        return None if self.started_at is None else self.started_at + self.budget_s

    @property
    def next_generation(self) -> int:
        # The pod may remember more than a store that was lost and made anew.
        return max(self.order.generation if self.order else 0, self.report.generation if self.report else 0) + 1

    @property
    def standing(self) -> int:
        """Where the ReplicaSet controller looks for victims first, lowest first.

        It takes pods without a node, then pending, then unready ones, and asks for the deletion cost only among equals:
        no pin beats it.
        """
        if not self.pod.scheduled:
            return 0
        if not self.pod.started:
            return 1
        return 3 if self.pod.ready else 2

    @property
    def rank(self) -> tuple[int, int, float, float, float, str]:
        """Sort key of the next pods to drain, first victim lowest.

        The controller's own first keys (see `standing`), then the user's deletion cost, then tasks (unknown is
        busiest), then the time that it expects to need. Ties go to the youngest, as in Kubernetes, then by name.
        """
        pod, report = self.pod, self.live_report
        own = (cost(pod.original_cost) if pod.original_cost is not None else pod.deletion_cost) or 0
        tasks = float("inf") if report is None else float(report.active)
        eta_s = report.eta_s if report is not None and report.eta_s is not None else float("inf")
        return self.standing, own, tasks, eta_s if tasks else 0.0, -pod.created_at, pod.name


@dataclass(frozen=True, eq=False)
class SetFacts:
    """One ReplicaSet: who is too many, who stays in the drain, who is taken back.

    Without slots: what follows from the fields is worked out once.
    """

    view: ReplicaSetView
    surplus: int
    keeping: tuple[Member, ...]
    returning: tuple[Member, ...]
    candidates: tuple[Member, ...]
    """Pods that could be chosen, first victim first."""
    asked: bool
    """Whether its controller asked for one of the candidates."""

    @cached_property
    def missing(self) -> int:
        """How many more have to go than drain."""
        return self.surplus - len(self.keeping)

    @cached_property
    def unborn(self) -> tuple[Member, ...]:
        """The pods that may go at once, because nothing of them ever ran."""
        return tuple(one for one in self.candidates if one.unborn)[: self.missing]

    @cached_property
    def wanted(self) -> int:
        """How many more have to drain."""
        return self.missing - len(self.unborn)


@dataclass(frozen=True, eq=False)
class Fleet:
    """A snapshot, sorted out. Without slots: what follows from the fields is worked out once."""

    snapshot: Snapshot
    members: tuple[Member, ...]
    sets: tuple[SetFacts, ...]

    @cached_property
    def surplus(self) -> int:
        return sum(one.surplus for one in self.sets)

    @cached_property
    def draining(self) -> tuple[Member, ...]:
        """Pods on their way out, oldest pod first."""
        return tuple(one for one in self.members if one.draining)

    @cached_property
    def returning(self) -> tuple[Member, ...]:
        return tuple(one for facts in self.sets for one in facts.returning)

    @cached_property
    def keeping(self) -> tuple[Member, ...]:
        """Pods whose drain goes on, also those whose ReplicaSet is out of sight: their deadline holds all the same."""
        back = set(self.returning)
        return tuple(one for one in self.draining if one not in back)

    @cached_property
    def astray(self) -> tuple[Member, ...]:
        """Pods that drain though nobody wants it; victims are not among them."""
        chosen = set(self.victims)
        return tuple(one for one in self.members if one.astray and one not in chosen)

    @cached_property
    def limit(self) -> int:
        return drain_limit(self.snapshot.workload, sum(one.counts for one in self.members))

    @cached_property
    def free(self) -> int:
        """Drain slots that are free once the pods to be returned are; never negative."""
        return max(0, self.limit - sum(one.spends_budget for one in self.keeping))

    @cached_property
    def wanted(self) -> int:
        """How many more pods have to drain, whatever the budget."""
        return sum(one.wanted for one in self.sets)

    @cached_property
    def pool(self) -> tuple[Member, ...]:
        """Pods from which the next victims come, first victim first, of all sets that miss some."""
        unborn = {one for facts in self.sets for one in facts.unborn}
        found = [one for facts in self.sets if facts.wanted > 0 for one in facts.candidates if one not in unborn]
        return tuple(sorted(found, key=lambda one: one.rank))

    @cached_property
    def victims(self) -> tuple[Member, ...]:
        """The pods to order now: the first of the pool, within each set's need and the budget of the workload."""
        left = {facts.view.uid: facts.wanted for facts in self.sets}
        chosen: list[Member] = []
        for one in self.pool:
            if len(chosen) < self.free and left[one.pod.owner_uid] > 0:
                left[one.pod.owner_uid] -= 1
                chosen.append(one)
        return tuple(chosen)


def answer_to(order: Order, report: Report | None) -> Outcome | None:
    """Say how a drain ended, in the pod's own words; None: it has not said so, or the order is none to drain.

    An answer to an earlier order tells nothing of this one.
    """
    if report is None or order.desired is Desired.SERVE or report.generation != order.generation:
        return None
    if report.state not in (PodState.DRAINED, PodState.EXITING):
        return None
    if report.active > 0 or abandoned_in_drain(report) > 0:
        return Outcome.ABANDONED
    return Outcome.CANCELLED if report.forced else Outcome.CLEAN


def abandoned_in_drain(report: Report) -> int:
    """Return how many tasks a drained pod gave up.

    The tally will not do where the digest of the drain tells: it counts from the start of the process, and so what ran
    past a time limit, or died with a crashed worker, long before.
    """
    counts = None if report.drain is None else report.drain.get("counts")
    # The digest is for people, and not checked as it comes in.
    said = counts.get("abandoned", 0) if isinstance(counts, Mapping) else report.tally.get("abandoned", 0)
    return said if isinstance(said, int) else 0


def survey(snapshot: Snapshot) -> Fleet:
    """Sort out a snapshot."""
    policy = snapshot.workload.policy
    members = tuple(
        Member(pod, snapshot.orders.get(pod.uid), snapshot.reports.get(pod.uid), policy)
        for pod in sorted(snapshot.pods, key=lambda pod: (pod.created_at, pod.name, pod.uid))
    )
    sets = tuple(_facts(view, members, snapshot.requested) for view in snapshot.workload.sets)
    return Fleet(snapshot, members, sets)


def _facts(view: ReplicaSetView, members: Iterable[Member], requested: frozenset[str]) -> SetFacts:
    own = [one for one in members if one.pod.owner_uid == view.uid and one.counts]
    surplus = max(0, len(own) - max(0, view.replicas))
    stuck = [one for one in own if _is_stuck(one, own, surplus, requested)]
    draining = sorted((one for one in own if one.draining and one not in stuck), key=_last_to_return)
    excess = max(0, len(draining) - surplus)
    # A pod with the marks of an unfinished return is chosen again only when they are gone: its pin would take our cost
    # for the user's.
    free = [one for one in own if not one.draining and not one.marked]
    return SetFacts(
        view=view,
        surplus=surplus,
        keeping=tuple(draining[excess:]),
        returning=(*stuck, *draining[:excess]),
        candidates=tuple(sorted(free, key=lambda one: one.rank)),
        asked=any(one.pod.uid in requested for one in free),
    )


def _last_to_return(member: Member) -> tuple[bool, bool, float]:
    """Sort the pods to take back: newest drains first.

    Forced ones come late, since they restart; released ones last, since they are as good as gone.
    """
    return member.pod.released is not None, member.forced, -(member.started_at or 0.0)


def _is_stuck(member: Member, own: list[Member], surplus: int, requested: frozenset[str]) -> bool:
    """Say whether a released pod waits for a controller that wants other pods and was refused them.

    That happens when a pod turns unready, which the controller puts before every cost, after another was chosen.
    """
    if member.pod.released is None or not member.draining:
        return False
    ahead = [one for one in own if one.standing < member.standing]
    return len(ahead) >= surplus and any(not one.draining and one.pod.uid in requested for one in ahead)
