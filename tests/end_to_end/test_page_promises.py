"""Tests the promises about pages, for every ecosystem, with real daemons.

The upstream of each daemon misbehaves on demand.
"""

from __future__ import annotations

import base64
import gzip
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import pytest
from attrs import frozen

from tests.conftest import Sites, daemons
from tests.rig.daemon import Daemon
from tests.rig.faults import (
    CloseEarly,
    Fault,
    Hang,
    Instead,
    Redirect,
    Stall,
    Status,
    WrongLength,
)
from tests.rig.host import FaultT
from tests.rig.http import Answer, eventually, get, parallel
from tests.rig.wire import Request
from tests.support.kinds import Kind, NPMKind, Published, PyPIKind
from tests.support.redis_server import free_port, redis_binary
from tests.support.site import Site

#: Seconds for which a page is fresh if it has to become stale within a test.
_SHORT_CACHE_TIME = 2
#: The Host header of a client that knows the daemon by a name. A page may have that address in its links, and the name
#: stays the same when the daemon's port changes.
BY_NAME = {"Host": "packages.example"}

_NUMBERS = count(1)


@frozen
class Package:
    """A package that one test alone uses. It is published upstream and requested from the daemon."""

    site: Site
    name: str

    @classmethod
    def new(cls, site: Site) -> Package:
        return cls(site, f"package-{next(_NUMBERS):03}")

    def publish(self, version: str = "1.0") -> Published:
        return self.site.kind.publish(self.site.upstream, self.name, version)

    def misbehave(self, fault: FaultT) -> FaultT:
        """Make upstream misbehave at each request for the page."""
        return self.site.upstream.fault(self._upstream_path, fault)

    def heal(self) -> None:
        """End upstream's misbehaviour."""
        self.site.upstream.mend()

    @property
    def asked(self) -> list[Request]:
        """The requests for the page that upstream got."""
        return self.site.upstream.seen(self._upstream_path)

    def page(self, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
        """Request the page from the daemon."""
        return get(self.url, {"Accept": self.site.kind.accept, **(headers or {})}, method=method)

    def links(self) -> list[str]:
        """Return the addresses of the files on the daemon's page."""
        page = self.page().json()
        assert isinstance(page, dict)
        return self.site.kind.file_links(self.url, page)

    @property
    def url(self) -> str:
        return self.site.daemon.url + self.site.kind.page_path(self.name)

    @property
    def _upstream_path(self) -> str:
        return self.site.kind.upstream_page_path(self.name)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    assert isinstance(request.cls.kind, Kind)
    return request.cls.kind


@pytest.fixture
def kept(sites: Sites, kind: Kind) -> Package:
    """A package whose page stays fresh for the whole test."""
    return Package.new(sites(kind, CACHE_TIME="300", NEGATIVE_CACHE_TIME="60"))


@pytest.fixture
def brief(sites: Sites, kind: Kind) -> Package:
    """A package whose page is fresh for a moment."""
    return Package.new(sites(kind, CACHE_TIME=str(_SHORT_CACHE_TIME)))


@pytest.fixture
def volatile(sites: Sites, kind: Kind) -> Iterator[Package]:
    """A package whose page is never fresh. Its daemon waits one second for upstream."""
    site = sites(kind, CACHE_TIME="0", NEGATIVE_CACHE_TIME="0", UPSTREAM_TIMEOUT="1")
    yield Package.new(site)
    site.upstream.mend()


def max_age(answer: Answer) -> int:
    match = re.fullmatch(r"public, max-age=(\d+)", answer.headers["Cache-Control"])
    assert match, answer.headers["Cache-Control"]
    return int(match[1])


@contextmanager
def redis_at(port: int, directory: Path) -> Iterator[None]:
    """Run a redis-server on this port of loopback."""
    command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert any(b"ready to accept connections" in line.lower() for line in process.stdout)
            yield
        finally:
            process.terminate()


def crash_and_recover(site: Site) -> None:
    site.crash()
    site.recover()


#: A page without files, for any ecosystem, in a gzip whose end is missing. It decodes without an error.
_ENDLESS = gzip.compress(b'{"meta":{"api-version":"1.0"},"name":"a","files":[],"versions":{},"dist-tags":{}}')[:-8]

#: What upstream does with the page, and the status for clients if the daemon has no older page: 503 for failures that
#: may pass.
MISBEHAVIOUR: dict[str, tuple[Callable[[], Fault], int]] = {
    "hangs before the head": (Hang, 503),
    "stalls in the body": (lambda: Stall(after=40), 503),
    "closes early": (lambda: CloseEarly(after=40), 503),
    "closes after the head": (lambda: CloseEarly(after=0), 503),
    "announces more than it sends": (lambda: WrongLength(by=100), 503),
    "announces less than it sends": (lambda: WrongLength(by=-20), 502),
    "answers 500": (lambda: Status(500), 503),
    "answers 504": (lambda: Status(504), 503),
    "answers 429": (lambda: Status(429), 503),
    "answers 401": (lambda: Status(401), 403),
    "answers 407": (lambda: Status(407), 502),
    "answers 418": (lambda: Status(418), 502),
    "sends garbage": (lambda: Instead(b"\x00\xff garbage"), 502),
    "sends another document": (lambda: Instead(b'["a", "list"]'), 502),
    "sends nothing": (lambda: Instead(b""), 502),
    "labels garbage as gzip": (lambda: Instead(b"garbage", {"Content-Encoding": "gzip"}), 502),
    "sends a gzip that ends early": (lambda: Instead(_ENDLESS, {"Content-Encoding": "gzip"}), 502),
    "sends an unrequested encoding": (lambda: Instead(b"garbage", {"Content-Encoding": "br"}), 502),
    "redirects in circles": (lambda: Redirect("{path}"), 502),
    "redirects to nowhere": (lambda: Redirect("file:///etc/passwd"), 502),
}


class PagePromises:
    """The tests, which a subclass runs for one ecosystem."""

    kind: Kind

    # Freshness

    def test_a_fresh_page_is_served_without_asking_upstream(self, kept: Package) -> None:
        """A fresh page is served even if upstream has changed it."""
        kept.publish()
        first = kept.page()
        kept.publish("2.0")
        again = kept.page()
        assert (first.status, again.status, len(kept.asked)) == (200, 200, 1)
        assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])

    def test_every_file_that_a_page_lists_can_be_fetched(self, kept: Package) -> None:
        """Promise 9: the links lead to the daemon, and to upstream's bytes."""
        published = [kept.publish(version) for version in ("1.0", "1.10", "2.0rc1")]
        links = kept.links()
        assert all(link.startswith(f"{kept.site.daemon.url}/") for link in links)
        assert sorted(get(link).body for link in links) == sorted(each.content for each in published)

    def test_max_age_is_the_freshness_left_and_then_a_change_appears(self, brief: Package) -> None:
        """
        A client that caches a page for max-age sees changes in time.

        Its cache never adds to the daemon's cache time.
        """
        brief.publish()
        brief.page()
        stale_at = time.monotonic() + _SHORT_CACHE_TIME
        brief.publish("2.0")
        ages = []

        def request() -> Answer:
            asked_at = time.monotonic()
            answer = brief.page()
            if "hit" in answer.headers["Cache-Status"]:
                assert asked_at + max_age(answer) <= stale_at
                ages.append(max_age(answer))
            return answer

        fresh = eventually(request, lambda answer: "fwd=stale" in answer.headers["Cache-Status"])
        assert ages == sorted(ages, reverse=True)
        assert {1, 0} <= set(ages)
        assert max_age(fresh) >= 1
        assert (len(brief.links()), len(brief.asked)) == (2, 2)

    def test_cache_status_says_where_the_page_came_from(self, kept: Package, volatile: Package) -> None:
        """
        Cache-Status gives the reason for an upstream request (RFC 9211).

        It also has the freshness left, in seconds.
        """
        for package in (kept, volatile):
            package.publish()
        fresh = [kept.page().headers["Cache-Status"] for _ in range(2)]
        assert re.fullmatch(r"MyPyPi; fwd=miss; stored; ttl=(300|299)", fresh[0])
        assert re.fullmatch(r"MyPyPi; hit; ttl=(300|29\d)", fresh[1])
        asked = [volatile.page().headers["Cache-Status"] for _ in range(2)]
        assert asked == ["MyPyPi; fwd=miss; stored; ttl=0", "MyPyPi; fwd=stale; stored; ttl=0"]
        volatile.misbehave(Status(500))
        assert re.fullmatch(r"MyPyPi; hit; ttl=-?\d+; detail=stale", volatile.page().headers["Cache-Status"])

    # Revalidation

    def test_revalidation_sends_upstreams_validators_and_a_304_keeps_the_page(self, volatile: Package) -> None:
        """An unchanged page is not transferred again."""
        volatile.publish()
        first, again = volatile.page(), volatile.page()
        assert [(request.status, request.headers["If-None-Match"] is not None) for request in volatile.asked] == [
            (200, False),
            (304, True),
        ]
        assert (again.status, again.content, again.headers["ETag"]) == (200, first.content, first.headers["ETag"])

    def test_an_unchanged_page_without_validators_keeps_its_etag(
        self, volatile: Package, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """
        Clients that have the page get 304 without upstream's help.

        An upstream without ETags sends the page again at each revalidation.
        """
        monkeypatch.setattr(volatile.site.upstream, "plain", True)
        volatile.publish()
        first = volatile.page()
        again = volatile.page({"If-None-Match": first.headers["ETag"]})
        assert [(request.status, request.headers["If-None-Match"]) for request in volatile.asked] == [(200, None)] * 2
        assert (first.status, again.status, again.headers["ETag"]) == (200, 304, first.headers["ETag"])

    def test_a_changed_page_has_another_etag(self, volatile: Package) -> None:
        """A change appears with the first request after the cache time. The cache time is 0 in this test."""
        volatile.publish()
        first = volatile.page()
        volatile.publish("2.0")
        changed = volatile.page({"If-None-Match": first.headers["ETag"]})
        assert (changed.status, len(volatile.links())) == (200, 2)
        assert changed.headers["ETag"] != first.headers["ETag"]

    def test_concurrent_clients_of_a_cold_page_make_one_upstream_request(self, kept: Package) -> None:
        """All clients wait for one request and get its page."""
        kept.publish()
        hang = kept.misbehave(Hang())
        clients = 20

        def request(number: int) -> Answer:
            if number < clients:
                return kept.page()
            eventually(lambda: connections_of(kept.site.daemon), lambda connected: connected >= clients)
            hang.wait_served()
            hang.release()
            return kept.page()

        answers = parallel(clients + 1, request)
        assert (hang.served, len(kept.asked)) == (1, 1)
        assert {(answer.status, answer.content) for answer in answers} == {(200, answers[0].content)}
        waited = ["fwd=miss" in answer.headers["Cache-Status"] for answer in answers]
        assert sum(waited) > 1

    # Encodings and conditional requests

    def test_gzip_and_identity_have_the_same_content_and_different_etags(self, kept: Package) -> None:
        """
        Each encoding has a strong ETag, and Vary names the header.

        A cache between daemon and client must not confuse the two.
        """
        kept.publish()
        plain, zipped = kept.page(), kept.page({"Accept-Encoding": "gzip, deflate"})
        assert (plain.headers["Content-Encoding"], zipped.headers["Content-Encoding"]) == (None, "gzip")
        assert (zipped.content, len(zipped.body) < len(plain.body)) == (plain.body, True)
        assert plain.headers["ETag"] != zipped.headers["ETag"]
        assert all(re.fullmatch(r'"[!-~]+"', each.headers["ETag"]) for each in (plain, zipped))
        assert {each.headers["Vary"] for each in (plain, zipped)} == {"Accept, Accept-Encoding"}

    @pytest.mark.parametrize("encoding", ["identity", "gzip;q=0", "br, zstd", "identity;q=1, *;q=0", ""])
    def test_gzip_is_sent_only_to_clients_that_accept_it(self, kept: Package, encoding: str) -> None:
        kept.publish()
        answer = kept.page({"Accept-Encoding": encoding})
        assert (answer.status, answer.headers["Content-Encoding"]) == (200, None)

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    @pytest.mark.parametrize("condition", ["{}", "W/{}", '"other", {}', '{} , W/"other"', "*"])
    def test_a_client_that_has_the_page_gets_304(self, kept: Package, encoding: str, condition: str) -> None:
        """A 304 has the headers of a 200, and no body (RFC 9110, section 15.4.5)."""
        kept.publish()
        page = kept.page({"Accept-Encoding": encoding})
        headers = {"Accept-Encoding": encoding, "If-None-Match": condition.format(page.headers["ETag"])}
        again = kept.page(headers)
        assert (again.status, again.body, again.complete) == (304, b"", True)
        assert [again.headers[name] for name in ("ETag", "Vary")] == [page.headers[name] for name in ("ETag", "Vary")]
        assert max_age(again) > 0

    def test_a_client_that_has_another_page_gets_200(self, kept: Package) -> None:
        kept.publish()
        assert kept.page({"If-None-Match": '"other", W/"another"'}).status == 200

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    def test_head_is_get_without_the_body(self, kept: Package, encoding: str) -> None:
        """HEAD has the headers of GET, including the length. This is true for a cold page as well."""
        kept.publish()
        head = kept.page({"Accept-Encoding": encoding}, method="HEAD")
        page = kept.page({"Accept-Encoding": encoding})
        assert (head.status, head.body) == (200, b"")
        for name in ("Content-Type", "Content-Length", "Content-Encoding", "ETag", "Vary"):
            assert head.headers[name] == page.headers[name]
        assert int(head.headers["Content-Length"]) == len(page.body)

    # Missing pages

    def test_an_unknown_page_is_404_and_upstream_is_asked_once(self, kept: Package) -> None:
        """
        Repeated requests for an unknown page make one upstream request.

        A typo in a hundred builds is then one request.
        """
        answers = [kept.page() for _ in range(3)]
        assert [answer.status for answer in answers] == [404] * 3
        assert kept.name in answers[0].text
        assert len(kept.asked) == 1

    def test_a_404_is_cached_for_the_negative_cache_time_only(self, sites: Sites, kind: Kind) -> None:
        """A new page appears after one second, and not earlier. Nothing tells the daemon about the page."""
        package = Package.new(sites(kind, CACHE_TIME="300", NEGATIVE_CACHE_TIME="1"))
        assert package.page().status == 404
        package.publish()
        eventually(package.page, lambda answer: answer.status == 200)
        first, second = package.asked
        assert second.at - first.at >= 1

    def test_a_new_page_appears_at_once_where_the_negative_cache_time_is_zero(self, volatile: Package) -> None:
        assert volatile.page().status == 404
        volatile.publish()
        assert volatile.page().status == 200

    @pytest.mark.parametrize("status", [404, 410])
    def test_a_page_that_upstream_removed_is_gone(self, volatile: Package, status: int) -> None:
        """Upstream's 404 or 410 removes a page that was served before."""
        volatile.publish()
        assert volatile.page().status == 200
        gone = volatile.misbehave(Status(status))
        assert volatile.page().status == status
        gone.wait_served()
        volatile.heal()
        assert volatile.page().status == 200

    # An upstream that misbehaves

    @pytest.mark.parametrize("misbehaviour", MISBEHAVIOUR)
    def test_a_page_that_was_seen_is_served_while_upstream(self, volatile: Package, misbehaviour: str) -> None:
        """Promise 7: the last page is served for every kind of upstream failure."""
        volatile.publish()
        seen = volatile.page()
        volatile.publish("2.0")
        fault = volatile.misbehave(MISBEHAVIOUR[misbehaviour][0]())
        answer = volatile.page()
        fault.wait_served()
        assert (answer.status, answer.complete, answer.content) == (200, True, seen.content)
        assert (max_age(answer), "detail=stale" in answer.headers["Cache-Status"]) == (0, True)
        volatile.heal()

    @pytest.mark.parametrize("misbehaviour", MISBEHAVIOUR)
    def test_a_page_that_was_never_seen_is_an_error_with_a_reason_while_upstream(
        self, volatile: Package, misbehaviour: str
    ) -> None:
        """
        An unknown page is an error with a reason, and never 404.

        A client would take 404 to mean that there is no package. The next request works once upstream has recovered.
        """
        volatile.publish()
        make, status = MISBEHAVIOUR[misbehaviour]
        fault = volatile.misbehave(make())
        answer = volatile.page()
        fault.wait_served()
        assert answer.status == status
        assert_explained(answer)
        volatile.heal()
        assert volatile.page().status == 200

    def test_an_upstream_that_refuses_connections(self, volatile: Package) -> None:
        """A known page is served, and an unknown one is an error. Both work once upstream accepts connections."""
        unseen = Package.new(volatile.site)
        volatile.publish()
        unseen.publish()
        seen = volatile.page()
        with volatile.site.upstream.refusing():
            stale, error = volatile.page(), unseen.page()
        assert (stale.status, stale.content, error.status) == (200, seen.content, 503)
        assert_explained(error)
        assert (unseen.page().status, volatile.page().status) == (200, 200)

    def test_an_unrequested_304_is_an_error(self, volatile: Package) -> None:
        """A 304 to a request without a condition is answered with 502."""
        fault = volatile.misbehave(Status(304))
        answer = volatile.page()
        fault.wait_served()
        assert answer.status == 502
        assert_explained(answer)

    def test_retry_after_is_the_one_from_upstream(self, sites: Sites, kind: Kind) -> None:
        """Clients get upstream's own Retry-After. The page is not requested before; others are."""
        site = sites(kind, CACHE_TIME="0", STALE_AFTER="2")
        busy, other = Package.new(site), Package.new(site)
        other.publish()
        fault = busy.misbehave(Status(429, retry_after=7))
        assert busy.page().headers["Retry-After"] == "7"
        fault.wait_served()
        again = busy.page()
        assert (again.status, fault.served) == (503, 1)
        assert 5 <= int(again.headers["Retry-After"] or 0) <= 7
        assert_explained(again)
        assert other.page().status == 200

    def test_an_upstream_that_hangs_delays_a_known_page_by_a_few_seconds(self, sites: Sites, kind: Kind) -> None:
        """The stale page is served after about 3 s. The revalidation continues, and its result is stored."""
        package = Package.new(sites(kind, CACHE_TIME="0"))
        package.publish()
        seen = package.page()
        package.publish("2.0")
        hang = package.misbehave(Hang())
        asked_at = time.monotonic()
        answer = package.page()
        assert time.monotonic() - asked_at < 8
        assert (hang.served, answer.status, answer.content) == (1, 200, seen.content)
        package.heal()
        package.site.upstream.wait_for(lambda: package.asked[1].done)
        assert (package.asked[1].status, package.asked[1].broken) == (200, False)
        eventually(package.links, lambda links: len(links) == 2)

    def test_an_upstream_that_fails_is_asked_again_after_a_pause(self, volatile: Package) -> None:
        """
        Few of the requests for a known page reach a failing upstream.

        A new version appears once upstream has recovered.
        """
        volatile.publish()
        volatile.page()
        volatile.misbehave(Status(500))
        for _ in range(20):
            assert volatile.page().status == 200
        assert 2 <= len(volatile.asked) < 10
        volatile.heal()
        volatile.publish("2.0")
        eventually(volatile.links, lambda links: len(links) == 2)

    def test_a_failing_upstream_is_logged_once(self, volatile: Package) -> None:
        """The log has one line for the failure and one for the recovery."""
        volatile.publish()
        volatile.page()
        start = len(volatile.site.daemon.log)
        with volatile.site.upstream.refusing():
            for _ in range(3):
                assert Package.new(volatile.site).page().status == 503
        assert Package.new(volatile.site).page().status == 404
        volatile.site.daemon.wait_for_log("upstream answers again", start=start)
        log = volatile.site.daemon.log[start:]
        assert (log.count("upstream fails"), log.count("upstream answers again")) == (1, 1)

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_a_redirect_to_another_host_is_followed(self, volatile: Package, code: int) -> None:
        """The page is read from the other host, and its files can be fetched."""
        with volatile.site.kind.upstream() as elsewhere:
            published = volatile.site.kind.publish(elsewhere, volatile.name)
            redirect = volatile.misbehave(Redirect(f"{elsewhere.url}{{path}}", code))
            (link,) = volatile.links()
            redirect.wait_served()
            assert get(link).body == published.content

    # Restarts and Redis

    @pytest.mark.parametrize("end", [Site.restart, crash_and_recover])
    def test_pages_survive_the_end_of_the_daemon(self, volatile: Package, end: Callable[[Site], None]) -> None:
        """A new daemon with the same data serves the pages without upstream. The old daemon was stopped or killed."""
        volatile.publish()
        headers = BY_NAME | {"Accept-Encoding": "gzip"}
        seen = volatile.page(headers)
        with volatile.site.upstream.refusing():
            end(volatile.site)
            after = volatile.page(headers)
        assert (after.status, after.body, after.headers["ETag"]) == (200, seen.body, seen.headers["ETag"])

    def test_pages_survive_an_emptied_redis(self, kept: Package) -> None:
        """Pages are fetched and saved again, and the next daemon has them."""
        kept.publish()
        read = partial(kept.page, BY_NAME)
        seen = read()
        kept.site.empty_redis()
        again = eventually(read, lambda answer: "fwd=stale" in answer.headers["Cache-Status"])
        with kept.site.upstream.refusing():
            kept.site.restart()
            after = read()
        assert [answer.status for answer in (seen, again, after)] == [200] * 3
        assert {answer.content for answer in (seen, again, after)} == {seen.content}
        assert len(kept.asked) == 2

    def test_redis_is_not_needed_to_start_and_used_once_it_runs(self, kind: Kind, tmp_path: Path) -> None:
        """Promise 8: without Redis, pages come from upstream. The log says so once."""
        port = free_port()
        env = {
            "MYPYPI_PACKAGE_TYPE": kind.package_type,
            "MYPYPI_REDIS_URL": f"redis://127.0.0.1:{port}",
            "WORKERS": "1",
        }
        with kind.upstream() as upstream, daemons(upstream.url, tmp_path / "data") as start:
            site = Site(kind, upstream, tmp_path / "data", partial(start, "mypypi-server", env=env))
            package = Package.new(site)
            package.publish()
            site.daemon.wait_for_log("ready: .*")
            assert "is not there yet" in site.daemon.log
            answers = [package.page(BY_NAME) for _ in range(3)]
            assert ([answer.status for answer in answers], len(package.asked)) == ([200] * 3, 1)
            assert len(site.logged("serving without it")) == 1
            assert "can't be reached" in site.health()["checks"]["redis"]
            with redis_at(port, tmp_path):
                site.daemon.wait_for_log("Redis at .* is back")
                eventually(package.page, lambda _: len(package.asked) == 2)
                assert site.health()["status"] == "ok"
                with upstream.refusing():
                    site.restart()
                    after = package.page(BY_NAME)
                assert (after.status, after.content) == (200, answers[0].content)

    # Credentials

    def test_upstream_credentials_reach_upstream_and_no_other_host(self, sites: Sites, kind: Kind) -> None:
        """A redirect's target gets no credentials. No log line and no response contains them."""
        user, password = "someone", "s3cret-word"
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        site = sites(kind, auth=(user, password), CACHE_TIME="0")
        package, moved = Package.new(site), Package.new(site)
        package.publish()
        with kind.upstream() as elsewhere:
            kind.publish(elsewhere, moved.name)
            moved.misbehave(Redirect(f"{elsewhere.url}{{path}}"))
            answers = [package.page(), moved.page()]
            (followed,) = elsewhere.seen(kind.upstream_page_path(moved.name))
        assert [answer.status for answer in answers] == [200, 200]
        assert [each.headers["Authorization"] for each in package.asked + moved.asked] == [f"Basic {token}"] * 2
        assert followed.headers["Authorization"] is None
        with site.upstream.refusing():
            answers.append(Package.new(site).page())
        site.upstream.auth = (user, "changed")
        answers.append(Package.new(site).page())
        assert [answer.status for answer in answers[2:]] == [503, 403]
        assert "credentials" in answers[-1].text
        texts = [*(answer.text for answer in answers), str(site.health()), site.daemon.log]
        assert [secret for secret in (password, token) for text in texts if secret in text] == []


def connections_of(daemon: Daemon) -> int:
    """Count the clients that are connected to this daemon."""
    found = psutil.Process(daemon.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == daemon.port for each in found)


def assert_explained(error: Answer) -> None:
    """Check that the error has a readable reason. An error that may pass also has a Retry-After."""
    document = error.json()
    assert isinstance(document, dict)
    assert re.fullmatch(r"[^<>{}\n]{20,300}", document["error"])
    assert error.headers["Cache-Control"] == "no-store"
    assert (int(error.headers["Retry-After"] or 0) > 0) == (error.status == 503)


class TestPyPIPages(PagePromises):
    kind = PyPIKind()


class TestNPMPages(PagePromises):
    kind = NPMKind()
