"""What a request for a file means: where it is looked for, in which order, and what a client gets meanwhile."""

from __future__ import annotations

import errno
import os
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred

from mypypi.ecosystems.pypi import PyPI
from mypypi.errors import DigestMismatch, NotFound, StillFetching, StorageDown, UpstreamDown
from mypypi.files.content import HELD_BACK, Content
from mypypi.files.drafts import Drafts
from mypypi.files.fetch import Fetches
from mypypi.model import PageId
from mypypi.pages.memory_cache import MemoryCache
from mypypi.pages.page_cache import PageCache
from mypypi.pages.rendering import Renderer
from mypypi.pages.revalidation import PAGE_LEASE
from mypypi.proxy.answers import FileAnswer, FileDescription, LocalContent, PassThrough, RedirectToUpstream
from mypypi.proxy.cold_files import ColdFilePolicy, ColdFiles
from mypypi.proxy.proxy import Proxy
from mypypi.redis.leases import Leases
from mypypi.storage.disk import DiskStorage
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.client import Upstream
from mypypi.upstream.requester import Credentials
from mypypi.worker.jobs import file_of
from tests.support.fakes import MemoryCatalog, MemoryQueue
from tests.support.memory import AtOnce, MemoryTestCase, Wire, open_descriptors, response, sha256, simple_page

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
    """A file as upstream's page lists it, with further fields by their names in Python."""
    more = {name.replace("_", "-"): value for name, value in fields.items()}
    return {"filename": url.rpartition("/")[2], "url": url, "hashes": {"sha256": DIGEST.hex}, **more}


class ProxyTestCase(MemoryTestCase):
    """A proxy over a wire, with a catalog in memory and a storage on disk."""

    cold_files = ColdFilePolicy()
    credentials: Credentials | None = None
    url = URL

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
        self.proxy = self.make()

    def make(self) -> Proxy:
        """The proxy of a process that has just started."""
        upstream = Upstream(self.clock, self.url, credentials=self.credentials, agent=self.wire.agent)
        ecosystem, threads = PyPI(self.url), AtOnce()
        self.storage = DiskStorage(self.root / "files", threads)
        self.drafts = Drafts(self.root / "drafts")
        self.fetches = Fetches(
            upstream, self.drafts, self.storage, threads, self.clock, Leases(self.catalog, "disk", self.clock)
        )
        press = Renderer("pypi", self.url, threads)
        self.pages = PageCache(
            ecosystem,
            self.catalog,
            upstream,
            press,
            threads,
            self.clock,
            Leases(self.catalog, str(next(self.processes)), self.clock, PAGE_LEASE),
            Backoff(self.catalog, self.clock),
            cache_time=300,
            negative_cache_time=60,
            stale_after=3,
            memory=MemoryCache(100_000_000),
        )
        self.queue = MemoryQueue(self.clock)
        self.cold = ColdFiles(self.cold_files, self.fetches, self.queue, upstream, self.clock)
        return Proxy(ecosystem, self.pages, self.catalog, self.storage, self.cold)

    def upstream_lists(self, *files: dict[str, object]) -> None:
        self.wire.reply(PAGE, 200, simple_page(*files), content_type="application/json")

    def page_is_known(self) -> None:
        self.now(self.pages.get(THING))

    def is_stored(self, data: bytes = DATA) -> Path:
        """Where it lies."""
        draft = self.root / "a.draft"
        draft.write_bytes(data)
        stored = self.now(self.storage.commit(LINK, draft, sha256(data)))
        assert stored.path is not None
        return stored.path

    def asking(self, link: str = LINK, *, describe: bool = False) -> Deferred[FileAnswer]:
        """An answer that may have to be waited for. What it serves is closed with the test."""
        asked = self.start(self.proxy.file(link, describe=describe))
        asked.addCallback(self.closed_in_the_end)
        self.clock.advance(0)
        return asked

    def closed_in_the_end(self, answer: FileAnswer) -> FileAnswer:
        if isinstance(answer, LocalContent):
            self.addCleanup(answer.content.close)
        return answer

    def get(self, link: str = LINK, *, describe: bool = False) -> FileAnswer:
        return self.now(self.asking(link, describe=describe))

    def served(self, link: str = LINK) -> LocalContent:
        answer = self.get(link)
        assert isinstance(answer, LocalContent), answer
        return answer

    def fails(self, kind: type[Exception], link: str = LINK) -> Any:
        return self.failing(self.asking(link), kind)

    def fetching(self) -> Deferred[FileAnswer]:
        """A request for the file that upstream has not answered yet."""
        asked = self.asking()
        self.assertEqual(FILE, self.wire.last.path)
        return asked


