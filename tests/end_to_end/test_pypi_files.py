"""Tests the promises about package files that only PyPI mode has, with real processes.

They are about metadata, links and names. See also test_file_promises.py.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from tests.conftest import Sites
from tests.end_to_end.test_file_promises import LARGE, Mislabelled
from tests.rig.faults import Status, Unsized, WrongBytes, WrongLength
from tests.rig.host import FileHost
from tests.rig.http import SlowReader, get, raw
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, incompressible, make_sdist, make_wheel
from tests.rig.pages import JSON
from tests.support.kinds import PyPIKind
from tests.support.site import Site

MIB = 1024 * 1024


@pytest.fixture
def index(site: Site) -> FakeIndex:
    """The upstream index of the site."""
    assert isinstance(site.upstream, FakeIndex)
    return site.upstream


def entries(site: Site, project: str) -> list[dict[str, Any]]:
    """List the files on a project's page, with absolute links."""
    page_url = f"{site.daemon.url}/simple/{project}/"
    page: Any = get(page_url, {"Accept": JSON}).json()
    return [{**file, "url": urljoin(page_url, file["url"])} for file in page["files"]]


def link(site: Site, project: str) -> str:
    """Return the link of a project's only file."""
    (entry,) = entries(site, project)
    return str(entry["url"])


class TestMetadata:
    """Tests the ``.metadata`` file beside a wheel (PEP 658)."""

    kind = PyPIKind()

    def test_metadata_is_served_byte_for_byte(self, site: Site, index: FakeIndex) -> None:
        """Metadata has the page's digest and no content encoding. Once stored, it is served without upstream."""
        wheel = make_wheel("described", requires=["other>=2"])
        path = urlsplit(index.add(wheel)).path
        (entry,) = entries(site, "described")
        for _ in range(2):
            answer = get(entry["url"] + ".metadata", {"Accept-Encoding": "gzip"})
            assert (answer.status, answer.body, answer.headers["Content-Encoding"]) == (200, wheel.metadata, None)
            assert entry["core-metadata"] == {"sha256": hashlib.sha256(answer.body).hexdigest()}
            site.daemon.wait_for_log(r"stored \S*described\S*\.metadata,")
            site.settle()
        assert index.count(f"{path}.metadata") == 1
        assert index.count(path) == 0

    def test_wrong_metadata_is_no_longer_advertised(self, site: Site, index: FakeIndex) -> None:
        """Metadata with other bytes than advertised is 502 with the reason, and disappears."""
        wheel = make_wheel("mistold")
        fault = index.fault(f"{urlsplit(index.add(wheel)).path}.metadata", WrongBytes())
        (before,) = entries(site, "mistold")
        answer = get(before["url"] + ".metadata")
        fault.wait_served()
        assert (answer.status, "do not match the index's digest" in answer.text) == (502, True)
        (after,) = entries(site, "mistold")
        assert not after.get("core-metadata")
        assert get(after["url"]).body == wheel.content

    def test_metadata_that_upstream_lacks_is_no_longer_advertised(self, site: Site, index: FakeIndex) -> None:
        """
        Missing metadata is 404 and disappears from both forms of the page.

        It stays away after a restart. The wheel itself is served.
        """
        wheel = make_wheel("undescribed")
        index.drop(f"{urlsplit(index.add(wheel)).path}.metadata")
        (before,) = entries(site, "undescribed")
        assert before["core-metadata"]
        assert get(before["url"] + ".metadata").status == 404
        for _ in range(2):
            (after,) = entries(site, "undescribed")
            assert not after.get("core-metadata")
            assert not after.get("data-dist-info-metadata")
            html = get(f"{site.daemon.url}/simple/undescribed/", {"Accept": "text/html"}).text
            assert "undescribed-1.0" in html
            assert "metadata" not in html
            site.restart()
        assert get(after["url"].replace(urlsplit(after["url"]).netloc, f"127.0.0.1:{site.daemon.port}")).status == 200

    def test_metadata_is_still_advertised_after_an_upstream_error(self, site: Site, index: FakeIndex) -> None:
        """Only a 404 removes metadata from the page, not an error."""
        fault = index.fault(f"{urlsplit(index.add(make_wheel('unlucky'))).path}.metadata", Status(500), 1)
        (before,) = entries(site, "unlucky")
        assert get(before["url"] + ".metadata").status == 503
        fault.wait_served()
        assert entries(site, "unlucky") == [before]


