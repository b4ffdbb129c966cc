"""Tests of the PyPI ecosystem: pages keep upstream's content, with links to this server."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mousebender.simple import from_project_details_html, from_project_index_html
from zope.interface.verify import verifyObject

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.ecosystems.pypi import PyPI, normalise
from mypypi.errors import BadRequest, BadUpstreamResponse
from mypypi.interfaces import IEcosystem
from mypypi.keys import key_from_segments, key_of
from mypypi.model import BASE_PLACEHOLDER, Digest, PageId, PageRequest, RenderedPage, SourceDocument

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
SHA256, OTHER_SHA256, SHA512 = "a1" * 32, "b2" * 32, "c3" * 64
ROOT, PROJECT = PageId("root"), PageId("simple", "holy-grail")
WHEEL = "holy_grail-1.0-py3-none-any.whl"
WHEEL_URL = f"https://files.example/packages/{WHEEL}"
WHEEL_LINK = f"https/files.example/packages/{WHEEL}"

pypi = PyPI("https://index.example")


def render(
    document: object,
    page: PageId = PROJECT,
    content_type: str = SIMPLE_JSON,
    withheld: frozenset[str] = frozenset(),
    url: str = "https://index.example/simple/holy-grail/",
) -> RenderedPage:
    """Render upstream's document. A document that is neither bytes nor text is encoded as JSON."""
    if isinstance(document, str):
        body = document.encode()
    else:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return pypi.render(page, SourceDocument(body, content_type, url), withheld)


def project(*files: Mapping[str, object], **fields: object) -> dict[str, Any]:
    return {"meta": {"api-version": "1.4"}, "name": "holy-grail", "files": list(files), **fields}


def wheel(**fields: object) -> dict[str, object]:
    return {"filename": WHEEL, "url": WHEEL_URL, "hashes": {"sha256": SHA256}} | {
        name.replace("_", "-"): value for name, value in fields.items()
    }


def as_json(rendered: RenderedPage) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(rendered.forms["json"].body)
    return document


def as_html(rendered: RenderedPage) -> str:
    return rendered.forms["html"].body.decode()


def only_file(rendered: RenderedPage) -> dict[str, Any]:
    [file] = as_json(rendered)["files"]
    assert isinstance(file, dict)
    return file


def requested_key(url: str) -> str:
    """
    Return the key that a client requests with a page's link.

    The link is decoded as the route of package files does.
    """
    parts = urlsplit(urljoin("http://here.example/simple/holy-grail/", url))
    assert parts.netloc == "here.example"
    empty, route, *segments = (unquote(segment) for segment in parts.path.split("/"))
    assert (empty, route) == ("", "file")
    if parts.query:
        segments[-1] += f"?{parts.query}"
    return key_from_segments(segments)


class TestEcosystemTable:
    """The entry for PyPI in the table of ecosystems."""

    def test_table_has_pypi(self) -> None:
        """The table's constructor takes upstream's URL and returns an ecosystem of that name."""
        ecosystem = ECOSYSTEMS["pypi"]("https://index.example")
        assert verifyObject(IEcosystem, ecosystem)
        assert ecosystem.name == "pypi"


class TestNames:
    """The names of projects."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("Holy_Grail", "holy-grail"), ("a", "a"), ("zope.interface", "zope-interface"), ("A.-_b", "a-b")],
    )
    def test_names_are_normalised(self, name: str, expected: str) -> None:
        """Every spelling of a name is one project (PEP 503)."""
        assert normalise(name) == expected

    @pytest.mark.parametrize(
        "name", ["", "..", "-a", "a-", "a b", "a/b", "a\x00", "a\n", "é", "\N{KELVIN SIGN}", "a" * 201]
    )
    def test_invalid_names_are_bad_requests(self, name: str) -> None:
        """An invalid project name (PEP 508) is refused before upstream is asked."""
        with pytest.raises(BadRequest, match="not a project name"):
            normalise(name)


class TestPageRequests:
    """The requests for pages."""

    @pytest.mark.parametrize(
        ("page", "path"),
        [
            (ROOT, "/simple/"),
            (PROJECT, "/simple/holy-grail/"),
            (PageId("json", "holy-grail"), "/pypi/holy-grail/json"),
            (PageId("json", "holy-grail", "1!2.0+a/b"), "/pypi/holy-grail/1%212.0%2Ba%2Fb/json"),
        ],
    )
    def test_each_page_has_a_path(self, page: PageId, path: str) -> None:
        """The paths follow PEP 503 and PyPI's JSON API, below upstream's URL."""
        assert pypi.page_request(page).path == path

    def test_json_is_preferred(self) -> None:
        """JSON is preferred to HTML, since it has more fields. PyPI's own JSON has one form only."""
        accept = f"{SIMPLE_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
        assert pypi.page_request(PROJECT) == PageRequest("/simple/holy-grail/", accept)
        assert pypi.page_request(ROOT).accept == accept
        assert pypi.page_request(PageId("json", "holy-grail")).accept == "application/json"

    def test_a_version_can_not_leave_the_projects_path(self) -> None:
        """A version can't be used to request another page from upstream."""
        with pytest.raises(BadRequest):
            pypi.page_request(PageId("json", "holy-grail", ".."))


