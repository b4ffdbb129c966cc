"""Tests of the answers to requests for files that are stored, being fetched, listed or missing."""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred

from mypypi.byte_range import ByteRange
from mypypi.ecosystems.pypi import PyPI
from mypypi.errors import DigestMismatch, NotFound, StillFetching, StorageDown, UpstreamDown, UpstreamRefused
from mypypi.files.content import HELD_BACK, Content
from mypypi.files.drafts import Drafts
from mypypi.files.fetch_tools import FetchTools
from mypypi.files.fetches import Fetches
from mypypi.files.room import Room
from mypypi.files.wheel_metadata import WheelMetadata
from mypypi.model import PageId, StoredFile
from mypypi.pages.fleet import PAGE_LEASE
from mypypi.pages.memory_cache import MemoryCache
from mypypi.pages.page_cache import PageCache
from mypypi.proxy.answers import FileAnswer, FileDescription, FileRequest, LocalContent, PassThrough, RedirectToUpstream
from mypypi.proxy.cached_listings import CachedListings
from mypypi.proxy.cold_files import ColdFilePolicy, ColdFiles
from mypypi.proxy.cold_ranges import ColdRanges
from mypypi.proxy.file_checks import FileChecks
from mypypi.proxy.offers import Offers
from mypypi.proxy.proxy import Proxy
from mypypi.proxy.stored_files import StoredFiles
from mypypi.proxy.wheel_checks import WheelChecks
from mypypi.redis.leases import Leases
from mypypi.rendering.renderer import Renderer
from mypypi.storage.disk import DiskStorage
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.client import Upstream
from mypypi.upstream.range_support import RangeSupport
from mypypi.upstream.requester import Credentials
from mypypi.upstream.responses import FileRange
from mypypi.worker.jobs import file_of
from tests.support.fakes import MemoryCatalog, MemoryQueue
from tests.support.memory import (
    AtOnce,
    MemoryTestCase,
    Wire,
    open_descriptors,
    render_at_once,
    response,
    sha256,
    simple_page,
)

URL = "https://index.example"
PAGE = "/simple/thing/"
NAME = "thing-1.0-py3-none-any.whl"
LINK = f"https/files.example/{NAME}"
FILE_URL = f"https://files.example/{NAME}"
FILE = f"/{NAME}"
DATA = bytes(range(256)) * 400
SIZE = len(DATA)
DIGEST = sha256(DATA)
THING = PageId("simple", "thing")


def listed(url: str = FILE_URL, **fields: object) -> dict[str, object]:
    """Return a file as upstream's page lists it. Further fields have their Python names."""
    more = {name.replace("_", "-"): value for name, value in fields.items()}
    return {"filename": url.rpartition("/")[2], "url": url, "hashes": {"sha256": DIGEST.hex}, **more}


