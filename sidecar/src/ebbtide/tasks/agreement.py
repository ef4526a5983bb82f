"""A scope that several places ask for by its name: whether all of them mean the same one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ebbtide.tasks.limits import Limits
    from ebbtide.tasks.restarts import OnCrash
    from ebbtide.tasks.scope import Scope


def must_agree(
    found: Scope, timeout_s: float | None, limits: Limits | None, on_crash: OnCrash | None, heartbeat_s: float | None
) -> None:
    """Raise ValueError where a scope is asked for otherwise than it was made; but for the time limit, None is anything.

    Args:
        found: The scope.
        timeout_s: Seconds, the parents' limits included.
        limits: Its own.
        on_crash: What a crash does to the rest of it.
        heartbeat_s: Seconds.
    """
    if found.timeout_s != timeout_s:
        raise ValueError(
            f"scope {found.name}: timeout_s is {found.timeout_s} where it was made, and {timeout_s} here; "
            "use one value, or another name"
        )
    if limits is not None and limits != found.gate.own_limits:
        raise ValueError(f"scope {found.name}: it has other limits already; set its `limits` to change them")
    for what, wanted, there in (
        ("on_crash", on_crash, found.on_crash),
        ("heartbeat_s", heartbeat_s, found.heartbeat_s),
    ):
        if wanted is not None and wanted != there:
            raise ValueError(f"scope {found.name}: {what} is {there} where it was made, and {wanted} here")
