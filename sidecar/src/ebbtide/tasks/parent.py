"""What a scope starts that is more than one task, or none: groups of tasks, and child processes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from os import PathLike

    from ebbtide.tasks.groups import Group
    from ebbtide.tasks.scope import Scope


class Parent:
    """The part of a scope that starts families of work."""

    def group(self, name: str | None = None, *, timeout_s: float | None = None) -> Group:
        """Open a structured group: `async with scope.group() as group: group.spawn(...)`.

        It is an `asyncio.TaskGroup`: the block waits for all its children, the first one that fails cancels the others
        and the body, and what failed is raised as an `ExceptionGroup`. Its children are work in flight of this scope.

        Args:
            name: For people: children without a name of their own have this one and a number; None: the scope's.
            timeout_s: Limit for each child, in seconds; the scope's limits it as well. Put `asyncio.timeout` around the
                block to limit all of it.
        """
        from ebbtide.tasks.groups import Group

        return Group(cast("Scope", self), name, timeout_s)

    async def process(
        self,
        program: str | PathLike[str],
        *arguments: str | PathLike[str],
        name: str | None = None,
        meta: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> asyncio.subprocess.Process:
        """Start a child process that this process waits for when it drains.

        Cancelled, it gets SIGTERM, and SIGKILL before its grace is over; its whole process group gets them where it
        leads one (`start_new_session=True`). A status other than 0 is a crash.

        Args:
            program: What to run; not through a shell.
            arguments: Its arguments.
            name: For people; None: the program's and a number.
            meta: Shown with it in dumps and logs, with its `pid`.
            timeout_s: Seconds after which it is cancelled.
            options: As for `asyncio.create_subprocess_exec`: `stdin`, `stdout`, `stderr`, `cwd`, `env`, ...

        Raises:
            Refused: As for `spawn`; nothing was started.
            OSError: The program could not be started.
            TimedOut: It was not even started in time.
        """
        from ebbtide.tasks.processes import start_process

        return await start_process(cast("Scope", self), (program, *arguments), name, meta, timeout_s, options)