class ProxyTestCase(MemoryTestCase):
    """A proxy with an in-memory wire and catalog, and storage on disk."""

    cold_files = ColdFilePolicy()
    credentials: Credentials | None = None
    url = URL
    reads_wheels = False

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.root = self.directory()
        self.before = open_descriptors()
        self.addCleanup(lambda: self.assertEqual(self.before, open_descriptors()))
        self.addCleanup(self.wire.hang_up)
        self.catalog = MemoryCatalog(self.clock)
        self.processes = count()
        self.upstream_lists(listed())
        self.proxy = self.make_proxy()

    def make_proxy(self) -> Proxy:
        """Return the proxy of a process that has just started."""
        upstream = Upstream(self.clock, self.url, credentials=self.credentials, agent=self.wire.agent)
        ecosystem, threads = PyPI(self.url), AtOnce()
        self.storage = DiskStorage(self.root / "files", threads)
        room = Room(self.root / "room")
        self.addCleanup(room.close)
        self.drafts = Drafts(self.root / "drafts", room)
        leases, backoff = Leases(self.catalog, "disk", self.clock), Backoff(self.catalog, self.clock)
        strict = self.cold_files.strict
        renderer = Renderer("pypi", self.url, render_at_once, strict)
        self.ranges = RangeSupport(upstream, self.catalog, self.clock)
        wheels = WheelMetadata(
            self.ranges, self.storage, threads, renderer.wheel_metadata, self.read_elsewhere, strict=strict
        )
        tools = FetchTools(
            upstream, self.storage, threads, self.clock, leases, backoff, self.catalog, decoding=threads, wheels=wheels
        )
        self.fetches = Fetches(tools, self.drafts)
        self.pages = PageCache(
            ecosystem,
            self.catalog,
            upstream,
            renderer,
            self.clock,
            Leases(self.catalog, str(next(self.processes)), self.clock, PAGE_LEASE),
            backoff,
            cache_time=300,
            negative_cache_time=60,
            stale_after=3,
            memory=MemoryCache(100_000_000),
            threads=AtOnce(),
            ranges=self.ranges if self.reads_wheels else None,
        )
        self.queue = MemoryQueue(self.clock)
        ranges = ColdRanges(upstream, self.ranges)
        self.cold = ColdFiles(self.cold_files, self.fetches, self.queue, upstream, self.clock, ranges)
        checks, wheel_checks = FileChecks(self.catalog, upstream, self.clock), WheelChecks(wheels, self.catalog)
        listings = CachedListings(ecosystem, self.pages, self.catalog)
        stored = StoredFiles(ecosystem, self.catalog, self.storage, checks, wheel_checks, listings)
        offers = Offers(self.fetches, self.pages, listings) if self.reads_wheels else None
        if offers is not None:
            self.fetches.on_stored = offers.note
        return Proxy(ecosystem, self.pages, listings, stored, self.cold, offers)

    async def read_elsewhere(self, stored: StoredFile, asked: ByteRange) -> FileRange | None:
        """Read a range of a stored file that is not on this host's disk."""
        raise StorageDown("there is no bucket")

    def upstream_lists(self, *files: dict[str, object]) -> None:
        self.wire.reply(PAGE, 200, simple_page(*files), content_type="application/json")

    def cache_page(self) -> None:
        self.now(self.pages.get(THING))

    def store_file(self, data: bytes = DATA) -> Path:
        """Store the file, and return its path."""
        draft = self.root / "a.draft"
        draft.write_bytes(data)
        stored = self.now(self.storage.commit(LINK, draft, sha256(data)))
        assert stored.path is not None
        return stored.path

    def request_file(self, link: str = LINK, *, describe: bool = False) -> Deferred[FileAnswer]:
        """Request the file. The answer may come later, and is closed after the test."""
        pending = self.start(self.proxy.file(link, FileRequest(describe=describe)))
        pending.addCallback(self.close_after_test)
        self.clock.advance(0)
        return pending

    def close_after_test(self, answer: FileAnswer) -> FileAnswer:
        if isinstance(answer, LocalContent):
            self.addCleanup(answer.content.close)
        return answer

    def get(self, link: str = LINK, *, describe: bool = False) -> FileAnswer:
        return self.now(self.request_file(link, describe=describe))

    def get_content(self, link: str = LINK) -> LocalContent:
        answer = self.get(link)
        assert isinstance(answer, LocalContent), answer
        return answer

    def assert_fails(self, kind: type[Exception], link: str = LINK) -> Any:
        return self.failing(self.request_file(link), kind)

    def start_fetch(self) -> Deferred[FileAnswer]:
        """Request the file. Upstream has not answered yet."""
        pending = self.request_file()
        self.assertEqual(FILE, self.wire.last.path)
        return pending