class TestLinks:
    """The links to package files."""

    @pytest.mark.parametrize(
        ("url", "written"),
        [
            (WHEEL_URL, f"https/files.example/packages/{WHEEL}"),
            ("https://files.example/a/x%2Bcpu.whl", "https/files.example/a/x%2Bcpu.whl"),
            ("https://files.example/a/x+cpu.whl", "https/files.example/a/x+cpu.whl"),
            ("http://Files.Example:8080/x.whl?v=1&w=%2F", "http/files.example:8080/x.whl?v=1&w=%2F"),
            ("https://files.example:443/x.whl#sha256=00", "https/files.example/x.whl"),
            ("../../packages/x.whl", "https/index.example/packages/x.whl"),
            ("//files.example/x.whl", "https/files.example/x.whl"),
            ("x.whl", "https/index.example/simple/holy-grail/x.whl"),
        ],
    )
    def test_links_lead_here_and_keep_upstreams_path(self, url: str, written: str) -> None:
        """A link has upstream's host and path as upstream wrote them. So it can be translated back."""
        rendered = render(project(wheel(url=url)))
        assert only_file(rendered)["url"] == f"../../file/{written}"
        assert f'href="../../file/{written.replace("&", "&amp;")}#sha256={SHA256}"' in as_html(rendered)

    @pytest.mark.parametrize(
        "url",
        [
            "https://someone:secret@files.example/x.whl",
            "ftp://files.example/x.whl",
            "https://files.example/a//x.whl",
            "https://files.example/%2E%2E/x.whl",
            "https://files.example?x.whl",
            "https://files.example:port/x.whl",
        ],
    )
    def test_links_without_a_key_are_unchanged(self, url: str) -> None:
        """A link without a key is unchanged and not listed. Clients fetch that file from upstream."""
        rendered = render(project(wheel(url=url, core_metadata=True)))
        assert only_file(rendered)["url"] == url
        assert only_file(rendered)["core-metadata"] is True
        assert pypi.listing(PROJECT, {"json": rendered.forms["json"].body}) == {}

    def test_links_have_one_fragment(self) -> None:
        """A fragment in upstream's JSON is removed, since HTML has the hash in that place."""
        rendered = render(project(wheel(url="ftp://files.example/x.whl#sha256=00")))
        assert only_file(rendered)["url"] == "ftp://files.example/x.whl"
        assert f'href="ftp://files.example/x.whl#sha256={SHA256}"' in as_html(rendered)

    def test_links_never_show_credentials(self) -> None:
        """Links that are resolved against a page's URL have no credentials from it."""
        rendered = render(project(wheel(url="/x.whl")), url="https://me:secret@index.example/simple/holy-grail/")
        assert only_file(rendered)["url"] == "../../file/https/index.example/x.whl"
        assert "secret" not in as_html(rendered)

    @given(
        segments=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4),
        encode_all=st.booleans(),
        query=st.text(string.ascii_letters + "=&%2B", max_size=8),
    )
    def test_requested_links_are_understood(self, segments: list[str], encode_all: bool, query: str) -> None:  # noqa: FBT001 - hypothesis passes by name
        """
        A link is listed under the key that a client requests, or leads straight to upstream.

        This holds for any URL of a file.
        """
        path = "/".join(
            quote(segment, safe="" if encode_all else "+~!$&'()*,;=:@", errors="replace") for segment in segments
        )
        url = f"https://files.example/{path}" + (f"?{query}" if query else "")
        rendered = render(project(wheel(url=url, core_metadata=True)))
        listing = pypi.listing(PROJECT, {"json": rendered.forms["json"].body})
        written = only_file(rendered)["url"]
        if not listing:
            assert written == url
            return
        link = requested_key(written)
        assert link == key_of(url) == pypi.key_for(link)
        assert listing[link].url == url
        assert listing[link].key == link
        advertised = "core-metadata" in only_file(rendered)
        assert advertised == (f"{link}.metadata" in listing) == (len(listing) == 2)

    @pytest.mark.parametrize(
        "link",
        [
            "",
            "x.whl",
            "ftp/h/x.whl",
            "https/h/../x.whl",
            "https/h/%2e%2e/x.whl",
            "https/h/a%2Fb",
            "https/h/%FF",
            "/etc/x",
        ],
    )
    def test_other_links_have_no_key(self, link: str) -> None:
        """A link that is not exactly a key leads nowhere."""
        assert pypi.key_for(link) is None

    def test_a_link_is_its_key(self) -> None:
        """A link is its storage key. So a file is found without its page."""
        assert pypi.key_for(WHEEL_LINK) == WHEEL_LINK


