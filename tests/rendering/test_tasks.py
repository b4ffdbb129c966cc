"""Tests of the tasks: what a render process is given, what it returns, and the limits that it keeps."""

from __future__ import annotations

import hashlib
import json
import os
import time
import tracemalloc
import zlib
from unittest import mock

import msgspec
import pytest

from mypypi.ecosystems.pypi import PyPI
from mypypi.errors import BadUpstreamResponse, NotFound
from mypypi.gunzip import MOST_MEMBERS, MOST_SWOLLEN
from mypypi.model import Form, PackageFile, PageId, PageRules, Part, RenderedForm, SourceDocument
from mypypi.rendering import tasks
from mypypi.rendering.forms import compress
from mypypi.rendering.listing import Listing
from mypypi.rendering.tasks import (
    LARGE,
    LARGEST_PAGE,
    UNDERSTATED,
    CompressedPage,
    DeriveTask,
    ListingTask,
    RenderTask,
    Task,
    decode_result,
    encode_task,
    perform,
    restated,
    work_in,
)
from tests.rendering.processes import HTML, JSON, SMALL, THING, URL, document, render_task
from tests.support.memory import gzipped
from tests.support.swollen import barely_swollen, swollen

MIB = 1024 * 1024
LINK = "https/files.example/thing-1.0.tar.gz"
PACKUMENT = json.dumps({"name": "thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"dist": {}}}})


def do(task: Task, package_type: str = "pypi") -> object:
    """Do a task as a render process does, and return its result."""
    return decode_result(task, perform(encode_task(package_type, URL, task)))


def rendered(source: SourceDocument) -> CompressedPage:
    page = do(render_task(source))
    assert isinstance(page, CompressedPage)
    return page


def form(body: bytes, *, based: bool = False) -> Form:
    return compress(RenderedForm("application/json", body, based=based))


class TestResults:
    """A result reaches the serving process as the render process made it."""

    def test_a_page_comes_back(self) -> None:
        """A render task returns the page with its forms, and the digest of upstream's decompressed bytes."""
        page = rendered(document(SMALL, encoding="gzip"))
        expected = PyPI(URL).render(THING, document(SMALL), PageRules())
        assert page.forms == {name: compress(form) for name, form in expected.forms.items()}
        assert page.source == hashlib.sha256(SMALL).hexdigest()
        assert page == rendered(document(SMALL))

    def test_a_known_page_comes_back_without_forms(self) -> None:
        """An unchanged page is decompressed, but not parsed."""
        digest = hashlib.sha256(b"no page").hexdigest()
        assert do(RenderTask(THING, document(b"no page", encoding="gzip"), known=digest)) == CompressedPage(digest)

    def test_a_listing_comes_back(self) -> None:
        """A listing task returns the page's files."""
        listing = do(ListingTask(THING, "json", rendered(document(SMALL)).forms["json"]))
        assert listing == Listing.of([PackageFile(LINK, LINK.replace("/", "://", 1))])

    def test_a_derived_form_comes_back(self) -> None:
        """A derive task returns the form for an address, or a part of it."""
        based = form(b"http://base.mypypi.invalid/thing", based=True)
        derived = do(DeriveTask(based, "http://here.example"))
        assert isinstance(derived, Form)
        assert zlib.decompress(derived.body, 31) == b"http://here.example/thing"
        assert (derived.size, derived.media_type, derived.based) == (25, "application/json", False)
        tags = do(DeriveTask(form(PACKUMENT.encode()), "", Part("dist-tags")), "npm")
        assert isinstance(tags, Form)
        assert zlib.decompress(tags.body, 31) == b'{"latest":"1.0.0"}'

    @pytest.mark.parametrize(
        ("task", "package_type", "kind", "message"),
        [
            (
                render_task(document(b"no page", "text/plain")),
                "pypi",
                BadUpstreamResponse,
                "it is neither JSON nor HTML",
            ),
            (render_task(document(b"{}"), PageId("packument", "a")), "npm", BadUpstreamResponse, "is no packument"),
            (DeriveTask(form(b"{}"), "", Part("version", "7")), "npm", NotFound, "version not found: 7"),
            (DeriveTask(form(b"{}"), "", Part("version", "7")), "pypi", NotFound, "a page has no such part: version"),
        ],
    )
    def test_an_error_has_its_class_and_message(
        self, task: Task, package_type: str, kind: type[Exception], message: str
    ) -> None:
        """The serving process raises the error that ended the task."""
        with pytest.raises(kind, match=message) as raised:
            do(task, package_type)
        assert type(raised.value) is kind

    def test_used_up_memory_is_a_failure_of_upstream(self) -> None:
        """A page that needs too much memory ends with that reason, not with the process."""
        with (
            mock.patch("mypypi.ecosystems.pypi.usual_page", side_effect=MemoryError) as called,
            pytest.raises(BadUpstreamResponse, match="upstream's page takes too much memory"),
        ):
            rendered(document(SMALL))
        called.assert_called_once()

    def test_a_damaged_result_is_an_error(self) -> None:
        """Bytes that are no result are not taken for one."""
        task = render_task(document(SMALL))
        result = perform(encode_task("pypi", URL, task))
        for damaged in (
            b"",
            result[:-1],
            result[1:],
            b"\x92\x91\x01\xc0",
            perform(encode_task("pypi", URL, task))[::-1],
        ):
            with pytest.raises(msgspec.MsgspecError):
                decode_result(task, damaged)


class TestDecompression:
    """Upstream's bytes are decompressed within limits."""

    def test_a_large_page_with_many_spaces_is_a_page(self) -> None:
        """A page of 1 MB that has 60 MB when decompressed is read as any other."""
        body = barely_swollen(SMALL + b" " * 60_000_000)
        assert len(body) < 60_000_000 / 40
        (form,) = rendered(SourceDocument(body, JSON, URL, "gzip")).forms.values()
        (expected,) = rendered(document(SMALL)).forms.values()
        assert json.loads(zlib.decompress(form.body, 31)) == json.loads(zlib.decompress(expected.body, 31))
        assert form.size < 2 * len(SMALL)

    @pytest.mark.parametrize("size", [500_000_000, 8_000_000])
    def test_a_page_that_swells_is_refused_early(self, size: int) -> None:
        """A page of spaces that grows 1000 times is no page. It takes no memory, wherever the spaces are."""
        noise = os.urandom(500_000)
        for start in (SMALL, SMALL + noise):
            body = swollen(size, start)
            tracemalloc.start()
            try:
                with pytest.raises(BadUpstreamResponse, match="grows more than 200 times"):
                    rendered(SourceDocument(body, JSON, URL, "gzip"))
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak < MOST_SWOLLEN + 4 * MIB

    def test_a_short_run_of_spaces_is_no_swelling(self) -> None:
        """A page may have 3 MB that grow as much."""
        body = swollen(MOST_SWOLLEN - MIB, SMALL)
        assert rendered(SourceDocument(body, JSON, URL, "gzip")).forms

    @pytest.mark.parametrize(("count", "before"), [(MOST_MEMBERS - 2, 0), (200_000, 0), (1000, 500_000)])
    def test_members_must_bring_something(self, count: int, before: int) -> None:
        """A body of empty gzip members is refused at once, after a few hundred or so. A few are no reason to refuse."""
        body = gzipped(SMALL[:10] + b" " * before) + gzipped(b"") * count + gzipped(SMALL[10:])
        began = time.process_time()
        if count < MOST_MEMBERS:
            assert rendered(SourceDocument(body, JSON, URL, "gzip")).forms
        else:
            with pytest.raises(BadUpstreamResponse, match="gzip members with next to nothing in them"):
                rendered(SourceDocument(body, JSON, URL, "gzip"))
        assert time.process_time() - began < 1

    def test_a_page_larger_than_it_says_is_done_again_as_a_large_one(self) -> None:
        """A page of several members may hide its size. It is not decompressed as a small one."""
        page = SMALL + b" " * (LARGE + 1)
        body = barely_swollen(page) + gzipped(b" ")
        task = encode_task("pypi", URL, render_task(SourceDocument(body, JSON, URL, "gzip")))
        assert work_in(task) < LARGE
        assert perform(task) == UNDERSTATED
        again = restated(task)
        assert work_in(again) == LARGEST_PAGE
        assert decode_result(render_task(document(SMALL)), perform(again)).forms

    def test_a_bomb_above_the_limit_takes_no_more_memory_than_the_limit(self) -> None:
        """A page that would have 150 MB is refused. Its memory is the limit, and what a buffer has in advance."""
        body = barely_swollen(SMALL + b" " * 150 * MIB)
        tracemalloc.start()
        try:
            with pytest.raises(BadUpstreamResponse, match=f"upstream sent a page of more than {LARGEST_PAGE} bytes"):
                rendered(SourceDocument(body, JSON, URL, "gzip"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert LARGEST_PAGE < peak < LARGEST_PAGE * 9 / 8 + 4 * MIB

    @pytest.mark.parametrize("members", [1, 3])
    def test_the_largest_page_is_accepted(self, members: int) -> None:
        """A page of exactly the limit is accepted, and one byte more is not. All members count together."""
        size = 3 * MIB
        largest, larger = (
            b"".join(
                gzipped(piece)
                for piece in [SMALL + b" " * (length - len(SMALL) - members + 1), *[b" "] * (members - 1)]
            )
            for length in (size, size + 1)
        )
        with mock.patch.object(tasks, "LARGEST_PAGE", size):
            assert rendered(SourceDocument(largest, JSON, URL, "gzip")).forms
            with pytest.raises(BadUpstreamResponse, match=f"of more than {size} bytes"):
                rendered(SourceDocument(larger, JSON, URL, "gzip"))

    def test_a_body_of_several_members_is_one_page(self) -> None:
        """A gzip body may have several members (RFC 1952, section 2.2), and empty ones."""
        pieces = [SMALL[:10], b"", SMALL[10:], b""]
        body = b"".join(map(gzipped, pieces))
        assert rendered(SourceDocument(body, JSON, URL, "gzip")) == rendered(document(SMALL))

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (gzipped(SMALL)[:-1], "ends early"),
            (gzipped(SMALL)[:30], "ends early"),
            (b"", "ends early"),
            (SMALL, "damaged gzip encoding"),
            (gzipped(SMALL) + b"more", "ends early"),
            (gzipped(SMALL) + b"more than a member's header", "damaged gzip encoding"),
            (gzipped(SMALL)[:-1] + b"x", "damaged gzip encoding"),
            (gzipped(SMALL)[:-8] + b"x" * 8, "damaged gzip encoding"),
        ],
        ids=["no last byte", "no end", "no byte", "plain", "a bit more", "more", "wrong size", "wrong check sum"],
    )
    def test_a_damaged_body_is_refused(self, body: bytes, reason: str) -> None:
        """A body that ends early, or is no gzip, or has a wrong check sum, is no page."""
        with pytest.raises(BadUpstreamResponse, match=reason):
            rendered(SourceDocument(body, JSON, URL, "gzip"))

    @pytest.mark.parametrize(
        "encoding", ["br", "zstd", "deflate", "compress", "gzip, gzip", "x" * 1000], ids=lambda name: name[:20]
    )
    def test_an_unknown_encoding_is_refused(self, encoding: str) -> None:
        """A Content-Encoding that was not requested is named in the error, but not at any length."""
        with pytest.raises(BadUpstreamResponse, match="not requested") as raised:
            rendered(SourceDocument(SMALL, JSON, URL, encoding))
        assert encoding[:40] in str(raised.value)
        assert len(str(raised.value)) < 150


class TestCompression:
    """Forms are compressed the same way everywhere."""

    def test_a_form_is_compressed_once_and_named_by_its_identity_bytes(self) -> None:
        """A form's etag and its bytes are the same on every host, at any time."""
        rendered = RenderedForm("text/html", b"<html></html>" * 100, based=True)
        form = compress(rendered)
        with mock.patch("time.time", return_value=1.0):
            assert compress(rendered) == form
        assert (form.media_type, form.size, form.based) == ("text/html", 1300, True)
        assert form.etag == hashlib.sha256(rendered.body).hexdigest()[:32]
        assert zlib.decompress(form.body, 31) == rendered.body
        assert len(form.body) < form.size
        assert form.body[4:8] == bytes(4), "no time in the gzip header (RFC 1952, section 2.3.1)"


class TestWork:
    """A task says how many bytes there are to read. That decides whether it is a large one."""

    @pytest.mark.parametrize("size", [0, 1, 60 * MIB])
    def test_decompressed_bytes_are_counted(self, size: int) -> None:
        """A page counts with its decompressed bytes, however small it is on the wire."""
        source = SourceDocument(swollen(size) if size > 1 else gzipped(b"x" * size), HTML, URL, "gzip")
        assert work_in(encode_task("pypi", URL, render_task(source))) == max(size, len(source.body))

    def test_plain_pages_and_forms_count_with_their_bytes(self) -> None:
        """A page without an encoding counts with its bytes, a form with those of its identity."""
        body = os.urandom(1000)
        assert work_in(encode_task("pypi", URL, render_task(document(body)))) == 1000
        stored = form(b"x" * 5000)
        for task in (ListingTask(THING, "json", stored), DeriveTask(stored, "http://here.example")):
            assert work_in(encode_task("pypi", URL, task)) == 5000