class OrderTest(ProxyTestCase):
    """Stored, being fetched, listed by a page that we know, listed by upstream; else there is no such file."""

    def test_stored_file_is_served_without_a_question(self) -> None:
        """Promise 6: bytes whose record is gone are found again. Neither catalog nor upstream is needed."""
        self.is_stored()
        self.catalog.down = "gone"
        self.wire.refuses = True
        served = self.served()
        self.assertEqual((True, DIGEST, DATA), (served.hit, served.digest, os.pread(served.content.fd, SIZE, 0)))
        self.assertEqual([], self.wire.exchanges)

    def test_second_request_joins_the_first(self) -> None:
        """Promise 3: one fetch, and one content for all."""
        first, second = self.fetching(), self.asking()
        self.assertEqual([PAGE, FILE], self.wire.paths)
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        answers = self.now(first), self.now(second), self.served()
        assert all(isinstance(answer, LocalContent) for answer in answers)
        self.assertEqual(1, len({answer.content for answer in answers if isinstance(answer, LocalContent)}))
        self.assertEqual([False] * 3, [answer.hit for answer in answers if isinstance(answer, LocalContent)])
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_file_that_a_known_page_lists_is_fetched(self) -> None:
        """However old the page is: upstream is asked for nothing but the file."""
        self.page_is_known()
        self.clock.advance(10_000)
        self.fetching()
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_file_that_only_upstreams_page_lists_is_fetched(self) -> None:
        """Promise 6: a catalog that was emptied is filled by reading the project's page again."""
        self.fetching()
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_file_that_a_newer_page_lists_is_fetched(self) -> None:
        """A lock file may be newer than the page that we hold, once that is no longer fresh."""
        self.upstream_lists()
        self.page_is_known()
        self.fails(NotFound)
        self.upstream_lists(listed())
        self.clock.advance(300)
        self.fetching()
        self.assertEqual([PAGE, PAGE, FILE], self.wire.paths)

    def test_file_that_no_page_lists_does_not_exist(self) -> None:
        """Promise 10: whatever a client makes up, nothing but upstream's own pages is ever asked for."""
        made_up = (
            f"https/files.example/other/{NAME}",
            f"http/files.example/{NAME}",
            f"https/169.254.169.254/{NAME}",
            "https/files.example/thing-2.0.tar.gz",
            f"{LINK}.metadata",
        )
        for link in made_up:
            self.fails(NotFound, link)
        self.assertEqual({PAGE}, set(self.wire.paths))
        self.assertEqual({URL}, {exchange.origin for exchange in self.wire.exchanges})

    def test_link_that_tells_no_project_costs_no_connection(self) -> None:
        """There is no page that it could be on."""
        self.fails(NotFound, "https/evil.example/latest")
        self.assertEqual([], self.wire.exchanges)

    def test_file_of_a_project_that_upstream_does_not_have_does_not_exist(self) -> None:
        """404, remembered as any page's."""
        self.wire.reply(PAGE, 404)
        self.fails(NotFound)
        self.fails(NotFound)
        self.assertEqual([PAGE], self.wire.paths)

    def test_upstream_that_fails_is_no_404(self) -> None:
        """Promise 7: whether it lists the file is not known, with an old page or with none."""
        self.wire.reply(PAGE, 503)
        self.fails(UpstreamDown)
        self.upstream_lists()
        self.page_is_known()
        self.clock.advance(300)
        self.wire.reply(PAGE, 503)
        self.fails(UpstreamDown)
        self.fails(UpstreamDown)

    def test_stray_link_is_found_by_the_page_that_lists_it(self) -> None:
        """A file whose name does not tell its project: the catalog knows the page."""
        url = "https://files.example/archive.zip"
        self.upstream_lists(listed(), listed(url))
        self.fails(NotFound, "https/files.example/archive.zip")
        self.page_is_known()
        self.asking("https/files.example/archive.zip")
        self.assertEqual("/archive.zip", self.wire.last.path)

    def test_stray_link_of_a_page_that_no_longer_lists_it_does_not_exist(self) -> None:
        """What the catalog knows of it is only where to look."""
        url = "https://files.example/archive.zip"
        self.upstream_lists(listed(url))
        self.page_is_known()
        self.upstream_lists()
        self.clock.advance(300)
        self.page_is_known()
        self.fails(NotFound, "https/files.example/archive.zip")


