"""Tests that a fault of upstream stays where it is: one package, one page, one kind of request."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import psutil
import pytest

from mypypi.upstream.refusals import RULES
from tests.conftest import Sites, daemons
from tests.rig.clients import Npm, Pip
from tests.rig.faults import Fault, Hang, Instead, Status
from tests.rig.http import Answer, eventually, get, post
from tests.rig.wire import Reply, Wire
from tests.support.kinds import Kind, NPMKind, Published, PyPIKind
from tests.support.site import Site

BULK = "/-/npm/v1/security/advisories/bulk"
#: The concurrency of upstream requests, so small that a test can use it up.
CONCURRENCY = 8
#: Seconds for an answer while other requests hang; upstream's time-out is longer.
SOON = 5.0
#: Seconds within which a client ends that does not try again. With its retries, npm takes 70.
_ONE_TRY = 40.0


class Refuse(Fault):
    """Answers with this status and a reason in JSON."""

    def __init__(self, code: int, reason: Mapping[str, str]) -> None:
        super().__init__()
        self.code, self.reason = code, reason

    def serve(self, reply: Reply, wire: Wire) -> None:
        body = json.dumps(self.reason).encode()
        wire.reply(Reply(self.code, {"Content-Type": "application/json", "Content-Length": str(len(body))}, body))
        self._happened()


def as_is(document: object) -> Instead:
    """Return a fault that sends this JSON document, not compressed."""
    return Instead(json.dumps(document).encode(), {"Content-Encoding": "identity"})


def page(site: Site, thing: Published, client: str = "") -> Answer:
    """Request the package's page, for the client with this address behind a proxy."""
    headers = {"Accept": site.kind.accept} | ({"X-Forwarded-For": client} if client else {})
    return get(site.daemon.url + site.kind.page_path(thing.name), headers)


def page_path(site: Site, thing: Published) -> str:
    return site.kind.upstream_page_path(thing.name)


def assert_served(site: Site, *things: Published, client: str = "") -> None:
    """Assert that pages and files are served soon, with the right bytes."""
    began = time.monotonic()
    for thing in things:
        assert page(site, thing, client).status == 200
        headers = {"X-Forwarded-For": client} if client else {}
        answer = get(site.daemon.url + thing.path, headers)
        assert (answer.status, answer.complete, answer.body) == (200, True, thing.content)
    assert time.monotonic() - began < SOON