class TestLinks:
    """Tests files with unusual names and addresses."""

    kind = PyPIKind()

    @pytest.mark.parametrize(
        "path",
        [
            "/a~b/@c/odd%2B{}-1.0%2Blocal.1-py3-none-any.whl",
            "/x/{}-1.0-py3-none-any.whl?token=a%2Bb&n=1",
            "/%7Eu/{}%20.whl",
        ],
    )
    def test_odd_addresses_are_asked_for_as_they_were_listed(
        self, site: Site, index: FakeIndex, path: str, request: pytest.FixtureRequest
    ) -> None:
        """
        Upstream gets each address exactly as its page has it.

        This covers percent-encoding, ``~``, ``@`` and a query.
        """
        wheel = make_wheel(f"odd{request.node.callspec.indices['path']}")
        listed, _, query = path.format(wheel.project).partition("?")
        index.add(wheel, extra={"url": f"{index.url}{path.format(wheel.project)}"})
        index.put(_decoded(listed), wheel.content)
        answer = get(link(site, wheel.project))
        assert (answer.status, answer.body) == (200, wheel.content)
        (asked,) = index.seen(listed)
        assert (asked.path, asked.query) == (listed, query)

    @pytest.mark.parametrize("form", [":", "%3A"])
    def test_files_of_another_host_are_served_by_the_daemon(self, site: Site, index: FakeIndex, form: str) -> None:
        """
        A link to another host's file includes the port.

        Clients that quote its colon, as pip does, find the file as well.
        """
        wheel = make_wheel(f"remote{len(form)}")
        with FileHost() as files:
            url = index.add(wheel, at=files)
            parts = urlsplit(link(site, wheel.project))
            host = f"{files.host}:{files.port}"
            assert parts.path == f"/file/http/{host}{urlsplit(url).path}"
            answer = get(f"{site.daemon.url}{parts.path.replace(host, host.replace(':', form))}")
            assert (answer.status, answer.body) == (200, wheel.content)
            assert files.count("/packages/") == 1

    def test_files_of_another_host_are_asked_for_without_credentials(self, sites: Sites) -> None:
        """Only upstream gets the credentials. Another port of its host is not upstream."""
        site = sites(self.kind, auth=("someone", "s3cret-word"))
        assert isinstance(site.upstream, FakeIndex)
        wheel = make_wheel("remoteprivate")
        with FileHost() as files:
            site.upstream.add(wheel, at=files)
            assert get(link(site, "remoteprivate")).body == wheel.content
            assert [request.headers["Authorization"] for request in files.requests] == [None]
        assert {request.headers["Authorization"] is None for request in site.upstream.requests} == {False}

    @pytest.mark.parametrize(
        ("project", "filename"),
        [
            ("zope-legacy", "zope.legacy-1.0.tar.gz"),
            ("old-style", "Old_Style-1.0.zip"),
            ("with-2-numbers", "with-2-numbers-1.0.tar.gz"),
        ],
    )
    def test_sdists_with_legacy_names_are_found_without_their_page(
        self, site: Site, index: FakeIndex, project: str, filename: str
    ) -> None:
        """A client with the address from a lock file gets the sdist. It does not request the page."""
        sdist = Artifact(filename, make_sdist(project).content)
        path = urlsplit(index.add(sdist)).path
        answer = get(f"{site.daemon.url}/file/http/{index.host}:{index.port}{path}")
        assert (answer.status, answer.body) == (200, sdist.content)
        assert index.count(f"/simple/{project}/") == 1

    def test_a_file_without_a_project_in_its_name_is_found(self, site: Site, index: FakeIndex) -> None:
        """
        Such a file is found once its page was read, and never before.

        A daemon that has not read the page since its start finds it as well.
        """
        wheel = make_wheel("stray")
        index.put("/blobs/1234", wheel.content)
        index.add(wheel, extra={"url": f"{index.url}/blobs/1234"})
        path = f"/file/http/{index.host}:{index.port}/blobs/1234"
        assert get(site.daemon.url + path).status == 404
        assert link(site, "stray") == site.daemon.url + path
        site.restart()
        answer = get(site.daemon.url + path)
        assert (answer.status, answer.body) == (200, wheel.content)

    def test_an_sdist_labelled_as_encoded_is_not_decoded(self, site: Site, index: FakeIndex) -> None:
        """
        The client gets the sdist with the bytes that have its digest.

        Servers label a .tar.gz as gzip-encoded because of its name.
        """
        sdist = make_sdist("mislabelled", padding=LARGE)
        fault = index.fault(urlsplit(index.add(sdist)).path, Mislabelled())
        answer = get(link(site, "mislabelled"))
        assert (answer.body, answer.complete, answer.headers["Content-Encoding"]) == (sdist.content, True, None)
        fault.wait_served()

    @pytest.mark.parametrize("chunked", [True, False])
    def test_a_file_may_have_no_known_size(self, site: Site, index: FakeIndex, *, chunked: bool) -> None:
        """
        A file is served completely without a known size.

        Neither the page nor upstream's response gives the size. HTTP/1.1 clients see the end of the body, and HTTP/1.0
        clients get a length.
        """
        for version in ("1.1", "1.0"):
            wheel = make_wheel(f"unsized{chunked}{version[-1]}", padding=LARGE)
            fault = index.fault(urlsplit(index.add(wheel, extra={"size": None})).path, Unsized(chunked=chunked))
            url = link(site, wheel.project)
            if version == "1.1":
                answer = get(url)
                assert (answer.status, answer.complete, answer.body) == (200, True, wheel.content)
                assert answer.headers["Transfer-Encoding"] == "chunked"
            else:
                request = f"GET {urlsplit(url).path} HTTP/1.0\r\n\r\n"
                headers, _, body = raw("127.0.0.1", site.daemon.port, request.encode()).partition(b"\r\n\r\n")
                assert body == wheel.content
                assert f"content-length: {len(body)}" in headers.decode().lower().splitlines()
            fault.wait_served()

    def test_wrong_bytes_of_an_unknown_size_abort_the_transfer(self, site: Site, index: FakeIndex) -> None:
        """A chunked response without its last chunk is incomplete."""
        wheel = make_wheel("unsizedwrong", padding=LARGE)
        false = {"size": None, "hashes": {"sha256": "0" * 64}}
        fault = index.fault(urlsplit(index.add(wheel, extra=false)).path, Unsized())
        answer = get(link(site, "unsizedwrong"))
        fault.wait_served()
        assert (answer.status, answer.complete) == (200, False)

    def test_a_wrong_size_on_the_page_does_not_matter_if_the_digest_matches(self, site: Site, index: FakeIndex) -> None:
        """A file that matches its digest is fetched once and stored."""
        wheel = make_wheel("missized", padding=LARGE)
        path = urlsplit(index.add(wheel, extra={"size": 1000})).path
        url = link(site, "missized")
        assert get(url).body == wheel.content
        site.daemon.wait_for_log(r"stored \S*missized\S*,")
        assert get(url).body == wheel.content
        assert index.count(path) == 1

    def test_a_file_without_a_digest_gets_one_when_it_is_stored(self, site: Site, index: FakeIndex) -> None:
        """A file without a digest gets an ETag once it is stored. Before that, it can be checked only by its size."""
        wheel = make_wheel("undigested")
        index.add(wheel, extra={"hashes": {}})
        url = link(site, "undigested")
        assert get(url).body == wheel.content
        site.daemon.wait_for_log(r"stored \S*undigested\S*,")
        warm = get(url)
        assert (warm.status, warm.body, warm.headers["ETag"]) == (200, wheel.content, f'"sha256-{wheel.sha256}"')


