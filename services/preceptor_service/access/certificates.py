"""What X.509 certificates say: whether a pair fits, when it ends, whose it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from preceptor_service.config import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class CertificatePair:
    """A server's certificate chain and key that belong together, as PEM, and the authorities of its clients.

    Attributes:
        certificate_chain: leaf first.
        private_key: of the leaf.
        client_ca: None where clients need no certificate.
        expires_at: end of the first certificate of the chain to end, in seconds since the epoch.
    """

    certificate_chain: bytes
    private_key: bytes
    client_ca: bytes | None
    expires_at: float


@dataclass(frozen=True)
class PeerCertificate:
    """A client's certificate, which TLS has verified.

    Attributes:
        name: its first URI among the alternative names, else the first DNS name, else the subject's common name.
        expires_at: in seconds since the epoch.
    """

    name: str
    expires_at: float


def parse_pair(contents: tuple[bytes, ...]) -> CertificatePair:
    """Checks certificate, key and, if there is a third, the authorities of clients.

    Raises:
        ConfigError: one cannot be read, or the key belongs to another certificate.
    """
    chain, key, *authorities = contents
    certificates = _load("certificate", lambda: x509.load_pem_x509_certificates(chain))
    private = _load("private_key", lambda: serialization.load_pem_private_key(key, None))
    if _public_bytes(private.public_key()) != _public_bytes(certificates[0].public_key()):
        raise ConfigError("tls.private_key does not belong to tls.certificate; replace both")
    if authorities:
        _load("client_ca", lambda: x509.load_pem_x509_certificates(authorities[0]))
    expires_at = min(certificate.not_valid_after_utc.timestamp() for certificate in certificates)
    return CertificatePair(chain, key, authorities[0] if authorities else None, expires_at)


def parse_newer_pair(contents: tuple[bytes, ...]) -> CertificatePair:
    """As `parse_pair`, for a pair that replaces one in use.

    Raises:
        ConfigError: as `parse_pair`, or it has expired.
    """
    pair = parse_pair(contents)
    if pair.expires_at <= time.time():
        raise ConfigError("tls.certificate has expired")
    return pair


def parse_peer(pem: bytes) -> PeerCertificate | None:
    """Returns what a verified client certificate says, or None where it names nobody."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        alternatives = x509.SubjectAlternativeName([])
    names = [
        *alternatives.get_values_for_type(x509.UniformResourceIdentifier),
        *alternatives.get_values_for_type(x509.DNSName),
        *(str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)),
    ]
    return PeerCertificate(names[0], certificate.not_valid_after_utc.timestamp()) if names else None


def _load(setting: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"tls.{setting} is not what it should be: unencrypted PEM") from None


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
