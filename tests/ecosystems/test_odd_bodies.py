"""Tests of bodies that say one thing and are another: a wrong Content-Type, and JSON that only some clients read.

What pip, uv, npm and bun accept was tried with them. Where one of them reads a document, it is read here too.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from typing import Any

import pytest

from mypypi.ecosystems.npm import FULL, NPM
from mypypi.errors import BadUpstreamResponse
from mypypi.model import PageId, PageRules, RenderedPage, SourceDocument
from tests.ecosystems.simple_pages import (
    ROOT,
    SIMPLE_HTML,
    SIMPLE_JSON,
    WHEEL,
    anchor,
    as_json,
    check_strictly,
    filenames,
    project,
    render,
    wheel,
)

#: Content-Types that servers send for any of the formats.
TYPES = ("text/html", "text/html; charset=utf-8", "application/json", SIMPLE_JSON, SIMPLE_HTML, "text/plain", "")
RAW_CONTROLS = tuple(map(chr, range(0x20)))

npm = NPM("https://registry.example")


def packument(**fields: object) -> bytes:
    dist = {"tarball": "https://registry.example/holy/-/holy-1.0.0.tgz"}
    versions = {"1.0.0": {"name": "holy", "version": "1.0.0", "dist": dist}}
    return json.dumps({"name": "holy", "versions": versions, **fields}).encode()


def render_packument(body: bytes, content_type: str = FULL) -> RenderedPage:
    return npm.render(
        PageId("packument", "holy"), SourceDocument(body, content_type, "https://registry.example/holy"), PageRules()
    )


def versions(rendered: RenderedPage) -> list[dict[str, Any]]:
    """The versions in each form, as a client reads them."""
    return [json.loads(rendered.forms[name].body)["versions"] for name in ("full", "abbreviated")]


class TestTypes:
    """The body decides whether it is JSON or HTML."""

    @pytest.mark.parametrize("content_type", TYPES)
    def test_json_of_any_type_is_read_as_json(self, content_type: str) -> None:
        """JSON that comes as HTML has its files, and never becomes an empty page."""
        for start in ("", "\n ", "\ufeff"):
            rendered = render(start + json.dumps(project(wheel())), content_type=content_type)
            assert (filenames(rendered), rendered.is_doubtful, rendered.notes) == ([WHEEL], False, ())
        root = render({"projects": [{"name": "spam"}]}, ROOT, content_type)
        assert as_json(root)["projects"] == [{"name": "spam"}]

    @pytest.mark.parametrize("content_type", TYPES)
    def test_html_of_any_type_is_read_as_html(self, content_type: str) -> None:
        """HTML that comes as JSON has its files."""
        for start in ("", "\n ", "\ufeff", "<!DOCTYPE html>\n"):
            rendered = render(f"{start}<html>{anchor()}</html>", content_type=content_type)
            assert (filenames(rendered), rendered.is_doubtful) == ([WHEEL], False)
        root = render('<title>Simple index</title><a href="spam/">spam</a>', ROOT, content_type)
        assert as_json(root)["projects"] == [{"name": "spam"}]

    @pytest.mark.parametrize("page", [ROOT, PageId("simple", "holy-grail")])
    @pytest.mark.parametrize(
        "body",
        ["{}", '{"error": "<a href=holy-grail-1.0.zip>busy</a>"}', "[]", '"<b>no</b>"', "null", "Busy", '{"files'],
    )
    def test_a_body_that_is_no_page_fails_with_any_type(self, body: str, page: PageId) -> None:
        """An error in JSON or plain text is upstream's failure, and no page without files, also if it comes as HTML."""
        for content_type in TYPES:
            if body == '"<b>no</b>"' and "html" in content_type:
                continue  # text with a tag is HTML
            with pytest.raises(BadUpstreamResponse):
                render(body, page, content_type)

    def test_html_of_the_wrong_type_needs_a_sign(self) -> None:
        """HTML with the type of JSON that lists nothing is no page: a proxy's error page has such a type."""
        for page in (ROOT, PageId("simple", "holy-grail")):
            with pytest.raises(BadUpstreamResponse, match="nothing says that it is such a page"):
                render("<html><h1>Sign in</h1></html>", page, SIMPLE_JSON)
        assert filenames(render("<title>Links for holy-grail</title>", content_type=SIMPLE_JSON)) == []

    def test_packuments_are_read_with_any_type(self) -> None:
        """A packument is JSON, whatever type upstream names."""
        for content_type in TYPES:
            assert [list(each) for each in versions(render_packument(packument(), content_type))] == [["1.0.0"]] * 2