class OrderTest(ProxyTestCase):
    """
    A file is looked for in storage, fetches, cached pages and upstream's page.

    Else it does not exist.
    """

    def test_stored_file_is_served_without_catalog_and_upstream(self) -> None:
        """A stored file is served without catalog and upstream (promise 6). Its record may be lost."""
        self.store_file()
        self.catalog.down = "gone"
        self.wire.refuses = True
        served = self.get_content()
        self.assertEqual((True, DIGEST, DATA), (served.hit, served.digest, os.pread(served.content.fd, SIZE, 0)))
        self.assertEqual([], self.wire.exchanges)

    def test_second_request_joins_the_first(self) -> None:
        """Concurrent requests share one fetch and one content (promise 3)."""
        first, second = self.start_fetch(), self.request_file()
        self.assertEqual([PAGE, FILE], self.wire.paths)
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        answers = self.now(first), self.now(second), self.get_content()
        assert all(isinstance(answer, LocalContent) for answer in answers)
        self.assertEqual(1, len({answer.content for answer in answers if isinstance(answer, LocalContent)}))
        self.assertEqual([False] * 3, [answer.hit for answer in answers if isinstance(answer, LocalContent)])
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_file_on_a_cached_page_is_fetched(self) -> None:
        """A file on a cached page of any age is fetched without requesting the page."""
        self.cache_page()
        self.clock.advance(10_000)
        self.start_fetch()
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_file_on_upstreams_page_is_fetched(self) -> None:
        """With an empty catalog, the project's page is fetched again (promise 6)."""
        self.start_fetch()
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_file_on_a_newer_page_is_fetched(self) -> None:
        """A stale page that does not list the file is fetched again. A lock file may be newer than the cached page."""
        self.upstream_lists()
        self.cache_page()
        self.assert_fails(NotFound)
        self.upstream_lists(listed())
        self.clock.advance(300)
        self.start_fetch()
        self.assertEqual([PAGE, PAGE, FILE], self.wire.paths)

    def test_file_that_no_page_lists_does_not_exist(self) -> None:
        """A link that no page lists is not requested from its host (promise 10)."""
        made_up = (
            f"https/files.example/other/{NAME}",
            f"http/files.example/{NAME}",
            f"https/169.254.169.254/{NAME}",
            "https/files.example/thing-2.0.tar.gz",
            f"{LINK}.metadata",
        )
        for link in made_up:
            self.assert_fails(NotFound, link)
        self.assertEqual({PAGE}, set(self.wire.paths))
        self.assertEqual({URL}, {exchange.origin for exchange in self.wire.exchanges})

    def test_link_without_a_project_causes_no_request(self) -> None:
        """A link without a project name causes no request, since no page could list it."""
        self.assert_fails(NotFound, "https/evil.example/latest")
        self.assertEqual([], self.wire.exchanges)

    def test_file_of_a_missing_project_does_not_exist(self) -> None:
        """The 404 of the project's page is cached for its files."""
        self.wire.reply(PAGE, 404)
        self.assert_fails(NotFound)
        self.assert_fails(NotFound)
        self.assertEqual([PAGE], self.wire.paths)

    def test_upstream_that_fails_is_no_404(self) -> None:
        """The answer is no 404 while upstream's page can't be read (promise 7). Upstream may list the file."""
        self.wire.reply(PAGE, 503)
        self.assert_fails(UpstreamDown)
        self.clock.advance(2)
        self.upstream_lists()
        self.cache_page()
        self.clock.advance(300)
        self.wire.reply(PAGE, 503)
        self.assert_fails(UpstreamDown)
        self.assert_fails(UpstreamDown)

    def test_stray_link_is_found_through_the_catalog(self) -> None:
        """The catalog finds the page of a file whose name has no project."""
        url = "https://files.example/archive.zip"
        self.upstream_lists(listed(), listed(url))
        self.assert_fails(NotFound, "https/files.example/archive.zip")
        self.cache_page()
        self.request_file("https/files.example/archive.zip")
        self.assertEqual("/archive.zip", self.wire.last.path)

    def test_stray_link_that_was_removed_does_not_exist(self) -> None:
        """A file that its page no longer lists does not exist. The catalog only knows the page to look at."""
        url = "https://files.example/archive.zip"
        self.upstream_lists(listed(url))
        self.cache_page()
        self.upstream_lists()
        self.clock.advance(300)
        self.cache_page()
        self.assert_fails(NotFound, "https/files.example/archive.zip")