class StoredTest(ProxyTestCase):
    """What is stored, and what the index says of it now."""

    def test_file_that_is_fetched_is_stored_for_the_next(self) -> None:
        """Miss, then hit."""
        asked = self.fetching()
        self.wire.last.answer(body=DATA)
        first = self.now(asked)
        assert isinstance(first, LocalContent)
        self.assertEqual((False, True), (first.hit, self.served().hit))
        self.assertEqual([PAGE, FILE], self.wire.paths)

    def test_bytes_that_are_gone_are_fetched_again(self) -> None:
        """Promise 6: never an error of ours."""
        self.is_stored().unlink()
        self.fetching()

    def test_bytes_that_go_while_we_look_are_fetched_again(self) -> None:
        """Found, and deleted before they could be opened."""
        self.is_stored()
        with mock.patch.object(Content, "stored", side_effect=FileNotFoundError):
            asked = self.asking()
        self.assertNoResult(asked)
        self.assertEqual(FILE, self.wire.last.path)

    def test_other_bytes_behind_the_same_url_are_fetched(self) -> None:
        """Once a page says so; they take the place of the old ones."""
        self.is_stored(b"old bytes")
        self.page_is_known()
        asked = self.fetching()
        self.wire.last.answer(body=DATA)
        self.now(asked)
        self.assertEqual((True, DIGEST), ((served := self.served()).hit, served.digest))

    def test_file_is_described_from_what_the_page_lists(self) -> None:
        """A HEAD costs no fetch where the size is known; where it is not, upstream has to say."""
        self.upstream_lists(listed(size=SIZE))
        self.assertEqual(FileDescription(DIGEST, SIZE), self.get(describe=True))
        self.assertEqual([PAGE], self.wire.paths)
        self.upstream_lists(listed())
        self.clock.advance(300)
        self.page_is_known()
        asked = self.asking(describe=True)
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        served = self.now(asked)
        assert isinstance(served, LocalContent)
        self.assertEqual(SIZE, served.content.total)


class StreamTest(ProxyTestCase):
    """MYPYPI_COLD_FILES=stream: bytes go to clients as they come."""

    def test_client_gets_bytes_as_soon_as_there_are_any(self) -> None:
        """With what is known of the file; its last bytes are held back."""
        asked = self.fetching()
        self.assertNoResult(asked)
        self.wire.last.send(response(200, DATA[: HELD_BACK + 10], content_length=str(SIZE)))
        served = self.now(asked)
        assert isinstance(served, LocalContent)
        self.assertEqual((SIZE, 10, DIGEST), (served.content.total, served.content.readable, served.digest))

    def test_file_without_a_digest_has_none_while_it_streams(self) -> None:
        """And one of its own when it is stored."""
        self.upstream_lists(listed(hashes={}))
        asked = self.fetching()
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        served = self.now(asked)
        assert isinstance(served, LocalContent)
        self.assertIsNone(served.digest)
        self.wire.last.send(DATA)
        self.assertEqual(DIGEST, self.served().digest)

    def test_client_that_leaves_does_not_stop_the_fetch(self) -> None:
        """Promise 4."""
        asked = self.fetching()
        asked.cancel()
        self.failing(asked, CancelledError)
        self.wire.last.answer(body=DATA)
        self.assertTrue(self.served().hit)

    def test_fetch_that_fails_before_it_began_tells_why(self) -> None:
        """And the next request tries again."""
        for _ in range(2):
            asked = self.fetching()
            self.wire.last.answer(503)
            self.failing(asked, UpstreamDown)
        self.assertEqual([PAGE, FILE, FILE], self.wire.paths)

    def test_small_file_with_other_bytes_is_an_error(self) -> None:
        """Nobody was given anything yet."""
        asked = self.fetching()
        self.wire.last.answer(body=b"other bytes", content_encoding="gzip")
        self.failing(asked, DigestMismatch)


class AdvertisedTest(ProxyTestCase):
    """Promise 9: what a page advertises can be fetched; what can't is not advertised any more."""

    def metadata_is_gone(self, url: str) -> None:
        link = url.replace("://", "/")
        self.upstream_lists(listed(url, core_metadata=True))
        self.page_is_known()
        asked = self.asking(f"{link}.metadata")
        self.assertTrue(self.wire.last.path.endswith(".metadata"))
        self.wire.last.answer(404)
        self.failing(asked, NotFound)
        page = self.now(self.pages.get(THING)).page
        self.assertEqual([link], list(self.now(self.pages.listing(page))))

    def test_metadata_that_upstream_does_not_have_is_withdrawn(self) -> None:
        """Clients ask for what is advertised, and fail when it is not there."""
        self.metadata_is_gone(FILE_URL)

    def test_metadata_of_a_stray_file_is_withdrawn(self) -> None:
        """The page that lists it is known to the catalog."""
        self.metadata_is_gone("https://files.example/archive-of-all.zip")

    def test_page_stays_confirmed_when_upstream_fails(self) -> None:
        """503 says nothing of what there is."""
        self.upstream_lists(listed(core_metadata=True))
        asked = self.asking(f"{LINK}.metadata")
        self.wire.last.answer(503)
        self.failing(asked, UpstreamDown)
        self.page_is_known()
        self.assertEqual(1, self.wire.paths.count(PAGE))