class TestFields:
    """The fields of pages and files."""

    def test_json_keeps_all_fields(self) -> None:
        """JSON keeps every field at every level, even unknown ones."""
        document = project(
            wheel(
                size=10**20, upload_time="2026-11-01T00:00:00Z", yanked=False, new={"a": [1, None, 0.5]}, gpg_sig=True
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
            ' data-gpg-sig="false" data-provenance="https://index.example/p?a&amp;b" data-new-number="3"'
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

    @given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)))
    def test_fields_of_any_kind_are_kept(self, fields: dict[str, object]) -> None:
        """Only links are changed; other fields stay, with any name and value."""
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
        assert list(pypi.listing(PROJECT, {"json": rendered.forms["json"].body})) == [key_of(url)]


class TestListing:
    """The listing of a page."""

    def listing(self, *files: Mapping[str, object]) -> list[tuple[str, str, Digest | None, int | None]]:
        form = pypi.listing_form(PROJECT)
        assert form is not None
        listed = pypi.listing(PROJECT, {form: render(project(*files)).forms[form].body})
        assert list(listed) == [file.link for file in listed.values()]
        return [(file.link, file.url, file.digest, file.size) for file in listed.values()]

    def test_listing_has_each_file_and_its_metadata(self) -> None:
        """The listing has each file and its metadata, with the strongest digest that upstream gives."""
        assert self.listing(
            wheel(hashes={"sha256": SHA256, "sha512": SHA512}, size=5, core_metadata={"sha256": OTHER_SHA256})
        ) == [
            (WHEEL_LINK, WHEEL_URL, Digest("sha512", SHA512), 5),
            (f"{WHEEL_LINK}.metadata", f"{WHEEL_URL}.metadata", Digest("sha256", OTHER_SHA256), None),
        ]

    def test_listing_has_metadata_without_a_digest(self) -> None:
        """``true`` advertises metadata without its digest (PEP 658)."""
        assert self.listing(wheel(core_metadata=True))[1:] == [
            (f"{WHEEL_LINK}.metadata", f"{WHEEL_URL}.metadata", None, None)
        ]

    @pytest.mark.parametrize("size", ["5", -1, True, 1.5, None])
    def test_listing_ignores_fields_of_the_wrong_type(self, size: object) -> None:
        """A field of the wrong type is ignored; the file and the page stay."""
        assert self.listing(wheel(size=size, hashes="sha256", core_metadata=False)) == [
            (WHEEL_LINK, WHEEL_URL, None, None)
        ]

    def test_listing_is_empty_for_other_pages(self) -> None:
        """Only the pages of projects list files."""
        for page in (ROOT, PageId("json", "holy-grail")):
            assert pypi.listing_form(page) is None
            assert pypi.listing(page, {"json": b"{}"}) == {}