class StoredTest(ProxyTestCase):
    """Stored files are served if they match the page."""

    def test_fetched_file_is_stored(self) -> None:
        """The first request is a miss, the second a hit."""
        pending = self.start_fetch()
        self.wire.last.answer(body=DATA)
        first = self.now(pending)
        assert isinstance(first, LocalContent)
        self.assertEqual((False, True), (first.hit, self.get_content().hit))
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_lost_file_is_fetched_again(self) -> None:
        """A file whose bytes are gone is fetched again, without an error (promise 6)."""
        self.store_file().unlink()
        self.start_fetch()

    def test_file_deleted_before_it_is_opened_is_fetched_again(self) -> None:
        """A file that is deleted before it is opened is fetched again."""
        self.store_file()
        with mock.patch.object(Content, "stored", side_effect=FileNotFoundError):
            pending = self.request_file()
        self.assertNoResult(pending)
        self.assertEqual(FILE, self.wire.last.path)

    def test_file_with_a_new_digest_is_fetched_again(self) -> None:
        """A file whose digest on the page has changed replaces the stored one."""
        self.store_file(b"old bytes")
        self.cache_page()
        pending = self.start_fetch()
        self.wire.last.answer(body=DATA)
        self.now(pending)
        self.assertEqual((True, DIGEST), ((served := self.get_content()).hit, served.digest))

    def test_head_of_a_cold_file_has_upstreams_size(self) -> None:
        """
        A HEAD of a file that is not stored has the size that upstream tells: that of the page may be wrong.

        An upstream that does not answer HEAD tells it with the first byte. If that fails too, the file is fetched.
        """
        self.upstream_lists(listed(size=SIZE + 1))
        pending = self.request_file(describe=True)
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        self.assertEqual(FileDescription(DIGEST, SIZE), self.now(pending))
        self.assertEqual("HEAD", self.wire.last.method)
        pending = self.request_file(describe=True)
        self.wire.last.answer(501)
        self.wire.last.answer(206, DATA[:1], content_range=f"bytes 0-0/{SIZE}")
        self.assertEqual(("GET", "bytes=0-0"), (self.wire.last.method, self.wire.last.headers["range"]))
        self.assertEqual(FileDescription(DIGEST, SIZE), self.now(pending))
        pending = self.request_file(describe=True)
        self.wire.last.answer(501)
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        self.assertNoResult(pending)
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        served = self.now(pending)
        assert isinstance(served, LocalContent)
        self.assertEqual(SIZE, served.content.total)

    def test_head_fails_with_upstream(self) -> None:
        """If upstream fails, a HEAD of a file that is not stored fails as a GET does."""
        self.upstream_lists(listed(size=SIZE))
        pending = self.request_file(describe=True)
        self.wire.last.answer(500)
        self.failing(pending, UpstreamDown)


class StreamTest(ProxyTestCase):
    """With MYPYPI_COLD_FILES=stream, clients get bytes as they arrive."""

    def test_client_gets_the_first_bytes_at_once(self) -> None:
        """The client gets the first bytes at once, with size and digest. The last bytes are held back."""
        pending = self.start_fetch()
        self.assertNoResult(pending)
        self.wire.last.send(response(200, DATA[: HELD_BACK + 10], content_length=str(SIZE)))
        served = self.now(pending)
        assert isinstance(served, LocalContent)
        self.assertEqual((SIZE, 10, DIGEST), (served.content.total, served.content.readable, served.digest))

    def test_file_without_a_digest_gets_one_when_stored(self) -> None:
        """A file listed without a digest gets one when it is stored."""
        self.upstream_lists(listed(hashes={}))
        pending = self.start_fetch()
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        served = self.now(pending)
        assert isinstance(served, LocalContent)
        self.assertIsNone(served.digest)
        self.wire.last.send(DATA)
        self.assertEqual(DIGEST, self.get_content().digest)

    def test_client_that_leaves_does_not_stop_the_fetch(self) -> None:
        """A client that leaves does not cancel the fetch (promise 4)."""
        pending = self.start_fetch()
        pending.cancel()
        self.failing(pending, CancelledError)
        self.wire.last.answer(body=DATA)
        self.assertTrue(self.get_content().hit)

    def test_fetch_that_fails_before_the_first_byte_is_an_error(self) -> None:
        """An error before the first byte is returned. A request after the back-off fetches again."""
        for _ in range(2):
            pending = self.start_fetch()
            self.wire.last.answer(503, retry_after="7")
            self.failing(pending, UpstreamDown)
            self.assertEqual(7, self.failing(self.request_file(), UpstreamDown).retry_after)
            self.clock.advance(7)
        self.assertEqual([PAGE, FILE, FILE], self.wire.paths)

    def test_refused_file_is_an_error_for_its_clients_alone(self) -> None:
        """A file that upstream refuses has upstream's status and reason, and is not requested again for a minute."""
        for status, shown in ((401, 403), (402, 402), (403, 403), (410, 410), (451, 451)):
            before = self.wire.paths.count(FILE)
            pending = self.start_fetch()
            self.wire.last.answer(status, b'{"error": "blocked by policy"}', content_type="application/json")
            error = self.failing(pending, UpstreamRefused)
            self.assertEqual(shown, error.status)
            self.assertIn("blocked by policy", str(error))
            again = self.failing(self.request_file(), UpstreamRefused)
            self.assertEqual((shown, str(error)), (again.status, str(again)))
            self.assertEqual(before + 1, self.wire.paths.count(FILE))
            self.clock.advance(60)

    def test_small_file_with_other_bytes_is_an_error(self) -> None:
        """A digest mismatch before the first byte is an error."""
        pending = self.start_fetch()
        self.wire.last.answer(body=b"other bytes", content_encoding="gzip")
        self.failing(pending, DigestMismatch)


