"""The Secrets that hold our certificates: made and renewed by the leader, loaded by every replica.

A Secret that somebody else owns (it lacks our label, as one of cert-manager's does) is used as it is and never written.
"""

from __future__ import annotations

import datetime as dt
import logging
import ssl
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ebbtide_operator.cluster import authority
from ebbtide_operator.cluster.authority import Leaf, Pair
from ebbtide_operator.ports import Conflict

logger = logging.getLogger(__name__)

OWNED_LABEL = "ebbtide.dev/certificate"


@dataclass(frozen=True, slots=True)
class Secret:
    """One Secret as the API has it."""

    name: str
    data: Mapping[str, bytes]
    resource_version: str
    owned: bool
    """True where it carries our label."""


class Secrets(Protocol):
    """The four Secrets of a release, by name."""

    async def get(self, name: str) -> Secret | None: ...

    async def create(self, name: str, data: Mapping[str, str], label: str) -> None:
        """Create a Secret of base64 values; Conflict where it exists."""

    async def replace(self, name: str, data: Mapping[str, str], label: str, resource_version: str) -> None:
        """Replace a Secret of base64 values; Conflict where it changed meanwhile."""


class CertificateError(Exception):
    """A Secret of somebody else's cannot be used: names the Secret and what it must have."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a release calls its Secrets and Services (docs/architecture.md)."""

    fullname: str
    namespace: str
    with_etcd: bool = True
    """False where etcd is not ours, or has certificates of its own."""

    @property
    def authority(self) -> str:
        return f"{self.fullname}-ca"

    @property
    def leaves(self) -> Mapping[str, Leaf]:
        etcd = f"{self.fullname}-etcd"
        # The last two names let one run the operator outside a cluster.
        serving = {self.serving: Leaf(self.fullname, (*self._service(self.fullname), "localhost", "127.0.0.1"))}
        if not self.with_etcd:
            return serving
        return serving | {
            # etcd's gateway dials its own server with the server's certificate: it needs the client purpose too.
            f"{etcd}-server-tls": Leaf(
                etcd,
                (*self._service(etcd), f"*.{etcd}.{self.namespace}.svc", "localhost", "127.0.0.1"),
                client=True,
            ),
            self.etcd_client: Leaf("ebbtide", server=False, client=True),
        }

    @property
    def serving(self) -> str:
        return f"{self.fullname}-tls"

    @property
    def etcd_client(self) -> str:
        return f"{self.fullname}-etcd-client-tls"

    def _service(self, name: str) -> tuple[str, ...]:
        return (
            name,
            f"{name}.{self.namespace}",
            f"{name}.{self.namespace}.svc",
            f"{name}.{self.namespace}.svc.cluster.local",
        )


