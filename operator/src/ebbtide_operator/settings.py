"""The operator's flags, each also an environment variable (docs/architecture.md lists them)."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from ebbtide.protocol import DEFAULT_PREFIX, Keys
from ebbtide_operator.core import names
from ebbtide_operator.core.annotations import read_policy
from ebbtide_operator.core.model import Mode, Policy

ENVIRONMENT_PREFIX = "EBBTIDE_OPERATOR_"
ETCD_ADAPTERS = ("gateway", "etcd3")
LOG_LEVELS = ("debug", "info", "warning", "error")
TLS_FILES = ("ca.crt", "tls.crt", "tls.key")

T = TypeVar("T")


class SettingsError(ValueError):
    """A flag cannot be used: names the flag, its environment variable, what was found and what is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator was told; every field has the meaning of the flag of its name."""

    namespace: str
    """Where the operator runs: its Lease, Secrets and Services."""
    fullname: str
    """What the release calls its objects."""
    identity: str
    """Name of this replica in the Lease."""
    etcd_adapter: str
    """How etcd is spoken to: `gateway` (HTTP), or `etcd3` (gRPC through the package of that name)."""
    etcd_endpoints: tuple[str, ...]
    """Base URLs."""
    etcd_tls: Path | None
    """Folder with ca.crt, tls.crt and tls.key; None: see `etcd_tls_own`."""
    etcd_tls_own: bool
    """True where etcd has the certificates that the operator makes; False with no folder: no TLS."""
    etcd_username: str
    etcd_password_file: Path | None
    prefix: str
    https_port: int
    http_port: int
    pod_endpoints: tuple[str, ...]
    """Base URLs that pods are told."""
    delete_released: bool
    """Whether the operator deletes a released pod, or leaves that to its controller."""
    fail_open_after_s: float
    lease_duration_s: float
    log_level: str
    defaults: Policy
    """Policy of a workload whose annotations say nothing; its mode is off."""

    @property
    def lease(self) -> str:
        return f"{self.fullname}-operator"


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Read the flags; a flag beats its environment variable.

    Raises:
        SettingsError: The first value that cannot be used.
        SystemExit: `--help`, or a flag that does not exist.
    """
    source = _Source(vars(_parser().parse_args(arguments)), environ)
    namespace = source.read("namespace", _name, environ.get("POD_NAMESPACE") or "ebbtide-system")
    fullname = source.read("fullname", _name, "ebbtide")
    tls = source.read("etcd-tls", _tls, "operator")
    endpoints = source.read("etcd-endpoints", _urls, f"https://{fullname}-etcd.{namespace}.svc:2379")
    secure = {urlsplit(url).scheme == "https" for url in endpoints}
    if secure != {tls != "none"}:
        raise source.error("etcd-endpoints", "must all be https:// URLs with TLS, all http:// with --etcd-tls=none")
    username = source.read("etcd-username", str, "")
    password_file = source.read("etcd-password-file", _file, "")
    if bool(username) != (password_file is not None):
        raise source.error("etcd-username", "must be set together with --etcd-password-file")
    return Settings(
        namespace=namespace,
        fullname=fullname,
        identity=environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        etcd_adapter=source.read("etcd-adapter", _adapter, "gateway"),
        etcd_endpoints=endpoints,
        etcd_tls=tls if isinstance(tls, Path) else None,
        etcd_tls_own=tls == "operator",
        etcd_username=username,
        etcd_password_file=password_file,
        prefix=source.read("prefix", _prefix, DEFAULT_PREFIX),
        https_port=source.read("https-port", _port, "8443"),
        http_port=source.read("http-port", _port, "8080"),
        pod_endpoints=source.read("pod-endpoints", _urls, f"https://{fullname}.{namespace}.svc:443"),
        delete_released=source.read("delete-released", _one_of(("true", "false")), "true") == "true",
        fail_open_after_s=source.read("fail-open-after", _at_least(1.0), "10"),
        lease_duration_s=source.read("lease-duration", _at_least(3.0), "15"),
        log_level=source.read("log-level", _one_of(LOG_LEVELS), "info"),
        defaults=_defaults(source),
    )