class WithheldTest(ProxyTestCase):
    """Pages only list files that upstream has (promise 9)."""

    def assert_metadata_is_withheld(self, url: str) -> None:
        """Assert that the metadata file is withheld after upstream answers 404."""
        link = url.replace("://", "/")
        self.upstream_lists(listed(url, core_metadata=True))
        self.cache_page()
        pending = self.request_file(f"{link}.metadata")
        self.assertTrue(self.wire.last.path.endswith(".metadata"))
        self.wire.last.answer(404)
        self.failing(pending, NotFound)
        page = self.now(self.pages.get(THING)).page
        listing = self.now(self.pages.listing(page))
        self.assertIsNotNone(listing.get(link))
        self.assertEqual(1, len(listing))

    def test_metadata_that_upstream_does_not_have_is_withheld(self) -> None:
        """Metadata that upstream does not have is withheld. Clients request listed metadata, and fail without it."""
        self.assert_metadata_is_withheld(FILE_URL)

    def test_metadata_of_a_stray_file_is_withheld(self) -> None:
        """The page is found through the catalog if the file's name has no project."""
        self.assert_metadata_is_withheld("https://files.example/archive-of-all.zip")

    def test_page_stays_confirmed_when_upstream_fails(self) -> None:
        """A 503 does not withhold a file, since the file may exist."""
        self.upstream_lists(listed(core_metadata=True))
        pending = self.request_file(f"{LINK}.metadata")
        self.wire.last.answer(503)
        self.failing(pending, UpstreamDown)
        self.cache_page()
        self.assertEqual(1, self.wire.paths.count(PAGE))


class RedirectTest(ProxyTestCase):
    """With MYPYPI_COLD_FILES=redirect, clients are redirected to upstream while a worker fetches the file."""

    cold_files = ColdFilePolicy(redirect=True)

    def test_client_is_redirected_while_a_worker_fetches(self) -> None:
        """Clients are redirected until a worker has stored the file. Then this server serves it."""
        self.assertEqual(RedirectToUpstream(FILE_URL), self.get())
        self.assertEqual(RedirectToUpstream(FILE_URL), self.get())
        self.assertEqual([PAGE], self.wire.paths)
        (taken,) = self.now(self.queue.take(2))
        self.start(self.fetches.fetch_and_store(file_of(taken.job)))
        self.wire.last.answer(body=DATA)
        self.assertTrue(self.get_content().hit)

    def test_file_is_fetched_here_when_the_queue_is_down(self) -> None:
        """The file is fetched here if the queue is down (promise 8)."""
        self.queue.down = "gone"
        pending = self.start_fetch()
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        self.assertIsInstance(self.now(pending), LocalContent)


