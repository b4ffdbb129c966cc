"""Tests of Simple pages: JSON and HTML keep upstream's content, whichever of them upstream sends."""

from __future__ import annotations

import json
import string
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.errors import BadUpstreamResponse
from mypypi.file_keys import stable_key_of
from tests.ecosystems.simple_pages import (
    FILE_FIELDS,
    HERE,
    OTHER_SHA256,
    PAGE_FIELDS,
    PROJECT,
    ROOT,
    SHA256,
    SHA512,
    SIMPLE_JSON,
    WHEEL,
    WHEEL_LINK,
    WHEEL_URL,
    as_html,
    as_json,
    only_file,
    project,
    pypi,
    read_by_pip,
    render,
    wheel,
)


class TestFields:
    """The fields of pages and files."""

    def test_json_keeps_all_fields(self) -> None:
        """JSON keeps every field at every level, even unknown ones."""
        document = project(
            wheel(
                size=2**63 - 1,
                upload_time="2026-11-01T00:00:00Z",
                yanked=False,
                new={"a": [1, None, 0.5]},
                gpg_sig=True,
            ),
            versions=["1.0"],
            new=["top"],
            **{
                "project-status": {"status": "archived", "reason": "done"},
                "alternate-locations": ["https://b.example/"],
            },
        )
        document["meta"] |= {"tracks": ["https://a.example/"], "_last-serial": 7, "new": True}
        rendered = as_json(render(document))
        rendered["files"][0]["url"] = WHEEL_URL
        assert rendered == document

    def test_html_has_fields_as_attributes(self) -> None:
        """HTML has every field that it can express, and unknown ones as attributes."""
        html = as_html(
            render(
                project(
                    wheel(
                        requires_python=">=3.9,<4",
                        yanked='it "leaks" & <breaks>',
                        core_metadata={"sha256": OTHER_SHA256, "sha512": SHA512},
                        gpg_sig=False,
                        provenance="https://index.example/p?a&b",
                        size=5,
                        upload_time="2026-11-01T00:00:00Z",
                        new_number=3,
                        new_object={"not": "shown"},
                    )
                )
            )
        )
        anchor = next(line for line in html.splitlines() if line.startswith("<a "))
        assert anchor == (
            f'<a href="../../file/{WHEEL_LINK}#sha256={SHA256}" data-requires-python="&gt;=3.9,&lt;4"'
            f' data-gpg-sig="false" data-provenance="{HERE}/https/index.example/p?a&amp;b" data-new-number="3"'
            ' data-yanked="it &quot;leaks&quot; &amp; &lt;breaks&gt;"'
            f' data-core-metadata="sha256={OTHER_SHA256}" data-dist-info-metadata="sha256={OTHER_SHA256}"'
            f">{WHEEL}</a><br/>"
        )

    def test_html_has_the_pages_fields_as_meta_elements(self) -> None:
        """The HTML head has the version, PEP 708's locations and PEP 792's status, escaped."""
        document = project(
            **{
                "project-status": {"status": "archived", "reason": 'no "time"'},
                "alternate-locations": ["https://b.example/"],
            },
        )
        document["meta"]["tracks"] = ["https://a.example/", "https://c.example/"]
        html = as_html(render(document))
        assert html.startswith("<!DOCTYPE html>\n<html>")
        for name, content in [
            ("repository-version", "1.4"),
            ("tracks", "https://a.example/"),
            ("tracks", "https://c.example/"),
            ("alternate-locations", "https://b.example/"),
            ("project-status", "archived"),
            ("project-status-reason", "no &quot;time&quot;"),
        ]:
            assert f'<meta name="pypi:{name}" content="{content}">' in html

    def test_fields_can_not_break_out_of_html(self) -> None:
        """Upstream's text never becomes a tag in HTML."""
        evil = '"><script>alert(1)</script>'
        html = as_html(
            render(
                project({"filename": evil, "url": f"https://files.example/{evil}", "hashes": {"md5": evil}, evil: "x"})
            )
        )
        assert "<script>" not in html

    @pytest.mark.parametrize(
        ("hashes", "fragment"),
        [
            ({"sha512": SHA512, "sha256": SHA256}, f"#sha256={SHA256}"),
            ({"md5": "0f" * 16, "sha512": SHA512.upper()}, f"#sha512={SHA512}"),
            ({"blake2b": "0f" * 64}, f"#blake2b={'0f' * 64}"),
            ({"crc32": "00ff00ff", "sha256": 'x"y'}, ""),
            ({}, ""),
            (["sha256"], ""),
        ],
    )
    def test_html_links_have_one_hash(self, hashes: object, fragment: str) -> None:
        """
        A link's hash is sha256, which every client knows (PEP 503).

        Without sha256, it is the strongest that upstream gives.
        """
        assert f'href="../../file/{WHEEL_LINK}{fragment}"' in as_html(render(project(wheel(hashes=hashes))))

    @given(
        st.dictionaries(
            st.text().filter(lambda name: name not in {*FILE_FIELDS, *PAGE_FIELDS}),
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists),
        )
    )
    def test_unknown_fields_are_kept(self, fields: dict[str, object]) -> None:
        """Fields that no PEP defines are kept, with any name and value."""
        document = project({**fields, **wheel(core_metadata=True)}, **{**fields, **project(wheel())})
        document["files"][0] |= {"new": fields}
        rendered = as_json(render(document))
        assert rendered["files"][0]["url"] == f"../../file/{WHEEL_LINK}"
        rendered["files"][0]["url"] = WHEEL_URL
        assert rendered == document


