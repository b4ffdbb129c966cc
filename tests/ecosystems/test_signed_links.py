"""Tests of links with a query: signed ones, which are others in each page, and ones whose query names the file."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from mypypi.digests import Digest
from mypypi.ecosystems.npm import NPM
from mypypi.ecosystems.pypi import PyPI
from mypypi.model import BASE_PLACEHOLDER, PackageFile, PageId, PageRules, RenderedPage, SourceDocument
from mypypi.rendering.listing import Listing
from tests.ecosystems.simple_pages import OTHER_SHA256, SHA256, as_html

WHEEL = "thing-1.0-py3-none-any.whl"
URL = f"https://files.example/packages/{WHEEL}"
LINK = f"https/files.example/packages/{WHEEL}"
PROJECT, PACKUMENT = PageId("simple", "thing"), PageId("packument", "thing")
LONG = "X-Signature=" + "0123456789abcdef" * 30
SHA512 = hashlib.sha512(b"thing").digest()
INTEGRITY = f"sha512-{base64.b64encode(SHA512).decode()}"


def pypi(*files: dict[str, Any], strict: bool = False) -> RenderedPage:
    body = json.dumps({"meta": {"api-version": "1.0"}, "name": "thing", "files": files}).encode()
    source = SourceDocument(body, "application/vnd.pypi.simple.v1+json", "https://index.example/simple/thing/")
    return PyPI("https://index.example", strict=strict).render(PROJECT, source, PageRules())


def file(url: str = URL, **fields: Any) -> dict[str, Any]:
    return {"filename": WHEEL, "url": url, "hashes": {"sha256": SHA256}, **fields}


def files_of(rendered: RenderedPage) -> dict[str, PackageFile]:
    forms = {name: form.body for name, form in rendered.forms.items()}
    return PyPI("https://index.example").listing(PROJECT, forms)


def urls_of(rendered: RenderedPage) -> list[str]:
    return [each["url"] for each in json.loads(rendered.forms["json"].body)["files"]]


def npm(*tarballs: str, strict: bool = False, **dist: Any) -> RenderedPage:
    """Render a packument whose versions 1.0.0, 2.0.0, … have these tarballs."""
    versions = {f"{n}.0.0": {"version": f"{n}.0.0", "dist": {"tarball": t, **dist}} for n, t in enumerate(tarballs, 1)}
    source = SourceDocument(
        json.dumps({"name": "thing", "versions": versions}).encode(), "", "https://npm.example/thing"
    )
    return NPM("https://npm.example", strict=strict).render(PACKUMENT, source, PageRules())


def tarballs_of(rendered: RenderedPage) -> dict[str, PackageFile]:
    return NPM("https://npm.example").listing(PACKUMENT, {"files": rendered.forms["files"].body})


class TestPython:
    """Python indexes."""

    @pytest.mark.parametrize("query", ["sig=1", "sig=2&expires=1793527200", "sig=ab/cd", LONG])
    def test_a_signed_link_has_the_key_of_its_path(self, query: str) -> None:
        """A link whose path ends with the filename is the same in each page. It is fetched with its query."""
        rendered = pypi(file(f"{URL}?{query}", size=5))
        assert urls_of(rendered) == [f"../../file/{LINK}"]
        assert query not in as_html(rendered)
        assert files_of(rendered) == {LINK: PackageFile(LINK, f"{URL}?{query}", Digest("sha256", SHA256), 5, key=LINK)}

    def test_a_signed_link_finds_what_version_0_1_has_stored(self) -> None:
        """The file is also looked for under the key with the query, which version 0.1 gave it."""
        assert files_of(pypi(file(f"{URL}?sig=1")))[LINK].keys == (LINK, f"{LINK}%3Fsig=1")

    def test_a_query_counts_where_it_names_the_file(self) -> None:
        """``/download?id=1`` and ``?id=2`` are two files, on one page or on two."""
        urls = [f"https://files.example/download?id={number}" for number in (1, 2)]
        rendered = pypi(*(file(url, filename=f"thing-{n}.0-py3-none-any.whl") for n, url in enumerate(urls)))
        assert urls_of(rendered) == [f"../../file/https/files.example/download?id={number}" for number in (1, 2)]
        assert {each.url for each in files_of(rendered).values()} == set(urls)

    def test_a_query_counts_without_a_digest(self) -> None:
        """Without a digest, nothing would tell one file from another, so the query stays."""
        rendered = pypi(file(f"{URL}?v=1", hashes={}))
        assert {each.key for each in files_of(rendered).values()} == {f"{LINK}%3Fv=1"}

    def test_a_query_counts_where_one_path_has_two_files(self) -> None:
        """Two files with one path and two digests keep their queries, and so both can be fetched."""
        rendered = pypi(file(f"{URL}?v=1"), file(f"{URL}?v=2", hashes={"sha256": OTHER_SHA256}))
        assert {each.key for each in files_of(rendered).values()} == {f"{LINK}%3Fv=1", f"{LINK}%3Fv=2"}

    @pytest.mark.parametrize("hashes", [{}, {"sha256": OTHER_SHA256}])
    def test_a_query_counts_beside_a_file_without_one(self, hashes: dict[str, str]) -> None:
        """The same path without a query may be another file. Neither takes the other's place."""
        rendered = pypi(file(hashes=hashes), file(f"{URL}?twin"))
        listed = files_of(rendered)
        assert (listed[LINK].digest, listed[f"{LINK}%3Ftwin"].digest) == (
            Digest.strongest(hashes),
            Digest("sha256", SHA256),
        )

    @pytest.mark.parametrize("query", [LONG, "path=/a/b"])
    def test_a_query_that_counts_and_is_no_name_is_served_from_here(self, query: str) -> None:
        """A query that is too long for a file's name, or has a slash, leads here, too, and not to the other host."""
        rendered = pypi(file(f"https://files.example/download?{query}"))
        assert urls_of(rendered) == [f"../../file/https/files.example/download?{query}"]
        assert rendered.notes == ()
        (link, *_) = [link for link in files_of(rendered) if not link.endswith(WHEEL)]
        assert link == f"https/files.example/download%3F%23{hashlib.sha256(query.encode()).hexdigest()}"

    def test_the_json_api_has_the_same_links(self) -> None:
        """The links of PyPI's own JSON are those of the project's page, which lists the files."""
        body = json.dumps(
            {
                "info": {"name": "thing"},
                "urls": [{"filename": WHEEL, "url": f"{URL}?s=1", "digests": {"sha256": SHA256}}],
            }
        )
        source = SourceDocument(body.encode(), "application/json", "https://index.example/pypi/thing/json")
        rendered = PyPI("https://index.example").render(PageId("json", "thing"), source, PageRules())
        (served,) = json.loads(rendered.forms["json"].body)["urls"]
        assert served["url"] == f"{BASE_PLACEHOLDER.decode()}/file/{LINK}"

    @pytest.mark.parametrize("url", [f"https://files.example/{'a' * 256}", "https://me:secret@files.example/x.whl"])
    def test_a_link_that_can_not_be_served_is_noted_or_left_out(self, url: str) -> None:
        """Such a link keeps upstream's address, and one note says so. In strict operation it is left out."""
        rendered = pypi(file(url), file())
        assert urls_of(rendered) == [url, f"../../file/{LINK}"]
        assert rendered.notes == ("1 files can't be served from here and keep upstream's address",)
        rendered = pypi(file(url), file(), strict=True)
        assert urls_of(rendered) == [f"../../file/{LINK}"]
        assert rendered.notes == ("1 files that can't be served from here were left out",)


