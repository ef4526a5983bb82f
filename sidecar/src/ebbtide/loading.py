"""What a runtime loads when it starts, and not when somebody imports the library.

Most of the library serves a process that runs as a pod, and many that import it do not: tests, tools, migrations. So
what only a started runtime needs is imported within the functions that need it, and all of that is loaded here, before
intake opens. A drain comes when a node is short of everything, and a dump is asked for when a process has no file
descriptor left: neither must be the first to want a file.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from importlib import import_module

from ebbtide.settings import Settings


async def load(settings: Settings) -> None:
    """Load what a started runtime may come to need.

    In the loop's own thread, since a fork while another thread imports leaves the child with a lock that nobody opens;
    and a module at a time, so that a loop that serves already goes on in between.
    """
    for name in _wanted(settings):
        if name not in sys.modules:
            import_module(name)
            await asyncio.sleep(0)


def _wanted(settings: Settings) -> Iterator[str]:
    """Yield modules, each after the larger ones that it imports."""
    yield from (
        "random",
        "statistics",
        "ebbtide.leaks.trend",
        "ebbtide.leaks.outsiders",
        "ebbtide.leaks.suspects",
        "ebbtide.admin.dump",
    )
    yield from ("ebbtide.tasks.groups", "ebbtide.tasks.processes")
    yield from ("email.parser", "http.client", "http.server", "ebbtide.admin.exposition", "ebbtide.protocol")
    yield from ("ebbtide.admin.server", "ebbtide.workers.view")
    if settings.meeting_place is not None:
        # Both: one that follows may have to take over.
        yield from ("ebbtide.workers.hub", "ebbtide.workers.link")
    if settings.has_store:
        # The codec is what a first look-up of a host name asks for.
        yield from ("encodings.idna", "ebbtide.etcd.wire", "ebbtide.etcd", "ebbtide.agent")