class TestMetadata:
    """The fields that advertise metadata."""

    @pytest.mark.parametrize("name", ["dist-info-metadata", "data-dist-info-metadata"])
    def test_metadata_under_an_old_name_gets_the_valid_one(self, name: str) -> None:
        """Metadata under an old name also gets PEP 714's name. Some clients know only that one."""
        file = only_file(render(project({**wheel(), name: {"sha256": OTHER_SHA256}})))
        assert file["core-metadata"] == file[name] == {"sha256": OTHER_SHA256}

    def test_metadata_never_gets_the_name_that_breaks_old_pips(self) -> None:
        """JSON has dist-info-metadata only if upstream put it there. pip 22.3 to 23.1 fail on it (PEP 714)."""
        assert "dist-info-metadata" not in only_file(render(project(wheel(core_metadata=True))))
        page = f'<a href="{WHEEL_URL}" data-dist-info-metadata="true">{WHEEL}</a>'
        file = only_file(render(page, content_type="text/html"))
        assert file["core-metadata"] is True
        assert "dist-info-metadata" not in file

    def test_withheld_metadata_is_not_advertised(self) -> None:
        """Withheld metadata is not advertised under any name. Upstream advertises it, but does not have it."""
        file = wheel(core_metadata=True, dist_info_metadata=True, data_dist_info_metadata=True)
        rendered = render(project(file), withheld=frozenset([f"{WHEEL_LINK}.metadata"]))
        assert "metadata" not in as_html(rendered)
        assert not [name for name in only_file(rendered) if "metadata" in name]
        assert list(pypi.listing(PROJECT, {"json": rendered.forms["json"].body})) == [WHEEL_LINK]

    @pytest.mark.parametrize("url", [f"{WHEEL_URL}?v=1", f"https://files.example/{'a' * 245}.whl"])
    def test_metadata_without_a_key_is_not_advertised(self, url: str) -> None:
        """Metadata without a key is not advertised. Its URL has a query, or its name is too long."""
        rendered = render(project(wheel(url=url, core_metadata=True)))
        assert "core-metadata" not in only_file(rendered)
        listing = pypi.listing(PROJECT, {"json": rendered.forms["json"].body})
        assert stable_key_of(url, WHEEL) in listing
        assert not [link for link in listing if link.endswith(".metadata")]


