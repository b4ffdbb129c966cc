"""Tests of the files that a TLS endpoint names: which of them can't be used, and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from mypypi.daemon.certificates import BadCertificate, certificates_of, host_of
from mypypi.daemon.description import Description
from tests.rig.certificates import Certificate

CERTIFICATE = Certificate.make("here.example", "also.example")
OTHER = Certificate.make("other.example")


def files_of(directory: Path, *, key: bytes | None = None, certificate: bytes | None = None, more: str = "") -> str:
    """Write both files, and return an endpoint that names them."""
    listen = f"ssl:443:{CERTIFICATE.write(directory)}{more}"
    if key is not None:
        (directory / "key.pem").write_bytes(key)
    if certificate is not None:
        (directory / "cert.pem").write_bytes(certificate)
    return listen


def reason(listen: str) -> str:
    with pytest.raises(BadCertificate) as caught:
        certificates_of(Description.parse(listen))
    return str(caught.value)


@pytest.mark.parametrize(
    ("listen", "kind", "arguments"),
    [
        ("tcp:80", "tcp", {"port": "80"}),
        ("tcp6:port=80:interface=\\:\\:1", "tcp6", {"port": "80", "interface": "::1"}),
        ("unix:/run/a\\:b.sock:mode=660", "unix", {"address": "/run/a:b.sock", "mode": "660"}),
        ("ssl:443:a\\=b.pem:certKey=c=d.pem", "ssl", {"port": "443", "privateKey": "a=b.pem", "certKey": "c=d.pem"}),
        ("tls:/etc/certificates:port=8443", "tls", {"path": "/etc/certificates", "port": "8443"}),
    ],
)
def test_a_description_is_split_as_twisted_splits_it(listen: str, kind: str, arguments: dict[str, str]) -> None:
    """A description has a kind and arguments by name, also those without one. PROXY's wrapper is told apart."""
    assert Description.parse(listen) == Description(kind, arguments)
    assert Description.parse(f"haproxy:{listen}") == Description(kind, arguments, proxied=True)


def test_both_files_can_be_one(tmp_path: Path) -> None:
    """Key and certificate may lie in one file, which the endpoint names once."""
    path = tmp_path / "both.pem"
    path.write_bytes(CERTIFICATE.key_pem() + CERTIFICATE.certificate_pem)
    (found,) = certificates_of(Description.parse(f"ssl:443:privateKey={path}"))
    assert found.names == ("here.example", "also.example")
    assert str(found).startswith("for here.example, also.example, valid until 20")


def test_the_first_file_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    """The reason begins with the file: it is missing, is no PEM file, is encrypted, or belongs to another one."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    assert reason(files_of(tmp_path, key=b"x")) == f"{key}: it has no private key in PEM format that can be read"
    assert reason(files_of(tmp_path, certificate=b"")).startswith(f"{certificate}: it has no certificate in PEM format")
    encrypted = files_of(tmp_path, key=CERTIFICATE.key_pem(b"secret"))
    assert reason(encrypted) == f"{key}: the private key is encrypted; store it without a passphrase"
    other = files_of(tmp_path, certificate=OTHER.certificate_pem)
    assert reason(other) == f"{certificate}: the certificate does not belong to the private key in {key}"
    chain = files_of(tmp_path, more=f":extraCertChain={tmp_path}/chain.pem")
    assert reason(chain) == f"{tmp_path}/chain.pem: No such file or directory"
    parameters = files_of(tmp_path, more=f":dhParameters={key}")
    assert reason(parameters).startswith(f"{key}: it has no Diffie-Hellman parameters")


def test_a_directory_of_certificates_is_checked(tmp_path: Path) -> None:
    """A ``tls:`` endpoint names a directory. It needs a certificate with its key, and no file that can't be read."""
    listen = f"tls:{tmp_path}:port=443"
    assert reason(listen) == f"{tmp_path}: no file *.pem has a certificate and its private key"
    (tmp_path / "other.pem").write_bytes(OTHER.certificate_pem)
    CERTIFICATE.write(tmp_path)
    (found,) = certificates_of(Description.parse(listen))
    assert found.names == ("here.example", "also.example")
    (tmp_path / "broken.pem").write_bytes(CERTIFICATE.certificate_pem.replace(b"M", b"-", 3))
    assert reason(listen).startswith(f"{tmp_path}/broken.pem: it has no certificate")
    assert reason(f"tls:{tmp_path}/none") == f"{tmp_path}/none: not a directory; expected one with PEM files"


def test_the_host_for_clients_is_one_that_the_certificate_names(tmp_path: Path) -> None:
    """Clients need a host that the certificate names. A wildcard is none, and plain HTTP has no certificate."""
    assert host_of(Description.parse(files_of(tmp_path))) == "here.example"
    wild = Certificate.make("*.example")
    assert host_of(Description.parse(f"ssl:443:{wild.write(tmp_path)}")) is None
    assert host_of(Description.parse("tcp:80")) is None
    assert host_of(Description.parse(files_of(tmp_path, key=b""))) is None
