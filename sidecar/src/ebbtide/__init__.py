"""Know every task of a process, and bring it to an orderly end: with or without an operator."""

from __future__ import annotations

from typing import Any

from ebbtide.drainreport import DrainReport
from ebbtide.entries import Entry
from ebbtide.errors import EbbtideError, NotRunning, Refused, StartFailed, TimedOut
from ebbtide.findings import Finding
from ebbtide.groups import Group
from ebbtide.limits import Admission, Limits
from ebbtide.protection import protect
from ebbtide.protocol import PodState
from ebbtide.registry import heartbeat
from ebbtide.restarts import OnCrash, Restart
from ebbtide.runtime import Runtime
from ebbtide.scope import Scope
from ebbtide.settings import Settings
from ebbtide.startup import Stage

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


def __getattr__(name: str) -> Any:
    # Late: reading the installed metadata costs more than all the rest of the import.
    if name == "__version__":
        from importlib.metadata import version

        return version("ebbtide")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
