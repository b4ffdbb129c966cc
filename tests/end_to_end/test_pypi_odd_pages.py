"""Tests pages of Python indexes as they are: wrong types, odd links, and what they advertise beside files.

Upstream is an index on loopback, and pip and uv install through a daemon.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from attrs import define, evolve

from tests.conftest import Sites
from tests.rig.clients import Client, Pip, Uv
from tests.rig.faults import Fault, Status
from tests.rig.http import Answer, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_wheel
from tests.rig.pages import JSON, TEXT
from tests.rig.wire import Reply, Wire
from tests.support.kinds import PyPIKind
from tests.support.site import Site


@define(eq=False)
class Altered(Fault):
    """Sends the page with another Content-Type, and with another body if that is not None."""

    content_type: str
    body: bytes | None = None

    def serve(self, reply: Reply, wire: Wire) -> None:
        body = reply.body if self.body is None else self.body
        headers = {"Content-Type": self.content_type, "Content-Length": str(len(body))}
        wire.reply(evolve(reply, headers=headers, body=body))
        self._happened()


@pytest.fixture
def index(site: Site) -> FakeIndex:
    """The upstream index of the site."""
    assert isinstance(site.upstream, FakeIndex)
    return site.upstream


@pytest.fixture(params=[Pip, Uv])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    make: Callable[[Path], Client] = request.param
    return make(tmp_path)


def page_url(site: Site, artifact: Artifact) -> str:
    return f"{site.daemon.url}/simple/{artifact.project}/"


def entry(site: Site, artifact: Artifact) -> dict[str, Any]:
    """The only file on a project's page, with an absolute link."""
    page: Any = get(page_url(site, artifact), {"Accept": JSON}).json()
    (file,) = page["files"]
    return {**file, "url": urljoin(page_url(site, artifact), file["url"])}


class TestBodies:
    """Tests pages whose Content-Type is wrong."""

    kind = PyPIKind()

    def test_json_that_comes_as_html_is_installed_from(self, site: Site, index: FakeIndex, client: Client) -> None:
        """A page in JSON with the type of HTML has its files for pip and uv, and is no page without files."""
        wheel = make_wheel(f"mistyped-{type(client).__name__.lower()}")
        index.add(wheel)
        page = get(f"{index.url}/simple/{wheel.project}/", {"Accept": JSON}).body
        fault = index.fault(f"/simple/{wheel.project}/", Altered("text/html", page))
        assert client.install(site.daemon.url, wheel.project) == {wheel.project: "1.0"}
        fault.wait_served()

    def test_a_body_that_is_no_page_is_upstreams_failure(self, site: Site, index: FakeIndex) -> None:
        """Without a cached page, an error in JSON that comes as HTML with 200 is 502, never a page without files."""
        wheel = make_wheel("nopage")
        index.add(wheel)
        fault = index.fault("/simple/nopage/", Altered("text/html", b'{"errors": [{"status": 503}]}'))
        answer = get(page_url(site, wheel), {"Accept": JSON})
        fault.wait_served()
        assert (answer.status, "no list of files" in answer.text) == (502, True)

    def test_a_body_that_is_no_page_replaces_none(self, sites: Sites) -> None:
        """A cached page is served as it was, while upstream answers with something else."""
        site = sites(self.kind, CACHE_TIME="0")
        assert isinstance(site.upstream, FakeIndex)
        wheel = make_wheel("keptpage")
        site.upstream.add(wheel)
        before = get(page_url(site, wheel), {"Accept": JSON})
        for body in (b'{"errors": []}', b"[]", b"Busy", b'{"files": ['):
            fault = site.upstream.fault("/simple/keptpage/", Altered("text/html", body), 1)
            eventually(lambda: _same(site, wheel, before), lambda _: fault.served)  # noqa: B023 - called in the loop