class TestMadeUpAddresses:
    """Tests that the server connects only to listed addresses."""

    kind = PyPIKind()

    @pytest.mark.parametrize(
        "name", ["known-1.0-py3-none-any.whl", "known-1.0.tar.gz", "unheard_of-1.0-py3-none-any.whl", "README", "x.whl"]
    )
    def test_a_made_up_host_is_never_connected_to(self, site: Site, index: FakeIndex, name: str) -> None:
        """
        A made-up host is 404, and at most upstream's page is requested.

        The host has the file, whose name may name a project.
        """
        index.add(make_wheel("known"))
        assert entries(site, "known")
        with FileHost() as other:
            other.put(f"/{name}", b"come and get me")
            assert get(f"{site.daemon.url}/file/http/{other.host}:{other.port}/{name}").status == 404
            assert get(f"{site.daemon.url}/file/http/{other.host}:{other.port}/{name}.metadata").status == 404
            assert other.connections == 0
        assert index.count(f"/{name}") == 0

    @pytest.mark.parametrize("name", ["known-6.6-py3-none-any.whl", "README", "known.whl", "a" * 300 + "-1.0.tar.gz"])
    def test_an_unlisted_name_causes_no_connection(self, site: Site, index: FakeIndex, name: str) -> None:
        """
        The server makes no connection for an unlisted file.

        The project's page is fresh, or the name has no project.
        """
        index.add(make_wheel("known"))
        assert entries(site, "known")
        index.put(f"/{name}", b"nobody lists me")
        before = index.connections, len(index.requests)
        assert get(f"{site.daemon.url}/file/http/{index.host}:{index.port}/{name}").status == 404
        assert (index.connections, len(index.requests)) == before

    @pytest.mark.parametrize(
        "path",
        ["/file/", "/file/http", "/file/http/host", "/file/ftp/host/x-1.0.zip", "/file/http/user@host/x-1.0.zip"],
    )
    def test_an_invalid_file_address_is_404(self, site: Site, index: FakeIndex, path: str) -> None:
        """
        An invalid address is 404, and upstream is not asked.

        The address is too short, has another scheme or has credentials.
        """
        before = index.connections
        assert get(site.daemon.url + path).status == 404
        assert index.connections == before