class TestPythonJson:
    """JSON pages of Python indexes, as pip reads them: with Python's own parser."""

    @pytest.mark.parametrize(
        "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
    )
    @pytest.mark.parametrize("charset", ["", "; charset=utf-8", "; charset=latin-1"])
    def test_unicode_is_read_in_any_encoding(self, encoding: str, charset: str) -> None:
        """A byte order mark, UTF-16 and UTF-32 are accepted, whatever charset upstream names."""
        text = json.dumps(project(wheel(yanked="é")), ensure_ascii=False)
        rendered = render(text.encode(encoding), content_type=SIMPLE_JSON + charset)
        assert as_json(rendered)["files"][0]["yanked"] == "é"

    def test_a_named_encoding_counts_if_it_is_not_unicode(self) -> None:
        """Bytes that are no Unicode are read in the charset that upstream names, else with replacements, as uv does."""
        body = json.dumps(project(wheel(yanked="é")), ensure_ascii=False).encode("latin-1")
        yanked = [
            as_json(render(body, content_type=SIMPLE_JSON + charset))["files"][0]["yanked"]
            for charset in ("; charset=latin-1", "")
        ]
        assert yanked == ["é", "\N{REPLACEMENT CHARACTER}"]

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ('"a\\ud800b"', "a\N{REPLACEMENT CHARACTER}b"),
            ('"\\ud83c\\udf89 \\udfff"', "🎉 \N{REPLACEMENT CHARACTER}"),
            ('"\\\\ud800"', "\\ud800"),
            ("NaN", None),
            ("-Infinity", None),
            ('"a\x7fb"', "a\x7fb"),
        ],
    )
    def test_what_pythons_parser_accepts_is_accepted(self, written: str, value: object) -> None:
        """Halves of surrogate pairs are replaced, and numbers that JSON lacks become null, for strict clients."""
        rendered = render(json.dumps(project(wheel(new="@"), new="@")).replace('"@"', written))
        document = as_json(rendered)
        assert document["new"] == document["files"][0]["new"] == value
        check_strictly(rendered)

    @pytest.mark.parametrize("character", RAW_CONTROLS)
    def test_raw_control_characters_are_refused(self, character: str) -> None:
        """No client reads JSON with a raw control character in a string: the page stays as it was."""
        with pytest.raises(BadUpstreamResponse, match="malformed"):
            render(json.dumps(project(wheel(new="@"))).replace("@", character))


class TestNpmJson:
    """Packuments, as npm's clients read them."""

    def test_a_byte_order_mark_is_removed(self) -> None:
        """A byte order mark, which bun accepts and npm does not, is removed: all clients accept the packument."""
        rendered = render_packument(BOM_UTF8 + packument(readme="é"))
        assert [list(each) for each in versions(rendered)] == [["1.0.0"]] * 2
        assert all(form.body.startswith((b"{", b"[")) for form in rendered.forms.values())
        for kind, page in (("keys", ""), ("attestations", "holy@1.0.0")):
            source = SourceDocument(BOM_UTF8 + b'{"keys":[]}', FULL, "https://registry.example/x")
            assert npm.render(PageId(kind, page), source, PageRules()).forms["full"].body == b'{"keys":[]}'

    @pytest.mark.parametrize("written", [b"\xe9", b"\\ud800", b"\x7f"])
    @pytest.mark.parametrize("field", ["readme", "time", "dist-tags"])
    def test_text_that_can_not_be_decoded_stays(self, written: bytes, field: str) -> None:
        """All clients read bytes that are not UTF-8, and halves of surrogate pairs: the versions are served."""
        rendered = render_packument(packument(**{field: {"latest": "1.0.0", "x": "@"}}).replace(b"@", written))
        found = [
            json.loads(rendered.forms[name].body.decode(errors="replace"))["versions"]
            for name in ("full", "abbreviated")
        ]
        assert [list(each) for each in found] == [["1.0.0"]] * 2

    @pytest.mark.parametrize("character", RAW_CONTROLS)
    def test_raw_control_characters_are_refused(self, character: str) -> None:
        """No client of npm's reads JSON with a raw control character in a string: the page stays as it was."""
        with pytest.raises(BadUpstreamResponse, match="can't be parsed"):
            render_packument(packument(readme="@").replace(b"@", character.encode()))
