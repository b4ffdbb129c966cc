"""Tests of the renderer: it makes tasks of its calls, and pages, listings and errors of their results."""

from __future__ import annotations

import json
import zlib

import pytest
from twisted.internet.defer import Deferred, fail

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import BadUpstreamResponse, NotFound, TemporarilyUnavailable
from mypypi.model import BASE_PLACEHOLDER, Form, PageId, PageRules, Part, SourceDocument
from mypypi.rendering.forms import compress, gzip
from mypypi.rendering.renderer import Renderer
from mypypi.rendering.tasks import CompressedPage
from tests.rendering.processes import JSON, THING, URL, document
from tests.support.memory import MemoryTestCase, render_at_once, simple_page

LINK = "https/files.example/thing-1.0.tar.gz"
STRAY = "https/files.example/other-1.0.tar.gz"
PACKUMENT = PageId("packument", "thing")
VERSIONS = {number: {"dist": {"tarball": f"{URL}/thing/-/thing-{number}.tgz"}} for number in ("1.0.0", "2.0.0")}


def file(link: str, **fields: object) -> dict[str, object]:
    return {"filename": link.rpartition("/")[2], "url": link.replace("/", "://", 1), "hashes": {}, **fields}


def source(*files: dict[str, object]) -> SourceDocument:
    return document(simple_page(*files))


class RendererTest(MemoryTestCase):
    """A renderer whose tasks are done in this process."""

    def setUp(self) -> None:
        super().setUp()
        self.renderer = Renderer("pypi", URL, render_at_once)
        self.npm = Renderer("npm", URL, render_at_once)

    def render(self, source: SourceDocument, *withheld: str, known: str = "") -> CompressedPage:
        return self.now(self.renderer.render(THING, source, PageRules(frozenset(withheld)), known))

    def packument(self) -> CompressedPage:
        body = json.dumps({"name": "thing", "dist-tags": {"latest": "2.0.0"}, "versions": VERSIONS}).encode()
        return self.now(self.npm.render(PACKUMENT, document(body, "application/json"), PageRules()))

    def test_a_page_is_rendered_as_its_ecosystem_renders_it(self) -> None:
        """A page has its ecosystem's forms, compressed, and everything else that the ecosystem says of it."""
        listed = source(file(LINK), file(STRAY), {"filename": "no url"})
        expected = ECOSYSTEMS["pypi"](URL).render(THING, listed, PageRules())
        page = self.render(listed)
        assert page.forms == {name: compress(form) for name, form in expected.forms.items()}
        assert (page.indexed_links, page.modified) == (expected.indexed_links, expected.modified)
        assert (page.is_doubtful, page.notes) == (expected.is_doubtful, expected.notes)
        assert STRAY in page.indexed_links
        assert page.notes == ("1 files without a usable url and filename were left out",)

    def test_withheld_links_are_left_out(self) -> None:
        """A page does not advertise a file that upstream lists but does not have."""
        listed = source(file(LINK, **{"core-metadata": True}))
        assert b"core-metadata" in zlib.decompress(self.render(listed).forms["json"].body, 31)
        page = self.render(listed, f"{LINK}.metadata")
        assert b"core-metadata" not in zlib.decompress(page.forms["json"].body, 31)

    def test_a_known_page_is_not_rendered_again(self) -> None:
        """
        A page with the known digest has no forms. So an unchanged page costs no parsing.

        The digest is that of the decompressed bytes, since the same page may be compressed in another way.
        """
        page = self.render(source(file(LINK)))
        assert self.render(document(simple_page(file(LINK)), encoding="gzip"), known=page.source) == CompressedPage(
            page.source
        )
        assert self.render(source(file(STRAY)), known=page.source).forms

    def test_a_page_that_says_nothing_is_doubtful(self) -> None:
        """A page that lists nothing, and says nothing of what it is, is marked as doubtful."""
        assert self.render(document(b"<html><p>Welcome</p></html>", "text/html")).is_doubtful
        assert not self.render(source()).is_doubtful

    def test_a_page_that_can_not_be_read_is_a_failure_of_upstream(self) -> None:
        """The error has the words of the ecosystem."""
        broken = document(b"neither", "text/plain")
        with pytest.raises(BadUpstreamResponse) as expected:
            ECOSYSTEMS["pypi"](URL).render(THING, broken, PageRules())
        error = self.failing(self.renderer.render(THING, broken, PageRules()), BadUpstreamResponse)
        assert str(error) == str(expected.value)

    def test_a_listing_has_the_files_of_the_page(self) -> None:
        """The listing of a rendered page has its files."""
        page = self.render(source(file(LINK, hashes={"sha256": "0" * 64}, size=3), file(STRAY)))
        listing = self.now(self.renderer.listing(THING, "json", page.forms["json"]))
        found = listing.get(LINK)
        assert found is not None
        assert (found.url, str(found.digest), found.size) == (LINK.replace("/", "://", 1), f"sha256-{'0' * 64}", 3)
        assert len(listing) == 2

    def test_a_page_without_files_has_an_empty_listing(self) -> None:
        """A page of a kind that lists no files has an empty listing."""
        form = Form(JSON, "", 2, gzip(b"{}"))
        assert len(self.now(self.renderer.listing(PageId("root"), "json", form))) == 0

    def test_a_derived_form_has_the_address_of_the_client(self) -> None:
        """A form is made for an address, which is then in all its links. Each address has its own etag."""
        full = self.packument().forms["full"]
        assert full.based
        forms = [self.now(self.npm.derive(full, base, None)) for base in ("http://a.example", "http://b.example")]
        bodies = [zlib.decompress(form.body, 31) for form in forms]
        assert [form.size for form in forms] == [len(body) for body in bodies]
        assert bodies[0] == zlib.decompress(full.body, 31).replace(BASE_PLACEHOLDER, b"http://a.example")
        assert len({full.etag, *(form.etag for form in forms)}) == 3
        assert self.now(self.npm.derive(full, "http://a.example", None)) == forms[0]

    def test_a_part_is_cut_out_of_its_page(self) -> None:
        """A part has its own etag, and the client's address in its links. A part that is missing raises NotFound."""
        full = self.packument().forms["full"]
        base = "http://a.example"
        latest, first = (self.now(self.npm.derive(full, base, Part("version", name))) for name in ("latest", "1.0.0"))
        tarball = json.loads(zlib.decompress(latest.body, 31))["dist"]["tarball"]
        assert tarball == "http://a.example/thing/-/thing-2.0.0.tgz"
        assert latest.etag != first.etag
        error = self.failing(self.npm.derive(full, base, Part("version", "3.0.0")), NotFound)
        assert str(error) == "version not found: 3.0.0"

    def test_a_pool_without_room_is_no_failure_of_upstream(self) -> None:
        """The error of the pool reaches the caller as it is."""

        def refuse(_task: bytes) -> Deferred[bytes]:
            return fail(TemporarilyUnavailable("too many pages wait", 7))

        renderer = Renderer("pypi", URL, refuse)
        error = self.failing(renderer.render(THING, source(), PageRules()), TemporarilyUnavailable)
        assert (str(error), error.retry_after) == ("too many pages wait", 7)

    def test_pages_come_from_the_ecosystem_of_that_name(self) -> None:
        """A renderer has the ecosystem that it names, and no other."""
        self.failing(Renderer("cargo", URL, render_at_once).render(THING, source(), PageRules()), KeyError)
