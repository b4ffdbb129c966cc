"""Tests that a failure of TLS is explained: whose certificate, what is wrong with it, and what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from mypypi.errors import NotFound, StorageDown, UpstreamUnreachable
from mypypi.model import PageRequest
from mypypi.storage.s3 import BucketSettings, S3Bucket
from mypypi.tls import explain
from mypypi.upstream.client import Upstream
from tests.rig.certificates import Certificate, TLSServer

PAGE = PageRequest("/simple/a/", "text/html")
AUTHORITY = Certificate.make("authority.example", authority=True)
STRANGER = Certificate.make("stranger.example", authority=True)
VALID = Certificate.make("localhost", issuer=AUTHORITY)

#: A server's certificate (None: no TLS), and what the message says of it. All clients trust AUTHORITY alone.
_OF = "the certificate of localhost"
FAULTS: list[tuple[Certificate | None, str]] = [
    (Certificate.make("localhost"), f"{_OF} is self-signed: "),
    (Certificate.make("localhost", issuer=AUTHORITY, days=(-2, -1)), f"{_OF} has expired: renew it"),
    (Certificate.make("localhost", issuer=AUTHORITY, days=(1, 2)), f"{_OF} is not valid yet: check"),
    (Certificate.make("other.example", issuer=AUTHORITY), f"{_OF} is for other hosts: use a name"),
    (Certificate.make("localhost", issuer=STRANGER), f"{_OF} is from an authority that is not trus"),
    (None, "TLS failed: localhost does not speak TLS at this port: use http://"),
]


class UpstreamTests(TestCase):
    """Requests to an upstream with TLS."""

    def setUp(self) -> None:
        ending = ExitStack()
        self.addCleanup(ending.close)
        self.directory = Path(ending.enter_context(TemporaryDirectory()))
        trusted = self.directory / "trusted.pem"
        trusted.write_bytes(AUTHORITY.certificate_pem)
        ending.enter_context(patch.dict(os.environ, SSL_CERT_FILE=str(trusted)))

    async def ask(self, certificate: Certificate | None, chain: Sequence[Certificate] = ()) -> str:
        """Return the message of a request to a server with this certificate."""
        with TLSServer(certificate, self.directory, chain) as server:
            upstream = Upstream(reactor, f"https://localhost:{server.port}")
            try:
                await upstream.page(PAGE)
            except (UpstreamUnreachable, NotFound) as error:
                return str(error)
            finally:
                await upstream.stop()
        raise AssertionError("the server answers every request with 404")

    async def test_each_fault_is_named(self) -> None:
        """The message names the host and the fault of its certificate."""
        for certificate, words in FAULTS:
            assert (await self.ask(certificate)).startswith(f"upstream can't be reached: {words}"), words
        assert "an authority that is not trusted here" in await self.ask(
            Certificate.make("localhost", issuer=STRANGER), [STRANGER]
        )

    async def test_a_valid_certificate_is_accepted(self) -> None:
        """A certificate that is valid for the host is accepted."""
        assert await self.ask(VALID) == "upstream does not have this"


@pytest.fixture
def trusting_boto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """boto3 trusts AUTHORITY alone."""
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(AUTHORITY.certificate_pem)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(trusted))
    return tmp_path


@pytest.mark.parametrize(("certificate", "words"), FAULTS)
def test_each_fault_of_a_bucket_is_named(certificate: Certificate | None, words: str, trusting_boto: Path) -> None:
    """The message about a bucket names the host and the fault of its certificate."""
    with TLSServer(certificate, trusting_boto) as server:
        address = BucketSettings("b", "", f"https://localhost:{server.port}", "here", "key", "secret")
        with pytest.raises(StorageDown) as caught:
            S3Bucket(address).check()
    assert str(caught.value).startswith(f"S3 can't be reached: {words}")
    assert "SSL_CERT_FILE" not in str(caught.value)


def test_other_errors_are_not_explained() -> None:
    """An error that has nothing to do with TLS is left to others."""
    assert explain(ConnectionRefusedError(), "localhost") is None