class TestHtmlUpstreams:
    """Upstreams that answer with HTML."""

    PAGE = f"""<!DOCTYPE html>
    <html><head>
      <base href="https://files.example/packages/">
      <meta name="pypi:repository-version" content="1.3">
      <meta name="pypi:tracks" content="https://a.example/"><meta name="pypi:tracks" content="https://c.example/">
      <meta name="pypi:alternate-locations" content="https://b.example/">
      <meta name="pypi:project-status" content="archived">
      <meta name="pypi:project-status-reason" content="R&amp;D is over">
      <meta name="pypi:new" content="later">
    </head><body>
      <a href="../">Up</a> <a name="top">Top</a> <a href="http://[broken/x.whl">Broken</a>
      <a href="#section">Section</a>
      <A HREF="{WHEEL}#sha256={SHA256}" data-requires-python="&gt;=3.9" data-yanked="bad &amp; worse"
         data-core-metadata="sha256={OTHER_SHA256}" data-gpg-sig="true" data-provenance="https://p.example/"
         data-size="12" data-upload-time="2026-11-01T00:00:00Z" data-new="x" data-url="nowhere">{WHEEL}</A>
      <a href="holy-grail-0.1.tar.gz#egg=holy-grail-0.1" data-yanked data-dist-info-metadata="false">old</a>
      <a href="holy-grail-0.2.tar.gz#egg=holy-grail&MD5={"0f" * 16}" data-core-metadata="sha256">old</a>
      <a href="holy-grail-0.3.tar.gz#download">old</a>
    </body></html>"""

    def test_html_is_shown_in_json_without_loss(self) -> None:
        """Links, attributes and meta elements become JSON's fields (PEP 503, 592, 658, 708, 740, 792)."""
        assert as_json(render(self.PAGE, content_type="text/html; charset=UTF-8")) == {
            "meta": {"api-version": "1.0", "tracks": ["https://a.example/", "https://c.example/"], "new": "later"},
            "name": "holy-grail",
            "alternate-locations": ["https://b.example/"],
            "project-status": {"status": "archived", "reason": "R&D is over"},
            "files": [
                {
                    "filename": WHEEL,
                    "url": f"../../file/{WHEEL_LINK}",
                    "hashes": {"sha256": SHA256},
                    "requires-python": ">=3.9",
                    "yanked": "bad & worse",
                    "core-metadata": {"sha256": OTHER_SHA256},
                    "gpg-sig": True,
                    "provenance": "https://p.example/",
                    "size": 12,
                    "upload-time": "2026-11-01T00:00:00Z",
                    "new": "x",
                },
                {
                    "filename": "holy-grail-0.1.tar.gz",
                    "url": "../../file/https/files.example/packages/holy-grail-0.1.tar.gz",
                    "hashes": {},
                    "yanked": True,
                },
                {
                    "filename": "holy-grail-0.2.tar.gz",
                    "url": "../../file/https/files.example/packages/holy-grail-0.2.tar.gz",
                    "hashes": {"md5": "0f" * 16},
                    "core-metadata": True,
                },
                {
                    "filename": "holy-grail-0.3.tar.gz",
                    "url": "../../file/https/files.example/packages/holy-grail-0.3.tar.gz",
                    "hashes": {},
                },
            ],
        }

    @given(
        st.fixed_dictionaries(
            {
                "filename": st.from_regex(r"[a-zA-Z0-9+_!~%&'<>\"-]{1,20}\.(whl|zip)", fullmatch=True),
                "hashes": st.sampled_from([{"sha256": SHA256}, {"md5": "0f" * 16}, {}]),
            },
            optional={
                "requires-python": st.sampled_from([">=3.9", '<4; x == "y"', "!= 3.1.*"]),
                "yanked": st.just(value=True) | st.text(string.printable, min_size=1),
                "core-metadata": st.sampled_from([True, {"sha256": OTHER_SHA256}]),
                "gpg-sig": st.booleans(),
                "provenance": st.text(string.printable),
                "new": st.text(string.printable),
            },
        )
    )
    def test_json_survives_the_way_to_html_and_back(self, file: dict[str, Any]) -> None:
        """HTML made from JSON is parsed to the same JSON. pip finds the fields of PEP 691 in it."""
        rendered = render(project({**file, "url": f"https://files.example/{quote(file['filename'])}"}))
        [read] = read_by_pip(rendered, "html")
        assert read.filename == file["filename"]
        assert ({read.hash_name: read.hash} if read.hash_name else {}) == file["hashes"]
        assert read.requires_python == file.get("requires-python")
        assert read.yanked_reason == ("" if file.get("yanked") is True else file.get("yanked"))
        assert (read.metadata_file_data is not None) == ("core-metadata" in file)
        again = only_file(render(as_html(rendered), content_type="text/html"))
        del again["url"]
        if file.get("provenance"):  # that of the first page leads there, and that of the second one here
            first = only_file(rendered)["provenance"]
            led_here = first and f"{HERE}/{first.replace('://', '/', 1)}"
            assert again.get("provenance") in (first, led_here)  # neither has one that is no web address
            again["provenance"] = file["provenance"]
        assert again == file

    def test_html_lists_projects(self) -> None:
        """The text of a link is a project's name. A file server's links to other places are skipped."""
        head = '<meta name="pypi:repository-version" content="1">'
        rendered = render(f'{head}<a href="../">../</a><a href="x/"> Holy.Grail </a><a>b/</a>', ROOT, "text/html")
        assert as_json(rendered) == {
            "meta": {"api-version": "1.0"},
            "projects": [{"name": "Holy.Grail"}, {"name": "b"}],
        }
        assert '<a href="holy-grail/">Holy.Grail</a>' in as_html(rendered)


