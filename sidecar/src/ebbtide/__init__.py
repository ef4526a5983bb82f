"""Know every task of a process, and bring it to an orderly end: with or without an operator."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ebbtide.entries import Entry
from ebbtide.errors import EbbtideError, NotRunning, Refused, StartFailed, TimedOut
from ebbtide.limits import Admission, Limits
from ebbtide.protection import protect
from ebbtide.registry import heartbeat
from ebbtide.restarts import OnCrash, Restart
from ebbtide.runtime import Runtime
from ebbtide.scope import Scope
from ebbtide.settings import Settings
from ebbtide.startup import Stage
from ebbtide.vocabulary import PodState

if TYPE_CHECKING:
    from ebbtide.drainreport import DrainReport
    from ebbtide.findings import Finding
    from ebbtide.groups import Group

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


_LATE = {"DrainReport": "ebbtide.drainreport", "Finding": "ebbtide.findings", "Group": "ebbtide.groups"}


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