class TestSideFiles:
    """Tests that what a page advertises beside a file can be fetched from the daemon (promise 9)."""

    kind = PyPIKind()

    def test_provenance_is_served_without_upstream(self, site: Site, index: FakeIndex) -> None:
        """
        Provenance has an absolute address on the daemon, in both forms of the page, and upstream's bytes.

        Once it was fetched, it is served while upstream is down, as after a restart.
        """
        wheel = make_wheel("attested")
        path = f"/integrity/attested/1.0/{wheel.filename}/provenance"
        document = json.dumps({"version": 1, "attestation_bundles": []}).encode()
        index.put(path, document)
        index.add(wheel, extra={"provenance": index.url + path})
        provenance = entry(site, wheel)["provenance"]
        assert provenance == f"{site.daemon.url}/file/http/{index.host}:{index.port}{path}"
        assert f'data-provenance="{provenance}"' in get(page_url(site, wheel), {"Accept": TEXT}).text
        assert get(provenance).body == document
        site.daemon.wait_for_log(r"stored \S*attested\S*/provenance,")
        site.settle()
        with index.refusing():
            assert get(provenance).body == document
            site.restart()
            assert get(f"{site.daemon.url}{urlsplit(provenance).path}").body == document
        assert index.count(path) == 1

    def test_provenance_is_found_without_its_page(self, site: Site, index: FakeIndex) -> None:
        """An address like PyPI's works before its page was requested. What no page lists is 404, and not asked for."""
        wheel = make_wheel("early")
        path = f"/integrity/early/1.0/{wheel.filename}/provenance"
        index.put(path, b"{}")
        index.put(f"{path}2", b"{}")
        index.add(wheel, extra={"provenance": index.url + path})
        base = f"{site.daemon.url}/file/http/{index.host}:{index.port}"
        assert get(base + path).body == b"{}"
        assert get(f"{base}{path}2").status == 404
        assert [request.path for request in index.seen("/integrity/early/1.0/")] == [path]

    def test_provenance_that_upstream_lacks_leaves_the_page(self, site: Site, index: FakeIndex) -> None:
        """Missing provenance is 404 and disappears from the page. An error of upstream's does not remove it."""
        left = {}
        for name, fault in (("unattested", Status(404)), ("unlucky", Status(500))):
            wheel = make_wheel(name)
            path = f"/integrity/{name}/1.0/{wheel.filename}/provenance"
            index.add(wheel, extra={"provenance": index.url + path})
            index.fault(path, fault, 1)
            provenance = entry(site, wheel)["provenance"]
            assert get(provenance).status == (404 if name == "unattested" else 503)
            fault.wait_served()
            left[name] = entry(site, wheel)["provenance"] == provenance
        assert left == {"unattested": False, "unlucky": True}

    def test_a_signature_is_served_beside_its_file(self, site: Site, index: FakeIndex) -> None:
        """``.asc`` is served beside a file with ``gpg-sig``, and is 404 beside one without."""
        signed, plain = make_wheel("signed"), make_wheel("unsigned")
        for wheel, signature in ((signed, True), (plain, False)):
            path = urlsplit(index.add(wheel, extra={"gpg-sig": signature})).path
            index.put(f"{path}.asc", b"-----BEGIN PGP SIGNATURE-----")
        assert get(f"{entry(site, signed)['url']}.asc").body == b"-----BEGIN PGP SIGNATURE-----"
        assert get(f"{entry(site, plain)['url']}.asc").status == 404

    def test_a_signature_that_upstream_lacks_leaves_the_page(self, site: Site, index: FakeIndex) -> None:
        """A missing signature is 404, and ``gpg-sig`` disappears from the page. The file stays."""
        wheel = make_wheel("oncesigned")
        index.add(wheel, extra={"gpg-sig": True})
        before = entry(site, wheel)
        assert before["gpg-sig"] is True
        assert get(f"{before['url']}.asc").status == 404
        assert "gpg-sig" not in entry(site, wheel)
        assert get(before["url"]).body == wheel.content


