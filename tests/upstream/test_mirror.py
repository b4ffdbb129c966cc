"""Tests of a mirror whose pages name the public registry's host: npm's ``replace-registry-host``."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from mypypi.errors import NotFound, UpstreamDown, UpstreamRefused
from mypypi.upstream.client import Upstream
from mypypi.upstream.requester import Credentials
from tests.upstream.cases import UpstreamTestCase

PUBLIC = "registry.example"
TARBALL = f"https://{PUBLIC}/@scope/thing/-/thing-1.0.0.tgz?a=1"
HERE = "https://mirror.example/npm/@scope/thing/-/thing-1.0.0.tgz?a=1"


class MirrorTest(UpstreamTestCase):
    """A file that is listed at the public registry is requested from the mirror first."""

    url = "https://mirror.example/npm"

    def make_upstream(
        self, url: str = "", credentials: Credentials | None = None, concurrency: int = 64, **options: Any
    ) -> Upstream:
        return super().make_upstream(url, credentials, concurrency, public_host=PUBLIC, **options)

    @property
    def urls(self) -> list[str]:
        return [exchange.url for exchange in self.wire.exchanges]

    def test_path_is_requested_at_the_mirror(self) -> None:
        """The same path is requested below the mirror's own, and nothing elsewhere."""
        pending = self.file(TARBALL, Range="bytes=1-")
        self.wire.last.answer(206, b"ytes", content_range="bytes 1-4/5")
        self.now(pending).close()
        self.assertEqual([HERE], self.urls)
        self.assertEqual("bytes=1-", self.wire.last.headers["range"])

    def test_url_as_listed_is_requested_where_the_mirror_lacks_the_file(self) -> None:
        """After a 404 of the mirror, the URL as listed is requested."""
        for start in (lambda: self.file(TARBALL), lambda: self.start(self.upstream.size_of(TARBALL))):
            before = self.request_count
            pending = start()
            self.wire.last.answer(404)
            self.clock.advance(0)
            self.wire.last.answer(body=b"bytes")
            self.now(pending)
            self.assertEqual([HERE, TARBALL], self.urls[before:])

    def test_file_that_neither_has_is_missing(self) -> None:
        """The answer is 404 if the public registry answers that, too."""
        pending = self.file(TARBALL)
        self.wire.last.answer(404)
        self.clock.advance(0)
        self.wire.last.answer(404)
        self.failing(pending, NotFound)

    def test_mirror_that_fails_or_refuses_is_not_evaded(self) -> None:
        """Any other status than 404 is the answer, as it is for a client that asks the mirror directly."""
        for status, error in ((503, UpstreamDown), (403, UpstreamRefused)):
            before = self.request_count
            pending = self.file(TARBALL)
            self.wire.last.answer(status)
            self.failing(pending, error)
            self.assertEqual([HERE], self.urls[before:])

    def test_credentials_go_to_the_mirror_alone(self) -> None:
        """The mirror gets its credentials, and the public registry does not (promise 13)."""
        self.upstream = self.make_upstream(credentials=Credentials("me", "secret"))
        pending = self.file(TARBALL)
        expected = "Basic " + b64encode(b"me:secret").decode()
        self.assertEqual(expected, self.wire.last.headers["authorization"])
        self.wire.last.answer(404)
        self.clock.advance(0)
        self.assertEqual(TARBALL, self.wire.last.url)
        self.assertNotIn("authorization", self.wire.last.headers)
        self.wire.last.answer(body=b"bytes")
        self.now(pending)
        self.assertTrue(self.upstream.needs_credentials(TARBALL))

    def test_other_hosts_are_requested_as_listed(self) -> None:
        """A host that is not the public registry's is never replaced: npm's default does not either."""
        for url in ("https://files.example/a.tgz", f"https://{PUBLIC}:8443/a.tgz", f"https://x.{PUBLIC}/a.tgz"):
            self.assertEqual(url, self.upstream.first_url(url))

    def test_public_registry_itself_is_no_mirror(self) -> None:
        """With the public registry as upstream, each URL is requested once, as listed."""
        self.assertEqual(TARBALL, self.make_upstream(f"https://{PUBLIC}/npm").first_url(TARBALL))