class RedirectTest(ProxyTestCase):
    """MYPYPI_COLD_FILES=redirect: the client goes to upstream, a worker fetches the file meanwhile."""

    cold_files = ColdFilePolicy(redirect=True)

    def test_client_is_sent_to_upstream_and_the_file_is_left_to_a_worker(self) -> None:
        """At once; who asks meanwhile is sent there too; when it is stored, it is served from here."""
        self.assertEqual(RedirectToUpstream(FILE_URL), self.get())
        self.assertEqual(RedirectToUpstream(FILE_URL), self.get())
        self.assertEqual([PAGE], self.wire.paths)
        (taken,) = self.now(self.queue.take(2))
        self.start(self.fetches.fetch_and_store(file_of(taken.job)))
        self.wire.last.answer(body=DATA)
        self.assertTrue(self.served().hit)

    def test_file_is_fetched_here_where_no_worker_can_be_told(self) -> None:
        """Promise 8: the queue is down, and the client still gets its bytes."""
        self.queue.down = "gone"
        asked = self.fetching()
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        self.assertIsInstance(self.now(asked), LocalContent)


class StrictRedirectTest(ProxyTestCase):
    """With MYPYPI_UPSTREAM_STRICT as well: the client waits for the worker, and is never sent to upstream."""

    cold_files = ColdFilePolicy(redirect=True, strict=True, strict_wait=10)

    def test_client_waits_until_a_worker_has_stored_the_file(self) -> None:
        """And gets it from here."""
        asked = self.asking()
        self.clock.advance(5)
        self.assertNoResult(asked)
        self.is_stored()
        self.clock.advance(1)
        self.assertIsInstance(self.now(asked), LocalContent)

    def test_client_that_waited_too_long_is_told_to_come_back(self) -> None:
        """503 with Retry-After, long before clients give up reading."""
        asked = self.asking()
        self.clock.pump([1] * 11)
        self.failing(asked, StillFetching)