class TestLinks:
    """Tests pages with odd links."""

    kind = PyPIKind()

    def test_an_empty_path_segment_is_served_from_here(self, site: Site, index: FakeIndex, client: Client) -> None:
        """A file whose address has ``//`` is installed by pip and uv, and stored. Upstream gets that address."""
        wheel = make_wheel(f"gap-{type(client).__name__.lower()}")
        path = f"/f//{wheel.filename}"
        index.put(path, wheel.content)
        index.put(f"{path}.metadata", wheel.metadata or b"")
        index.add(wheel, extra={"url": index.url + path})
        assert entry(site, wheel)["url"] == (
            f"{site.daemon.url}/file/http/{index.host}:{index.port}/f/%EE%80%80/{wheel.filename}"
        )
        assert client.install(site.daemon.url, wheel.project) == {wheel.project: "1.0"}
        site.daemon.wait_for_log(rf"stored \S*/f/%EE%80%80/{wheel.filename},")
        site.settle()
        with index.refusing():
            assert client.install(site.daemon.url, wheel.project) == {wheel.project: "1.0"}
        assert index.count(path) == 1

    def test_a_file_in_the_way_of_another_one_is_left_to_upstream(self, site: Site, index: FakeIndex) -> None:
        """
        A page can't make another page's file unstorable by listing a file below it.

        The listed URL would need a directory where the other file has its name.
        """
        wheel = make_wheel("victim")
        url = index.add(wheel)
        below = f"{url}/sha256-{wheel.sha256}.{len(wheel.content)}/attack-1.0-py3-none-any.whl"
        listed = {"filename": "attack-1.0-py3-none-any.whl", "url": below, "hashes": {"sha256": "0" * 64}}
        index.describe("attack", {"files": [listed]})
        page: Any = get(f"{site.daemon.url}/simple/attack/", {"Accept": JSON}).json()
        assert [file["url"] for file in page["files"]] == [below]  # not from here
        get(f"{site.daemon.url}/file/{below.replace('://', '/')}")
        for cache in ("miss", "hit"):
            answer = get(entry(site, wheel)["url"])
            assert (answer.status, answer.body) == (200, wheel.content)
            assert cache in answer.headers["Cache-Status"]
            site.daemon.wait_for_log(f"stored .*{wheel.filename}")

    def test_links_that_are_no_files_do_not_stop_an_install(self, site: Site, index: FakeIndex, client: Client) -> None:
        """
        Links that no client installs from are left out, and the log says so once.

        Directly, pip and uv fail for an ``ftp:`` link of the newest version, and pip for one to a repository.
        """
        wheel = make_wheel(f"linked-{type(client).__name__.lower()}")
        index.add(wheel)
        project, (name, _, rest) = wheel.project, wheel.filename.partition("-1.0-")
        newer = f"{name}-9.0-{rest}"
        anchors = [
            f'<a href="{index.url_of(wheel.filename)}#sha256={wheel.sha256}">{wheel.filename}</a>',
            f'<a href="ftp://{index.host}:9/{newer}">x</a>',
            f'<a href="git+https://{index.host}:9/{newer}">x</a>',
            '<a href="mailto:x@y">x</a>',
            '<a href="javascript:void(0)">x</a>',
        ]
        page = f"<!DOCTYPE html><title>Links for {project}</title>{''.join(anchors)}".encode()
        fault = index.fault(f"/simple/{project}/", Altered("text/html", page))
        client.fail("install", "--index-url", f"{index.url}/simple/", project) if isinstance(client, Pip) else None
        assert client.install(site.daemon.url, project) == {project: "1.0"}
        fault.wait_served()
        assert len(site.logged(project, "4 links that are no package files were left out")) == 1

    @pytest.mark.parametrize("form", [JSON, TEXT])
    def test_hashes_in_upper_case_are_installed(self, site: Site, index: FakeIndex, client: Client, form: str) -> None:
        """
        Digests in upper case are in lower case here, in ``hashes`` and metadata, so that clients compare them.

        Of several in one link, all are kept.
        """
        wheel = make_wheel(f"shouted-{type(client).__name__.lower()}-{form.partition('/')[2][:4].strip('.')}")
        upper = {"SHA256": wheel.sha256.upper(), "sha512": _sha512(wheel)}
        index.add(wheel, extra={"hashes": upper, "core-metadata": {"sha256": _metadata_hash(wheel).upper()}})
        if form == TEXT:
            page = (
                f'<a href="{index.url_of(wheel.filename)}#sha512={upper["sha512"]}&amp;SHA256={upper["SHA256"]}"'
                f' data-core-metadata="sha256={_metadata_hash(wheel).upper()}">{wheel.filename}</a>'
            )
            index.fault(f"/simple/{wheel.project}/", Altered("text/html", page.encode()))
        file = entry(site, wheel)
        assert file["hashes"] == {"sha256": wheel.sha256, "sha512": upper["sha512"].lower()}
        assert file["core-metadata"] == {"sha256": _metadata_hash(wheel)}
        assert client.install(site.daemon.url, wheel.project) == {wheel.project: "1.0"}


def _same(site: Site, artifact: Artifact, before: Answer) -> bool:
    answer = get(page_url(site, artifact), {"Accept": JSON})
    assert (answer.status, answer.body) == (200, before.body)
    return True


def _sha512(artifact: Artifact) -> str:
    return hashlib.sha512(artifact.content).hexdigest().upper()


def _metadata_hash(artifact: Artifact) -> str:
    assert artifact.metadata is not None
    return hashlib.sha256(artifact.metadata).hexdigest()
