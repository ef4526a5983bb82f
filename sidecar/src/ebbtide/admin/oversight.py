"""What a runtime does for people who look after it: looks, limits, single units of work by id, leaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ebbtide.tasks.cancelling import cancel_by_id
from ebbtide.tasks.entries import task_of
from ebbtide.tasks.registry import Registry

if TYPE_CHECKING:
    from ebbtide.admin.views import Views
    from ebbtide.leaks.findings import Finding
    from ebbtide.leaks.watch import LeakWatch


class Oversight:
    """The part of a runtime that is for looking after it; from any thread. Dumps and logs tell ids."""

    _registry: Registry
    _leaks: LeakWatch
    _views: Views

    def tasks(self) -> Sequence[Mapping[str, Any]]:
        """Return every task in flight, in the order of admission."""
        return self._views.tasks()

    def dump(self, query: Mapping[str, str] | None = None) -> str:
        """Return what is in flight, grouped by where it waits.

        Call it in a thread other than the loop's where there is a lot: a hundred thousand tasks take some hundred
        milliseconds.

        Args:
            query: As for `/debug/tasks`: `format` (`text`, `json`, `collapsed`), `scope`, `state`, `kind`, `name`,
                `older` (seconds), `limit`.

        Raises:
            ValueError: A parameter cannot be used; the message names it.
        """
        return self._views.dump(query or {})

    def limits_view(self) -> Sequence[Mapping[str, Any]]:
        """Return the limits of the process and of every scope, and how much of them is used."""
        return self._views.limits()

    def change_limits(self, scope: str, texts: Mapping[str, str]) -> Mapping[str, Any]:
        """Change limits by name, from any thread; an empty scope stands for the process.

        Raises:
            ValueError: There is no such scope or limit, or its value cannot be used; the message names it.
        """
        return self._views.change_limits(scope, texts)

    def cancel(self, number: int, reason: str = "") -> bool:
        """Cancel one unit of work, as a drain would: softly, and counted by how it ends.

        Args:
            number: Its id.
            reason: For the task, and for who reads its error.

        Returns:
            False where nothing of that id is in flight, or it is work in a thread, which cannot be cancelled.
        """
        return cancel_by_id(self._registry, number, reason or "cancelled by its id")

    def release(self, number: int, reason: str = "") -> bool:
        """Stop waiting for one unit of work: it goes on, counted as abandoned, and no drain waits for it.

        The log names it with the place where it is. Dumps show it as `abandoned` until it ends.

        Args:
            number: Its id.
            reason: For the log.

        Returns:
            False where nothing of that id is in flight, or it is abandoned already.
        """
        item = self._registry.live.get(number)
        task = None if item is None else task_of(item)
        if item is None or number in self._registry.abandoned or (task is not None and task.done()):
            return False
        self._registry.released.add(number)
        self._registry.abandon([item], reason or "released by its id")
        return True

    def leaks(self) -> Sequence[Finding]:
        """Look for leaks now, and return what is suspected, the most numerous first.

        Tasks outside any scope are among them once they have been seen for `Settings.leak_age_s`; the process looks by
        itself every ten seconds. Call it in a thread other than the loop's where there is a lot.
        """
        return self._leaks.look().findings

    def leaks_view(self, query: Mapping[str, str]) -> str:
        """Look for leaks now, and return it as text, or with `format=json` as JSON.

        Raises:
            ValueError: There is no such format.
        """
        return self._leaks.view(query)

    def trace_origins(self, on: bool = True) -> None:
        """Remember where tasks are created from now on, so that leaks and tests can tell; `False`: no more.

        It costs every coroutine that is made in the loop's thread about half a microsecond.
        """
        self._leaks.trace_origins(on=on)
