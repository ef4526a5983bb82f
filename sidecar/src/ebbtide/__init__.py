"""Know every task of a process, and bring it to an orderly end: with or without an operator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ebbtide.errors import EbbtideError, NotRunning, Refused, StartFailed, TimedOut
from ebbtide.lifecycle.startup import Stage
from ebbtide.runtime import Runtime
from ebbtide.settings import Settings
from ebbtide.tasks.beats import heartbeat
from ebbtide.tasks.entries import Entry
from ebbtide.tasks.limits import Admission, Limits
from ebbtide.tasks.protection import protect
from ebbtide.tasks.restarts import OnCrash, Restart
from ebbtide.tasks.scope import Scope
from ebbtide.vocabulary import PodState

if TYPE_CHECKING:
    from ebbtide.leaks.findings import Finding
    from ebbtide.lifecycle.drainreport import DrainReport
    from ebbtide.tasks.groups import Group

__all__ = [
    "Admission",
    "DrainReport",
    "EbbtideError",
    "Entry",
    "Finding",
    "Group",
    "Limits",
    "NotRunning",
    "OnCrash",
    "PodState",
    "Refused",
    "Restart",
    "Runtime",
    "Scope",
    "Settings",
    "Stage",
    "StartFailed",
    "TimedOut",
    "heartbeat",
    "protect",
]


_LATE = {
    "DrainReport": "ebbtide.lifecycle.drainreport",
    "Finding": "ebbtide.leaks.findings",
    "Group": "ebbtide.tasks.groups",
}


def __getattr__(name: str) -> Any:
    # Late: what only some ask for.
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("ebbtide")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