class TestRootPage:
    """The root page, which lists all projects."""

    def test_names_are_kept_as_upstream_wrote_them(self) -> None:
        """Names, fields and order are upstream's. Links are normalised and relative; invalid names are left out."""
        projects = [{"name": "Zope.Interface", "_last-serial": 3}, {"name": "a"}]
        rendered = render(
            {"meta": {"api-version": "1.4"}, "projects": [*projects, {"name": "<b>"}, {}, 1, {"name": 1}]}, ROOT
        )
        assert as_json(rendered) == {"meta": {"api-version": "1.4"}, "projects": projects}
        assert '<a href="zope-interface/">Zope.Interface</a><br/>' in as_html(rendered)
        again = render(as_html(rendered), ROOT, "text/html")
        assert as_json(again)["projects"] == [{"name": "Zope.Interface"}, {"name": "a"}]
        assert rendered.indexed_links == ()

    def test_each_form_has_its_media_type(self) -> None:
        """Each form has its media type."""
        forms = render({"projects": []}, ROOT).forms
        assert {name: form.media_type for name, form in forms.items()} == {
            "json": SIMPLE_JSON,
            "html": "text/html; charset=utf-8",
        }
        assert not any(form.based for form in forms.values())


class TestUpstreamBodies:
    """The bodies of upstream's responses."""

    @pytest.mark.parametrize(
        "content_type",
        [
            SIMPLE_JSON,
            "application/json; charset=utf-8",
            "application/vnd.pypi.simple.latest+json",
            "APPLICATION/JSON",
            "text/plain",
            "",
            "nonsense",
        ],
    )
    def test_json_is_known_by_its_type_or_first_byte(self, content_type: str) -> None:
        """A body is JSON by its media type. If the type is unclear, the first byte decides."""
        assert only_file(render(b"\xef\xbb\xbf \n" + json.dumps(project(wheel())).encode(), content_type=content_type))

    @pytest.mark.parametrize(
        "content_type", ["text/html", "application/vnd.pypi.simple.v1+html", "text/plain", "", ";"]
    )
    def test_html_is_known_by_its_type_or_first_byte(self, content_type: str) -> None:
        """A body is HTML by its media type. If the type is unclear, the first byte decides."""
        assert only_file(render(f" \n<a href={WHEEL_URL}>x</a>", content_type=content_type))["filename"] == WHEEL

    @pytest.mark.parametrize("encoding", ["iso-8859-1", "utf-16"])
    def test_the_declared_charset_is_used(self, encoding: str) -> None:
        """The charset in Content-Type is used, for HTML and JSON."""
        page = f'<a href="{WHEEL_URL}" data-yanked="é">x</a>'
        html = render(page.encode(encoding), content_type=f"text/html; charset={encoding}")
        text = json.dumps(project(wheel(yanked="é")), ensure_ascii=False)
        plain = render(text.encode(encoding), content_type=f'application/json; charset="{encoding}"')
        assert only_file(html)["yanked"] == only_file(plain)["yanked"] == "é"

    @pytest.mark.parametrize(
        ("body", "content_type", "reason"),
        [
            (b"", "text/html", "it is empty"),
            (b" \n", "application/json", "it is empty"),
            (b"Not here", "text/plain", "neither JSON nor HTML"),
            (b'{"files": [', SIMPLE_JSON, "truncated"),
            (b"<html>Log in</html>", SIMPLE_JSON, "HTML with the Content-Type of JSON"),
            (b'{"message": "<a href=x-1.0.zip>gone</a>"}', "text/html", "no list of files"),
            (b'{"files": [', "text/html", "truncated"),
            *((body, "text/html", "neither JSON nor HTML") for body in (b"[]", b"null", b"OK", b'"1 < 2"')),
            (b"[]", SIMPLE_JSON, "object"),
            (b"{}", SIMPLE_JSON, "no list of files"),
            (b'{"files": {}}', SIMPLE_JSON, "no list of files"),
            (b'{"meta": {"api-version": "2.0"}, "files": []}', SIMPLE_JSON, "version '2.0'"),
            (b'<meta name="pypi:repository-version" content="2.0">', "text/html", "version '2.0'"),
            (b'{"files": []}', "application/json; charset=klingon", "klingon"),
            (b'{"files": ' + b"[" * 100_000, SIMPLE_JSON, "nested too deeply"),
        ],
    )
    def test_a_body_that_is_not_a_page_is_refused(self, body: bytes, content_type: str, reason: str) -> None:
        """A body that is not a page is refused with the reason. It is never taken for an empty page."""
        with pytest.raises(BadUpstreamResponse, match=f"page simple/holy-grail can't be read: .*{reason}"):
            render(body, content_type=content_type)

    @pytest.mark.parametrize(
        "odd", [None, 1, "x", [], {}, {"url": 1, "filename": "x"}, {"url": WHEEL_URL}, wheel(url="//[")]
    )
    def test_malformed_files_are_left_out(self, odd: object) -> None:
        """A malformed file is left out; the others stay."""
        document = {"files": [odd, wheel()]}
        rendered = render(document)
        assert only_file(rendered)["filename"] == WHEEL
        assert as_json(rendered)["meta"] == {"api-version": "1.0"}
        assert as_json(rendered)["name"] == "holy-grail"

    @given(body=st.binary() | st.text().map(lambda text: f"<a href={text}>".encode()), html=st.booleans())
    def test_any_body_is_rendered_or_refused(self, body: bytes, html: bool) -> None:  # noqa: FBT001 - hypothesis passes by name
        """Any body is either rendered, or refused with BadUpstreamResponse. A rendered page can be listed."""
        try:
            rendered = render(body, content_type="text/html" if html else "")
        except BadUpstreamResponse:
            return
        pypi.listing(PROJECT, {"json": rendered.forms["json"].body})