class TestNpm:
    """npm registries."""

    @pytest.mark.parametrize("query", ["sig=1", "sig=2&expires=1793527200", "sig=ab/cd", LONG, "x" * 4000])
    def test_a_signed_tarball_has_the_key_of_its_path(self, query: str) -> None:
        """A tarball with the conventional filename and a digest is stored once, whatever its query."""
        url = f"https://files.example/thing-1.0.0.tgz?{query}"
        (listed,) = tarballs_of(npm(url, integrity=INTEGRITY)).values()
        assert Listing.of([listed]).get(listed.link) == listed
        assert (listed.url, listed.key) == (url, "https/files.example/thing-1.0.0.tgz")

    def test_a_query_counts_where_it_names_the_file(self) -> None:
        """``/download?id=1`` and ``?id=2`` are two tarballs."""
        listed = tarballs_of(npm(*(f"https://files.example/download?id={n}" for n in (1, 2)), integrity=INTEGRITY))
        keys = [listed[f"thing/-/thing-{n}.0.0.tgz"].key for n in (1, 2)]
        assert keys == [f"https/files.example/download%3Fid={n}" for n in (1, 2)]

    def test_a_query_counts_without_a_digest(self) -> None:
        """Without a digest, the query stays in the key."""
        (listed,) = tarballs_of(npm("https://files.example/thing-1.0.0.tgz?v=1")).values()
        assert listed.key == "https/files.example/thing-1.0.0.tgz%3Fv=1"

    def test_pages_of_version_0_1_can_be_read(self) -> None:
        """The listing of a page that version 0.1 has cached has no keys. They are those of the URLs."""
        row = ["thing/-/thing-1.0.0.tgz", "https://files.example/thing-1.0.0.tgz?v=1", f"sha512-{SHA512.hex()}"]
        (listed,) = NPM("").listing(PACKUMENT, {"files": json.dumps([row]).encode()}).values()
        assert (listed.key, listed.digest) == ("https/files.example/thing-1.0.0.tgz%3Fv=1", Digest.parse(row[2]))

    def test_all_digests_of_the_strongest_algorithm_are_listed(self) -> None:
        """Of several digests of one algorithm any may match (Subresource Integrity, section 3.5)."""
        other = base64.b64encode(hashlib.sha512(b"other").digest()).decode()
        sha1 = base64.b64encode(hashlib.sha1(b"thing", usedforsecurity=False).digest()).decode()
        integrity = f"sha1-{sha1} {INTEGRITY} sha512-{other}?option {INTEGRITY}"
        (listed,) = tarballs_of(npm("thing-1.0.0.tgz", integrity=integrity)).values()
        assert [digest.hex for digest in listed.digests] == [SHA512.hex(), hashlib.sha512(b"other").hexdigest()]

    @pytest.mark.parametrize("url", ["ftp://files.example/thing.tgz", "https://me:secret@files.example/thing.tgz"])
    def test_a_tarball_that_can_not_be_served_is_noted_or_left_out(self, url: str) -> None:
        """Such a version keeps upstream's address, and one note says so. In strict operation it is left out."""
        rendered = npm(url, "https://files.example/thing-2.0.0.tgz")
        full = json.loads(rendered.forms["full"].body)["versions"]
        assert (list(full), full["1.0.0"]["dist"]["tarball"]) == (["1.0.0", "2.0.0"], url)
        assert rendered.notes == (
            "1 versions whose tarball can't be served from here keep upstream's address, such as '1.0.0'",
        )
        rendered = npm(url, "https://files.example/thing-2.0.0.tgz", strict=True)
        for name in ("full", "abbreviated"):
            assert list(json.loads(rendered.forms[name].body)["versions"]) == ["2.0.0"]
        assert rendered.notes == ("1 versions whose tarball can't be served from here were left out, such as '1.0.0'",)
