import base64
import stat
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.localcluster import certificates
from tests.localcluster.certificates import Authority, Pair


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("test")


def _load(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def test_a_client_is_signed_with_its_user_and_groups(authority: Authority) -> None:
    client = _load(authority.issue("system:node:node-1", ["system:nodes"]))
    client.verify_directly_issued_by(_load(authority.pair))
    names = {entry.oid: entry.value for entry in client.subject}
    assert names == {NameOID.COMMON_NAME: "system:node:node-1", NameOID.ORGANIZATION_NAME: "system:nodes"}
    usage = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_server_is_signed_for_its_names_and_addresses_only(authority: Authority) -> None:
    server = _load(authority.issue("api", names=["kubernetes"], addresses=[IPv4Address("10.224.1.1")]))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["kubernetes"]
    assert names.get_values_for_type(x509.IPAddress) == [IPv4Address("10.224.1.1")]
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_only_the_authority_may_sign(authority: Authority) -> None:
    assert _load(authority.pair).extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not _load(authority.issue("a")).extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_are_readable_by_their_owner_only(authority: Authority, tmp_path: Path) -> None:
    authority.pair.write(tmp_path, "ca")
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600
    (tmp_path / "ca.key").chmod(0o644)
    authority.pair.write(tmp_path, "ca")
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600


def test_a_kubeconfig_has_one_context_and_needs_no_other_file(authority: Authority) -> None:
    client = authority.issue("admin", ["system:masters"])
    document = yaml.safe_load(certificates.kubeconfig("a", "https://10.224.1.1:6443", b"CA", client))
    assert document["current-context"] == "a"
    assert document["contexts"] == [{"name": "a", "context": {"cluster": "a", "user": "a"}}]
    assert base64.b64decode(document["clusters"][0]["cluster"]["certificate-authority-data"]) == b"CA"
    assert base64.b64decode(document["users"][0]["user"]["client-key-data"]) == client.key
