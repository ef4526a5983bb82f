"""The pod that a process belongs to: alone, as the worker that leads, or as one that follows.

Only the worker that leads has the admin server and the agent, so a pod has one port and one report. A process that is
alone has no thread for any of this: the socket where others would come is watched by its event loop until one does.

What is imported within a method here is loaded by the start (`loading.py`): a worker that takes over does so because
another one leaves, and that is no time to read files.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ebbtide.environment import CA, ENDPOINTS, WORKERS, WORKERS_SOCKET
from ebbtide.lifecycle.machine import Machine, Source
from ebbtide.settings import Settings
from ebbtide.tasks.threads import in_daemon_thread
from ebbtide.workers.channel import Bell, Channel
from ebbtide.workers.due import Due
from ebbtide.workers.local import Local
from ebbtide.workers.place import Place

if TYPE_CHECKING:
    from ebbtide.admin.server import AdminServer, AdminView
    from ebbtide.agent import Agent
    from ebbtide.protocol import Report
    from ebbtide.workers.group import Group
    from ebbtide.workers.hub import Hub
    from ebbtide.workers.link import Link
    from ebbtide.workers.view import PodView

logger = logging.getLogger("ebbtide")

JOIN_S = 2.0
"""How long a start waits to hear what holds for the pod; a worker that hears later obeys later."""
PORT_S = 5.0
"""How long a new leader tries to get the port of the one before it."""
LEAVE_S = 1.0
SETTLE_S = 3.0
"""How long one that leaves waits for that, where the one that leads leaves as well."""
RETRY_S = 0.02


class Pod:
    """Speak for the pod, or to the worker that does.

    Args:
        process: This process, for what is asked of it alone.
        local: The same as a worker.
        settings: Where to listen, whom to tell, and whether there may be other workers.
    """

    def __init__(self, process: AdminView, local: Local, settings: Settings) -> None:
        self._process = process
        self._local = local
        self._settings = settings
        self._place = None if settings.meeting_place is None else Place(settings.meeting_place)
        self._stop = threading.Event()
        self._joined = threading.Event()
        self._leaving = threading.Event()
        self._settled = threading.Event()
        self._departure = threading.Lock()
        self._hurried = False
        self._due = Due()
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: socket.socket | None = None
        self._hub: Hub | None = None
        self._link: Link | None = None
        self._admin: AdminServer | None = None
        self._agent: Agent | None = None
        self._channel: Channel | None = None
        self.admin_port: int | None = None

    @cached_property
    def _view(self) -> PodView:
        from ebbtide.workers.view import PodView

        return PodView(self._process, lambda: self._hub)

    @property
    def store_connected(self) -> bool | None:
        return None if self._agent is None else self._agent.connected

    # --- the life of a worker

    async def join(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the lead, or find the worker that has it and obey what holds for the pod."""
        self._loop = loop
        if not self._claim():
            # Not served before that: a pod that drains must not get a worker that takes new work.
            self._follow_in_thread()
            await in_daemon_thread(lambda: self._joined.wait(JOIN_S))
            if not self._joined.is_set():
                logger.warning("ebbtide: the worker that leads this pod did not answer within %g s", JOIN_S)
            return
        self._open_office()
        if self._listener is not None:
            try:
                loop.add_reader(self._listener, self._somebody_comes)
            except NotImplementedError:
                self._lead_in_thread()

    def edge(self) -> None:
        """Say that the state of this process changed. Cheap, from any thread."""
        if self._hub is not None:
            self._hub.refresh()
        elif self._bell is not None:
            self._bell.ring()
        self._changed()

    def exit_when_due(self, machine: Machine, action: Callable[[], None]) -> None:
        """Let this process exit: at once, or where the pod is to drain as a whole, when all of it is drained.

        Otherwise whoever started it would start another one meanwhile; and who leads is the one who tells.

        Args:
            machine: Whose deadline is the latest for that.
            action: Lets it exit.
        """
        role = self._hub or self._link
        own = machine.reason is not None and machine.reason.source in {Source.SIGNAL, Source.EXIT}
        if role is None or self._hurried or own or not role.to_drain:
            action()
            return

        def leave() -> None:
            # Not by the first reason of the drain: a person may have been before the order.
            if machine.insist and machine.exit_at is not None:
                self._end_parent()
            action()

        self._due.add(machine.deadline_at, leave)
        self._wake()

    def hurry(self) -> None:
        """Let this process exit without waiting for the others; somebody insists."""
        self._hurried = True
        self._due.carry_out(math.inf)

    def leave(self) -> None:
        """Say goodbye, and let another worker lead; blocks for some seconds at most."""
        with self._departure:
            self._leaving.set()
        if self._bell is not None:
            self._bell.ring()
            # Dismissed by the one that leads; or that one is gone, and this worker leads for its last moment. Where it
            # took over just now, it has nobody yet who tells of its end.
            self._settled.wait(SETTLE_S)
        last = self._hub is None or self._hub.outlives_all(LEAVE_S)
        if self._agent is not None and not (self._agent.finish() if last else self._agent.retire(LEAVE_S)):
            logger.warning("ebbtide: the final report did not get through")
        if self._admin is not None:
            self._admin.stop()
        self._stop.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(LEAVE_S)
        if self._thread is None or not self._thread.is_alive():
            self._close()

    def before_leave(self) -> None:
        """Stop watching for others, in the loop's thread."""
        # Who comes now waits at the door until the last report is written.
        if self._loop is not None and self._listener is not None and self._thread is None:
            self._loop.remove_reader(self._listener)

    def forget(self) -> None:
        """Close, in a forked child, what belongs to its parent; its threads are not there."""
        self._close()
        if self._admin is not None:
            self._admin.forget()

    def _wake(self) -> None:
        """Let the thread that hears of the others look around, whichever it is."""
        if self._hub is not None:
            self._hub.wake()
        if self._bell is not None:
            self._bell.ring()

    def _close(self) -> None:
        for open_end in (self._listener, self._hub, self._bell, self._channel):
            if open_end is not None:
                open_end.close()
        if self._place is not None:
            self._place.release()

    # --- roles

    def _claim(self) -> bool:
        """Take the lead; False where another worker has it."""
        listener = None
        if self._place is not None:
            try:
                listener = self._claim_after_others(patient=True)
            except OSError as error:
                logger.warning(
                    "ebbtide: other workers of this pod cannot be found, since there is no listening at %s (%s); "
                    "set %s to a path in a folder that can be written to, or %s to single",
                    self._place.name,
                    error,
                    WORKERS_SOCKET,
                    WORKERS,
                )
                self._place = None
            else:
                if listener is None:
                    return False
        if listener is not None:
            self._lead(listener, None)
        return True

    def _lead(self, listener: socket.socket, group: Group | None) -> Hub:
        """Be the one that the others come to; `group`: what is known of them."""
        from ebbtide.workers.group import Group
        from ebbtide.workers.hub import Hub

        self._listener = listener
        self._hub = Hub(self._local, group or Group(self._local.views.boot_id), listener, self._due, self._changed)
        return self._hub

    def _open_office(self, patience_s: float = 0.0) -> None:
        from ebbtide.admin.server import AdminServer

        settings = self._settings
        if settings.has_store:
            self._agent = self._start_agent()
        self._settled.set()
        if self._leaving.is_set():
            return  # it leads for its last moment
        admin = AdminServer(self._view, settings.admin_host, settings.admin_port, settings.admin_token)
        port = admin.start(patience_s)
        with self._departure:
            # Who leaves stops what it finds here, and no other.
            leaving = self._leaving.is_set()
            if not leaving:
                self._admin, self.admin_port = admin, port
        if leaving:
            admin.stop()

    def _start_agent(self) -> Agent | None:
        from ebbtide.agent import Agent

        try:
            agent = Agent(
                self._settings,
                make_report=self._report,
                count=self._count,
                on_order=self._hub.order if self._hub is not None else self._local.obey,
                on_store_restarted=self._store_restarted,
            )
        except (ValueError, OSError) as error:  # a certificate that cannot be read is an OSError
            logger.error(  # noqa: TRY400 (the message says it all)
                "ebbtide: the operator is not told anything, since %s or %s cannot be used: %s", ENDPOINTS, CA, error
            )
            return None
        agent.start()
        return agent

    def _somebody_comes(self) -> None:
        assert self._loop is not None
        assert self._listener is not None
        self._loop.remove_reader(self._listener)
        self._lead_in_thread()

    def _lead_in_thread(self) -> None:
        assert self._hub is not None
        self._start_thread(partial(self._hub.run, self._stop))

    def _follow_in_thread(self) -> None:
        self._bell = Bell()
        self._start_thread(self._follow)

    def _start_thread(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="ebbtide-workers", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        """Follow one leader after the other, until this worker leads or leaves."""
        from ebbtide.workers.hub import REGROUP_S
        from ebbtide.workers.link import Link

        assert self._place is not None
        assert self._bell is not None
        patient_until = time.monotonic() + REGROUP_S
        while not self._stop.is_set():
            try:
                listener = self._claim_after_others(patient=self._group() is None and time.monotonic() < patient_until)
                if listener is not None:
                    self._take_over(listener)
                    return
                self._channel = Channel(self._place.call())
            except OSError as error:
                # It died just now, and its name is not free yet.
                logger.debug("ebbtide: the leading worker cannot be reached: %s", error)
                self._stop.wait(RETRY_S)
                continue
            self._link = link = Link(
                self._local, self._channel, self._bell, self._joined, self._place.mark, self._due, self._link
            )
            dismissed = link.run(self._leaving)
            self._channel.close()
            if dismissed:
                self._settled.set()
                return
            self._stop.wait(RETRY_S)

    def _claim_after_others(self, *, patient: bool) -> socket.socket | None:
        """Listen; None where somebody does, or `patient`, where others know more of the pod and are about to."""
        assert self._place is not None
        listener = self._place.claim()
        if listener is None or not patient or not self._place.marked():
            return listener
        self._place.give_up(listener)
        return None

    def _group(self) -> Group | None:
        return None if self._link is None else self._link.group

    def _take_over(self, listener: socket.socket) -> None:
        logger.info("ebbtide: this worker speaks for the pod from now on")
        hub = self._lead(listener, self._group())
        self._joined.set()
        # First the others, who wait at the door; the port may take a moment.
        office = threading.Thread(target=self._open_office, args=(PORT_S,), name="ebbtide-office", daemon=True)
        office.start()
        hub.run(self._stop)

    # --- what the agent asks

    def _report(self, sequence: int, phase_revision: int) -> Report:
        if self._hub is not None:
            return self._hub.report(phase_revision)
        return self._local.views.report(sequence, phase_revision)

    def _count(self) -> int:
        if self._hub is None:
            return self._local.glance().report.active
        return sum(each.report.active for each in self._hub.workers())

    def _store_restarted(self) -> None:
        if self._hub is not None:
            self._hub.store_restarted()
        else:
            self._local.store_restarted()

    def _changed(self) -> None:
        if self._agent is not None:
            self._agent.edge()

    def _end_parent(self) -> None:
        """End the process that would start new workers in the place of those that exit.

        A pod that drained by order and that nobody collected ends its container, which wakes whoever collects pods.
        """
        if self._hub is None or self._hub.alone:
            return
        workers = self._hub.workers()
        parents, pids = {each.parent for each in workers}, {each.pid for each in workers}
        if len(parents) == 1 and not parents & pids and 0 not in parents:
            (parent,) = parents
            logger.warning("ebbtide: the pod is drained; ending process %d, the parent of its workers", parent)
            try:
                os.kill(parent, signal.SIGTERM)
            except ProcessLookupError:
                pass  # it ends already
            except OSError as error:
                logger.error(  # noqa: TRY400 (the message says it all)
                    "ebbtide: cannot end process %d (%s), so it may start new workers in a pod that is to end; run it "
                    "as the user of its workers",
                    parent,
                    error,
                )
