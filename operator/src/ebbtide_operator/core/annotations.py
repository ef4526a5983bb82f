"""What users write on a workload: annotations in, a policy out, or the sentence that says what is wrong.

A mistake never stops a rollout: a workload with a value that cannot be used runs as without Ebbtide, and is told so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from ebbtide_operator.core import names
from ebbtide_operator.core.model import Mode, Policy, Problem

KNOWN = (
    names.DRAIN,
    names.DRAIN_TIMEOUT,
    names.CANCEL_GRACE,
    names.QUIESCE,
    names.MAX_DRAINING,
    names.CONTAINER,
)
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_DRAIN_S = 24 * 3600.0
LONGEST_CANCEL_GRACE_S = 600.0
LONGEST_QUIESCE_S = 300.0
LONGEST_TEXT = 64
"""Longer values are cut in messages: they end up in Events and conditions."""

_DURATION = re.compile(r"(?:([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|h|m|s))")
_CONTAINER = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def read_policy(annotations: Mapping[str, str], defaults: Policy) -> tuple[Policy, tuple[Problem, ...]]:
    """Read a workload's annotations.

    Args:
        annotations: All of them; those of other domains are not looked at.
        defaults: What holds where one is missing; its mode is not used.

    Returns:
        The policy, and one problem for each annotation that cannot be used. With a fatal problem the policy is off.
    """
    policy = replace(defaults, mode=Mode.OFF)
    if not any(name.startswith(f"{names.DOMAIN}/") for name in annotations):
        return policy, ()
    problems: list[Problem] = []
    read: dict[str, Callable[[str], Policy]] = {
        names.DRAIN: lambda text: replace(policy, mode=_mode(text)),
        names.DRAIN_TIMEOUT: lambda text: replace(policy, drain_timeout_s=duration(text, LONGEST_DRAIN_S)),
        names.CANCEL_GRACE: lambda text: replace(policy, cancel_grace_s=duration(text, LONGEST_CANCEL_GRACE_S)),
        names.QUIESCE: lambda text: replace(policy, quiesce_s=duration(text, LONGEST_QUIESCE_S)),
        names.MAX_DRAINING: lambda text: replace(policy, max_draining=_max_draining(text)),
        names.CONTAINER: lambda text: replace(policy, container=_container(text)),
    }
    for name in KNOWN:
        text = annotations.get(name)
        if text is None:
            continue
        try:
            policy = read[name](text.strip())
        except ValueError as error:
            problems.append(Problem(name, f"{name}: {error}, not {_shown(text)}"))
    problems += (
        Problem(name, f"{name}: is not known and does nothing{_nearest(name)}", fatal=False)
        for name in sorted(annotations)
        if name.startswith(f"{names.DOMAIN}/") and name not in KNOWN
    )
    if any(problem.fatal for problem in problems):
        policy = replace(policy, mode=Mode.OFF)
    return policy, tuple(problems)


def duration(text: str, longest_s: float) -> float:
    """Return the seconds of a duration as Kubernetes users write it: `90s`, `5m`, `1h30m`, `500ms`, `0s`.

    Raises:
        ValueError: It is none, has no unit, or is longer than `longest_s`.
    """
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        hint = f" (a unit is missing: {text}s?)" if re.fullmatch("[0-9]{1,9}", text) else ""
        raise ValueError(f"must be a duration like 90s, 5m or 1h30m{hint}")
    seconds = sum(float(number) * UNIT_S[unit] for number, unit in parts)
    if seconds > longest_s:
        raise ValueError(f"must be {longest_s / 60:g}m at most")
    return seconds


def _mode(text: str) -> Mode:
    try:
        return Mode(text)
    except ValueError:
        raise ValueError("must be managed, floor or off") from None


def _max_draining(text: str) -> int | str:
    if re.fullmatch("[1-9][0-9]{0,5}", text):
        return int(text)
    share = re.fullmatch("([1-9][0-9]{0,2})%", text)
    if share and int(share[1]) <= 100:
        return text
    raise ValueError("must be a count from 1 on, or a percentage from 1% to 100%")


def _container(text: str) -> str:
    if not _CONTAINER.fullmatch(text):
        raise ValueError("must be the name of a container of the pod")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…")


def _nearest(name: str) -> str:
    found = get_close_matches(name, KNOWN, n=1, cutoff=0.7)
    return f" (did you mean {found[0]}?)" if found else ""