class StrictRedirectTest(ProxyTestCase):
    """With MYPYPI_UPSTREAM_STRICT too, the client waits for the worker, and is never redirected."""

    cold_files = ColdFilePolicy(redirect=True, strict=True, strict_wait=10)

    def test_client_waits_until_a_worker_has_stored_the_file(self) -> None:
        """The client waits until the worker has stored the file."""
        pending = self.request_file()
        self.clock.advance(5)
        self.assertNoResult(pending)
        self.store_file()
        self.clock.advance(1)
        self.assertIsInstance(self.now(pending), LocalContent)

    def test_client_that_waited_too_long_is_told_to_retry(self) -> None:
        """After the wait the client gets a 503 with Retry-After. Clients would time out later."""
        pending = self.request_file()
        self.clock.pump([1] * 11)
        self.failing(pending, StillFetching)


class CredentialsTest(ProxyTestCase):
    """A client without upstream's credentials is not redirected to upstream."""

    cold_files = ColdFilePolicy(redirect=True)
    credentials = Credentials("jane", "secret")
    url = "https://files.example"

    def test_file_that_needs_credentials_is_streamed(self) -> None:
        """A file that needs credentials is streamed instead of redirected."""
        pending = self.start_fetch()
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        self.assertIsInstance(self.now(pending), LocalContent)

    def test_file_that_needs_credentials_is_passed_through_when_the_disk_is_full(self) -> None:
        """A file that needs credentials is passed through when the disk is full (promise 8)."""
        with mock.patch.object(Drafts, "open", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            answer = self.get()
        assert isinstance(answer, PassThrough)
        self.assertEqual((LINK, FILE_URL), (answer.file.link, answer.file.url))


class StrictTest(ProxyTestCase):
    """With MYPYPI_UPSTREAM_STRICT, clients get only checked bytes, and no redirect."""

    cold_files = ColdFilePolicy(strict=True, strict_wait=10)

    def wait(self, seconds: float, *, total: int = SIZE, before: int = 0, meanwhile: int = 0) -> StillFetching:
        """
        Return the error of a client that waited.

        `before` bytes arrived before its request, `meanwhile` bytes after it.
        """
        first = self.start_fetch()
        self.wire.last.send(response(200, b"", content_length=str(total)))
        self.wire.last.send(bytes(before))
        pending = self.request_file()
        self.wire.last.send(bytes(meanwhile))
        self.clock.advance(seconds)
        self.failing(first, StillFetching)
        error = self.failing(pending, StillFetching)
        assert isinstance(error, StillFetching)
        return error

    def test_client_waits_until_the_file_is_checked(self) -> None:
        """The client waits until the file is checked, and gets all of it."""
        pending = self.start_fetch()
        self.wire.last.send(response(200, DATA[:-1], content_length=str(SIZE)))
        self.clock.advance(9.9)
        self.assertNoResult(pending)
        self.wire.last.send(DATA[-1:])
        served = self.now(pending)
        assert isinstance(served, LocalContent)
        self.assertEqual((True, SIZE), (served.content.whole, served.content.readable))

    def test_other_bytes_are_an_error(self) -> None:
        """A digest mismatch is an error, without a byte of the file."""
        pending = self.start_fetch()
        self.wire.last.answer(body=b"other bytes")
        self.failing(pending, DigestMismatch)

    def test_retry_after_is_estimated_from_the_rate(self) -> None:
        """
        Retry-After is estimated from the rate during the wait.

        If 40 of 100 kB took 10 s, the rest takes 15 s. The fetch goes on.
        """
        error = self.wait(10, total=100_000, meanwhile=40_000)
        self.assertEqual((503, 15), (error.status, error.retry_after))
        self.assertEqual(1, len(self.fetches))

    def test_estimate_ignores_bytes_from_before_the_request(self) -> None:
        """Bytes from before the request do not count. 10 of the other 60 kB took 10 s, so the rest takes 50 s."""
        self.assertEqual(50, self.wait(10, total=100_000, before=40_000, meanwhile=10_000).retry_after)

    def test_estimate_stays_within_bounds(self) -> None:
        """Retry-After is bounded to 1 to 60 seconds."""
        self.assertEqual(1, self.wait(10, total=100_000, meanwhile=99_999).retry_after)
        self.wire.last.cut()
        self.wire.reply(FILE, 404)
        self.clock.advance(1)
        self.wire.replies.pop(FILE)
        self.clock.advance(60)
        self.assertEqual(60, self.wait(10, total=10_000_000, meanwhile=1).retry_after)

    def test_stalled_fetch_has_the_longest_estimate(self) -> None:
        """A fetch without progress has the longest Retry-After."""
        self.assertEqual(60, self.wait(10, total=100_000, before=50_000).retry_after)

    def test_file_that_can_not_be_stored_is_an_error(self) -> None:
        """A file that can't be stored is an error. A redirect would give the client unchecked bytes."""
        with mock.patch.object(Drafts, "open", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.assert_fails(StorageDown)


class StorageFailureTest(ProxyTestCase):
    """Clients get files while storage fails (promise 8)."""

    def disk_full(self) -> Any:
        return mock.patch.object(Drafts, "open", side_effect=OSError(errno.ENOSPC, "No space left on device"))

    def test_client_is_redirected_when_no_draft_can_be_created(self) -> None:
        """Clients are redirected to upstream until a draft can be created again."""
        with self.disk_full():
            self.assertEqual(RedirectToUpstream(FILE_URL), self.get())
        self.start_fetch()

    def test_client_is_redirected_when_the_disk_fills_up_before_the_first_byte(self) -> None:
        """A client is redirected if the disk fills up before its first byte."""
        pending = self.start_fetch()
        with mock.patch("os.pwrite", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.wire.last.answer(body=DATA, content_encoding="gzip")
        self.assertEqual(RedirectToUpstream(FILE_URL), self.now(pending))

    def test_client_is_redirected_while_too_many_fetches_run(self) -> None:
        """Clients are redirected while too many fetches run. A running fetch can still be joined."""
        self.cold_files = ColdFilePolicy(most_fetches=1)
        self.proxy = self.make_proxy()
        other = "https://files.example/thing-2.0-py3-none-any.whl"
        self.upstream_lists(listed(), listed(other))
        self.start_fetch()
        self.assertEqual(RedirectToUpstream(other), self.get(other.replace("://", "/")))
        self.assertNoResult(self.request_file())

    def test_unreadable_storage_is_skipped(self) -> None:
        """A file is fetched again if the storage can't be read."""
        self.store_file()
        with mock.patch(
            "mypypi.storage.disk.os.scandir", side_effect=PermissionError(errno.EACCES, "Permission denied")
        ):
            self.request_file()
        self.assertEqual(FILE, self.wire.last.path)

    def test_unreadable_stored_file_is_skipped(self) -> None:
        """A stored file that can't be opened is fetched again."""
        self.store_file()
        with mock.patch.object(Content, "stored", side_effect=PermissionError(errno.EACCES, "Permission denied")):
            self.request_file()
        self.assertEqual(FILE, self.wire.last.path)

    def test_storage_failure_is_logged_once(self) -> None:
        """A storage failure is logged when it begins and when it ends."""
        with mock.patch.object(self.cold, "log") as log:
            with self.disk_full():
                for _ in range(5):
                    self.get()
            pending = self.start_fetch()
            self.request_file()
            self.assertEqual(0, log.info.call_count)
            self.wire.last.answer(body=DATA)
            self.now(pending)
        self.assertEqual((1, 1), (log.error.call_count, log.info.call_count))

    def test_read_failure_is_logged_once(self) -> None:
        """A read failure is logged when it begins and when it ends."""
        self.store_file()
        with mock.patch.object(self.proxy.stored, "log") as log:
            with mock.patch(
                "mypypi.storage.disk.os.scandir", side_effect=PermissionError(errno.EACCES, "Permission denied")
            ):
                self.request_file()
                self.request_file()
            self.get_content().content.close()
        self.assertEqual((1, 1), (log.error.call_count, log.info.call_count))