@dataclass
class Certificates:
    """Keep the Secrets right (leader) and the loaded certificates current (every replica).

    Args:
        secrets: Access to the Secrets.
        names: What they are called, and what for.
        now: The clock, in UTC.
        on_expiry: Told each certificate's name and its expiry (Unix seconds) whenever one is loaded.
    """

    secrets: Secrets
    names: Names
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    on_expiry: Callable[[str, float], None] = lambda _name, _at: None
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="ebbtide-")
    )
    _loaded: dict[str, str] = field(default_factory=dict)
    _serving: ssl.SSLContext | None = None
    _etcd: ssl.SSLContext | None = None
    _etcd_pem: tuple[bytes, bytes, bytes] | None = None
    _bundle: bytes = b""

    async def ensure(self) -> None:
        """Make what is missing and renew what is due; only the leader calls this.

        Another leader's write at the same moment is no error: what it made is used.
        """
        try:
            issuer = await self._ensure_authority()
            for name, leaf in self.names.leaves.items():
                await self._ensure_leaf(name, leaf, issuer)
        except Conflict:
            logger.info("certificate.conflict", extra={"detail": "another replica wrote them; looking again next time"})

    async def load(self) -> bool:
        """Read the Secrets and put what changed to use; False while one is missing or cannot be read."""
        complete = True
        for name in (self.names.serving, *([self.names.etcd_client] if self.names.with_etcd else [])):
            secret = await self.secrets.get(name)
            if secret is None or "ca.crt" not in secret.data or _pair(secret, "tls.crt", "tls.key") is None:
                complete = False
            elif self._loaded.get(name) != secret.resource_version:
                self._use(name, secret)
                self._loaded[name] = secret.resource_version
        return complete

    @property
    def ca_bundle(self) -> bytes:
        """PEM of the authority that signed the serving certificate; empty before the first load."""
        return self._bundle

    @property
    def serving(self) -> ssl.SSLContext:
        """The live context of the HTTPS port: a renewed certificate is loaded into it, connections stay."""
        if self._serving is None:
            self._serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._serving.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._serving

    @property
    def etcd(self) -> ssl.SSLContext:
        """The live context for the embedded etcd: its authority and our client certificate."""
        if self._etcd is None:
            self._etcd = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._etcd.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._etcd

    @property
    def etcd_pem(self) -> tuple[bytes, bytes, bytes] | None:
        """The same as PEM, for who takes no context: authority, certificate and key; None before the first load."""
        return self._etcd_pem

    def close(self) -> None:
        """Remove the key files."""
        self._folder.cleanup()

    async def _ensure_authority(self) -> Pair:
        secret = await self.secrets.get(self.names.authority)
        old = None if secret is None else _pair(secret, "ca.crt", "ca.key")
        if secret is not None and not secret.owned:
            if old is None:
                raise CertificateError(f"Secret {secret.name}: must have ca.crt and ca.key as PEM, or be deleted")
            return old
        if old is not None and not authority.must_renew(old, self.now()):
            return old
        pair = authority.make_authority(f"{self.names.fullname}.{self.names.namespace}", self.now())
        if old is not None:
            # Servers and clients are renewed one by one: until all are, each must trust both.
            pair = Pair(pair.certificate + authority.first_of(old.certificate), pair.key)
        await self._write(self.names.authority, {"ca.crt": pair.certificate, "ca.key": pair.key}, secret)
        logger.info("certificate.authority_made", extra={"secret": self.names.authority})
        return pair

    async def _ensure_leaf(self, name: str, leaf: Leaf, issuer: Pair) -> None:
        secret = await self.secrets.get(name)
        if secret is not None:
            if not secret.owned:
                return
            old = _pair(secret, "tls.crt", "tls.key")
            if old is not None and authority.fits(old, leaf, issuer) and not authority.must_renew(old, self.now()):
                return
        pair = authority.make_leaf(issuer, leaf, self.now())
        await self._write(
            name, {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": issuer.certificate}, secret
        )
        logger.info("certificate.leaf_made", extra={"secret": name})

    async def _write(self, name: str, data: Mapping[str, bytes], old: Secret | None) -> None:
        encoded = {key: b64encode(value).decode() for key, value in data.items()}
        if old is None:
            await self.secrets.create(name, encoded, OWNED_LABEL)
        else:
            await self.secrets.replace(name, encoded, OWNED_LABEL, old.resource_version)

    def _use(self, name: str, secret: Secret) -> None:
        pair = Pair(secret.data["tls.crt"], secret.data["tls.key"])
        # ssl reads certificates from files only; the folder is private to this process.
        folder = Path(self._folder.name)
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(pair.certificate)
        key.write_bytes(pair.key)
        if name == self.names.serving:
            self.serving.load_cert_chain(certificate, key)
            self._bundle = secret.data["ca.crt"]
        else:
            self.etcd.load_cert_chain(certificate, key)
            self.etcd.load_verify_locations(cadata=secret.data["ca.crt"].decode())
            self._etcd_pem = (secret.data["ca.crt"], pair.certificate, pair.key)
        self.on_expiry(name, pair.expires_at)


def _pair(secret: Secret, certificate: str, key: str) -> Pair | None:
    """Return a Secret's certificate and key; None where they are missing or no PEM."""
    try:
        pair = Pair(secret.data[certificate], secret.data[key])
        authority.check(pair)
    except (KeyError, ValueError):
        return None
    return pair


def decode(data: Mapping[str, str] | None) -> Mapping[str, bytes]:
    """Return a Secret's `data` as the API gives it, decoded."""
    return {key: b64decode(value) for key, value in (data or {}).items()}