class KeptApart:
    """Failures of one package do not affect others, in any ecosystem."""

    kind: Kind

    @pytest.fixture
    def site(self, sites: Sites) -> Iterator[Site]:
        site = sites(
            self.kind,
            CACHE_TIME="0",
            UPSTREAM_TIMEOUT="10",
            UPSTREAM_CONCURRENCY=str(CONCURRENCY),
            TRUSTED_PROXIES="127.0.0.1",
        )
        yield site
        site.upstream.mend()

    @pytest.mark.parametrize("status", [500, 502, 403, 418])
    def test_pages_that_fail_affect_no_other_page(self, site: Site, status: int) -> None:
        """Pages that fail, asked for in a loop, leave all other packages as they were."""
        bad = [site.publish(seen=False) for _ in range(10)]
        faults = [site.upstream.fault(page_path(site, thing), Status(status)) for thing in bad]
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda thing: page(site, thing, "192.0.2.1"), bad * 2))
        assert {answer.status for answer in answers} == {{500: 503, 502: 503, 418: 502}.get(status, status)}
        for fault in faults:
            assert fault.served >= 1
        assert_served(site, site.publish(seen=False), site.publish(seen=False))

    def test_files_that_fail_affect_no_page_and_no_other_file(self, site: Site) -> None:
        """Files that fail leave pages and other files as they were."""
        bad = [site.publish() for _ in range(4)]
        faults = [site.upstream.fault(thing.upstream_path, Status(503)) for thing in bad]
        for thing in bad:
            answer = get(site.daemon.url + thing.path)
            assert (answer.status, "503" in answer.text) == (503, True)
        for fault in faults:
            fault.wait_served()
        assert_served(site, site.publish(seen=False))

    def test_kind_that_upstream_throttles_is_held_back_alone(self, sites: Sites) -> None:
        """Pages are held back when upstream answers 429 for five of them. Files are still fetched."""
        site = sites(self.kind, CACHE_TIME="300")
        fetched = site.publish()
        things = [site.publish(seen=False) for _ in range(9)]
        faults = [site.upstream.fault(page_path(site, thing), Status(429, retry_after=4)) for thing in things]
        for thing in things:
            held = page(site, thing)
            assert held.status == 503
            assert "429" in held.text
            assert 1 <= int(held.headers["Retry-After"] or 0) <= 4
        assert [fault.served for fault in faults[:5]] == [1] * 5
        site.daemon.wait_for_log("page requests to .* are paused for 4 s: upstream answered 429")
        answer = get(site.daemon.url + fetched.path)
        assert (answer.status, answer.body) == (200, fetched.content)
        site.upstream.mend()
        for thing in things:
            assert eventually(partial(page, site, thing), lambda got: got.status == 200, timeout=20).status == 200

    def test_pages_that_upstream_throttles_alone_keep_no_other_out(self, site: Site) -> None:
        """Where upstream throttles some pages alone, another one is served after a moment, and then all are."""
        for _ in range(5):
            thing = site.publish(seen=False)
            fault = site.upstream.fault(page_path(site, thing), Status(429, retry_after=60))
            assert page(site, thing).status == 503
            fault.wait_served()
        site.daemon.wait_for_log("page requests to .* are paused for (59|60) s: upstream answered 429")
        eventually(lambda: page(site, site.publish(seen=False)).status, lambda status: status == 200)
        site.daemon.wait_for_log("page requests to .* are resumed")
        for _ in range(5):
            assert page(site, site.publish(seen=False)).status == 200

    def test_requests_that_hang_leave_room_for_others(self, site: Site) -> None:
        """Pages that hang never use up what other kinds and other clients need."""
        hanging = [site.publish(seen=False) for _ in range(2 * CONCURRENCY)]
        good, fetched = site.publish(seen=False), site.publish()
        hangs = [site.upstream.fault(page_path(site, thing), Hang()) for thing in hanging]
        with ThreadPoolExecutor(len(hanging)) as pool:
            waiting = [pool.submit(page, site, thing, "192.0.2.1") for thing in hanging]
            eventually(lambda: sum(hang.served for hang in hangs), lambda served: served >= CONCURRENCY * 3 // 8)
            answer = get(site.daemon.url + fetched.path, {"X-Forwarded-For": "192.0.2.1"})
            assert (answer.status, answer.body) == (200, fetched.content)
            assert_served(site, good, client="192.0.2.2")
            assert sum(hang.served for hang in hangs) < CONCURRENCY / 2 + 1
            site.upstream.mend()
            assert [each.result().status for each in waiting] == [200] * len(hanging)


class TestPyPIKeptApart(KeptApart):
    """Python indexes."""

    kind = PyPIKind()


class TestNPMKeptApart(KeptApart):
    """npm registries."""

    kind = NPMKind()

    @pytest.mark.parametrize("fault", [Status(500), Status(503), Status(429, retry_after=60)], ids=str)
    def test_audit_that_is_down_affects_no_package(self, site: Site, fault: Status) -> None:
        """An audit endpoint that fails gives its own status to audits, and affects no package."""
        site.upstream.fault(BULK, fault)
        for _ in range(8):
            assert post(site.daemon.url + BULK, b'{"thing":["1.0.0"]}').status == fault.code
        fault.wait_served(8)
        assert_served(site, site.publish(seen=False))


class Refusals:
    """Refusals of upstream are passed on with upstream's reason, at once, and remembered."""

    kind: Kind

    @pytest.fixture
    def site(self, sites: Sites) -> Iterator[Site]:
        site = sites(self.kind, CACHE_TIME="0")
        yield site
        site.upstream.mend()

    @pytest.mark.parametrize("member", ["error", "message", "detail"])
    @pytest.mark.parametrize("status", [401, 402, 403, 410, 451])
    def test_refused_page_has_upstreams_status_and_reason(self, site: Site, status: int, member: str) -> None:
        """A client gets the status and the reason. Upstream is asked once."""
        thing = site.publish(seen=False)
        refusal = site.upstream.fault(page_path(site, thing), Refuse(status, {member: "held for review"}))
        for _ in range(3):
            answer = page(site, thing)
            assert answer.status == RULES[status].status
            assert "held for review" in answer.text
        assert refusal.served == 1

    @pytest.mark.parametrize("status", [401, 402, 403, 410, 451])
    def test_refused_file_has_upstreams_status_and_reason(self, site: Site, status: int) -> None:
        """A file that upstream refuses is refused, and its page is served."""
        thing = site.publish()
        refusal = site.upstream.fault(thing.upstream_path, Refuse(status, {"error": "no licence"}))
        for _ in range(3):
            answer = get(site.daemon.url + thing.path)
            assert answer.status == RULES[status].status
            assert "no licence" in answer.text
        assert refusal.served == 1
        assert page(site, thing).status == 200

    @pytest.mark.parametrize("status", [402, 403, 404, 410, 451])
    def test_stored_files_of_a_refused_page_stay_available(self, site: Site, status: int) -> None:
        """A page that was cached is refused, and its stored files are served."""
        thing = site.publish_stored()
        refusal = site.upstream.fault(page_path(site, thing), Status(status))
        assert page(site, thing).status == status
        refusal.wait_served()
        answer = get(site.daemon.url + thing.path)
        assert (answer.status, answer.body) == (200, thing.content)

    def test_page_is_served_while_our_credentials_are_rejected(self, site: Site) -> None:
        """A cached page is served while upstream answers 401: the credentials may be mistaken."""
        thing = site.publish()
        refusal = site.upstream.fault(page_path(site, thing), Status(401))
        assert page(site, thing).status == 200
        refusal.wait_served()


class TestPyPIRefusals(Refusals):
    """Python indexes, and pip."""

    kind = PyPIKind()

    def test_pip_reports_a_refused_file_at_once(self, site: Site, tmp_path: Path) -> None:
        """Pip ends at once for a file that upstream refuses, and says why."""
        thing = site.publish()
        refusal = site.upstream.fault(thing.upstream_path, Refuse(403, {"message": "quarantined"}))
        began = time.monotonic()
        output = Pip(tmp_path).fail("download", "--index-url", f"{site.daemon.url}/simple/", thing.name)
        assert "403" in output
        assert (refusal.served, time.monotonic() - began < _ONE_TRY) == (1, True)


class TestNPMRefusals(Refusals):
    """npm registries, and npm."""

    kind = NPMKind()

    @pytest.mark.parametrize("status", [403, 451])
    def test_npm_reports_a_refused_package_at_once(self, site: Site, tmp_path: Path, status: int) -> None:
        """Npm ends at once for a package that upstream refuses, and says why."""
        thing = site.publish(seen=False)
        refusal = site.upstream.fault(page_path(site, thing), Refuse(status, {"error": "quarantined"}))
        began = time.monotonic()
        npm = Npm(tmp_path, patient=True)
        output = npm.fail("install", "--prefix", npm.project(site.daemon.url), thing.name)
        assert str(status) in output
        assert "quarantined" in output
        assert (refusal.served, time.monotonic() - began < _ONE_TRY) == (1, True)


class TestTolerance:
    """One malformed entry costs its page nothing else."""

    def test_packument_is_served_without_the_versions_that_have_no_tarball(self, sites: Sites) -> None:
        """A packument with malformed versions is served without them. The log says so once."""
        site = sites(NPMKind(), CACHE_TIME="0")
        thing = site.publish(seen=False)
        document = get(site.upstream.url + page_path(site, thing), {"Accept": "application/json"}).json()
        assert isinstance(document, dict)
        document["versions"] |= {"2.0.0": None, "3.0.0": {"name": thing.name, "version": "3.0.0", "dist": None}}
        document["dist-tags"]["broken"] = None
        document.pop("time")
        fault = site.upstream.fault(page_path(site, thing), as_is(document))
        for _ in range(2):
            answer = page(site, thing)
            assert answer.status == 200
            found = answer.json()
            assert isinstance(found, dict)
            assert list(found["versions"]) == ["1.0"]
        assert fault.served >= 1
        assert_served(site, thing)
        assert site.daemon.log.count("2 versions without a tarball were left out") == 1

    def test_project_is_served_without_the_files_that_have_no_url(self, sites: Sites) -> None:
        """A project's page with malformed files is served without them. The log says so once."""
        site = sites(PyPIKind(), CACHE_TIME="0")
        thing = site.publish(seen=False)
        document = get(site.upstream.url + page_path(site, thing), {"Accept": site.kind.accept}).json()
        assert isinstance(document, dict)
        good = document["files"][0]
        document["files"] = [{"filename": "a-1.0.tar.gz"}, None, {**good, "size": "12", "hashes": {"md5": 5}}, good]
        document["meta"]["api-version"] = "1.99"
        fault = site.upstream.fault(page_path(site, thing), as_is(document))
        for _ in range(2):
            answer = page(site, thing)
            assert answer.status == 200
        assert fault.served >= 1
        assert [unquote(link) for link in site.links(thing)] == [unquote(site.url(thing))] * 2
        assert site.daemon.log.count("2 files without a usable url and filename were left out") == 1


#: Pages made to hurt, by name: their content, which upstream sends compressed.
BOMBS = {
    "comments that never end": (b"<html>" + b"<!--" * 100_000, "text/html"),
    "nested tags": (b"<html>" + b"<a>" * 200_000, "text/html"),
    "marked sections that never end": (b"<html>" + b"<![" * 200_000, "text/html"),
    "a million links": (b'<a href="a-1.0.tar.gz">a</a>' * 1_000_001, "text/html"),
    "empty objects": (b'{"files":[' + b"{}," * 20_000_000 + b"{}]}", "application/json"),
    "nested lists": (b"[" * 300_000, "application/json"),
    "more bytes than a page may have": (b" " * 200_000_000 + b"{}", "application/json"),
}


class TestHostilePages:
    """Rendering never hurts others. The server is a real process, and so are its render processes."""

    kind: Kind = PyPIKind()

    def test_hostile_pages_hurt_nobody(self, site: Site) -> None:
        """While hostile pages are rendered, other pages and metrics are served. No process grows or stays busy."""
        bombs = {name: site.publish(seen=False) for name in BOMBS}
        faults = {
            name: site.upstream.fault(
                page_path(site, bombs[name]),
                Instead(gzip.compress(body, 1), {"Content-Type": kind, "Content-Encoding": "gzip"}),
            )
            for name, (body, kind) in BOMBS.items()
        }
        with ThreadPoolExecutor(len(bombs)) as pool:
            waiting = {name: pool.submit(page, site, thing) for name, thing in bombs.items()}
            for fault in faults.values():
                fault.wait_served()
            for _ in range(5):
                assert get(f"{site.daemon.url}/-/metrics", timeout=SOON).status == 200
                assert_served(site, site.publish(seen=False))
            answers = {name: each.result() for name, each in waiting.items()}
        for name, answer in answers.items():
            assert answer.status in (200, 502), name
        assert answers["a million links"].status == 502
        assert answers["more bytes than a page may have"].status == 502
        assert answers["nested lists"].status == 502
        assert_served(site, site.publish(seen=False))
        assert get(f"{site.daemon.url}/-/health/live").status == 200

    def test_sigterm_is_obeyed_while_hostile_pages_are_rendered(self, tmp_path: Path) -> None:
        """SIGTERM ends the daemon within its limit, and no child is left."""
        with self.kind.upstream() as upstream, daemons(upstream.url, tmp_path / "data") as start:
            daemon = start("mypypi")
            site = Site(self.kind, upstream, tmp_path / "data", lambda: daemon)
            body = gzip.compress(b'<a href="a-1.0.tar.gz">a</a>' * 950_000, 1)
            things = [site.publish(seen=False) for _ in range(4)]
            for thing in things:
                upstream.fault(
                    page_path(site, thing),
                    Instead(body, {"Content-Type": "text/html", "Content-Encoding": "gzip"}),
                )
            with ThreadPoolExecutor(4) as pool:
                waiting = [pool.submit(page, site, thing) for thing in things]
                children = eventually(lambda: _busy_renderers(daemon.pid), bool)
                began = time.monotonic()
                daemon.stop(timeout=15)
                assert time.monotonic() - began < 15
                for each in waiting:
                    assert each.exception() is not None or each.result().status in (0, 502, 503)
            assert daemon.ended_in_order
            assert not [child for child in children if child.is_running()]
            assert daemon.leftovers() == []


def _busy_renderers(pid: int) -> list[psutil.Process]:
    """Return the render processes of this daemon that have used some processor time."""
    children = psutil.Process(pid).children(recursive=True)
    renderers = [child for child in children if "mypypi.rendering.process" in child.cmdline()]
    return [child for child in renderers if child.cpu_times().user > 1.0]
