import asyncio
import datetime as dt
import ssl
from base64 import b64decode
from collections.abc import Mapping

import pytest

from ebbtide_operator.cluster import authority
from ebbtide_operator.cluster.certificates import CertificateError, Certificates, Names, Secret
from ebbtide_operator.ports import Conflict

NAMES = Names("ebbtide", "ebbtide-system")


class MemorySecrets:
    def __init__(self) -> None:
        self.secrets: dict[str, Secret] = {}
        self.writes: list[str] = []
        self.version = 0

    async def get(self, name: str) -> Secret | None:
        return self.secrets.get(name)

    async def create(self, name: str, data: Mapping[str, str], label: str) -> None:
        if name in self.secrets:
            raise Conflict(name)
        self._write(name, data)

    async def replace(self, name: str, data: Mapping[str, str], label: str, resource_version: str) -> None:
        if self.secrets[name].resource_version != resource_version:
            raise Conflict(name)
        self._write(name, data)

    def _write(self, name: str, data: Mapping[str, str], *, owned: bool = True) -> None:
        self.version += 1
        self.writes.append(name)
        decoded = {key: b64decode(value) for key, value in data.items()}
        self.secrets[name] = Secret(name, decoded, str(self.version), owned)


class Clock:
    def __init__(self) -> None:
        self.time = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def secrets() -> MemorySecrets:
    return MemorySecrets()


async def test_everything_is_made_once_and_then_left_alone(secrets: MemorySecrets, clock: Clock) -> None:
    certificates = Certificates(secrets, NAMES, clock)
    await certificates.ensure()
    assert sorted(secrets.writes) == [
        "ebbtide-ca",
        "ebbtide-etcd-client-tls",
        "ebbtide-etcd-server-tls",
        "ebbtide-tls",
    ]
    await certificates.ensure()
    assert len(secrets.writes) == 4
    certificates.close()


async def test_leaves_are_renewed_at_two_thirds_of_their_life_by_the_same_authority(
    secrets: MemorySecrets, clock: Clock
) -> None:
    certificates = Certificates(secrets, NAMES, clock)
    await certificates.ensure()
    first = secrets.secrets["ebbtide-ca"].data["ca.crt"]
    clock.time += authority.LEAF_LIFE * 2 / 3 - dt.timedelta(hours=1)
    await certificates.ensure()
    assert len(secrets.writes) == 4
    clock.time += dt.timedelta(hours=2)
    await certificates.ensure()
    assert len(secrets.writes) == 7
    assert secrets.secrets["ebbtide-ca"].data["ca.crt"] == first
    certificates.close()


async def test_a_renewed_authority_renews_its_leaves(secrets: MemorySecrets, clock: Clock) -> None:
    certificates = Certificates(secrets, NAMES, clock)
    await certificates.ensure()
    clock.time += authority.AUTHORITY_LIFE * 0.7
    await certificates.ensure()
    issuer = secrets.secrets["ebbtide-ca"].data["ca.crt"]
    assert all(secrets.secrets[name].data["ca.crt"] == issuer for name in NAMES.leaves)
    certificates.close()


async def test_both_authorities_are_trusted_while_leaves_are_renewed(secrets: MemorySecrets, clock: Clock) -> None:
    certificates = Certificates(secrets, NAMES, clock)
    await certificates.ensure()
    old = secrets.secrets["ebbtide-ca"].data["ca.crt"]
    clock.time += authority.AUTHORITY_LIFE * 0.7
    await certificates.ensure()
    bundle = secrets.secrets["ebbtide-tls"].data["ca.crt"]
    assert bundle.endswith(old)
    assert bundle.count(b"BEGIN CERTIFICATE") == 2
    clock.time += authority.AUTHORITY_LIFE * 0.7
    await certificates.ensure()
    assert secrets.secrets["ebbtide-tls"].data["ca.crt"].count(b"BEGIN CERTIFICATE") == 2
    certificates.close()


@pytest.mark.parametrize("name", ["ebbtide-ca", "ebbtide-tls"])
async def test_a_broken_secret_of_ours_is_made_again(secrets: MemorySecrets, clock: Clock, name: str) -> None:
    certificates = Certificates(secrets, NAMES, clock)
    await certificates.ensure()
    old = secrets.secrets[name]
    secrets.secrets[name] = Secret(
        name, {**old.data, "tls.crt": b"?", "ca.key": b"?"}, old.resource_version, owned=True
    )
    await certificates.ensure()
    assert await certificates.load()
    certificates.close()


async def test_a_foreign_authority_without_its_key_is_an_error_that_names_the_secret(secrets: MemorySecrets) -> None:
    secrets.secrets["ebbtide-ca"] = Secret("ebbtide-ca", {"ca.crt": b"x"}, "1", owned=False)
    certificates = Certificates(secrets, NAMES)
    with pytest.raises(CertificateError, match=r"ebbtide-ca: must have ca.crt and ca.key"):
        await certificates.ensure()
    certificates.close()


async def test_without_an_etcd_of_ours_there_is_one_leaf(secrets: MemorySecrets) -> None:
    certificates = Certificates(secrets, Names("ebbtide", "ebbtide-system", with_etcd=False))
    await certificates.ensure()
    assert sorted(secrets.writes) == ["ebbtide-ca", "ebbtide-tls"]
    assert await certificates.load()
    certificates.close()


async def test_another_owners_secret_is_used_and_never_written(secrets: MemorySecrets, clock: Clock) -> None:
    certificates = Certificates(secrets, NAMES, clock)
    await certificates.ensure()
    foreign = secrets.secrets["ebbtide-tls"]
    secrets.secrets["ebbtide-tls"] = Secret(foreign.name, foreign.data, "foreign", owned=False)
    clock.time += authority.LEAF_LIFE
    await certificates.ensure()
    assert secrets.secrets["ebbtide-tls"].resource_version == "foreign"
    assert await certificates.load()
    certificates.close()


async def test_two_leaders_at_once_end_with_one_set(secrets: MemorySecrets, clock: Clock) -> None:
    one, two = Certificates(secrets, NAMES, clock), Certificates(secrets, NAMES, clock)
    await asyncio.gather(one.ensure(), two.ensure())
    await one.ensure()
    writes = len(secrets.writes)
    await two.ensure()
    assert len(secrets.writes) == writes
    one.close()
    two.close()


async def test_nothing_loads_before_the_secrets_are_there(secrets: MemorySecrets) -> None:
    certificates = Certificates(secrets, NAMES)
    assert not await certificates.load()
    certificates.close()


async def test_the_live_context_serves_the_renewed_certificate(secrets: MemorySecrets) -> None:
    expiries: dict[str, float] = {}
    clock = Clock()
    clock.time = dt.datetime.now(dt.UTC) - authority.LEAF_LIFE * 0.8
    certificates = Certificates(secrets, NAMES, clock, on_expiry=expiries.__setitem__)
    await certificates.ensure()
    assert await certificates.load()
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=certificates.serving)
    port = server.sockets[0].getsockname()[1]

    async def seen() -> int:
        trusting = ssl.create_default_context(cadata=certificates.ca_bundle.decode())
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting, server_hostname="ebbtide.ebbtide-system.svc"
        )
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        from cryptography import x509

        return x509.load_der_x509_certificate(der).serial_number

    first = await seen()
    before = expiries["ebbtide-tls"]
    clock.time = dt.datetime.now(dt.UTC)
    await certificates.ensure()
    assert await certificates.load()
    assert await seen() != first
    assert expiries["ebbtide-tls"] > before
    server.close()
    await server.wait_closed()
    certificates.close()
