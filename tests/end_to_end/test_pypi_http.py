"""Tests the promises about Python indexes over HTTP, with a real daemon.

Upstream is an index on loopback.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from html.parser import HTMLParser
from itertools import count
from threading import Thread
from typing import Any
from unittest.mock import ANY
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from attrs import frozen

from tests.conftest import Sites
from tests.rig.faults import Gate, Status
from tests.rig.http import Answer, SlowReader, get, head, raw
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_sdist, make_wheel
from tests.rig.pages import HTML, JSON, TEXT
from tests.support.kinds import PyPIKind
from tests.support.site import Site

_KIND = PyPIKind()
_NUMBERS = count(1)

PIP = f"{JSON}, {HTML}; q=0.1, {TEXT}; q=0.01"
UV = f"{JSON}, {HTML};q=0.2, {TEXT};q=0.01"
POETRY = f"{JSON}, */*;q=0.1"


@frozen
class Project:
    """A project that one test alone uses, with a wheel and an sdist."""

    site: Site
    name: str
    wheel: Artifact
    sdist: Artifact

    @property
    def index(self) -> FakeIndex:
        assert isinstance(self.site.upstream, FakeIndex)
        return self.site.upstream

    @property
    def url(self) -> str:
        return f"{self.site.daemon.url}/simple/{self.name}/"

    def page(self, accept: str | None = JSON, **headers: str) -> Answer:
        return get(self.url, headers if accept is None else {"Accept": accept, **headers})

    def document(self) -> dict[str, Any]:
        return document(self.page())

    def file(self, artifact: Artifact) -> dict[str, Any]:
        """Return the JSON entry of a file on the project's page."""
        (entry,) = [each for each in self.document()["files"] if each["filename"] == artifact.filename]
        assert isinstance(entry, dict)
        return entry

    def anchor(self, artifact: Artifact) -> dict[str, str | None]:
        """Return the HTML attributes of a file on the project's page."""
        (anchor,) = [each for text, each in read(self.page(TEXT)).anchors if text == artifact.filename]
        return anchor


