"""Makes certificates, valid ones and others, and a TLS server that answers every request with 404.

Knows X.509 and TLS from the server's side. Must never import the code under test.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typing_extensions import Self


@frozen
class Certificate:
    """A certificate and its private key, both as objects of cryptography."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(
        cls,
        *names: str,
        issuer: Certificate | None = None,
        days: tuple[float, float] = (-1, 1),
        authority: bool = False,
    ) -> Certificate:
        """
        Make a certificate for these hosts or addresses, the first of which is its subject.

        Without an `issuer` it is self-signed. It is valid between two days, counted from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        now = dt.datetime.now(dt.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if issuer is None else issuer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=days[0]))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .sign(key if issuer is None else issuer.key, hashes.SHA256())
        )
        return cls(certificate, key)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate in PEM format."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        """The private key in PEM format."""
        form = serialization.PrivateFormat.PKCS8
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            encryption = serialization.BestAvailableEncryption(passphrase)
        return self.key.private_bytes(serialization.Encoding.PEM, form, encryption)

    def write(self, directory: Path) -> str:
        """Write ``cert.pem`` and ``key.pem``, and return these arguments of a Twisted endpoint."""
        (directory / "cert.pem").write_bytes(self.certificate_pem)
        (directory / "key.pem").write_bytes(self.key_pem())
        return f"privateKey={directory}/key.pem:certKey={directory}/cert.pem"


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class _NotFound(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # clients refuse the certificate


class TLSServer:
    """A server at `port` on 127.0.0.1 with this certificate, or without TLS. Use as a context manager."""

    def __init__(self, certificate: Certificate | None, directory: Path, chain: Sequence[Certificate] = ()) -> None:
        self._server = _Quiet(("127.0.0.1", 0), _NotFound)
        self.port = int(self._server.server_address[1])
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        if certificate is not None:
            path = directory / f"server-{self.port}.pem"
            path.write_bytes(b"".join([certificate.key_pem(), *(c.certificate_pem for c in (certificate, *chain))]))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(path)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def certificate_at(port: int) -> x509.Certificate:
    """Return the certificate of the server at this port of 127.0.0.1, whoever signed it."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())


def name_at(port: int) -> str:
    """Return the host that the certificate of the server at this port names first."""
    (name,) = certificate_at(port).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)
