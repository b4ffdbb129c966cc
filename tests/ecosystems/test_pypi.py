"""Tests of the PyPI ecosystem: names, requests for pages, links to files and their listing."""

from __future__ import annotations

import string
from collections.abc import Mapping
from urllib.parse import quote, unquote, urljoin, urlsplit

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from mypypi.digests import Digest
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.ecosystems.pypi import normalise
from mypypi.errors import BadRequest, NotFound
from mypypi.file_keys import key_from_segments, key_of
from mypypi.interfaces import IEcosystem
from mypypi.model import PageId, PageRequest, Part
from tests.ecosystems.simple_pages import (
    OTHER_SHA256,
    PROJECT,
    ROOT,
    SHA256,
    SHA512,
    SIMPLE_JSON,
    WHEEL,
    WHEEL_LINK,
    WHEEL_URL,
    as_html,
    only_file,
    project,
    pypi,
    render,
    wheel,
)


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

    def test_example_is_a_pip_command(self) -> None:
        """The example command names the index with pip's option."""
        assert pypi.example("http://here.example/") == "pip install --index-url http://here.example/simple/ flask"

    def test_pages_have_no_parts(self) -> None:
        """No part of a Python index's page has an address of its own."""
        with pytest.raises(NotFound, match="no such part"):
            pypi.part(Part("version", "1.0"), b"{}")


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
            ("https://files.example/a//x.whl", "https/files.example/a/%EE%80%80/x.whl"),
            ("https://files.example//x.whl?v=1", "https/files.example/%EE%80%80/x.whl?v=1"),
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
            "https://files.example/%EE%80%80/x.whl",
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
        url = "https://someone:secret@files.example/x.whl"
        rendered = render(project(wheel(url=f"{url}#sha256=00")))
        assert only_file(rendered)["url"] == url
        assert f'href="{url}#sha256={SHA256}"' in as_html(rendered)

    def test_links_never_show_credentials(self) -> None:
        """Links that are resolved against a page's URL have no credentials from it."""
        rendered = render(project(wheel(url="/x.whl")), url="https://me:secret@index.example/simple/holy-grail/")
        assert only_file(rendered)["url"] == "../../file/https/index.example/x.whl"
        assert "secret" not in as_html(rendered)

    def test_a_file_whose_link_ends_otherwise_is_also_listed_by_name(self) -> None:
        """A file whose URL does not end with its name is found by its name, too, as is its ``.metadata``."""
        rendered = render(project(wheel(url="https://files.example/get/1", core_metadata=True)))
        listing = pypi.listing(PROJECT, {"json": rendered.forms["json"].body})
        link = f"https/files.example/get/1/{only_file(rendered)['filename']}"
        assert listing[link] == evolve(listing["https/files.example/get/1"], link=link)
        assert listing[f"{link}.metadata"].url == "https://files.example/get/1.metadata"
        assert pypi.pages_for(link) == (PROJECT,)

    @given(
        segments=st.lists(st.text(max_size=20), min_size=1, max_size=4),
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
        assert advertised == (f"{link}.metadata" in listing) == (len({file.url for file in listing.values()}) == 2)

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


class TestListing:
    """The listing of a page."""

    def listing(self, *files: Mapping[str, object]) -> list[tuple[str, str, Digest | None, int | None]]:
        form = pypi.listing_form(PROJECT, ["json"])
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

    @pytest.mark.parametrize(
        ("size", "listed"), [("5", 5), ("x", None), (-1, None), (True, None), (1.5, None), (None, None)]
    )
    def test_listing_ignores_fields_of_the_wrong_type(self, size: object, listed: int | None) -> None:
        """A field of the wrong type is ignored, unless it can be converted. The file and the page stay."""
        assert self.listing(wheel(size=size, hashes="sha256", core_metadata=False)) == [
            (WHEEL_LINK, WHEEL_URL, None, listed)
        ]

    def test_listing_is_empty_for_other_pages(self) -> None:
        """Only the pages of projects list files."""
        for page in (ROOT, PageId("json", "holy-grail")):
            assert pypi.listing_form(page, ["json"]) is None
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
