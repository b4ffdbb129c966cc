"""What is promised of pages in every ecosystem, with real daemons before an upstream that misbehaves on demand."""

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

#: Seconds for which pages are fresh where that is meant to end within a test.
_BRIEFLY = 2
#: From a client that knows the daemon by a name, which outlives its port: a page may have that address in its links.
BY_NAME = {"Host": "packages.example"}

_NUMBERS = count(1)


@frozen
class Package:
    """A package that one test alone knows: upstream, and here as clients of its kind see it."""

    site: Site
    name: str

    @classmethod
    def new(cls, site: Site) -> Package:
        return cls(site, f"package-{next(_NUMBERS):03}")

    def publish(self, version: str = "1.0") -> Published:
        return self.site.kind.publish(self.site.upstream, self.name, version)

    def misbehave(self, fault: FaultT) -> FaultT:
        """Let upstream misbehave so whenever it is asked for the page."""
        return self.site.upstream.fault(self._upstream_path, fault)

    def heal(self) -> None:
        """Let upstream behave again."""
        self.site.upstream.mend()

    @property
    def asked(self) -> list[Request]:
        """The requests for the page that upstream got."""
        return self.site.upstream.seen(self._upstream_path)

    def page(self, headers: Mapping[str, str] | None = None, *, method: str = "GET") -> Answer:
        """Ask for the page here."""
        return get(self.url, {"Accept": self.site.kind.accept, **(headers or {})}, method=method)

    def links(self) -> list[str]:
        """The addresses of the files that the page here lists."""
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
    """Its page is fresh for longer than any test takes."""
    return Package.new(sites(kind, CACHE_TIME="300", NEGATIVE_CACHE_TIME="60"))


@pytest.fixture
def brief(sites: Sites, kind: Kind) -> Package:
    """Its page is fresh for a moment."""
    return Package.new(sites(kind, CACHE_TIME=str(_BRIEFLY)))


@pytest.fixture
def volatile(sites: Sites, kind: Kind) -> Iterator[Package]:
    """Its page is never fresh, and upstream soon tries the daemon's patience."""
    site = sites(kind, CACHE_TIME="0", NEGATIVE_CACHE_TIME="0", UPSTREAM_TIMEOUT="1")
    yield Package.new(site)
    site.upstream.mend()


def max_age(answer: Answer) -> int:
    match = re.fullmatch(r"public, max-age=(\d+)", answer.headers["Cache-Control"])
    assert match, answer.headers["Cache-Control"]
    return int(match[1])


@contextmanager
def redis_at(port: int, directory: Path) -> Iterator[None]:
    """A redis-server on loopback."""
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


#: A page of no files, in any ecosystem, in a gzip that decodes without an error and has no end.
_ENDLESS = gzip.compress(b'{"meta":{"api-version":"1.0"},"name":"a","files":[],"versions":{},"dist-tags":{}}')[:-8]

#: What upstream does to the page, and the status of whoever has no older page to be given: 503 for what may pass.
MISBEHAVIOUR: dict[str, tuple[Callable[[], Fault], int]] = {
    "hangs before the head": (Hang, 503),
    "stalls in the body": (lambda: Stall(after=40), 503),
    "closes early": (lambda: CloseEarly(after=40), 503),
    "closes after the head": (lambda: CloseEarly(after=0), 503),
    "announces more than it sends": (lambda: WrongLength(by=100), 503),
    "announces less than it sends": (lambda: WrongLength(by=-20), 502),
    "says 500": (lambda: Status(500), 503),
    "says 504": (lambda: Status(504), 503),
    "says 429": (lambda: Status(429), 503),
    "says 401": (lambda: Status(401), 502),
    "says 403": (lambda: Status(403), 502),
    "says 418": (lambda: Status(418), 502),
    "sends garbage": (lambda: Instead(b"\x00\xff garbage"), 502),
    "sends another document": (lambda: Instead(b'["a", "list"]'), 502),
    "sends nothing": (lambda: Instead(b""), 502),
    "sends what is not gzip as gzip": (lambda: Instead(b"garbage", {"Content-Encoding": "gzip"}), 502),
    "sends a gzip that ends early": (lambda: Instead(_ENDLESS, {"Content-Encoding": "gzip"}), 502),
    "sends an encoding nobody asked for": (lambda: Instead(b"garbage", {"Content-Encoding": "br"}), 502),
    "redirects in circles": (lambda: Redirect("{path}"), 502),
    "redirects to nowhere": (lambda: Redirect("file:///etc/passwd"), 502),
}