class TestPagesOfAFile:
    """The search for the page that lists a file."""

    @pytest.mark.parametrize(
        ("filename", "projects"),
        [
            (WHEEL, ["holy-grail"]),
            ("Holy.Grail-1.0-1-cp311-abi3-linux_x86_64.whl", ["holy-grail"]),
            ("torch-2.0%2Bcpu-cp311-cp311-linux_x86_64.whl.metadata", ["torch"]),
            ("holy_grail-1.0.tar.gz", ["holy-grail"]),
            ("holy-grail-1.0.zip%3Fv=1", ["holy-grail"]),
            ("a-1-2-1.0.tar.gz", ["a-1-2", "a-1", "a"]),
            ("a-1.0-2.tar.gz", ["a-1-0", "a"]),
            ("a-1-2-3-4-5.tar.gz", ["a-1-2-3-4", "a-1-2-3", "a-1-2"]),
            ("foo-1.0-py2.7-linux-x86_64.egg", ["foo"]),
            ("foo-1.0.win32-py2.7.exe", ["foo"]),
            ("foo-1.0.linux-x86_64.tar.gz", ["foo"]),
            ("foo-bar-1.0-1.noarch.rpm", ["foo-bar-1-0", "foo-bar"]),
            ("foo-1.0.TAR.BZ2", ["foo"]),
            ("foo-1.0.tar.Z", ["foo"]),
            ("foo-v1.tgz", ["foo"]),
            ("foo.whl", []),
            ("foo-trunk.zip", []),
            ("-1.0.tar.gz", []),
            ("index.html", []),
            ("", []),
        ],
    )
    def test_a_filename_names_the_project(self, filename: str, projects: list[str]) -> None:
        """The filename names the project page to read. So a lock file's link works before its page was requested."""
        pages = tuple(PageId("simple", project) for project in projects)
        assert pypi.pages_for(f"https/files.example/a/{filename}") == pages

    @given(
        name=st.from_regex(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z][A-Za-z0-9]*){0,3}", fullmatch=True),
        version=st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}((a|rc|\.post)[0-9]{1,2})?", fullmatch=True),
    )
    def test_wheels_and_sdists_lead_to_their_project(self, name: str, version: str) -> None:
        """
        Filenames of wheels and sdists lead to their project at once.

        They follow PEP 427 and PEP 625, or spell the name freely, as old sdists do.
        """
        wanted = PageId("simple", normalise(name))
        escaped = normalise(name).replace("-", "_")
        for filename in (
            f"{escaped}-{version}-py3-none-any.whl",
            f"{escaped}-{version}.tar.gz",
            f"{name}-{version}.zip",
        ):
            assert pypi.pages_for(f"https/files.example/{quote(filename)}")[0] == wanted

    def test_files_named_after_another_project_are_indexed(self) -> None:
        """A file is indexed if its name does not lead to its page. So is its metadata."""
        stray = {"filename": "other-1.0-py3-none-any.whl", "url": "https://files.example/other-1.0-py3-none-any.whl"}
        link = key_of(stray["url"])
        rendered = render(project(wheel(core_metadata=True), stray, {**stray, "url": WHEEL_URL}))
        assert rendered.indexed_links == (link,)
        assert render(project({**stray, "core-metadata": True})).indexed_links == (link, f"{link}.metadata")


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
        """HTML made from JSON is parsed to the same JSON. mousebender finds the fields of PEP 691 in it."""
        html = as_html(render(project({**file, "url": f"https://files.example/{quote(file['filename'])}"})))
        [read] = from_project_details_html(html.replace('content="1.4"', 'content="1.0"'), "holy-grail")["files"]
        assert read["filename"] == file["filename"]
        assert read["hashes"] == file["hashes"]
        again = only_file(render(html, content_type="text/html"))
        del again["url"]
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
        assert from_project_index_html(as_html(rendered).replace("1.4", "1.0"))["projects"] == [
            {"name": "Zope.Interface"},
            {"name": "a"},
        ]
        assert rendered.indexed_links == ()

    def test_each_form_has_its_media_type(self) -> None:
        """Each form has its media type."""
        forms = render({"projects": []}, ROOT).forms
        assert {name: form.media_type for name, form in forms.items()} == {
            "json": SIMPLE_JSON,
            "html": "text/html; charset=utf-8",
        }
        assert not any(form.based for form in forms.values())


class TestPyPIsOwnJson:
    """PyPI's own JSON about a project or a version."""

    PAGE = PageId("json", "holy-grail", "1.0")

    def test_only_the_urls_of_files_are_changed(self) -> None:
        """Every file's URL leads to this server's address; all else is unchanged."""
        foreign = {"filename": "x", "url": "https://files.example/a//x"}
        document = {
            "info": {"name": "Holy-Grail", "url": WHEEL_URL, "description": f"see {WHEEL_URL}"},
            "urls": [wheel(), foreign, None],
            "releases": {"1.0": [wheel()], "2.0": None},
            "vulnerabilities": [],
        }
        form = render(document, self.PAGE, "application/json").forms["json"]
        assert (form.media_type, form.based) == ("application/json", True)
        ours = wheel(url=f"{BASE_PLACEHOLDER.decode()}/file/{WHEEL_LINK}")
        assert json.loads(form.body) == {
            **document,
            "urls": [ours, foreign, None],
            "releases": {"1.0": [ours], "2.0": None},
        }

    @pytest.mark.parametrize("body", [b"[]", b"{}", b'{"info": 1}', b"<html>"])
    def test_other_json_is_refused(self, body: bytes) -> None:
        """Other JSON than PyPI's is refused as upstream's fault."""
        with pytest.raises(BadUpstreamResponse):
            render(body, self.PAGE, "application/json")


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
            (b"<html>Log in</html>", SIMPLE_JSON, "malformed"),
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