class TestLargeFiles:
    """Tests files that exceed the disk space or the memory."""

    kind = PyPIKind()

    def test_a_file_that_the_disk_can_not_hold_is_redirected(self, site: Site, index: FakeIndex) -> None:
        """
        The client is redirected if the disk is too small.

        The size comes from the page or from upstream's response.
        """
        listed = index.add(make_wheel("listedhuge"), extra={"size": 10**17})
        answered = index.add(make_wheel("answeredhuge"), extra={"size": None})
        index.fault(urlsplit(answered).path, WrongLength(10**17), 1)
        for project, url in (("listedhuge", listed), ("answeredhuge", answered)):
            answer = get(link(site, project))
            assert (answer.status, answer.headers["Location"]) == (302, url)
        # The second redirect shows that the fault was met, since only the fault gives that size. The fault can't count
        # itself if the daemon disconnects before the whole body is written.
        assert site.drafts == []

    def test_memory_does_not_grow_with_the_size_of_a_file(self, site: Site, index: FakeIndex) -> None:
        """
        The daemon serves 200 MB with less than 40 MB above idle.

        There are five clients; one does not read, and the others get the right bytes.
        """
        large = Artifact("large-1.0-py3-none-any.whl", incompressible(MIB, "large") * 200)
        path = urlsplit(index.add(large)).path
        url = link(site, "large")
        index.drop(f"{path}.metadata")
        idle = peak = site.daemon.rss_bytes()
        with SlowReader(url) as sleeper, ThreadPoolExecutor(4) as pool:
            sleeper.read(1)
            running = {pool.submit(_sha256_of, url) for _ in range(4)}
            digests = []
            while running:
                done, running = wait(running, timeout=0.02)
                digests += [future.result() for future in done]
                peak = max(peak, site.daemon.rss_bytes())
        assert digests == [large.sha256] * 4
        assert peak - idle < 40 * MIB
        assert [request.headers["Range"] for request in index.seen(path)].count(None) == 1


def _sha256_of(url: str) -> str:
    """Hash the body of a response without keeping it."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=60)
    hasher = hashlib.sha256()
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        while piece := response.read(MIB):
            hasher.update(piece)
    finally:
        connection.close()
    return hasher.hexdigest()


def _decoded(path: str) -> str:
    """Decode a path in the way in which `FileHost` compares it."""
    return path.replace("%2B", "+").replace("%7E", "~").replace("%20", " ")
