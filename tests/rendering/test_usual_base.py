"""Tests of pages that are rendered for the address that most clients use: nothing else differs."""

from __future__ import annotations

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.model import BASE_PLACEHOLDER, Form, PageId, Part, RenderedForm, SourceDocument
from mypypi.rendering.forms import compress, with_base, with_placeholder
from mypypi.rendering.parts import PartIndex
from mypypi.rendering.tasks import (
    PARTS,
    CompressedPage,
    DeriveTask,
    ListingTask,
    RenderTask,
    decode_result,
    encode_task,
    perform,
)

URL = "https://index.example"
BASES = ["http://a.example", "https://packages.example:8443/some/path", "http://[2001:db8::1]:8000", "http://127.0.0.1"]
#: Addresses in texts of upstream, some of which begin with an address of this server.
TEXTS = [
    "",
    "see http://a.example/docs",
    "http://127.0.0.1:8080",
    "http://b",
    "é \u2028",
    "http://base.mypypi.invalid.x",
]
JSON = "application/vnd.pypi.simple.v1+json"


def packument(texts: list[str]) -> bytes:
    """A packument with these texts in its versions."""
    versions = {
        f"1.0.{number}": {"name": "thing", "readme": text, "dist": {"tarball": f"{URL}/thing/-/thing-1.0.{number}.tgz"}}
        for number, text in enumerate(texts)
    }
    return json.dumps({"name": "thing", "dist-tags": {"latest": "1.0.0"}, "versions": versions}).encode()


def simple_page(texts: list[str]) -> bytes:
    """A page of an index with files that have provenance, whose links have this server's address."""
    files = [
        {
            "filename": f"thing-1.{number}.tar.gz",
            "url": f"{URL}/files/thing-1.{number}.tar.gz",
            "hashes": {"sha256": "ab" * 32},
            "provenance": f"{URL}/integrity/thing/1.{number}/provenance",
            "yanked": text,
        }
        for number, text in enumerate(texts)
    ]
    return json.dumps({"meta": {"api-version": "1.3"}, "name": "thing", "files": files}).encode()


PAGES = {
    "npm": (PageId("packument", "thing"), "application/json", packument),
    "pypi": (PageId("simple", "thing"), JSON, simple_page),
}


def render(kind: str, texts: list[str], base: str) -> CompressedPage:
    page, media_type, make = PAGES[kind]
    task = RenderTask(page, SourceDocument(make(texts), media_type, f"{URL}/thing/"), base=base)
    found = decode_result(task, perform(encode_task(kind, URL, task)))
    assert isinstance(found, CompressedPage)
    return found


def body(form: Form) -> bytes:
    found = zlib.decompress(form.body, 31)
    assert len(found) == form.size
    return found


def derive(kind: str, form: Form, base: str, part: Part | None = None) -> Form:
    task = DeriveTask(form, base, part)
    found = decode_result(task, perform(encode_task(kind, URL, task)))
    assert isinstance(found, Form)
    return found


@pytest.mark.parametrize("kind", ["npm", "pypi"])
@given(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), usual=st.sampled_from(BASES))
def test_page_is_the_same_for_every_address(kind: str, texts: list[str], usual: str) -> None:
    """Whatever the address for which a page was rendered, each address gets the same bytes under the same etag."""
    plain, page = render(kind, texts, ""), render(kind, texts, usual)
    assert page.listing == plain.listing
    for name, form in page.forms.items():
        if name == PARTS:
            continue
        before = plain.forms[name]
        assert (form.etag, form.media_type, form.based) == (before.etag, before.media_type, before.based)
        assert with_placeholder(form, body(form)) == body(before)
        for base in BASES:
            assert derive(kind, form, base) == derive(kind, before, base)
        if kind == "pypi":
            html = [derive(kind, each, BASES[0], Part("html")) for each in (form, before)]
            assert html[0] == html[1]
            listed = [decode(kind, each) for each in (form, before)]
            assert listed[0] == listed[1] == plain.listing


def decode(kind: str, form: Form) -> object:
    task = ListingTask(PAGES[kind][0], "json", form)
    return decode_result(task, perform(encode_task(kind, URL, task)))


@given(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4), usual=st.sampled_from(BASES))
def test_index_of_parts_belongs_to_the_form(texts: list[str], usual: str) -> None:
    """A version is cut out of the form with the address in it."""
    page = render("npm", texts, usual)
    index = PartIndex.decode(zlib.decompress(page.forms[PARTS].body, 31))
    span = index.find(Part("version", f"1.0.{len(texts) - 1}"))
    assert span is not None
    cut = json.loads(index.cut(page.forms["full"].body, span))
    base = page.forms["full"].base
    assert cut["dist"]["tarball"] == f"{base}/thing/-/thing-1.0.{len(texts) - 1}.tgz"
    assert base == (usual if usual not in "".join(texts) else BASE_PLACEHOLDER.decode())


@pytest.mark.parametrize(
    "base",
    [
        "",
        "http://a.example/",
        'http://a.example/"',
        "http://a.example/x&y",
        "a.example",
        "http://a/http://a",
        "http://é",
    ],
)
def test_odd_address_is_not_put_in(base: str) -> None:
    """An address that might have to be quoted, or that could stand in itself, is put in while sending, as before."""
    rendered = RenderedForm("application/json", b'{"a":"http://base.mypypi.invalid/x"}', based=True)
    assert with_base(rendered, base) == (BASE_PLACEHOLDER.decode(), rendered.body)


def test_address_that_stands_in_the_page_is_not_put_in() -> None:
    """An address that upstream's text has already could not be told from the links later on."""
    rendered = RenderedForm("text/plain", b"http://base.mypypi.invalid/x and http://a.example.org", based=True)
    assert compress(rendered, "http://a.example").base == BASE_PLACEHOLDER.decode()
    form = compress(rendered, "http://b.example")
    assert (form.base, body(form)) == ("http://b.example", b"http://b.example/x and http://a.example.org")


def test_form_without_an_address_has_none() -> None:
    """A form whose links are relative is not changed."""
    rendered = RenderedForm("text/plain", b"http://base.mypypi.invalid", based=False)
    assert with_base(rendered, "http://a.example") == ("", rendered.body)
