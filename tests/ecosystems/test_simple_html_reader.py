"""Tests of the HTML parser: it finds the same anchors and attributes as other parsers of the HTML standard."""

from __future__ import annotations

import string
from html import escape
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.ecosystems.simple_html_reader import parse_html
from tests.ecosystems.server_pages import PROJECT_PAGES, ROOT_PAGES
from tests.ecosystems.simple_pages import (
    HERE,
    OTHER_SHA256,
    SHA256,
    SHA512,
    SIMPLE_HTML,
    WHEEL,
    WHEEL_URL,
    as_json,
    filenames,
    only_file,
    render,
)

#: Characters of text that the parser gets at a time.
PIECE = 64 * 1024
URL = "https://index.example/simple/holy-grail/"


class Anchors(HTMLParser):
    """Another parser, which takes too long for hostile pages."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append({name: value or "" for name, value in attrs})


def file_of(attributes: str, before: str = "") -> dict[str, Any]:
    """Return the file of an anchor with these attributes, as JSON has it."""
    return only_file(render(f"{before}<a {attributes}>x</a>", content_type="text/html", url=URL))


class TestAttributes:
    """The attributes of anchors."""

    @pytest.mark.parametrize(
        ("written", "value"),
        [
            ("a &amp; b", "a & b"),
            ("&lt;b&gt; &quot;x&quot; &#39;y&#39; &#x3e;", "<b> \"x\" 'y' >"),
            ("&eacute; &hellip; &nbsp; é 🎉 &#x1F389;", "é … \N{NO-BREAK SPACE} é 🎉 🎉"),
            ("a & b && c &", "a & b && c &"),
            ("&unknown; &;", "&unknown; &;"),
            ("a=1&b=2", "a=1&b=2"),
            ("a=1&copy=2&lt=3", "a=1&copy=2&lt=3"),
            ("&gt", ">"),
            ("a\nb\tc", "a\nb\tc"),
            ("a\r\nb&#13;", "a\nb\r"),
            ("<b>x</b>", "<b>x</b>"),
            ("&amp;amp;", "&amp;"),
        ],
    )
    def test_entities_are_decoded_once(self, written: str, value: str) -> None:
        """Entities in attributes are decoded as the HTML standard defines it (section 13.2.5.72)."""
        for quote in "\"'":
            if quote not in written:
                assert file_of(f"href={WHEEL_URL} data-yanked={quote}{written}{quote}")["yanked"] == value

    @pytest.mark.parametrize(
        "attributes",
        [
            'href="{url}" data-yanked="x"',
            "data-yanked='x' href='{url}'",
            "href={url} data-yanked=x",
            "HREF = '{url}'\n\tDATA-Yanked= x",
            'href="{url}"data-yanked="x"',
            'href="{url}" data-yanked="x"/',
            'href="{url}" data-yanked="x" data-yanked="y" href="/z.whl"',
            'class="file" href="\n {url}\t" id=1 data-yanked=x rel=internal',
        ],
    )
    def test_attributes_may_be_written_in_any_way(self, attributes: str) -> None:
        """Quotes, case, order and white space are free. Of two attributes of a name, the first counts."""
        file = file_of(attributes.format(url=WHEEL_URL))
        assert (file["filename"], file["yanked"]) == (WHEEL, "x")

    @pytest.mark.parametrize(
        ("attribute", "fields"),
        [
            ("data-yanked", {"yanked": True}),
            ('data-yanked=""', {"yanked": True}),
            ('data-yanked="a reason"', {"yanked": "a reason"}),
            ('data-requires-python="&gt;=3.9,&lt;4"', {"requires-python": ">=3.9,<4"}),
            ('data-requires-python=">=3.9"', {"requires-python": ">=3.9"}),
            ('data-requires-python="&amp;gt;=3.9"', {"requires-python": ">=3.9"}),
            ("data-requires-python", {}),
            ('data-gpg-sig="true"', {"gpg-sig": True}),
            ('data-gpg-sig="false"', {"gpg-sig": False}),
            ('data-core-metadata="true"', {"core-metadata": True}),
            (f'data-core-metadata="sha512={SHA512.upper()}"', {"core-metadata": {"sha512": SHA512}}),
            (f'data-dist-info-metadata="sha256={OTHER_SHA256}"', {"core-metadata": {"sha256": OTHER_SHA256}}),
            ('data-core-metadata="false"', {}),
            ('data-provenance="https://p.example/?a&amp;b"', {"provenance": f"{HERE}/https/p.example/?a&b"}),
            ("data-new", {"new": ""}),
            ('rel="internal" class="x" title="y"', {}),
        ],
    )
    def test_attributes_of_the_peps_become_fields(self, attribute: str, fields: dict[str, Any]) -> None:
        """The ``data-`` attributes of PEP 503, 592, 658, 714 and 740 become fields, and unknown ones as well."""
        known = {"filename", "url", "hashes"}
        file = file_of(f'href="{WHEEL_URL}" {attribute}')
        assert {name: value for name, value in file.items() if name not in known} == fields

    @given(values=st.lists(st.text(string.printable + "é€🎉"), min_size=1, max_size=4))
    def test_any_value_can_be_written(self, values: list[str]) -> None:
        """An escaped value is read as it was before. Only carriage returns need a reference."""
        written = [escape(value).replace("\r", "&#13;") for value in values]
        page = "".join(f'<a href="x" data-new="{value}">x</a>' for value in written)
        assert [anchor["data-new"] for anchor in parse_html(page).anchors] == values

    @pytest.mark.parametrize("page", [*PROJECT_PAGES.values(), *ROOT_PAGES.values()], ids=[*PROJECT_PAGES, *ROOT_PAGES])
    def test_other_parsers_find_the_same(self, page: str) -> None:
        """In pages of real servers, Python's own parser finds the same anchors and attributes."""
        assert parse_html(page).anchors == Anchors(page).found


