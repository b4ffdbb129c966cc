"""Tests of pages that were made to hurt: each is rendered or refused in time that grows with its length alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mypypi.ecosystems.npm import NPM
from mypypi.ecosystems.simple_html_reader import MOST_LINKS
from mypypi.errors import BadUpstreamResponse
from mypypi.model import PageId, PageRules, RenderedPage, SourceDocument
from tests.ecosystems.simple_pages import (
    PROJECT,
    ROOT,
    SHA256,
    SIMPLE_JSON,
    WHEEL,
    anchor,
    as_json,
    filenames,
    project,
    render,
    wheel,
)

#: Seconds of CPU time that a page may take. Each takes a second at most; quadratic parsers took minutes for them.
LIMIT = 20
MILLION = 1_000_000
BACKSLASH, QUOTE = "\\", '"'
FILE = anchor()
PACKUMENT = PageId("packument", "thing")
VERSION = '"1.0.0":{"name":"thing","version":"1.0.0","dist":{"tarball":"https://registry.example/thing-1.0.0.tgz"}}'

#: Shapes that hide nothing: the anchor after them is found.
HARMLESS: dict[str, Callable[[], str]] = {
    "nested tags": lambda: "<div>" * 200_000,
    "nested formatting": lambda: "<b><i>" * 200_000,
    "nested tables": lambda: "<table><tr><td>" * 100_000,
    "nested lists": lambda: "<ul><li>" * 200_000,
    "unknown tags": lambda: "<x-y>" * 400_000,
    "tags closed in the wrong order": lambda: "<b><i>" * 100_000 + "</b></i>" * 100_000,
    "end tags": lambda: "</div>" * MILLION,
    "paragraphs": lambda: "<p>" * 400_000,
    "headings": lambda: "<h1>" * 400_000,
    "drawings": lambda: "<svg><math>" * 200_000,
    "templates": lambda: "<template>" * 400_000,
    "document types": lambda: "<!DOCTYPE x>" * 400_000,
    "bodies": lambda: "<html a=1><body b=1>" * 200_000,
    "closed comments": lambda: "<!-- -->" * 400_000,
    "processing instructions": lambda: "<?x y?>" * 400_000,
    "a title of titles": lambda: "<title>" * MILLION + "</title>",
    "less-than signs": lambda: "<" * 4 * MILLION,
    "ampersands": lambda: "&" * 4 * MILLION,
    "entities": lambda: "&amp;&#60;" * 500_000,
    "an entity with a long name": lambda: "&" + "a" * 4 * MILLION,
    "a huge character number": lambda: "&#" + "9" * 4 * MILLION + ";",
    "null characters": lambda: "\0" * 2 * MILLION,
    "a tag with a long name": lambda: "<" + "a" * 4 * MILLION + ">",
    "a tag with an attribute of a long name": lambda: "<p " + "a" * 4 * MILLION + ">",
    "a tag with an attribute of 10 MB": lambda: f'<p data-x="{"x" * 10 * MILLION}">',
    "a tag with many attributes": lambda: "<p " + " ".join(f"a{number}=1" for number in range(100_000)) + ">",
    "one attribute many times": lambda: "<p " + "x=1 " * MILLION + ">",
    "text": lambda: "x" * 10 * MILLION,
    "bases": lambda: '<base href="https://files.example/">' * 100_000,
    "metas": lambda: '<meta name="pypi:x" content="y">' * 100_000,
}
#: Shapes that make everything after them a part of themselves, as the HTML standard has it.
SWALLOWING: dict[str, Callable[[], str]] = {
    "comments": lambda: "<html>" + "<!--" * 100_000,
    "more comments": lambda: "<html>" + "<!--" * MILLION,
    "comments that nearly end": lambda: "<!--" + "--!-" * MILLION,
    "sections": lambda: "<![" * MILLION + "CDATA[",
    "marked sections": lambda: "<![CDATA[" * 400_000,
    "unclosed document types": lambda: "<!DOCTYPE " * 400_000,
    "unclosed declarations": lambda: "<!" * MILLION,
    "unclosed processing instructions": lambda: "<?" * MILLION,
    "an unclosed quote": lambda: '<p title="' + "x" * 10 * MILLION,
    "unclosed tags with a quote": lambda: "<p '" + "<a href=" * MILLION + "'",
    "plain text": lambda: "<plaintext>",
    "a style": lambda: "<style>" + "</" * MILLION,
    "a text area": lambda: "<textarea>" + "</textare" * 400_000,
    "a title": lambda: "<title>" + "</titl" * 400_000,
}
#: Shapes that say in addition that the page is for people.
INTERACTIVE: dict[str, Callable[[], str]] = {
    "scripts": lambda: "<script>" * 400_000,
    "a script of comments": lambda: "<script>" + "<!--<script>" * 400_000,
    "a script that nearly ends": lambda: "<script>" + "</scrip" * 400_000,
    "inner frames": lambda: "<iframe>" * 400_000,
}
#: Anchors with a long value.
LONG_ANCHORS: dict[str, Callable[[], str]] = {
    "a filename": lambda: f'<a href="{"x" * 4 * MILLION}.zip">x</a>',
    "a filename of names and versions": lambda: f'<a href="{"a-1" * MILLION}.zip">x</a>',
    "a path of dots": lambda: f'<a href="{"../" * MILLION}x.zip">x</a>',
    "a query": lambda: f'<a href="x.zip?{"&amp;" * MILLION}">x</a>',
    "a fragment of hashes": lambda: f'<a href="x.zip#{"&sha256=aa" * 400_000}">x</a>',
    "a fragment of names": lambda: f'<a href="x.zip#{"sha256=" * 400_000}">x</a>',
    "a hash": lambda: f'<a href="x.zip#sha256={"a" * 4 * MILLION}">x</a>',
    "entities": lambda: f'<a href="x.zip" data-requires-python="{"&amp;amp" * 400_000}">x</a>',
    "an unknown attribute": lambda: f'<a href="x.zip" data-x="{"x" * 10 * MILLION}">x</a>',
    "a time": lambda: f'<a href="x.zip" data-upload-time="{"2026-11-01T" * 400_000}">x</a>',
    "a text": lambda: f'<a href="x.zip">{"x" * 10 * MILLION}</a>',
}
#: Values of JSON that are large, or may be too large.
LARGE_VALUES: dict[str, Callable[[], str]] = {
    "an integer": lambda: "9" * 4 * MILLION,
    "a fraction": lambda: f"0.{'9' * 4 * MILLION}e1",
    "a text": lambda: f'"{"x" * 10 * MILLION}"',
    "escapes": lambda: f'"{BACKSLASH}u00e9{BACKSLASH * 2 * MILLION}"',
    "a list": lambda: f"[{'{},' * MILLION}1]",
    "an object": lambda: "{" + ",".join(f'"{number}":1' for number in range(200_000)) + "}",
    "white space": lambda: " " * 10 * MILLION + "1",
}
#: Members of a packument whose text is like what `mypypi.ecosystems.packument` looks for.
MISLEADING_MEMBERS: dict[str, Callable[[], str]] = {
    "a long link": lambda: f'"tarball":"{"x" * 10 * MILLION}"',
    "a long link of escapes": lambda: f'"tarball":"{BACKSLASH * 2 * 4 * MILLION}"',
    "space before a colon": lambda: f'"tarball"{" " * 10 * MILLION}:1',
    "space without a colon": lambda: f'"x":["tarball"{" " * 10 * MILLION}]',
    "many links": lambda: '"x":[' + '{"tarball":"x"},' * 400_000 + "1]",
    "links in a text": lambda: f'"readme":"{(BACKSLASH + QUOTE + "tarball" + BACKSLASH + QUOTE + ":") * 400_000}"',
    "backslashes": lambda: f'"readme":"{BACKSLASH}ud83d{BACKSLASH * 2 * 4 * MILLION}"',
    "halves of characters": lambda: f'"readme":"{(BACKSLASH + "ud83d") * MILLION}"',
}
#: Values that are nested too deeply.
DEEP = {
    "lists": "[" * 300_000,
    "closed lists": "[" * 300_000 + "]" * 300_000,
    "objects": '{"x":' * 300_000,
    "closed objects": '{"x":' * 300_000 + "1" + "}" * 300_000,
}


@contextmanager
def limited_time() -> Iterator[None]:
    """Assert that the block takes little CPU time, however busy the machine is."""
    started = time.process_time()
    yield
    assert time.process_time() - started < LIMIT


def read(page: str | bytes, kind: PageId = PROJECT) -> RenderedPage:
    with limited_time():
        return render(page, kind, "text/html")


def render_packument(body: str | bytes) -> RenderedPage:
    encoded = body.encode() if isinstance(body, str) else body
    source = SourceDocument(encoded, "application/json", "https://registry.example/thing")
    with limited_time():
        return NPM("https://registry.example").render(PACKUMENT, source, PageRules())


class TestHtml:
    """HTML that makes parsers slow."""

    @pytest.mark.parametrize("shape", HARMLESS.values(), ids=HARMLESS)
    def test_files_after_a_harmless_shape_are_found(self, shape: Callable[[], str]) -> None:
        """A page with such a shape is read in linear time, and the files around the shape are listed."""
        assert filenames(read(FILE + shape() + FILE)) == [WHEEL, WHEEL]

    @pytest.mark.parametrize("shape", SWALLOWING.values(), ids=SWALLOWING)
    def test_files_before_an_unclosed_shape_are_found(self, shape: Callable[[], str]) -> None:
        """A shape that never ends hides the rest of the page. It is read in linear time as well."""
        assert filenames(read(FILE + shape() + FILE)) == [WHEEL]
        rendered = read(shape() + FILE)
        assert (filenames(rendered), rendered.is_doubtful) == ([], True)

    @pytest.mark.parametrize("shape", INTERACTIVE.values(), ids=INTERACTIVE)
    def test_endless_scripts_are_refused(self, shape: Callable[[], str]) -> None:
        """A script that never ends is read in linear time. Files before it are listed; without one, it is no page."""
        assert filenames(read(FILE + shape() + FILE)) == [WHEEL]
        with pytest.raises(BadUpstreamResponse, match="page for people"):
            read(shape() + FILE)

    @pytest.mark.parametrize("long", LONG_ANCHORS.values(), ids=LONG_ANCHORS)
    def test_long_values_of_a_file_cost_linear_time(self, long: Callable[[], str]) -> None:
        """A file with a value of some megabytes does not take the others away."""
        rendered = read(FILE + long() + FILE)
        assert filenames(rendered)[0] == filenames(rendered)[-1] == WHEEL

    @pytest.mark.parametrize("kind", [PROJECT, ROOT], ids=str)
    def test_a_million_links_are_the_limit(self, kind: PageId) -> None:
        """A million anchors are read; with one more, the page is refused."""
        assert MOST_LINKS == MILLION
        mark = "<title>Links for holy-grail</title>"
        rendered = as_json(read(mark + "<a>" * MILLION, kind))
        assert rendered.get("files", rendered.get("projects")) == []
        with pytest.raises(BadUpstreamResponse, match="it has more than 1000000 links"):
            read(mark + "<a>" * (MILLION + 1), kind)

    @pytest.mark.parametrize("base", [f'<base href="/{"a/" * 5000}">', f'<base href="{"../" * 5000}">'])
    def test_a_long_base_is_refused(self, base: str) -> None:
        """A long base is refused, since each link would take time for its whole length."""
        with pytest.raises(BadUpstreamResponse, match="its base URL is too long"):
            read(base + '<a href="../x-1.zip">x</a>' * 20_000)

    def test_a_long_address_of_the_page_is_refused(self) -> None:
        """An address of the page from a redirect is a base as well."""
        url = f"https://index.example/{'a/' * 5000}"
        for page, content_type in ((FILE * 20_000, "text/html"), (project(wheel()), SIMPLE_JSON)):
            with limited_time(), pytest.raises(BadUpstreamResponse, match="its URL is too long"):
                render(page, content_type=content_type, url=url)

    @pytest.mark.parametrize("body", [b"\xff" * MILLION, b"\xed\xa0\x80" * MILLION, b"\x00\xd8" * MILLION])
    def test_bytes_that_are_no_text_are_read(self, body: bytes) -> None:
        """Bytes that are no text become replacement characters."""
        assert filenames(read(FILE.encode() + body + FILE.encode())) == [WHEEL, WHEEL]

    @pytest.mark.parametrize("charset", ["punycode", "PunyCode", "punycode-", "idna"])
    @pytest.mark.parametrize("kind", ["text/html", "application/json"])
    def test_encodings_of_host_names_are_refused(self, charset: str, kind: str) -> None:
        """Punycode is no encoding of pages: decoding some hundred kilobytes of it takes minutes."""
        body = b"<a-" + b"9" * MILLION
        with limited_time(), pytest.raises(BadUpstreamResponse, match="only for host names"):
            render(body, content_type=f"{kind}; charset={charset}")


class TestJson:
    """JSON that makes parsers slow, or the stack overflow."""

    @pytest.mark.parametrize("deep", DEEP.values(), ids=DEEP)
    def test_deep_nesting_is_refused(self, deep: str) -> None:
        """JSON that is nested 300,000 deep is refused with the reason, at any place and for each kind of page."""
        for body in (deep, f'{{"files":[],"x":{deep}}}', f'{{"files":[{deep}]}}', f'{{"info":{{}},"x":{deep}}}'):
            for kind in (PROJECT, PageId("json", "holy-grail")):
                with limited_time(), pytest.raises(BadUpstreamResponse, match=r"nested too deeply|Expected `object`"):
                    render(body, kind)
        for place in ('"x":{}', '"versions":{{"1.0.0":{}}}', '"versions":{{"1.0.0":{{"dist":{}}}}}', '"time":{}'):
            with pytest.raises(BadUpstreamResponse, match="nested too deeply"):
                render_packument(f'{{"name":"thing",{place.format(deep)}}}')
        with limited_time(), pytest.raises(BadUpstreamResponse, match="nested too deeply"):
            NPM("").render(PageId("keys"), SourceDocument(f'{{"keys":{deep}}}'.encode(), "", ""), PageRules())

    @pytest.mark.parametrize("large", LARGE_VALUES.values(), ids=LARGE_VALUES)
    @pytest.mark.parametrize("field", ['"x":{}', '"meta":{{"x":{}}}'])
    def test_large_values_cost_linear_time(self, large: Callable[[], str], field: str) -> None:
        """A large value in any field is passed on, or refused if it is no number that a program can use."""
        body = f'{{"files":[],{field.format(large())}}}'.encode()
        with limited_time():
            try:
                rendered = render(body)
            except BadUpstreamResponse as error:
                reason = str(error)
            else:
                reason = ""
                assert as_json(rendered)["files"] == []
        assert ("out of range" in reason) == (large is LARGE_VALUES["an integer"])

    @pytest.mark.parametrize("large", LARGE_VALUES.values(), ids=LARGE_VALUES)
    def test_large_values_in_a_packument_are_not_even_parsed(self, large: Callable[[], str]) -> None:
        """Most fields of a packument and its versions stay bytes, so their values may be of any size."""
        value = large()
        version = VERSION.replace('"dist"', f'"x":{value},"dist"')
        for body in (
            f'{{"name":"thing","x":{value},"versions":{{{VERSION}}}}}',
            f'{{"name":"thing","versions":{{{version}}}}}',
        ):
            assert value.encode() in render_packument(body).forms["full"].body

    @pytest.mark.parametrize("member", MISLEADING_MEMBERS.values(), ids=MISLEADING_MEMBERS)
    def test_text_like_links_and_halves_of_characters_costs_linear_time(self, member: Callable[[], str]) -> None:
        """Long text that looks like a link, or like halves of characters, is passed on as it is."""
        text = member()
        full = render_packument(f'{{"name":"thing",{text},"versions":{{{VERSION}}}}}').forms["full"].body
        assert text.encode() in full
        assert b"/thing/-/thing-1.0.0.tgz" in full

    @pytest.mark.parametrize("integrity", ["sha512-" * 400_000, "sha512-" + "a" * 4 * MILLION, "=" * 4 * MILLION])
    def test_a_long_integrity_costs_linear_time(self, integrity: str) -> None:
        """A long ``integrity`` is passed on, and is no digest."""
        version = VERSION.replace('"dist":{', f'"dist":{{"integrity":"{integrity}",')
        rendered = render_packument(f'{{"name":"thing","versions":{{{version}}}}}')
        assert integrity.encode() in rendered.forms["full"].body
        assert b'"sha512-' not in rendered.forms["files"].body

    def test_lists_have_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A JSON list of more than a million files or projects is refused, and so is a packument of more versions."""
        monkeypatch.setattr("mypypi.ecosystems.simple_page.MOST_LINKS", 3)
        monkeypatch.setattr("mypypi.ecosystems.packument.MOST_VERSIONS", 3)
        assert len(as_json(render(project(*[wheel()] * 3)))["files"]) == 3
        assert len(as_json(render({"projects": [{"name": "a"}] * 3}, ROOT))["projects"]) == 3
        with pytest.raises(BadUpstreamResponse, match="it lists more than 3 files"):
            render(project(*[wheel()] * 4))
        with pytest.raises(BadUpstreamResponse, match="it lists more than 3 projects"):
            render({"projects": [{"name": "a"}] * 4}, ROOT)
        for versions in ('"1":{},"2":{},"3":{},"4":{}', '"1":null,"2":null,"3":null,"4":{}'):
            with pytest.raises(BadUpstreamResponse, match="more than 3 versions"):
                render_packument(f'{{"name":"thing","versions":{{{versions}}}}}')


def test_a_large_page_has_all_its_files() -> None:
    """A page with 5,000 files is read in whole, from HTML as from JSON."""
    names = [f"holy_grail-{number}-py3-none-any.whl" for number in range(5000)]
    html = read("".join(f'<a href="/p/{name}#sha256={SHA256}">{name}</a><br/>\n' for name in names))
    plain = render(project(*(wheel(filename=name, url=f"/p/{name}") for name in names)))
    assert filenames(html) == filenames(plain) == names