OPTIONS: Mapping[str, str] = {
    "namespace": "namespace that the operator runs in",
    "fullname": "what the release calls its objects",
    "etcd-adapter": "how etcd is spoken to: gateway, or etcd3 (needs the extra etcd3)",
    "etcd-endpoints": "base URLs of etcd, comma-separated",
    "etcd-tls": "operator (certificates that it makes), none, or a folder with ca.crt, tls.crt and tls.key",
    "etcd-username": "etcd user",
    "etcd-password-file": "file with the etcd user's password",
    "prefix": "prefix of every etcd key",
    "https-port": "port for admission and pods",
    "http-port": "port for metrics and probes",
    "pod-endpoints": "base URLs that pods are told, comma-separated",
    "delete-released": "true, or false to leave the deletion of released pods to their controllers alone",
    "fail-open-after": "seconds without a leader or a store after which deletions pass",
    "lease-duration": "seconds after which a silent leader is replaced",
    "log-level": ", ".join(LOG_LEVELS),
    "defaults-drain-timeout": f"drain timeout of workloads without {names.DRAIN_TIMEOUT}",
    "defaults-cancel-grace": f"cancel grace of workloads without {names.CANCEL_GRACE}",
    "defaults-quiesce": f"quiesce time of workloads without {names.QUIESCE}",
}


@dataclass(frozen=True)
class _Source:
    flags: Mapping[str, str | None]
    environ: Mapping[str, str]

    def read(self, option: str, convert: Callable[[str], T], default: str) -> T:
        try:
            return convert(self.text(option, default))
        except ValueError as error:
            raise self.error(option, str(error)) from error

    def text(self, option: str, default: str = "") -> str:
        given = self.flags[option.replace("-", "_")]
        return given if given is not None else self.environ.get(_variable(option), default)

    def error(self, option: str, wanted: str) -> SettingsError:
        return SettingsError(f"--{option} (or {_variable(option)}): {wanted}, not {self.text(option)!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ebbtide-operator", description="Coordinate rolling drains.", allow_abbrev=False
    )
    for option, explanation in OPTIONS.items():
        parser.add_argument(f"--{option}", help=explanation, metavar="VALUE")
    return parser


def _variable(option: str) -> str:
    return ENVIRONMENT_PREFIX + option.upper().replace("-", "_")


def _defaults(source: _Source) -> Policy:
    """Read the defaults by the rules of the annotations, so that both accept the same values."""
    annotations = {
        names.DRAIN_TIMEOUT: "defaults-drain-timeout",
        names.CANCEL_GRACE: "defaults-cancel-grace",
        names.QUIESCE: "defaults-quiesce",
    }
    given = {name: source.text(option) for name, option in annotations.items() if source.text(option)}
    policy, problems = read_policy({names.DRAIN: Mode.MANAGED.value, **given}, Policy())
    for problem in problems:
        option = annotations.get(problem.annotation, "defaults-drain-timeout")
        raise SettingsError(f"--{option} (or {_variable(option)}): {problem.message}")
    return replace(policy, mode=Mode.OFF)


def _name(text: str) -> str:
    if not text or not all(part.isalnum() and part.isascii() for part in text.split("-")) or text != text.lower():
        raise ValueError("must be a Kubernetes name (lower case letters, digits, dashes)")
    return text


def _adapter(text: str) -> str:
    adapter = _one_of(ETCD_ADAPTERS)(text)
    # Known before anything runs, and without the time that the import takes.
    if adapter == "etcd3" and importlib.util.find_spec("etcd3") is None:
        raise ValueError("must be gateway where the extra is missing: pip install 'ebbtide[operator,etcd3]'")
    return adapter


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path:
            raise ValueError("must be base URLs such as https://host:2379, separated by commas")
    if not urls:
        raise ValueError("must be one or more base URLs")
    return urls


def _tls(text: str) -> str | Path:
    if text in {"operator", "none"}:
        return text
    missing = [name for name in TLS_FILES if not Path(text, name).is_file()]
    if missing:
        raise ValueError(f"must be operator, none, or a folder with {', '.join(TLS_FILES)}")
    return Path(text)


def _file(text: str) -> Path | None:
    if not text:
        return None
    if not Path(text).is_file():
        raise ValueError("must be a file that can be read")
    return Path(text)


def _prefix(text: str) -> str:
    return Keys(text).prefix


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError("must be a port from 1 to 65535")
    return int(text)


def _at_least(least: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise ValueError(f"must be {least:g} or more, in seconds")
        return value

    return convert


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text.lower()

    return convert