class PagePromises:
    """The tests. A subclass says of which kind of package."""

    kind: Kind

    # Freshness

    def test_a_fresh_page_is_served_without_asking_upstream(self, kept: Package) -> None:
        """Also when upstream has changed it meanwhile."""
        kept.publish()
        first = kept.page()
        kept.publish("2.0")
        again = kept.page()
        assert (first.status, again.status, len(kept.asked)) == (200, 200, 1)
        assert (again.content, again.headers["ETag"]) == (first.content, first.headers["ETag"])

    def test_every_file_that_a_page_lists_can_be_fetched_from_here(self, kept: Package) -> None:
        """Promise 9: the links lead here, and to the bytes that upstream has."""
        published = [kept.publish(version) for version in ("1.0", "1.10", "2.0rc1")]
        links = kept.links()
        assert all(link.startswith(f"{kept.site.daemon.url}/") for link in links)
        assert sorted(get(link).body for link in links) == sorted(each.content for each in published)

    def test_max_age_is_the_freshness_left_and_then_a_change_appears(self, brief: Package) -> None:
        """A client that keeps a page for as long as it may never adds anything to the cache time."""
        brief.publish()
        brief.page()
        stale_at = time.monotonic() + _BRIEFLY
        brief.publish("2.0")
        ages = []

        def keep_asking() -> Answer:
            asked_at = time.monotonic()
            answer = brief.page()
            if "hit" in answer.headers["Cache-Status"]:
                assert asked_at + max_age(answer) <= stale_at
                ages.append(max_age(answer))
            return answer

        fresh = eventually(keep_asking, lambda answer: "fwd=stale" in answer.headers["Cache-Status"])
        assert ages == sorted(ages, reverse=True)
        assert {1, 0} <= set(ages)
        assert max_age(fresh) >= 1
        assert (len(brief.links()), len(brief.asked)) == (2, 2)

    def test_cache_status_tells_how_the_page_was_had(self, kept: Package, volatile: Package) -> None:
        """RFC 9211: where upstream was asked, why; and the seconds of freshness left."""
        for package in (kept, volatile):
            package.publish()
        fresh = [kept.page().headers["Cache-Status"] for _ in range(2)]
        assert re.fullmatch(r"MyPyPi; fwd=miss; stored; ttl=(300|299)", fresh[0])
        assert re.fullmatch(r"MyPyPi; hit; ttl=(300|29\d)", fresh[1])
        asked = [volatile.page().headers["Cache-Status"] for _ in range(2)]
        assert asked == ["MyPyPi; fwd=miss; stored; ttl=0", "MyPyPi; fwd=stale; stored; ttl=0"]
        volatile.misbehave(Status(500))
        assert re.fullmatch(r"MyPyPi; hit; ttl=-?\d+; detail=stale", volatile.page().headers["Cache-Status"])

    # Asking upstream again

    def test_revalidation_sends_upstreams_validators_and_a_304_keeps_the_page(self, volatile: Package) -> None:
        """Nothing is transferred where nothing changed."""
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
        """An upstream that knows no ETag sends it all again; clients that have it are still told 304."""
        monkeypatch.setattr(volatile.site.upstream, "plain", True)
        volatile.publish()
        first = volatile.page()
        again = volatile.page({"If-None-Match": first.headers["ETag"]})
        assert [(request.status, request.headers["If-None-Match"]) for request in volatile.asked] == [(200, None)] * 2
        assert (first.status, again.status, again.headers["ETag"]) == (200, 304, first.headers["ETag"])

    def test_a_changed_page_has_another_etag(self, volatile: Package) -> None:
        """It appears with the first request after the cache time, which is none here."""
        volatile.publish()
        first = volatile.page()
        volatile.publish("2.0")
        changed = volatile.page({"If-None-Match": first.headers["ETag"]})
        assert (changed.status, len(volatile.links())) == (200, 2)
        assert changed.headers["ETag"] != first.headers["ETag"]

    def test_clients_that_ask_at_once_for_a_cold_page_make_one_upstream_request(self, kept: Package) -> None:
        """All of them wait for it, and get the same."""
        kept.publish()
        hang = kept.misbehave(Hang())
        clients = 20

        def ask(number: int) -> Answer:
            if number < clients:
                return kept.page()
            eventually(lambda: connections_of(kept.site.daemon), lambda connected: connected >= clients)
            hang.wait_served()
            hang.release()
            return kept.page()

        answers = parallel(clients + 1, ask)
        assert (hang.served, len(kept.asked)) == (1, 1)
        assert {(answer.status, answer.content) for answer in answers} == {(200, answers[0].content)}
        waited = ["fwd=miss" in answer.headers["Cache-Status"] for answer in answers]
        assert sum(waited) > 1

    # Representations

    def test_gzip_and_identity_hold_the_same_under_etags_of_their_own(self, kept: Package) -> None:
        """A cache between us and the client must not take one for the other: strong ETags, and Vary."""
        kept.publish()
        plain, zipped = kept.page(), kept.page({"Accept-Encoding": "gzip, deflate"})
        assert (plain.headers["Content-Encoding"], zipped.headers["Content-Encoding"]) == (None, "gzip")
        assert (zipped.content, len(zipped.body) < len(plain.body)) == (plain.body, True)
        assert plain.headers["ETag"] != zipped.headers["ETag"]
        assert all(re.fullmatch(r'"[!-~]+"', each.headers["ETag"]) for each in (plain, zipped))
        assert {each.headers["Vary"] for each in (plain, zipped)} == {"Accept, Accept-Encoding"}

    @pytest.mark.parametrize("encoding", ["identity", "gzip;q=0", "br, zstd", "identity;q=1, *;q=0", ""])
    def test_gzip_is_sent_to_nobody_who_does_not_take_it(self, kept: Package, encoding: str) -> None:
        kept.publish()
        answer = kept.page({"Accept-Encoding": encoding})
        assert (answer.status, answer.headers["Content-Encoding"]) == (200, None)

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    @pytest.mark.parametrize("condition", ["{}", "W/{}", '"other", {}', '{} , W/"other"', "*"])
    def test_who_has_the_page_gets_304(self, kept: Package, encoding: str, condition: str) -> None:
        """With the headers that a 200 would have had (RFC 9110, section 15.4.5), and without a body."""
        kept.publish()
        page = kept.page({"Accept-Encoding": encoding})
        headers = {"Accept-Encoding": encoding, "If-None-Match": condition.format(page.headers["ETag"])}
        again = kept.page(headers)
        assert (again.status, again.body, again.complete) == (304, b"", True)
        assert [again.headers[name] for name in ("ETag", "Vary")] == [page.headers[name] for name in ("ETag", "Vary")]
        assert max_age(again) > 0

    def test_who_has_another_page_gets_this_one(self, kept: Package) -> None:
        kept.publish()
        assert kept.page({"If-None-Match": '"other", W/"another"'}).status == 200

    @pytest.mark.parametrize("encoding", ["identity", "gzip"])
    def test_head_is_get_without_the_body(self, kept: Package, encoding: str) -> None:
        """The length included; for a page that nobody has asked for as well."""
        kept.publish()
        head = kept.page({"Accept-Encoding": encoding}, method="HEAD")
        page = kept.page({"Accept-Encoding": encoding})
        assert (head.status, head.body) == (200, b"")
        for name in ("Content-Type", "Content-Length", "Content-Encoding", "ETag", "Vary"):
            assert head.headers[name] == page.headers[name]
        assert int(head.headers["Content-Length"]) == len(page.body)

    # Pages that are not there

    def test_an_unknown_page_is_404_and_upstream_is_asked_once(self, kept: Package) -> None:
        """A typo in a hundred builds is one request."""
        answers = [kept.page() for _ in range(3)]
        assert [answer.status for answer in answers] == [404] * 3
        assert kept.name in answers[0].text
        assert len(kept.asked) == 1

    def test_that_there_is_no_page_is_believed_for_the_negative_cache_time_only(self, sites: Sites, kind: Kind) -> None:
        """Here 1 second: not less, and the page appears after it although nobody sent word."""
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
    def test_a_page_that_upstream_took_away_is_404(self, volatile: Package, status: int) -> None:
        """Upstream is to be believed when it says so; nothing else of what it may say is."""
        volatile.publish()
        assert volatile.page().status == 200
        gone = volatile.misbehave(Status(status))
        assert volatile.page().status == 404
        gone.wait_served()
        volatile.heal()
        assert volatile.page().status == 200

    # An upstream that misbehaves

    @pytest.mark.parametrize("misbehaviour", MISBEHAVIOUR)
    def test_a_page_that_was_seen_is_served_while_upstream(self, volatile: Package, misbehaviour: str) -> None:
        """Promise 7: the page as it was."""
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
    def test_a_page_that_was_never_seen_is_an_error_that_says_why_while_upstream(
        self, volatile: Package, misbehaviour: str
    ) -> None:
        """Never 404, for which clients give up a package; and once upstream has healed, the next request works."""
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
        """The page that was seen is there, another one is an error, and after that both are."""
        unseen = Package.new(volatile.site)
        volatile.publish()
        unseen.publish()
        seen = volatile.page()
        with volatile.site.upstream.refusing():
            stale, error = volatile.page(), unseen.page()
        assert (stale.status, stale.content, error.status) == (200, seen.content, 503)
        assert_explained(error)
        assert (unseen.page().status, volatile.page().status) == (200, 200)

    def test_a_304_that_nobody_asked_for_is_no_page(self, volatile: Package) -> None:
        """There is nothing that could be meant by it."""
        fault = volatile.misbehave(Status(304))
        answer = volatile.page()
        fault.wait_served()
        assert answer.status == 502
        assert_explained(answer)

    def test_retry_after_is_what_upstream_asked_for(self, sites: Sites, kind: Kind) -> None:
        """Where a client has to come again, upstream knows best when; nobody asks it before."""
        site = sites(kind, CACHE_TIME="0", STALE_AFTER="2")
        busy, other = Package.new(site), Package.new(site)
        fault = busy.misbehave(Status(429, retry_after=7))
        assert busy.page().headers["Retry-After"] == "7"
        fault.wait_served()
        error = other.page()
        assert (error.status, len(other.asked)) == (503, 0)
        assert 5 <= int(error.headers["Retry-After"] or 0) <= 7
        assert_explained(error)

    def test_an_upstream_that_hangs_costs_a_few_seconds_and_not_the_answer(self, sites: Sites, kind: Kind) -> None:
        """The page as it was after some 3 s, while upstream is still being asked; what it says at last is taken in."""
        patient = Package.new(sites(kind, CACHE_TIME="0"))
        patient.publish()
        seen = patient.page()
        patient.publish("2.0")
        hang = patient.misbehave(Hang())
        asked_at = time.monotonic()
        answer = patient.page()
        assert time.monotonic() - asked_at < 8
        assert (hang.served, answer.status, answer.content) == (1, 200, seen.content)
        patient.heal()
        patient.site.upstream.wait_for(lambda: patient.asked[1].done)
        assert (patient.asked[1].status, patient.asked[1].broken) == (200, False)
        eventually(patient.links, lambda links: len(links) == 2)

    def test_an_upstream_that_fails_is_left_alone_for_a_moment_and_then_asked_again(self, volatile: Package) -> None:
        """Not each request for a page that is here hits a struggling upstream; a new version appears all the same."""
        volatile.publish()
        volatile.page()
        volatile.misbehave(Status(500))
        for _ in range(20):
            assert volatile.page().status == 200
        assert 2 <= len(volatile.asked) < 10
        volatile.heal()
        volatile.publish("2.0")
        eventually(volatile.links, lambda links: len(links) == 2)

    def test_a_failing_upstream_is_one_line_in_the_log(self, volatile: Package) -> None:
        """And another one when it has recovered."""
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
        """The page is read from there, and what it lists can be had."""
        with volatile.site.kind.upstream() as elsewhere:
            published = volatile.site.kind.publish(elsewhere, volatile.name)
            redirect = volatile.misbehave(Redirect(f"{elsewhere.url}{{path}}", code))
            (link,) = volatile.links()
            redirect.wait_served()
            assert get(link).body == published.content

    # What is kept where

    @pytest.mark.parametrize("end", [Site.restart, crash_and_recover])
    def test_pages_survive_the_daemon(self, volatile: Package, end: Callable[[Site], None]) -> None:
        """Ended in order or not, with upstream gone: whoever comes next over the same data has them."""
        volatile.publish()
        headers = BY_NAME | {"Accept-Encoding": "gzip"}
        seen = volatile.page(headers)
        with volatile.site.upstream.refusing():
            end(volatile.site)
            after = volatile.page(headers)
        assert (after.status, after.body, after.headers["ETag"]) == (200, seen.body, seen.headers["ETag"])

    def test_pages_survive_that_redis_is_emptied(self, kept: Package) -> None:
        """They are asked of upstream anew, and kept again: for the next daemon too."""
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

    def test_redis_is_not_needed_to_start_and_used_when_it_comes(self, kind: Kind, tmp_path: Path) -> None:
        """Promise 8: pages come from upstream meanwhile, and the log says so once."""
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
        """A redirect's target gets none, whoever that is; and neither the log nor an answer ever has them."""
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
        assert [answer.status for answer in answers[2:]] == [503, 502]
        assert "credentials" in answers[-1].text
        told = [*(answer.text for answer in answers), str(site.health()), site.daemon.log]
        assert [secret for secret in (password, token) for text in told if secret in text] == []


def connections_of(daemon: Daemon) -> int:
    """How many clients are connected to it."""
    found = psutil.Process(daemon.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == daemon.port for each in found)


def assert_explained(error: Answer) -> None:
    """It has a sentence for a person, and for a client, where it is worth trying again, when."""
    document = error.json()
    assert isinstance(document, dict)
    assert re.fullmatch(r"[^<>{}\n]{20,300}", document["error"])
    assert error.headers["Cache-Control"] == "no-store"
    assert (int(error.headers["Retry-After"] or 0) > 0) == (error.status == 503)


class TestPyPIPages(PagePromises):
    kind = PyPIKind()


class TestNPMPages(PagePromises):
    kind = NPMKind()
