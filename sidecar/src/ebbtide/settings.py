"""What a pod is told about itself and its operator, read from the environment.

A value that cannot be used never keeps an application from starting: the default takes its place, and `problems` says
which variable it was, what was found, and what is wanted.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Self

from ebbtide import environment
from ebbtide.lifecycle.machine import Durations
from ebbtide.tasks.limits import Admission, Limits
from ebbtide.vocabulary import DEFAULT_PREFIX

LONGEST_S = 7 * 86400.0
LONGEST_SOCKET = 100
"""Bytes; the kernel takes 107."""
EVERYWHERE = "::"
"""The host that stands for every address, IPv4 ones too."""


class Workers(StrEnum):
    """Whether processes of one pod find each other and speak with one voice."""

    AUTO = "auto"
    """Where the pod has a UID and the machine has abstract sockets; else as `single`."""
    SINGLE = "single"
    """Each process is on its own."""
    SHARED = "shared"
    """They do; without a pod's UID, those of one user with one admin address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one process drains, and whom it tells.

    Raises:
        ValueError: A duration is negative, or longer than a week.
    """

    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""
    workload: str = ""
    """`kind/name`, the kind in lower case; empty outside a managed pod."""
    endpoints: tuple[str, ...] = ()
    """Base URLs of the relay or of etcd; none: the process drains without an operator."""
    ca: str = ""
    """PEM text of the authorities to trust there; empty: the system's."""
    token_file: str = ""
    """File with the bearer token for the endpoints; read again at each use, because the kubelet replaces it."""
    prefix: str = DEFAULT_PREFIX
    admin_host: str = "127.0.0.1"
    admin_port: int = environment.ADMIN_PORT
    """0: any free port."""
    admin_token: str = ""
    durations: Durations = field(
        default_factory=lambda: Durations(
            quiesce_s=environment.DEFAULT_QUIESCE_S,
            drain_timeout_s=environment.DEFAULT_DRAIN_TIMEOUT_S,
            cancel_grace_s=environment.DEFAULT_CANCEL_GRACE_S,
        )
    )
    """What a drain by SIGTERM or preStop may take; an order brings its own."""
    limits: Limits = field(default_factory=Limits.defaults)
    """How much the process may start."""
    leak_age_s: float = environment.DEFAULT_LEAK_AGE_S
    """Younger work is not suspected to be overdue, forgotten or outside of every scope."""
    leak_ignore: tuple[str, ...] = ()
    """Patterns of names of tasks or functions that may run outside any scope."""
    origins: bool = False
    """Remember where tasks are created; costs every coroutine about half a microsecond."""
    grace_period_s: float | None = None
    """The pod's terminationGracePeriodSeconds; None: not known."""
    workers: Workers = Workers.AUTO
    """Whether other processes of the pod report through this one, or this one through another."""
    workers_socket: str = ""
    """Where they meet: `@` and an abstract name, or an absolute path; empty: a name for the pod."""
    problems: tuple[str, ...] = ()
    """One sentence for each variable that cannot be used, and for a budget that does not fit."""

    def __post_init__(self) -> None:
        for name, value in asdict(self.durations).items():
            if not 0 <= value <= LONGEST_S:
                # No clock waits for ever, and a report of that is no JSON.
                raise ValueError(f"durations: {name}: must be seconds from 0 to {LONGEST_S:g}, not {value!r}")

    @property
    def has_store(self) -> bool:
        """Whether there is an operator to report to."""
        return bool(self.endpoints and self.pod_uid and self.pod_namespace)

    @property
    def meeting_place(self) -> str | None:
        """Where the workers of the pod meet; None where this process is on its own."""
        known = bool(self.workers_socket or self.pod_uid)
        if self.workers is Workers.SINGLE or (self.workers is Workers.AUTO and not known):
            return None
        if self.workers_socket:
            return self.workers_socket
        if sys.platform != "linux":
            return None
        return f"@ebbtide/{self.pod_uid or f'{os.geteuid()}/{self.admin_host}:{self.admin_port}'}"

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables of `ebbtide.environment`."""
        reader = _Reader(environ)
        host, port = reader.address()
        durations = Durations(
            quiesce_s=reader.seconds(environment.QUIESCE, reader.default_quiesce_s()),
            drain_timeout_s=reader.seconds(environment.DRAIN_TIMEOUT, environment.DEFAULT_DRAIN_TIMEOUT_S),
            cancel_grace_s=reader.seconds(environment.CANCEL_GRACE, environment.DEFAULT_CANCEL_GRACE_S),
        )
        grace_period_s = reader.seconds(environment.GRACE_PERIOD, -1.0)
        settings = cls(
            pod_name=reader.text(environment.POD_NAME),
            pod_namespace=reader.text(environment.POD_NAMESPACE),
            pod_uid=reader.text(environment.POD_UID),
            workload=reader.text(environment.WORKLOAD),
            endpoints=reader.endpoints(),
            ca=reader.text(environment.CA),
            token_file=reader.text(environment.TOKEN_FILE),
            prefix=reader.prefix(),
            admin_host=host,
            admin_port=port,
            admin_token=reader.text(environment.ADMIN_TOKEN),
            durations=durations,
            limits=reader.limits(),
            leak_age_s=reader.seconds(environment.LEAK_AGE, environment.DEFAULT_LEAK_AGE_S),
            leak_ignore=reader.patterns(environment.LEAK_IGNORE),
            origins=reader.switch(environment.ORIGINS),
            grace_period_s=grace_period_s if grace_period_s >= 0 else None,
            workers=reader.workers(),
            workers_socket=reader.workers_socket(),
        )
        reader.check_budget(settings)
        reader.check_identity(settings)
        return replace(settings, problems=tuple(reader.problems))


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def seconds(self, name: str, default: float) -> float:
        text = self.text(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if 0 <= value <= LONGEST_S:
            return value
        self._refuse(name, f"must be seconds from 0 to {LONGEST_S:g}, like 60 or 2.5", text, f"{default:g}")
        return default

    def patterns(self, name: str) -> tuple[str, ...]:
        return tuple(pattern.strip() for pattern in self.text(name).split(",") if pattern.strip())

    def switch(self, name: str) -> bool:
        text = self.text(name)
        if text not in {"", "0", "1"}:
            self._refuse(name, "must be 1 or 0", text, "0")
        return text == "1"

    @property
    def _in_pod(self) -> bool:
        return bool(self.text("KUBERNETES_SERVICE_HOST"))  # set by the kubelet

    def default_quiesce_s(self) -> float:
        # On a developer's machine there are no endpoints to wait for, and Ctrl-C is not to take five seconds.
        return environment.DEFAULT_QUIESCE_S if self._in_pod else 0.0

    def address(self) -> tuple[str, int]:
        text = self.text(environment.ADMIN_ADDRESS)
        # The kubelet probes the pod's address, also of pods that no operator knows of.
        default = (EVERYWHERE if self._in_pod else "127.0.0.1", environment.ADMIN_PORT)
        if not text:
            return default
        host, _, port = text.rpartition(":")
        # The length first: Python refuses to read a number of some thousand digits.
        if host and port.isdecimal() and len(port) <= 5 and int(port) < 65536:
            return host.removeprefix("[").removesuffix("]"), int(port)
        self._refuse(environment.ADMIN_ADDRESS, "must be host:port", text, _address(*default))
        return default

    def endpoints(self) -> tuple[str, ...]:
        text = self.text(environment.ENDPOINTS)
        if not text:
            return ()
        urls = tuple(url.strip().rstrip("/") for url in text.split(",") if url.strip())
        if all(map(_is_endpoint, urls)):
            return urls
        wanted = "must be http:// or https:// URLs separated by commas"
        self._refuse(environment.ENDPOINTS, wanted, text, "none: the operator is not told anything")
        return ()

    def limits(self) -> Limits:
        """Read the limits; 0 stands for none."""
        default = Limits.defaults()
        rate_per_s = self._number(environment.TASKS_PER_S, default.rate_per_s, whole=False)
        burst = self._number(environment.TASKS_BURST, default.burst, whole=True)
        mode = self.text(environment.ADMISSION) or str(default.admission)
        if mode not in set(Admission):
            wanted = f"must be {', '.join(Admission)}"
            self._refuse(environment.ADMISSION, wanted, mode, str(default.admission))
            mode = str(default.admission)
        return Limits(
            max_tasks=_whole(self._number(environment.MAX_TASKS, default.max_tasks, whole=True)),
            rate_per_s=rate_per_s,
            burst=None if rate_per_s is None else _whole(burst),
            breaker_timeouts=_whole(self._number(environment.BREAKER_TIMEOUTS, default.breaker_timeouts, whole=True)),
            breaker_pause_s=self.seconds(environment.BREAKER_PAUSE, default.breaker_pause_s or 0.0),
            admission=Admission(mode),
            wait_s=self.seconds(environment.ADMISSION_WAIT, default.wait_s or 0.0),
        )

    def _number(self, name: str, default: float | None, *, whole: bool) -> float | None:
        text = self.text(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < 1e9 or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            self._refuse(name, f"must be {kind}, or 0 for no limit", text, f"{default or 0:g}")
            return default
        return value or None

    def prefix(self) -> str:
        text = self.text(environment.PREFIX)
        if not text:
            return DEFAULT_PREFIX
        from ebbtide.protocol import Keys

        try:
            Keys(text)
        except ValueError as error:
            self._refuse(environment.PREFIX, str(error).partition(": ")[2], text, DEFAULT_PREFIX)
            return DEFAULT_PREFIX
        return text

    def workers(self) -> Workers:
        text = self.text(environment.WORKERS) or str(Workers.AUTO)
        if text not in set(Workers):
            self._refuse(environment.WORKERS, f"must be {', '.join(Workers)}", text, str(Workers.AUTO))
            return Workers.AUTO
        return Workers(text)

    def workers_socket(self) -> str:
        text = self.text(environment.WORKERS_SOCKET)
        if text and (not text.startswith(("@", "/")) or not _is_socket_name(text)):
            wanted = f"must be an absolute path, or @ and a name, of at most {LONGEST_SOCKET} bytes"
            self._refuse(environment.WORKERS_SOCKET, wanted, text, "the pod's own name")
            return ""
        return text

    def check_budget(self, settings: Settings) -> None:
        needed_s = settings.durations.budget_s + environment.EXIT_MARGIN_S
        if settings.grace_period_s is None or settings.grace_period_s >= needed_s:
            return
        durations = settings.durations
        self.problems.append(
            f"terminationGracePeriodSeconds is {settings.grace_period_s:g}, but a drain may take "
            f"{durations.quiesce_s:g} (quiesce) + {durations.drain_timeout_s:g} (drain timeout) + "
            f"{durations.cancel_grace_s:g} (cancel grace) + {environment.EXIT_MARGIN_S:g} (exit) = {needed_s:g} s: "
            "raise the one or lower the others, or the kubelet kills the process before it is drained"
        )

    def check_identity(self, settings: Settings) -> None:
        if settings.endpoints and not settings.has_store:
            self.problems.append(
                f"{environment.ENDPOINTS} is set, but {environment.POD_UID} or {environment.POD_NAMESPACE} is not: "
                "set both from the pod's own fields, or the operator is not told anything"
            )

    def _refuse(self, name: str, wanted: str, found: str, instead: str) -> None:
        self.problems.append(f"{name}: {wanted}, not {found!r}; using {instead}")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_endpoint(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket that is not closed, a host that is none after normalization
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname)


def _is_socket_name(text: str) -> bool:
    try:
        # As the kernel will see it: a path need not be UTF-8.
        length = len(os.fsencode(text))
    except UnicodeEncodeError:
        return False
    return length <= LONGEST_SOCKET and "\0" not in text


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