class CredentialsTest(ProxyTestCase):
    """A client can't be sent where it lacks what we have."""

    cold_files = ColdFilePolicy(redirect=True)
    credentials = Credentials("jane", "secret")
    url = "https://files.example"

    def test_file_that_needs_credentials_is_streamed(self) -> None:
        """Though a redirect was asked for."""
        asked = self.fetching()
        self.wire.last.send(response(200, b"", content_length=str(SIZE)))
        self.assertIsInstance(self.now(asked), LocalContent)

    def test_file_that_needs_credentials_is_passed_through_where_it_can_not_be_kept(self) -> None:
        """Promise 8: the disk is full, and the client still gets its bytes."""
        with mock.patch.object(Drafts, "open", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            answer = self.get()
        assert isinstance(answer, PassThrough)
        self.assertEqual((LINK, FILE_URL), (answer.file.link, answer.file.url))


class StrictTest(ProxyTestCase):
    """MYPYPI_UPSTREAM_STRICT: never an unchecked byte, never a redirect."""

    cold_files = ColdFilePolicy(strict=True, strict_wait=10)

    def wait(self, seconds: float, *, total: int = SIZE, before: int = 0, meanwhile: int = 0) -> StillFetching:
        """What a client is told that waited, when so much had come before it asked and so much came meanwhile."""
        first = self.fetching()
        self.wire.last.send(response(200, b"", content_length=str(total)))
        self.wire.last.send(bytes(before))
        asked = self.asking()
        self.wire.last.send(bytes(meanwhile))
        self.clock.advance(seconds)
        self.failing(first, StillFetching)
        error = self.failing(asked, StillFetching)
        assert isinstance(error, StillFetching)
        return error

    def test_client_waits_until_the_file_is_checked(self) -> None:
        """Then it is served, all of it."""
        asked = self.fetching()
        self.wire.last.send(response(200, DATA[:-1], content_length=str(SIZE)))
        self.clock.advance(9.9)
        self.assertNoResult(asked)
        self.wire.last.send(DATA[-1:])
        served = self.now(asked)
        assert isinstance(served, LocalContent)
        self.assertEqual((True, SIZE), (served.content.whole, served.content.readable))

    def test_other_bytes_are_an_error(self) -> None:
        """502, and not a byte of them."""
        asked = self.fetching()
        self.wire.last.answer(body=b"other bytes")
        self.failing(asked, DigestMismatch)

    def test_client_that_waited_too_long_is_told_when_to_come_back(self) -> None:
        """Estimated from what came while it waited: 10 s for 40 of 100 kB, so 15 s for the rest. The fetch goes on."""
        error = self.wait(10, total=100_000, meanwhile=40_000)
        self.assertEqual((503, 15), (error.status, error.retry_after))
        self.assertEqual(1, len(self.fetches))

    def test_estimate_is_that_of_the_time_it_waited(self) -> None:
        """What had come before it asked tells nothing of the pace now: 10 s for 10 of 60 kB left, so 50."""
        self.assertEqual(50, self.wait(10, total=100_000, before=40_000, meanwhile=10_000).retry_after)

    def test_estimate_stays_within_bounds(self) -> None:
        """A second at least for what is nearly there, a minute at most for what is far away."""
        self.assertEqual(1, self.wait(10, total=100_000, meanwhile=99_999).retry_after)
        self.wire.last.cut()
        self.wire.reply(FILE, 404)
        self.clock.advance(1)
        self.wire.replies.pop(FILE)
        self.assertEqual(60, self.wait(10, total=10_000_000, meanwhile=1).retry_after)

    def test_estimate_for_what_does_not_move_is_the_longest(self) -> None:
        """And so is that for a fetch which has not even begun."""
        self.assertEqual(60, self.wait(10, total=100_000, before=50_000).retry_after)

    def test_file_that_can_not_be_taken_in_is_an_error(self) -> None:
        """Strict is strict: no redirect, no bytes that were not checked."""
        with mock.patch.object(Drafts, "open", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.fails(StorageDown)


class StorageTroubleTest(ProxyTestCase):
    """Promise 8: storage fails, and clients are served all the same."""

    def full(self) -> Any:
        return mock.patch.object(Drafts, "open", side_effect=OSError(errno.ENOSPC, "No space left on device"))

    def test_client_is_sent_to_upstream_where_no_draft_can_be_kept(self) -> None:
        """And served from here again when there is room."""
        with self.full():
            self.assertEqual(RedirectToUpstream(FILE_URL), self.get())
        self.fetching()

    def test_client_is_sent_to_upstream_when_the_disk_fills_up_before_a_byte_was_sent(self) -> None:
        """It has been told nothing yet."""
        asked = self.fetching()
        with mock.patch("os.pwrite", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.wire.last.answer(body=DATA, content_encoding="gzip")
        self.assertEqual(RedirectToUpstream(FILE_URL), self.now(asked))

    def test_client_is_sent_to_upstream_while_too_many_files_are_fetched(self) -> None:
        """Those that are being fetched can still be joined."""
        self.cold_files = ColdFilePolicy(most_fetches=1)
        self.proxy = self.make()
        other = "https://files.example/thing-2.0-py3-none-any.whl"
        self.upstream_lists(listed(), listed(other))
        self.fetching()
        self.assertEqual(RedirectToUpstream(other), self.get(other.replace("://", "/")))
        self.assertNoResult(self.asking())

    def test_storage_that_can_not_be_read_is_passed_over(self) -> None:
        """The file is fetched as if it were not there."""
        self.is_stored()
        with mock.patch(
            "mypypi.storage.disk.os.listdir", side_effect=PermissionError(errno.EACCES, "Permission denied")
        ):
            self.asking()
        self.assertEqual(FILE, self.wire.last.path)

    def test_stored_file_that_can_not_be_opened_is_passed_over(self) -> None:
        """As one that is gone."""
        self.is_stored()
        with mock.patch.object(Content, "stored", side_effect=PermissionError(errno.EACCES, "Permission denied")):
            self.asking()
        self.assertEqual(FILE, self.wire.last.path)

    def test_trouble_is_told_once(self) -> None:
        """When it comes and when it goes, and not for each request."""
        with mock.patch.object(self.cold, "log") as log:
            with self.full():
                for _ in range(5):
                    self.get()
            self.fetching()
            self.asking()
        self.assertEqual((1, 1), (log.error.call_count, log.info.call_count))

    def test_trouble_with_reading_is_told_once(self) -> None:
        """Likewise."""
        self.is_stored()
        with mock.patch.object(self.proxy, "log") as log:
            with mock.patch(
                "mypypi.storage.disk.os.listdir", side_effect=PermissionError(errno.EACCES, "Permission denied")
            ):
                self.asking()
                self.asking()
            self.served().content.close()
        self.assertEqual((1, 1), (log.error.call_count, log.info.call_count))
