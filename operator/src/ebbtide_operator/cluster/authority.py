"""Certificates of our own: one authority, and leaves for the operator and the embedded etcd. Pure but for randomness.

EC P-256 keys. Leaves are renewed at two thirds of their life; the authority lives ten years, since every pod carries it
from its creation on.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = dt.timedelta(days=3650)
LEAF_LIFE = dt.timedelta(days=90)
SKEW = dt.timedelta(minutes=5)
"""Certificates start this much in the past: clocks of nodes differ."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM; more certificates may follow the first, which is the key's."""

    certificate: bytes
    key: bytes

    @property
    def parsed(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    @property
    def expires_at(self) -> float:
        """Unix time in seconds."""
        return self.parsed.not_valid_after_utc.timestamp()


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf certificate is for."""

    common_name: str
    names: tuple[str, ...] = ()
    """DNS names and IP addresses."""
    server: bool = True
    client: bool = False


def make_authority(common_name: str, now: dt.datetime) -> Pair:
    """Return a new self-signed authority that may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pair(certificate, key)


def make_leaf(authority: Pair, leaf: Leaf, now: dt.datetime) -> Pair:
    """Return a new leaf signed by the authority."""
    signer = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = authority.parsed
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * leaf.server + [ExtendedKeyUsageOID.CLIENT_AUTH] * leaf.client
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(leaf.common_name))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(min(now + LEAF_LIFE, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if leaf.names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_san(name) for name in leaf.names]), critical=False
        )
    return _pair(builder.sign(signer, hashes.SHA256()), key)


def check(pair: Pair) -> None:
    """Raise ValueError where a certificate or its key is no PEM, or they do not belong together."""
    try:
        key = serialization.load_pem_private_key(pair.key, password=None)
    except TypeError as error:
        raise ValueError("the key must not be encrypted") from error
    if key.public_key() != pair.parsed.public_key():
        raise ValueError("certificate and key do not belong together")


def first_of(bundle: bytes) -> bytes:
    """Return the first certificate of a PEM bundle, PEM."""
    return x509.load_pem_x509_certificate(bundle).public_bytes(serialization.Encoding.PEM)


def must_renew(pair: Pair, now: dt.datetime) -> bool:
    """Say whether two thirds of a certificate's life are over."""
    certificate = pair.parsed
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now >= certificate.not_valid_before_utc + life * 2 / 3


def fits(pair: Pair, leaf: Leaf, authority: Pair) -> bool:
    """Say whether a certificate was signed by this authority for exactly these names."""
    certificate = pair.parsed
    try:
        certificate.verify_directly_issued_by(authority.parsed)
    except Exception:  # noqa: BLE001 (the library raises three kinds for three ways of not fitting)
        return False
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return not leaf.names
    present = set(names.get_values_for_type(x509.DNSName))
    present |= {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return present == set(leaf.names)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