class Html(HTMLParser):
    """Reads an HTML page: its metas, and the text and attributes of its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: list[tuple[str, dict[str, str | None]]] = []
        self.metas: list[tuple[str | None, str | None]] = []
        self._open: dict[str, str | None] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "meta":
            self.metas.append((dict(attrs).get("name"), dict(attrs).get("content")))
        self._open = dict(attrs) if tag == "a" else None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.anchors.append((data, self._open))
            self._open = None


def read(answer: Answer) -> Html:
    page = Html()
    page.feed(answer.text)
    page.close()
    return page


def document(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200
    found = answer.json()
    assert isinstance(found, dict)
    return found


def reason(answer: Answer) -> str:
    """Return the message of an error."""
    found = answer.json()
    assert isinstance(found, dict)
    assert answer.headers["Cache-Control"] == "no-store"
    assert re.fullmatch(r"[^\x00-\x1f]{10,400}", found["error"])
    return str(found["error"])


@pytest.fixture
def project(site: Site) -> Project:
    name = f"some-project-{next(_NUMBERS)}"
    made = Project(site, name, make_wheel(name, requires_python=">=3.8, <4"), make_sdist(name))
    made.index.add_all(made.wheel, made.sdist)
    return made


class OverHTTP:
    """Base of the classes below. The tests of a class share one upstream and one daemon."""

    kind = _KIND


class TestNegotiation(OverHTTP):
    """Tests that clients get the form that they prefer (PEP 691)."""

    @pytest.mark.parametrize(
        ("accept", "form"),
        [
            pytest.param(None, "text/html; charset=utf-8", id="none"),
            ("", "text/html; charset=utf-8"),
            ("*/*", "text/html; charset=utf-8"),
            ("text/*", "text/html; charset=utf-8"),
            (TEXT, "text/html; charset=utf-8"),
            (HTML, HTML),
            (JSON, JSON),
            ("application/vnd.pypi.simple.latest+json", JSON),
            ("application/vnd.pypi.simple.latest+html", HTML),
            pytest.param(PIP, JSON, id="pip"),
            pytest.param(UV, JSON, id="uv"),
            pytest.param(POETRY, JSON, id="poetry"),
            (f"{JSON};q=0.5, {HTML};q=0.6", HTML),
            (f"{JSON};q=0.5, {TEXT};q=0.6, image/png", "text/html; charset=utf-8"),
            (f"{TEXT};q=0, */*", JSON),
            (f"application/vnd.pypi.simple.v2+json, {JSON};q=0.1", JSON),
        ],
    )
    def test_the_form_is_chosen_by_the_accept_header(self, project: Project, accept: str | None, form: str) -> None:
        """The response names its form and version, never "latest"."""
        answer = project.page(accept)
        assert (answer.status, answer.headers["Content-Type"]) == (200, form)
        assert (answer.text.startswith("{"), answer.text.startswith("<!DOCTYPE html>")) == (form == JSON, form != JSON)

    @pytest.mark.parametrize(
        "accept",
        ["image/png", f"{JSON};q=0", "*/*;q=0", "application/vnd.pypi.simple.v2+json", "text/html;q=many", ";;;", "x"],
    )
    def test_a_client_that_accepts_no_form_gets_406(self, project: Project, accept: str) -> None:
        """A client that accepts no form gets 406 with the available forms."""
        answer = project.page(accept)
        assert answer.status == 406
        assert JSON in reason(answer)

    @pytest.mark.parametrize("form", [JSON, HTML, TEXT])
    def test_the_format_in_the_address_goes_before_the_accept_header(self, project: Project, form: str) -> None:
        answer = get(f"{project.url}?format={form.replace('+', '%2B')}", {"Accept": "image/png"})
        assert answer.status == 200
        assert answer.headers["Content-Type"].partition(";")[0] == form

    def test_an_unknown_format_in_the_address_is_406(self, project: Project) -> None:
        answer = get(f"{project.url}?format=yaml", {"Accept": JSON})
        assert (answer.status, TEXT in reason(answer)) == (406, True)

    def test_each_form_has_an_etag_of_its_own(self, project: Project) -> None:
        """Each form has its own ETag. Otherwise a cache would confuse the forms."""
        html, made = project.page(TEXT), project.page(JSON)
        assert html.headers["ETag"] != made.headers["ETag"]
        assert project.page(TEXT, **{"If-None-Match": made.headers["ETag"]}).status == 200
        assert {"Accept", "Accept-Encoding"} <= set(re.split(", *", html.headers["Vary"]))


class TestForms(OverHTTP):
    """Tests that each form of a page has all of upstream's data."""

    @pytest.mark.parametrize("speaks", ["json_only", "html_only", "plain", "everything"])
    def test_every_upstream_is_served_in_both_forms(
        self, project: Project, speaks: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both forms have the same files, addresses, digests and requirements."""
        if speaks != "everything":
            monkeypatch.setattr(project.index, speaks, True)
        for artifact in (project.wheel, project.sdist):
            entry, anchor = project.file(artifact), project.anchor(artifact)
            assert anchor["href"] == f"{entry['url']}#sha256={artifact.sha256}"
            assert entry["hashes"] == {"sha256": artifact.sha256}
            assert (anchor.get("data-requires-python"), entry.get("requires-python")) == (artifact.requires_python,) * 2
            assert get(urljoin(project.url, entry["url"])).body == artifact.content

    def test_every_field_of_upstreams_json_is_kept(self, project: Project) -> None:
        """Every JSON field is kept, also those that no standard has yet."""
        invented = {"invented": {"deep": [1, 2.5, None, "ü"]}, "size-on-mars": 3}
        status = {"status": "archived", "reason": "all done"}
        listed = make_wheel(project.name, "2.0")
        project.index.add(listed, extra=invented | {"provenance": "https://files.example/p"}, yanked="it <breaks>")
        project.index.describe(project.name, {"project-status": status, "tracks": ["https://x.example"], "new": [{}]})
        upstream = document(get(f"{project.index.url}/simple/{project.name}/", {"Accept": JSON}))
        here = project.document()
        for file in (*upstream["files"], *here["files"]):
            del file["url"]
        assert here["files"][-1].pop("provenance") == f"{project.site.daemon.url}/file/https/files.example/p"
        assert upstream["files"][-1].pop("provenance") == "https://files.example/p"
        assert here == upstream

    def test_html_has_the_fields_that_peps_define_for_html(self, project: Project) -> None:
        """HTML has the fields of PEP 503, 592, 658, 714, 740 and 792. Their values are escaped."""
        listed = make_wheel(project.name, "2.0", requires_python=">3 & <4")
        project.index.add(listed, yanked='it "<breaks>"', extra={"provenance": "https://files.example/p?a=1&b=2"})
        project.index.describe(project.name, {"project-status": {"status": "quarantined", "reason": "<why>"}})
        metadata = f"sha256={project.file(listed)['core-metadata']['sha256']}"
        anchor = project.anchor(listed)
        del anchor["href"]
        assert anchor == {
            "data-requires-python": ">3 & <4",
            "data-yanked": 'it "<breaks>"',
            "data-core-metadata": metadata,
            "data-dist-info-metadata": metadata,
            "data-provenance": f"{project.site.daemon.url}/file/https/files.example/p?a=1&b=2",
        }
        metas = read(project.page(TEXT)).metas
        assert ("pypi:repository-version", "1.4") in metas
        assert ("pypi:project-status", "quarantined") in metas
        assert ("pypi:project-status-reason", "<why>") in metas

    def test_the_metadata_that_is_advertised_can_be_fetched(self, project: Project) -> None:
        """Advertised metadata is served beside its wheel, byte for byte (PEP 658)."""
        answer = get(urljoin(project.url, project.file(project.wheel)["url"]) + ".metadata")
        assert (answer.status, answer.body) == (200, project.wheel.metadata)

    @pytest.mark.parametrize("base", ["https://mirror.example/", "http://127.0.0.1:99/deep/prefix/"])
    @pytest.mark.parametrize("form", [JSON, TEXT])
    def test_links_are_relative(self, project: Project, base: str, form: str) -> None:
        """
        Links are relative, so the body is the same for every address.

        The page works behind any scheme, host and path prefix.
        """
        page = project.page(form, Host=urlsplit(base).netloc)
        assert page.body == project.page(form).body
        links = (
            [file["url"] for file in document(page)["files"]]
            if form == JSON
            else [anchor["href"] or "" for _, anchor in read(page).anchors]
        )
        assert len(links) == 2
        for link in links:
            seen = urljoin(f"{base}simple/{project.name}/", link).partition("#")[0]
            assert seen.startswith(f"{base}file/")
            assert get(f"{project.site.daemon.url}/{seen.removeprefix(base)}").status == 200


class TestNames(OverHTTP):
    """Tests the spellings of a name (PEP 503). One spelling has the page, and the others redirect to it."""

    @pytest.mark.parametrize(
        ("asked", "location"),
        [
            ("/simple", "/simple/"),
            ("/simple/some-project", "/simple/some-project/"),
            ("/simple/Some-Project/", "/simple/some-project/"),
            ("/simple/SOME.project", "/simple/some-project/"),
            ("/simple/some__project/", "/simple/some-project/"),
            ("/simple/some%2Dproject_/", None),
            ("/simple/s%6Fme-Project/", "/simple/some-project/"),
            ("/pypi/Some.Project/json", "/pypi/some-project/json"),
            ("/pypi/Some.Project/1.0%2Blocal/json", "/pypi/some-project/1.0+local/json"),
        ],
    )
    @pytest.mark.parametrize("query", ["", "?format=text%2Fhtml&x=%20"])
    def test_another_spelling_is_redirected(self, site: Site, asked: str, location: str | None, query: str) -> None:
        """
        The redirect is permanent, keeps the query and has a relative Location.

        A relative Location is right behind any host and prefix.
        """
        answer = get(f"{site.daemon.url}{asked}{query}")
        if location is None:
            assert answer.status == 400
            return
        target = answer.headers["Location"]
        assert (answer.status, urlsplit(target).scheme, target.startswith("/")) == (301, "", False)
        for base in (site.daemon.url, "https://mirror.example/prefix"):
            assert urljoin(f"{base}{asked}", target) == f"{base}{location}{query}"

    def test_the_redirect_leads_to_the_page(self, project: Project) -> None:
        asked = f"{project.site.daemon.url}/simple/{project.name.replace('-', '_').upper()}"
        answer = get(asked)
        assert get(urljoin(asked, answer.headers["Location"])).content == project.page(TEXT).content


class TestProjectJson(OverHTTP):
    """Tests PyPI's JSON pages, ``/pypi/{project}/json`` and ``/pypi/{project}/{version}/json``."""

    @pytest.mark.parametrize("version", ["", "/1.0"])
    def test_links_lead_to_the_daemon_and_work(self, project: Project, version: str) -> None:
        """Links are absolute, since clients use them unchanged. All other fields are upstream's."""
        path = f"/pypi/{project.name}{version}/json"
        upstream, here = (document(get(base + path)) for base in (project.index.url, project.site.daemon.url))
        files = [*here["urls"], *(file for files in here.get("releases", {}).values() for file in files)]
        assert len(files) == (2 if version else 4)
        bodies = {artifact.filename: artifact.content for artifact in (project.wheel, project.sdist)}
        for file in files:
            assert file["url"].startswith(f"{project.site.daemon.url}/file/")
            assert get(file["url"]).body == bodies[file["filename"]]
        links = rf'"{project.site.daemon.url}/file/http/([^"]+)"'
        assert json.loads(re.sub(links, r'"http://\1"', json.dumps(here))) == upstream

    @pytest.mark.parametrize("host", ["mirror.example", "mirror.example:8443", "[::1]:80"])
    def test_links_have_the_host_of_the_request(self, project: Project, host: str) -> None:
        """Links have the Host of their request, not of an earlier one. Each Host has its own ETags."""
        url = f"{project.site.daemon.url}/pypi/{project.name}/json"
        first, second = get(url), get(url, {"Host": host})
        assert document(second)["urls"][0]["url"].startswith(f"http://{host}/file/http/127.0.0.1")
        assert first.headers["ETag"] != second.headers["ETag"]
        assert get(url, {"Host": host, "If-None-Match": second.headers["ETag"]}).status == 304

    def test_links_have_the_public_url_if_one_is_set(self, sites: Sites) -> None:
        """MYPYPI_PUBLIC_URL overrides the Host of the request."""
        site = sites(_KIND, PUBLIC_URL="https://mirror.example/some/prefix")
        thing = site.publish()
        answer = get(f"{site.daemon.url}/pypi/{thing.name}/json", {"Host": "other.example"})
        assert document(answer)["urls"][0]["url"] == f"https://mirror.example/some/prefix{unquote(thing.path)}"

    @pytest.mark.parametrize("host", ["", "a/b", "a b", 'a"b', "a@b", "a:b", "a<b>", "ü"])
    def test_an_invalid_host_is_refused(self, project: Project, host: str) -> None:
        """
        An invalid Host gets 400.

        Otherwise it would be in the links of every client that gets the page from a cache.
        """
        head_ = f"GET /pypi/{project.name}/json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = raw("127.0.0.1", project.site.daemon.port, head_.encode())
        assert re.match(rb"HTTP/1\.1 400 ", answer)
        assert b'{"error":"' in answer

    @pytest.mark.parametrize("path", ["/pypi/no-such-project/json", "/pypi/no-such-project/1.0/json"])
    def test_an_unknown_project_is_404(self, site: Site, path: str) -> None:
        answer = get(site.daemon.url + path)
        assert (answer.status, "no-such-project" in reason(answer)) == (404, True)


class TestRootList(OverHTTP):
    """Tests the list of all projects."""

    def test_both_forms_name_every_project(self, site: Site) -> None:
        """
        Both forms have upstream's spelling of the names.

        HTML has relative links to the normalised names, and is escaped.
        """
        index_of(site).add_all(make_wheel("some-project"))
        index_of(site).add_names(["Zope.Interface", "with-<tag>", "_", "Abc"])
        url = f"{site.daemon.url}/simple/"
        made = document(get(url, {"Accept": JSON}))
        names = ["some-project", "Zope.Interface", "Abc"]
        assert made["projects"] == [{"name": name, "_last-serial": ANY} for name in names]
        assert made["meta"] == {"_last-serial": ANY, "api-version": "1.4"}
        anchors = read(get(url, {"Accept": TEXT})).anchors
        assert [(text, anchor["href"]) for text, anchor in anchors] == [
            ("some-project", "some-project/"),
            ("Zope.Interface", "zope-interface/"),
            ("Abc", "abc/"),
        ]
        assert get(urljoin(url, "some-project/")).status == 200

    def test_a_list_that_was_seen_is_served_while_upstream_fails(self, sites: Sites) -> None:
        """A known list is served stale, like any page. Before that, the response is an error."""
        site = sites(_KIND, CACHE_TIME="0")
        url = f"{site.daemon.url}/simple/"
        site.upstream.fault("/simple/", Status(500))
        assert get(url).status == 503
        site.upstream.mend()
        seen = get(url)
        site.upstream.fault("/simple/", Status(500))
        assert (seen.status, get(url).content) == (200, seen.content)


class TestBigRootList(OverHTTP):
    """Tests a list of tens of megabytes, like PyPI's. Clients request it like any other page."""

    names = tuple(f"some-project-number-{number}" for number in range(200_000))

    def test_it_is_served_complete_and_not_copied_for_each_request(self, site: Site) -> None:
        """
        The list is complete, and requests for it cost no memory each.

        Other clients are not delayed, also while the list is processed.
        """
        index_of(site).add_names(self.names)
        index_of(site).add(make_wheel("small"))
        small, url = f"{site.daemon.url}/simple/small/", f"{site.daemon.url}/simple/"
        assert get(small).status == 200
        self.check_that_other_requests_are_not_delayed(site, url, small)
        encodings = [{"Accept-Encoding": encoding} for encoding in ("identity", "gzip")]
        html = [get(url, encoding) for encoding in encodings]
        made = [get(url, {"Accept": JSON, **encoding}) for encoding in encodings]
        assert [answer.headers["Content-Encoding"] for answer in (*html, *made)] == [None, "gzip"] * 2
        for answer in html:
            assert [text for text, _ in read(answer).anchors] == ["small", *self.names]
        for answer in made:
            assert [project["name"] for project in document(answer)["projects"]] == ["small", *self.names]
        assert site.upstream.count("/simple/") == 2
        self.check_that_memory_does_not_grow(site, url, len(html[0].body))

    def check_that_other_requests_are_not_delayed(self, site: Site, url: str, small: str) -> None:
        gate = site.upstream.fault("/simple/", Gate())
        answers: list[Answer] = []
        first = Thread(target=lambda: answers.append(head(url)))
        first.start()
        gate.wait_served()
        gate.allow_all()
        waits = []
        while first.is_alive():
            asked_at = time.monotonic()
            assert {get(f"{site.daemon.url}/-/health/live").status, get(small).status} == {200}
            waits.append(time.monotonic() - asked_at)
        first.join()
        assert [answer.status for answer in answers] == [200]
        assert len(waits) > 10
        assert max(waits) < 1

    def check_that_memory_does_not_grow(self, site: Site, url: str, size: int) -> None:
        before = site.daemon.rss_bytes()
        for number in range(20):
            assert len(get(url, {"Accept-Encoding": ("identity", "gzip")[number % 2]}).content) == size
        with ExitStack() as clients:
            for _ in range(10):
                reader = clients.enter_context(SlowReader(url))
                assert len(reader.read(100_000)) == 100_000
            site.settle()
            assert site.daemon.rss_bytes() - before < size


#: Invalid and forbidden paths, with the status of the response.
BAD_PATHS = {
    "/simple/../../etc/passwd": 400,
    "/simple/%2e%2e/": 400,
    "/simple/./thing/": 400,
    "/simple/%2E/": 400,
    "/simple//": 400,
    "//simple/thing/": 400,
    "/simple/a%2Fb/": 400,
    "/simple/a%2fb": 400,
    "/simple/a%5Cb/": 400,
    "/simple/a%00b/": 400,
    "/simple/a%0Ab/": 400,
    "/simple/a%1B[31mb/": 400,
    "/simple/a%7Fb/": 400,
    "/simple/%E2%80%AEb/": 400,
    "/simple/%ff%fe/": 400,
    "/simple/%C0%AE%C0%AE/": 400,
    "/simple/%zz/": 400,
    "/simple/a%2": 400,
    "/simple/-a-/": 400,
    "/simple/a%20b/": 400,
    "/simple/%C3%A9t%C3%A9/": 400,
    "/simple/a!/": 400,
    f"/simple/{'a' * 300}/": 400,
    f"/simple/{'a' * 300}": 400,
    f"/pypi/{'a' * 300}/json": 400,
    "/pypi/thing/%2e%2e/json": 400,
    "/pypi/../json": 400,
    "/pypi/thing/1.0%00/json": 400,
    f"/simple/{'a' * 9000}/": 414,
    f"/simple/thing/?{'a' * 9000}": 414,
    "/file/http/../../etc/passwd": 400,
    "/file/http/127.0.0.1%2Fx/a.whl": 400,
    "/file/": 404,
    "/file/http": 404,
    "/file/ftp/files.example/a-1.0.tar.gz": 404,
    "/simple/thing/more": 404,
    "/pypi/thing": 404,
    "/nothing": 404,
    "/-/nothing": 404,
}

#: Malformed requests, with the status of the response.
BAD_REQUESTS = {
    "nothing": (b"\r\n\r\n", 400),
    "one word": (b"nonsense\r\n\r\n", 400),
    "no path": (b"GET HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "an unknown version": (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400),
    "control characters in the path": (b"GET /simple/\x1b[31m/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "control characters in the method": (b"G\x1bT / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bytes in the path": (b"GET /simple/\xff\xfe/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a header without a colon": (b"GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", 400),
    "a length that is no number": (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n", 400),
    "two lengths": (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a request line without end": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    "a header without end": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    "headers without end": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 3_000 + b"\r\n", 431),
}


class TestBadInput(OverHTTP):
    """
    Tests malformed requests, which get a clear 4xx.

    They cause no request to upstream and at most one line in the log.
    """

    @pytest.fixture(autouse=True)
    def quiet(self, site: Site) -> Iterator[None]:
        """
        Check that a test logs at most one line and asks upstream nothing.

        The line of the health request of `settle` does not count.
        """
        site.settle()  # waits until the log has the requests of the test before this one
        start, asked = len(site.daemon.log), len(site.upstream.requests)
        yield
        site.settle()
        lines = site.daemon.log[start:].splitlines()
        assert [line for line in lines if "Traceback" in line or "Error" in line] == []
        assert len([line for line in lines if "/-/health/live" not in line]) <= 1, lines
        assert all(line.isprintable() for line in lines)
        assert len(site.upstream.requests) == asked

    @pytest.mark.parametrize("path", BAD_PATHS)
    def test_an_invalid_path(self, site: Site, path: str) -> None:
        head_ = f"GET {path} HTTP/1.1\r\nHost: index.example\r\nConnection: close\r\n\r\n"
        status, text = parse_error(raw("127.0.0.1", site.daemon.port, head_.encode()))
        assert status == BAD_PATHS[path]
        assert "root:" not in text

    @pytest.mark.parametrize("what", BAD_REQUESTS)
    def test_a_malformed_request(self, site: Site, what: str) -> None:
        data, expected = BAD_REQUESTS[what]
        assert parse_error(raw("127.0.0.1", site.daemon.port, data))[0] == expected

    @pytest.mark.parametrize("path", ["/simple/thing/", "/", "/file/http/files.example/a-1.0.tar.gz", "/-/health/live"])
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE"])
    def test_a_method_other_than_get_and_head(self, site: Site, method: str, path: str) -> None:
        """Other methods are 405 with the allowed ones (RFC 9110, section 15.5.6)."""
        answer = get(site.daemon.url + path, method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert "read-only" in reason(answer)

    def test_a_body_that_is_too_large(self, site: Site) -> None:
        """A body that is too large is refused without reading it."""
        sent = b"POST /simple/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"
        assert parse_error(raw("127.0.0.1", site.daemon.port, sent))[0] == 413

    @pytest.mark.parametrize("form", ["yaml", "text/html%3Bq%3D0", "%00", "*", "a" * 1000])
    def test_an_unknown_format(self, site: Site, form: str) -> None:
        answer = get(f"{site.daemon.url}/simple/thing/?format={form}")
        assert (answer.status, JSON in reason(answer)) == (406, True)


class TestConditions(OverHTTP):
    """Tests conditional requests."""

    @pytest.mark.parametrize("condition", ["abc", '"abc', 'abc"', "W/abc", '"a" "b"', "", "'abc'", '*, "a"', '"a\tb"'])
    def test_an_if_none_match_that_names_no_etags_matches_nothing(self, project: Project, condition: str) -> None:
        """A malformed If-None-Match gets the page: clients hand back what another server gave them."""
        assert project.page(**{"If-None-Match": condition}).status == 200


class TestHealth(OverHTTP):
    """Tests the health endpoints, which supervisors request."""

    def test_live_and_ready_are_ok_to_begin_with(self, site: Site) -> None:
        live, ready = (get(f"{site.daemon.url}/-/health/{kind}") for kind in ("live", "ready"))
        assert (live.status, live.json(), live.headers["Cache-Control"]) == (200, {"status": "ok"}, "no-store")
        assert (ready.status, ready.headers["Content-Type"]) == (200, "application/json")
        checks = document(ready)
        assert (checks["status"], set(checks["checks"].values())) == ("ok", {"ok"})
        assert {"redis", "storage", "upstream"} <= checks["checks"].keys()

    def test_health_gives_the_reason_until_upstream_answers_again(self, project: Project) -> None:
        """
        The daemon is degraded, but in service, while upstream fails.

        It serves known pages, so taking it out of service would cause an outage.
        """
        site = project.site
        with site.upstream.refusing():
            assert project.page().status == 503
            degraded = get(f"{site.daemon.url}/-/health/ready")
            assert get(f"{site.daemon.url}/-/health/live").status == 200
        assert degraded.status == 200
        assert document(degraded)["status"] == "degraded"
        assert "refused" in document(degraded)["checks"]["upstream"]
        assert document(degraded)["checks"]["redis"] == "ok"
        assert project.page().status == 200
        assert (site.health()["status"], site.health()["checks"]["upstream"]) == ("ok", "ok")


def index_of(site: Site) -> FakeIndex:
    assert isinstance(site.upstream, FakeIndex)
    return site.upstream


def parse_error(data: bytes) -> tuple[int, str]:
    """Return the status and the message of a raw error response."""
    head_, _, body = data.partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1\.[01] (\d{3}) ", head_)
    assert match, data
    error = json.loads(body)["error"]
    assert re.fullmatch(r"[^\x00-\x1f]{10,400}", error)
    return int(match[1]), error