class TestLinks:
    """The addresses and hashes of anchors."""

    @pytest.mark.parametrize(
        ("base", "url"),
        [
            ("", "https/index.example/simple/holy-grail/x.whl"),
            ("<base>", "https/index.example/simple/holy-grail/x.whl"),
            ('<base href="">', "https/index.example/simple/holy-grail/x.whl"),
            ('<base href=" ">', "https/index.example/simple/holy-grail/x.whl"),
            ('<base href="https://files.example/a/b">', "https/files.example/a/x.whl"),
            ("<BASE HREF=/a/>", "https/index.example/a/x.whl"),
            ('<base target="_top"><base href="../"><base href="/second/">', "https/index.example/simple/x.whl"),
            ('<base href="//files.example/a/">', "https/files.example/a/x.whl"),
        ],
    )
    def test_the_base_of_the_page_counts(self, base: str, url: str) -> None:
        """Addresses are relative to the page's first base, and an empty base is none."""
        assert file_of('href="x.whl"', before=base)["url"] == f"../../file/{url}"

    @pytest.mark.parametrize(
        ("fragment", "hashes"),
        [
            (f"sha256={SHA256}", {"sha256": SHA256}),
            (f"SHA256={SHA256.upper()}", {"sha256": SHA256}),
            (f"egg=holy-grail-1.0&amp;md5={'0f' * 16}", {"md5": "0f" * 16}),
            (f"egg=holy-grail-1.0&md5={'0f' * 16}&x=1", {"md5": "0f" * 16}),
            (f"sha512={SHA512}&sha256={SHA256}", {"sha512": SHA512, "sha256": SHA256}),
            (f"md5={'0F' * 16}&egg=x&sha256={SHA256}", {"md5": "0f" * 16, "sha256": SHA256}),
            (f"sha256={SHA256}&sha256={OTHER_SHA256}", {"sha256": SHA256}),
            (f"blake2b={'0f' * 64}", {"blake2b": "0f" * 64}),
            ("egg=holy-grail-1.0", {}),
            (f"crc32=00ff00ff&subsha256={SHA256}", {}),
        ],
    )
    def test_the_fragment_has_the_hashes(self, fragment: str, hashes: dict[str, str]) -> None:
        """All hashes in the fragment are the file's, in lower case (PEP 503 knows one)."""
        assert file_of(f'href="{WHEEL_URL}#{fragment}"')["hashes"] == hashes

    @pytest.mark.parametrize(
        ("href", "filename"),
        [
            ("a/b/x-1.0%2Bcpu.whl", "x-1.0+cpu.whl"),
            ("x-1.0+cpu.whl", "x-1.0+cpu.whl"),
            ("https://files.example/x.whl?v=1&amp;w=2", "x.whl"),
            ("&eacute;.whl", "é.whl"),
            ("%C3%A9.whl", "é.whl"),
        ],
    )
    def test_the_filename_is_the_last_part_of_the_path(self, href: str, filename: str) -> None:
        """The filename is the last part of the path, decoded; the anchor's text is for people."""
        assert file_of(f'href="{href}"')["filename"] == filename


