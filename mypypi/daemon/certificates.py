"""Checks the certificate and key files of a listening endpoint, and says which of them can't be used and why.

Knows PEM files and X.509. Must never know who uses a certificate, or when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from attrs import frozen
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

    from mypypi.daemon.description import Description

T = TypeVar("T")

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class BadCertificate(ValueError):
    """A file of a certificate or key can't be used. The message names the file and the reason."""


@frozen
class Certificate:
    """The hosts that a server's certificate names, and when it ends, in words."""

    names: tuple[str, ...]
    until: str

    def __str__(self) -> str:
        return f"for {', '.join(self.names) or 'no host'}, valid until {self.until}"


def certificates_of(description: Description) -> list[Certificate]:
    """
    Read all files that an endpoint names, and return the certificates that clients get. None without TLS.

    Raises BadCertificate for the first file that can't be used.
    """
    if description.kind == "ssl":
        return [_of_files(description)]
    if description.kind == "tls":
        return _of_directory(Path(description.arguments.get("path", "")))
    return []


def host_of(description: Description) -> str | None:
    """Return a host that the certificate of this endpoint names; None if it is not known."""
    with suppress(BadCertificate):
        for certificate in certificates_of(description):
            for name in certificate.names:
                if "*" not in name:
                    return name
    return None


def _of_files(description: Description) -> Certificate:
    named = description.arguments
    key_path = Path(named.get("privateKey", "server.pem"))
    path = Path(named.get("certKey", key_path))
    key = _parsed(key_path, _private_key, "private key")
    certificate = _parsed(path, x509.load_pem_x509_certificate, "certificate")
    if not _belong(certificate, key):
        raise BadCertificate(f"{path}: the certificate does not belong to the private key in {key_path}")
    if "extraCertChain" in named:
        _parsed(Path(named["extraCertChain"]), x509.load_pem_x509_certificates, "certificate")
    if "dhParameters" in named:
        _parsed(Path(named["dhParameters"]), _check_parameters, "Diffie-Hellman parameters")
    return _described(certificate)


def _of_directory(directory: Path) -> list[Certificate]:
    certificates: list[x509.Certificate] = []
    keys: list[PrivateKeyTypes] = []
    if not directory.is_dir():
        raise BadCertificate(f"{directory}: not a directory; expected one with PEM files")
    for path in sorted(directory.rglob("*.pem")):
        for block in _BLOCK.finditer(_read(path)):
            if block[1] == b"CERTIFICATE":
                certificates.append(_loaded(path, block[0], x509.load_pem_x509_certificate, "certificate"))
            elif block[1].endswith(b"PRIVATE KEY"):
                keys.append(_loaded(path, block[0], _private_key, "private key"))
    used = [each for each in certificates if any(_belong(each, key) for key in keys)]
    if not used:
        raise BadCertificate(f"{directory}: no file *.pem has a certificate and its private key")
    return [_described(each) for each in used]


def _private_key(data: bytes) -> PrivateKeyTypes:
    return load_pem_private_key(data, None)


def _check_parameters(data: bytes) -> None:
    if b"DH PARAMETERS" not in [block[1] for block in _BLOCK.finditer(data)]:
        raise ValueError


def _belong(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return certificate.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadCertificate(f"{path}: {error.strerror}") from error


def _parsed(path: Path, parse: Callable[[bytes], T], what: str) -> T:
    return _loaded(path, _read(path), parse, what)


def _loaded(path: Path, data: bytes, parse: Callable[[bytes], T], what: str) -> T:
    try:
        return parse(data)
    except TypeError:  # cryptography's way to ask for a passphrase
        raise BadCertificate(f"{path}: the {what} is encrypted; store it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadCertificate(f"{path}: it has no {what} in PEM format that can be read") from None


def _described(certificate: x509.Certificate) -> Certificate:
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return Certificate(tuple(alternative.get_values_for_type(x509.DNSName)), until)
    except (x509.ExtensionNotFound, ValueError):
        subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return Certificate(tuple(str(each.value) for each in subject), until)