class TestText:
    """The texts of anchors, titles and meta elements."""

    def test_texts_have_no_tags(self) -> None:
        """The text of an anchor or title has no tags or comments, and its entities are decoded."""
        page = parse_html(
            "<title>Links for <!-- x -->a &amp; b</title><h1>Links <i>for</i> c</h1>"
            '<a href="x">x<b>y</b><!-- z --> &lt;z&gt;</a> no text <a>w<a>v</a>'
        )
        assert page.names == ["xy <z>", "w", "v"]
        assert page.titles == ["Links for <!-- x -->a & b", "Links for c"]

    def test_meta_elements_are_read_anywhere(self) -> None:
        """The ``pypi:`` metas are read in any case and place. Later ones of a name are kept."""
        page = parse_html(
            '<META CONTENT="1.1" NAME="pypi:repository-version"><body><meta name="pypi:tracks" content="a&amp;b"/>'
            '<meta name="pypi:tracks" content="c"><meta name="pypi:empty"><meta name="other" content="x"><meta>'
        )
        assert page.metas == {"repository-version": ["1.1"], "tracks": ["a&b", "c"]}

    @pytest.mark.parametrize("body", ["é".encode(), b"\xe9", b"\xff\xfe\x00", "\N{REPLACEMENT CHARACTER}".encode()])
    @pytest.mark.parametrize("content_type", ["text/html", SIMPLE_HTML, "text/html; charset=utf-8"])
    def test_undecodable_bytes_are_replaced(self, body: bytes, content_type: str) -> None:
        """Bytes that are no text become replacement characters. The files stay."""
        page = b'<a href="x-1.0.zip" data-yanked="%s">%s</a><a href="y-1.0.zip">' % (body, body)
        rendered = render(page, content_type=content_type)
        assert filenames(rendered) == ["x-1.0.zip", "y-1.0.zip"]
        assert as_json(rendered)["files"][0]["yanked"] == body.decode(errors="replace").replace(
            "\0", "\N{REPLACEMENT CHARACTER}"
        )

    def test_null_characters_are_replaced(self) -> None:
        """A null character in a value is replaced, as the HTML standard demands. The rest of the page stays."""
        page = '\0<a href="x\0-1.0.zip" data-yanked="a\0b">\0</a>\0<a href="y-1.0.zip">'
        assert filenames(render(page, content_type="text/html")) == ["x\N{REPLACEMENT CHARACTER}-1.0.zip", "y-1.0.zip"]


@pytest.mark.parametrize("padding", ["<!--{}-->", "{}", "<p>{}</p>", '<a href="../{}/">Up</a>'])
def test_pieces_of_the_text_may_end_anywhere(padding: str) -> None:
    """The parser gets the text in pieces. An end of a piece within a tag, value, entity or character has no effect."""
    page = f'<a href="x-1.0.zip#sha256={SHA256}" data-yanked="é &amp; 🎉" data-requires-python="&gt;=3">x &eacute;</a>'
    expected = parse_html(page)
    for end in range(1, len(page)):
        whole = padding.format("x" * (PIECE - end - len(padding) + len("{}"))) + page
        assert len(whole) == PIECE - end + len(page), "a piece ends within the anchor"
        found = parse_html(whole)
        assert (found.anchors[-1], found.names[-1]) == (expected.anchors[0], expected.names[0])
