"""One transfer from upstream into a draft: its pace, its interruptions, and what it must prove in the end."""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import twisted.internet.reactor  # noqa: F401 - which LoopingCall would import in the middle of a test
from twisted.internet.defer import Deferred

from mypypi.errors import (
    AlreadyStored,
    BadUpstreamResponse,
    DigestMismatch,
    FetchedElsewhere,
    Interrupted,
    NotFound,
    StillFetching,
    StorageDown,
    StorageFull,
    Truncated,
    UpstreamDown,
    UpstreamRefused,
    UpstreamUnreachable,
)
from mypypi.files.content import HELD_BACK, Content
from mypypi.files.drafts import Draft, Drafts, State
from mypypi.files.fetch import Fetches
from mypypi.files.receiver import BACKLOG
from mypypi.files.transfer import FRUITLESS
from mypypi.model import Digest, HeldLease, PackageFile, StoredFile, fetch_lease
from mypypi.redis.leases import Leases
from mypypi.storage.disk import DiskStorage
from mypypi.threads import Threads
from mypypi.upstream.client import Upstream
from tests.support.fakes import MemoryCatalog
from tests.support.memory import (
    AtOnce,
    MemoryTestCase,
    WhenTold,
    Wire,
    gzipped,
    open_descriptors,
    response,
    sha256,
)

URL = "https://files.example/a/thing-1.0.whl"
DATA = bytes(range(256)) * 80
SIZE = len(DATA)
DIGEST = sha256(DATA)
TIMEOUT = 15


def listed(digest: Digest | None = DIGEST, size: int | None = None) -> PackageFile:
    return PackageFile(URL.replace("://", "/"), URL, digest, size)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class FetchTestCase(MemoryTestCase):
    """Fetches over a wire, with a clock that stands still, and a storage on disk."""

    threads: Threads

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.root = self.directory()
        self.threads = AtOnce()
        self.storage = DiskStorage(self.root / "files", AtOnce())
        self.catalog = MemoryCatalog(self.clock)
        self.before = open_descriptors()
        self.addCleanup(self.assert_nothing_is_left)
        self.fetches = self.make()

    def make(self) -> Fetches:
        upstream = Upstream(self.clock, "https://index.example", timeout=TIMEOUT, agent=self.wire.agent)
        leases = Leases(self.catalog, "disk", self.clock)
        return Fetches(upstream, Drafts(self.root / "drafts"), self.storage, self.threads, self.clock, leases)

    def assert_nothing_is_left(self) -> None:
        """Whatever happened, a fetch that is over leaves no draft, no descriptor and no timer."""
        self.assertEqual(0, len(self.fetches))
        self.assertEqual([], os.listdir(self.root / "drafts"))
        self.assertEqual(self.before, open_descriptors())
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())

    def fetch(self, file: PackageFile | None = None) -> Content:
        return self.closing(self.fetches.start(file or listed()))

    def closing(self, content: Content) -> Content:
        # Cleanups run last first: the content is closed before anybody counts descriptors.
        self.addCleanup(content.close)
        return content

    def head(self, status: int = 200, length: int = SIZE, **headers: str) -> None:
        """Upstream's answer without its body yet."""
        self.wire.last.send(response(status, b"", content_length=str(length), **headers))

    def pause(self, seconds: float) -> None:
        """Time goes by until the next try is made, and upstream is asked."""
        before = len(self.wire.exchanges)
        self.clock.advance(seconds)
        self.assertEqual(before + 1, len(self.wire.exchanges))

    def cut_after(self, count: int, **headers: Any) -> None:
        """Upstream sends so many bytes of the file, and is gone."""
        self.head(**headers)
        self.wire.last.send(DATA[:count])
        self.wire.last.cut()

    def resume(self, at: int, **headers: str) -> None:
        """Upstream goes on from there to the end."""
        rest = DATA[at:]
        self.wire.last.answer(206, rest, content_range=f"bytes {at}-{SIZE - 1}/{SIZE}", **headers)

    def stored(self) -> StoredFile | None:
        return self.now(cast("Awaitable[StoredFile | None]", self.storage.find(listed().key)))

    def delete(self) -> None:
        """Somebody takes the file out of the storage."""
        self.now(cast("Awaitable[None]", self.storage.delete(listed().key)))

    def assert_stored(self) -> None:
        stored = self.stored()
        assert stored is not None
        assert stored.path is not None
        self.assertEqual((DATA, DIGEST), (stored.path.read_bytes(), stored.digest))

    def assert_failed(self, content: Content, kind: type[Exception]) -> None:
        """It failed in this way, nothing is kept, and its last bytes were never to be had."""
        self.clock.advance(0)
        self.assertIs(kind, type(content.error), content.error)
        self.assertFalse(content.whole)
        self.assertLessEqual(content.readable, max(0, content.length - HELD_BACK))
        self.assertIsNone(self.stored())


class WholeTest(FetchTestCase):
    """A transfer that nothing disturbs."""

    def test_file_is_checked_and_stored(self) -> None:
        """Promise 1: what is stored is whole and matches its digest."""
        content = self.fetch()
        self.assertNotIn("range", self.wire.last.headers)
        self.wire.last.answer(body=DATA)
        self.assertEqual((True, SIZE, DIGEST), (content.whole, content.readable, content.digest))
        self.assert_stored()

    def test_bytes_can_be_read_as_they_come(self) -> None:
        """All but the last, from when upstream begins; how many there will be is known as soon as upstream says it."""
        content = self.fetch()
        self.assertFalse(content.begun)
        self.head()
        self.assertEqual((True, SIZE, 0), (content.begun, content.total, content.readable))
        self.wire.last.send(DATA[: HELD_BACK + 100])
        self.assertEqual(100, content.readable)
        self.assertEqual(DATA[:100], os.pread(content.fd, 100, 0))
        self.wire.last.send(DATA[HELD_BACK + 100 :])
        self.assertTrue(content.whole)

    def test_one_fetch_serves_all_who_join(self) -> None:
        """Promise 3: there is one request, and one content; when it is over there is nothing to join."""
        content = self.fetch()
        joined = self.fetches.join(listed())
        assert joined is not None
        self.closing(joined)
        self.assertIs(content, joined)
        self.assertEqual(1, len(self.fetches))
        self.wire.last.answer(body=DATA)
        self.assertIsNone(self.fetches.join(listed()))
        self.assertEqual(1, len(self.wire.exchanges))

    def test_other_bytes_behind_the_same_url_are_another_fetch(self) -> None:
        """Promise 2: nobody gets the bytes of one digest under the name of another."""
        self.fetch()
        self.assertIsNone(self.fetches.join(listed(sha256(b"other bytes"))))
        self.wire.last.answer(body=DATA)

    def test_fetch_goes_on_when_nobody_waits(self) -> None:
        """Promise 4: whoever asked has left, and the file is stored all the same."""
        self.fetches.start(listed()).close()
        self.wire.last.answer(body=DATA)
        self.assert_stored()

    def test_file_without_a_digest_gets_one(self) -> None:
        """Where the index promises nothing, the length has to do: what is stored is named by its own sha256."""
        content = self.fetch(listed(None))
        self.wire.last.answer(body=DATA)
        self.assertEqual(DIGEST, content.digest)
        self.assert_stored()

    def test_digest_is_checked_in_the_algorithm_that_the_index_gives(self) -> None:
        """The stored file is named by that."""
        digest = Digest("md5", "0" * 32).hasher()
        digest.update(DATA)
        self.fetch(listed(Digest("md5", digest.hexdigest())))
        self.wire.last.answer(body=DATA)
        stored = self.stored()
        assert stored is not None
        self.assertEqual(f"md5-{digest.hexdigest()}", str(stored.digest))

    def test_size_on_the_page_stands_in_for_a_length(self) -> None:
        """A chunked body's total is that which the page lists."""
        content = self.fetch(listed(size=SIZE))
        self.wire.last.send(response(200, b"", content_length="", transfer_encoding="chunked"))
        self.assertEqual(SIZE, content.total)
        self.wire.last.send(chunked(DATA) + b"0\r\n\r\n")
        self.assertTrue(content.whole)

    def test_empty_file_is_a_file(self) -> None:
        """No byte, and its digest."""
        content = self.fetch(listed(sha256(b"")))
        self.wire.last.answer(body=b"")
        self.assertEqual((True, 0), (content.whole, content.total))


class LyingTest(FetchTestCase):
    """Upstream sends other bytes than it should. Nothing of them is kept."""

    def test_other_bytes_are_discarded(self) -> None:
        """Promise 1: the digest decides."""
        content = self.fetch()
        self.wire.last.answer(body=DATA[:-1] + b"!")
        self.assert_failed(content, DigestMismatch)

    def test_more_bytes_than_announced_are_refused(self) -> None:
        """The page's size was announced, in a body that does not give its own."""
        content = self.fetch(listed(size=SIZE))
        self.wire.last.send(response(200, b"", content_length="", transfer_encoding="chunked"))
        self.wire.last.send(chunked(DATA + b"more"))
        self.assert_failed(content, BadUpstreamResponse)
        self.assertTrue(self.wire.last.closed)

    def test_other_size_than_listed_is_refused_where_no_digest_decides(self) -> None:
        """Before a byte of it is shown to anybody."""
        content = self.fetch(listed(None, SIZE + 1))
        self.head()
        self.assert_failed(content, BadUpstreamResponse)
        self.assertFalse(content.begun)
        self.assertTrue(self.wire.last.closed)

    def test_part_that_nobody_asked_for_is_refused(self) -> None:
        """It could pass for the whole where there is no digest."""
        content = self.fetch(listed(None))
        self.wire.last.answer(206, DATA[5:], content_range=f"bytes 5-{SIZE - 1}/{SIZE}")
        self.assert_failed(content, BadUpstreamResponse)

    def test_body_without_length_or_digest_is_not_believed(self) -> None:
        """Nothing tells whether that is all."""
        content = self.fetch(listed(None))
        self.wire.last.answer(body=DATA, content_length="")
        self.wire.last.end()
        self.assert_failed(content, Truncated)

    def test_body_without_length_is_believed_where_the_digest_agrees(self) -> None:
        """Or where it has the size that the page lists."""
        content = self.fetch()
        self.wire.last.answer(body=DATA, content_length="")
        self.wire.last.end()
        self.assertTrue(content.whole)
        self.delete()
        sized = self.fetch(listed(None, SIZE))
        self.wire.last.answer(body=DATA, content_length="")
        self.wire.last.end()
        self.assertTrue(sized.whole)

    def test_each_error_of_upstreams_keeps_its_meaning(self) -> None:
        """A file that is gone is told from an upstream that is."""
        for status, kind in {404: NotFound, 403: UpstreamRefused, 503: UpstreamDown, 418: BadUpstreamResponse}.items():
            content = self.fetch()
            self.wire.last.answer(status)
            self.assert_failed(content, kind)


class EncodedTest(FetchTestCase):
    """Upstream encodes a body, which nobody asked for."""

    def test_file_that_is_gzip_itself_stays_as_it_is(self) -> None:
        """An sdist that a server calls gzip-encoded: the digest says that it is the file."""
        sdist = gzipped(DATA)
        content = self.fetch(listed(sha256(sdist)))
        self.wire.last.answer(body=sdist, content_encoding="gzip")
        self.assertEqual((True, sha256(sdist)), (content.whole, content.digest))

    def test_gzip_is_undone_where_the_digest_agrees_then(self) -> None:
        """Nobody sees a byte before; those who wait see the file's own length and bytes."""
        content = self.fetch()
        self.wire.last.send(response(200, gzipped(DATA)[:100], content_encoding="gzip", content_length="200"))
        self.assertFalse(content.begun)
        self.wire.last.cut()
        self.assert_failed(content, Interrupted)

        content = self.fetch()
        self.wire.last.answer(body=gzipped(DATA), content_encoding="gzip")
        self.assertEqual((True, SIZE, DIGEST), (content.whole, content.total, content.digest))
        self.assertEqual(DATA, os.pread(content.fd, 2 * SIZE, 0))
        self.assert_stored()

    def test_gzip_is_undone_in_pieces(self) -> None:
        """Also where much comes of little, and where the system writes only some of it at a time."""
        zeros = bytes(3_000_000)
        content = self.fetch(listed(sha256(zeros)))
        write, pwrite = os.write, os.pwrite
        with (
            mock.patch("os.write", lambda fd, data: write(fd, bytes(data)[:100_000])),
            mock.patch("os.pwrite", lambda fd, data, offset: pwrite(fd, bytes(data)[:100_000], offset)),
        ):
            self.wire.last.answer(body=gzipped(zeros), content_encoding="gzip")
        self.assertEqual((True, len(zeros)), (content.whole, content.total))
        self.assertEqual(zeros, os.pread(content.fd, 4_000_000, 0))

    def test_gzip_of_something_else_is_discarded(self) -> None:
        """Other content, no gzip at all, half a gzip."""
        for body in (gzipped(b"something else"), b"no gzip", gzipped(DATA)[:-20]):
            content = self.fetch()
            self.wire.last.answer(body=body, content_encoding="gzip")
            self.assert_failed(content, DigestMismatch)

    def test_bomb_stops_at_the_listed_size(self) -> None:
        """What would fill the disk is given up once it is larger than the file."""
        bomb = gzipped(bytes(50_000_000))
        content = self.fetch(listed(size=SIZE))
        with mock.patch("os.pwrite", side_effect=os.pwrite) as pwrite:
            self.wire.last.answer(body=bomb, content_encoding="gzip")
        self.assert_failed(content, DigestMismatch)
        self.assertLess(sum(len(call.args[1]) for call in pwrite.call_args_list), 1_000_000)

    def test_full_disk_while_it_is_undone_is_told_as_such(self) -> None:
        """So that clients are sent to upstream, and not told that it is broken."""
        content = self.fetch()
        with mock.patch("mypypi.files.transfer._inflate", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.wire.last.answer(body=gzipped(DATA), content_encoding="gzip")
        self.assert_failed(content, StorageFull)

    def test_encoding_without_a_digest_is_refused(self) -> None:
        """Nothing tells which of the two is the file."""
        content = self.fetch(listed(None))
        self.wire.last.answer(body=gzipped(DATA), content_encoding="gzip")
        self.assert_failed(content, BadUpstreamResponse)

    def test_other_encodings_are_not_undone(self) -> None:
        """The digest does not agree, which is the end of it."""
        content = self.fetch()
        self.wire.last.answer(body=zlib.compress(DATA), content_encoding="deflate")
        self.assert_failed(content, DigestMismatch)


class ResumeTest(FetchTestCase):
    """A body that ends early is gone on with, where a mix of two versions would be seen."""

    def test_strong_validator_guards_the_rest(self) -> None:
        """The second request asks for the rest of the very same version (RFC 9110, section 13.1.5)."""
        content = self.fetch()
        self.cut_after(10_000, etag='"v1"', last_modified="then")
        self.pause(0.2)
        headers = self.wire.last.headers
        self.assertEqual(("bytes=10000-", '"v1"'), (headers["range"], headers["if-range"]))
        self.resume(10_000)
        self.assertTrue(content.whole)
        self.assert_stored()

    def test_date_guards_the_rest_where_there_is_no_etag(self) -> None:
        """A weak etag guards nothing, and neither does the date beside it."""
        self.fetch()
        self.cut_after(10_000, last_modified="Mon, 02 Nov 2026 10:00:00 GMT")
        self.pause(0.2)
        self.assertEqual("Mon, 02 Nov 2026 10:00:00 GMT", self.wire.last.headers["if-range"])
        self.resume(10_000)
        self.assert_stored()

    def test_digest_guards_the_rest_where_there_is_no_validator(self) -> None:
        """Range without If-Range: a mix would not pass the check in the end."""
        for etag in ('W/"v1"', ""):
            content = self.fetch()
            self.cut_after(10_000, etag=etag)
            self.pause(0.2)
            self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
            self.assertNotIn("if-range", self.wire.last.headers)
            self.resume(10_000)
            self.assertTrue(content.whole)
            self.delete()

    def test_mix_of_two_versions_is_seen(self) -> None:
        """The bytes before and those after are of different files: nothing is kept."""
        content = self.fetch()
        self.cut_after(10_000)
        self.pause(0.2)
        self.wire.last.answer(206, bytes(SIZE - 10_000), content_range=f"bytes 10000-{SIZE - 1}/{SIZE}")
        self.assert_failed(content, DigestMismatch)

    def test_nothing_is_resumed_where_a_mix_would_not_be_seen(self) -> None:
        """Neither validator nor digest: readers are told."""
        content = self.fetch(listed(None))
        self.cut_after(10_000, etag='W/"v1"')
        self.clock.pump([60] * 5)
        self.assertEqual(1, len(self.wire.exchanges))
        self.assertIsInstance(content.error, Truncated)

    def test_nothing_is_resumed_before_the_first_byte(self) -> None:
        """Those who wait are told at once, and the next request tries again."""
        content = self.fetch()
        self.wire.last.cut()
        self.assert_failed(content, UpstreamUnreachable)
        content = self.fetch()
        self.cut_after(0)
        self.assertIsInstance(content.error, Truncated)

    def test_upstream_that_sends_all_from_the_start_is_skipped_through(self) -> None:
        """A 200 to a Range: what is here already is passed over, and the digest says whether it was the same."""
        content = self.fetch()
        self.cut_after(10_000, etag='"v1"')
        self.pause(0.2)
        self.head(etag='"v1"')
        for start in range(0, SIZE, 3_000):
            self.wire.last.send(DATA[start : start + 3_000])
        self.assertTrue(content.whole)
        self.assert_stored()

    def test_upstream_that_has_another_file_by_now_is_seen(self) -> None:
        """All from the start, and other bytes: the digest does not agree."""
        content = self.fetch()
        self.cut_after(10_000, etag='"v1"')
        self.pause(0.2)
        self.wire.last.answer(body=bytes(SIZE), etag='"v2"')
        self.assert_failed(content, DigestMismatch)

    def test_all_from_the_start_is_no_help_without_a_digest(self) -> None:
        """The validator did not hold: it may be another file."""
        content = self.fetch(listed(None))
        self.cut_after(10_000, etag='"v1"')
        self.pause(0.2)
        self.wire.last.answer(body=DATA, etag='"v2"')
        self.clock.advance(0)
        self.assertIsInstance(content.error, Truncated)

    def test_part_from_another_place_is_refused(self) -> None:
        """Whatever upstream takes a Range for; a part that does not say where it belongs is no better."""
        for where in ("bytes 0-20479/20480", f"bytes 10001-{SIZE - 1}/{SIZE}", "items 10000-1/2", ""):
            content = self.fetch()
            self.cut_after(10_000)
            self.pause(0.2)
            self.wire.last.answer(206, DATA[10_000:], content_range=where)
            self.assert_failed(content, Truncated)

    def test_several_interruptions_are_survived(self) -> None:
        """As long as each try brings something, the pause stays short."""
        content = self.fetch()
        self.cut_after(1_000)
        for at in range(1_000, 20_000, 1_000):
            self.pause(0.2)
            self.assertEqual(f"bytes={at}-", self.wire.last.headers["range"])
            self.head(206, SIZE - at, content_range=f"bytes {at}-{SIZE - 1}/{SIZE}")
            self.wire.last.send(DATA[at : at + 1_000])
            self.wire.last.cut()
        self.pause(0.2)
        self.resume(20_000)
        self.assertTrue(content.whole)
        self.assert_stored()

    def test_fruitless_tries_come_to_an_end(self) -> None:
        """Each pause is twice as long as the one before; after some that bring nothing, readers are told why."""
        content = self.fetch()
        self.cut_after(10_000)
        for fruitless in range(FRUITLESS + 1):
            self.assertIsNone(content.error)
            self.pause(0.2 * 2**fruitless)
            self.wire.last.answer(503)
        self.clock.pump([60] * 5)
        self.assertEqual(FRUITLESS + 2, len(self.wire.exchanges))
        self.assertIsInstance(content.error, UpstreamDown)
        self.assertIsNone(self.stored())

    def test_upstream_that_never_ends_is_left(self) -> None:
        """A transfer that brings a byte at a time is not gone on with for ever."""
        content = self.fetch()
        self.cut_after(1)
        for at in range(1, 50):
            self.pause(0.2)
            self.head(206, SIZE - at, content_range=f"bytes {at}-{SIZE - 1}/{SIZE}")
            self.wire.last.send(DATA[at : at + 1])
            self.wire.last.cut()
        self.clock.pump([60] * 5)
        self.assertEqual(50, len(self.wire.exchanges))
        self.assertIsInstance(content.error, Truncated)

    def test_file_that_is_gone_when_it_is_gone_on_with_is_gone(self) -> None:
        """That is no interruption."""
        content = self.fetch()
        self.cut_after(10_000)
        self.pause(0.2)
        self.wire.last.answer(404)
        self.clock.advance(0)
        self.assertIsInstance(content.error, NotFound)

    def test_chunked_body_that_is_cut_is_gone_on_with(self) -> None:
        """Without its last chunk it was not all."""
        content = self.fetch()
        self.wire.last.send(response(200, b"", content_length="", transfer_encoding="chunked"))
        self.wire.last.send(chunked(DATA[:10_000]))
        self.wire.last.cut()
        self.pause(0.2)
        self.resume(10_000)
        self.assertTrue(content.whole)


class SilenceTest(FetchTestCase):
    """Upstream stops in the middle of a body."""

    def test_silence_is_an_interruption(self) -> None:
        """After the limit, the connection is closed and the transfer gone on with."""
        content = self.fetch()
        self.head()
        self.wire.last.send(DATA[:10_000])
        self.clock.advance(TIMEOUT - 0.1)
        self.assertFalse(self.wire.last.closed)
        self.clock.advance(0.1)
        self.assertTrue(self.wire.last.closed)
        self.pause(0.2)
        self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
        self.resume(10_000)
        self.assertTrue(content.whole)

    def test_each_byte_starts_the_limit_anew(self) -> None:
        """A slow upstream is no silent one."""
        self.fetch()
        self.head()
        for at in range(0, SIZE, 1_024):
            self.wire.last.send(DATA[at : at + 1_024])
            self.clock.advance(TIMEOUT - 1)
        self.assert_stored()

    def test_upstream_that_does_not_answer_our_goodbye_is_left(self) -> None:
        """Over TLS an orderly end waits for the other side: from a host that has gone silent it never comes."""
        content = self.fetch()
        self.head()
        self.wire.last.send(DATA[:10_000])
        self.wire.last.polite = False
        self.clock.advance(TIMEOUT)
        self.pause(0.2)
        self.resume(10_000)
        self.assertTrue(content.whole)


class SlowDiskTest(FetchTestCase):
    """The disk is slower than upstream: it sets the pace."""

    threads: WhenTold

    def setUp(self) -> None:
        super().setUp()
        self.threads = WhenTold()
        self.fetches = self.make()
        self.large = os.urandom(64) * (3 * BACKLOG // 64)

    def send(self, data: bytes) -> int:
        """Upstream sends until it is told to pause; how much it got rid of."""
        sent = 0
        while sent < len(data) and not self.wire.last.paused:
            self.wire.last.send(data[sent : sent + 65_536])
            sent += 65_536
        return sent

    def test_upstream_pauses_while_too_much_waits_for_the_disk(self) -> None:
        """Memory is bounded however fast upstream is; when the disk has caught up, it goes on."""
        content = self.fetch(listed(sha256(self.large)))
        self.head(length=len(self.large))
        sent = self.send(self.large)
        self.assertTrue(self.wire.last.paused)
        self.assertLessEqual(sent, BACKLOG + 65_536)
        while sent < len(self.large):
            while self.wire.last.paused:
                self.threads.step()
            sent += self.send(self.large[sent:])
        self.threads.finish()
        self.assertEqual((True, len(self.large)), (content.whole, content.length))

    def test_silence_that_we_asked_for_is_not_upstreams(self) -> None:
        """While upstream is paused its limit does not run; it starts anew when upstream may go on."""
        content = self.fetch(listed(sha256(self.large)))
        self.head(length=len(self.large))
        sent = self.send(self.large)
        self.assertTrue(self.wire.last.paused)
        self.clock.advance(100 * TIMEOUT)
        self.assertFalse(self.wire.last.closed)
        self.threads.finish()
        self.assertFalse(self.wire.last.paused)
        self.clock.advance(TIMEOUT - 0.1)
        self.assertFalse(self.wire.last.closed)
        self.clock.advance(0.1)
        self.assertTrue(self.wire.last.closed)
        self.pause(0.2)
        self.assertEqual(f"bytes={sent}-", self.wire.last.headers["range"])
        self.wire.last.answer(404)
        self.clock.advance(0)
        self.assertIsInstance(content.error, NotFound)

    def test_bytes_are_shown_when_they_are_on_disk(self) -> None:
        """And not while they wait for it."""
        content = self.fetch(listed(sha256(self.large)))
        self.head(length=len(self.large))
        self.wire.last.send(self.large[:50_000])
        self.assertEqual(0, content.length)
        self.threads.step()
        self.assertEqual(50_000, content.length)
        self.wire.last.cut()
        self.clock.advance(0.2)
        self.wire.last.answer(404)
        self.clock.advance(0)

    def test_end_waits_for_the_disk(self) -> None:
        """Upstream is done long before: what it sent is written, checked and only then whole."""
        content = self.fetch()
        self.wire.last.answer(body=DATA)
        self.assertFalse(content.ended)
        self.threads.finish()
        self.assertTrue(content.whole)

    def test_transfer_that_is_cut_goes_on_from_what_is_written(self) -> None:
        """The next try waits until the disk is done with what came."""
        content = self.fetch()
        self.head()
        self.wire.last.send(DATA[:4_000])
        self.wire.last.send(DATA[4_000:10_000])
        self.wire.last.cut()
        self.clock.advance(5)
        self.assertEqual(1, len(self.wire.exchanges))
        self.threads.finish()
        self.pause(0.2)
        self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
        self.resume(10_000)
        self.threads.finish()
        self.assertTrue(content.whole)


class DiskTroubleTest(FetchTestCase):
    """The disk fails: nobody is told that upstream did."""

    def test_disk_that_fills_up_ends_the_transfer(self) -> None:
        """At once, with the connection; it is not tried again."""
        content = self.fetch()
        self.head()
        with mock.patch("os.pwrite", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.wire.last.send(DATA[:10_000])
        self.clock.advance(0)
        self.assertTrue(self.wire.last.closed)
        self.clock.pump([60] * 3)
        self.assertEqual(1, len(self.wire.exchanges))
        self.assert_failed(content, StorageFull)

    def test_file_that_is_larger_than_the_disk_is_not_begun(self) -> None:
        """Neither where the page says so nor where upstream does."""
        (self.root / "drafts").mkdir()
        with mock.patch.object(Drafts, "room", return_value=SIZE - 1), self.assertRaises(StorageFull):
            self.fetches.start(listed(size=SIZE))
        self.assertEqual([], self.wire.exchanges)

    def test_draft_that_can_not_be_made_is_storage_down(self) -> None:
        """Nothing is asked of upstream."""
        (self.root / "drafts").mkdir()
        trouble = OSError(errno.EROFS, "Read-only file system")
        with mock.patch.object(Drafts, "open", side_effect=trouble), self.assertRaises(StorageDown):
            self.fetches.start(listed())
        self.assertEqual([], self.wire.exchanges)

    def test_file_that_can_not_be_kept_is_served_all_the_same(self) -> None:
        """Promise 8: it is whole and checked; those who read the draft get all of it."""
        (self.root / "files").write_bytes(b"in the way")
        content = self.fetch()
        self.wire.last.answer(body=DATA)
        self.assertTrue(content.whole)
        self.assertEqual(DATA, os.pread(content.fd, SIZE, 0))

    def test_mistake_of_ours_is_logged_and_ends_the_transfer(self) -> None:
        """Readers are told something, the log everything."""
        content = self.fetch()
        with mock.patch.object(self.storage, "commit", side_effect=ZeroDivisionError):
            self.wire.last.answer(body=DATA)
        self.assertTrue(content.ended)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))


class Dead(Draft):
    """The draft of a process that is gone: whatever is still done to it here is not done."""

    __slots__ = ()

    def write(self, data: bytes, offset: int) -> None:
        pass

    def write_note(self, state: State) -> None:
        pass

    def drop(self) -> None:
        pass


class SharedTest(FetchTestCase):
    """Several processes on one host, and several hosts, share one fetch. Each `Fetches` here stands for a process."""

    def setUp(self) -> None:
        super().setUp()
        self.other = self.make()
        self.addCleanup(lambda: self.assertEqual(0, len(self.other)))

    def follow(self, file: PackageFile | None = None) -> Content:
        """The file in the other process."""
        content = self.closing(self.other.start(file or listed()))
        self.clock.advance(0)
        return content

    def look(self, seconds: float = 0.1) -> None:
        """Time enough for a follower to see what is new."""
        self.clock.pump([0.01] * round(seconds * 100))

    def kill(self, fetches: Fetches) -> None:
        """The process of these fetches is gone: its locks with it, and nothing is written any more."""
        (fetch,) = fetches._running.values()
        fcntl.flock(fetch.draft._lock, fcntl.LOCK_UN)
        fetch.draft.__class__ = Dead

    def bury(self, fetches: Fetches) -> None:
        """What is left in this process of the one that was killed."""
        self.now(self.start(fetches.stop()))

    def test_another_process_follows(self) -> None:
        """Promise 3: there is one request; its readers see the bytes as they come, and the last ones once checked."""
        content = self.fetch()
        followed = self.follow()
        self.assertFalse(followed.begun)
        self.head()
        self.wire.last.send(DATA[:10_000])
        self.look()
        self.assertEqual((True, SIZE, 10_000 - HELD_BACK), (followed.begun, followed.total, followed.readable))
        self.assertEqual(DATA[:10_000], os.pread(followed.fd, SIZE, 0))
        self.wire.last.send(DATA[10_000:])
        self.assertTrue(content.whole)
        self.look()
        self.assertEqual((True, SIZE, DIGEST), (followed.whole, followed.readable, followed.digest))
        self.assertEqual(DATA, os.pread(followed.fd, SIZE, 0))
        self.assertEqual(1, len(self.wire.exchanges))
        self.assert_stored()

    def test_what_went_wrong_is_told_to_all(self) -> None:
        """With its meaning, and without another request."""
        for status, kind in {404: NotFound, 403: UpstreamRefused, 503: UpstreamDown}.items():
            self.fetch()
            followed = self.follow()
            before = len(self.wire.exchanges)
            self.wire.last.answer(status)
            self.look()
            self.assert_failed(followed, kind)
            self.assertEqual(before, len(self.wire.exchanges))

    def test_wrong_bytes_are_held_back_everywhere(self) -> None:
        """Promise 2 holds for those who follow."""
        self.fetch()
        followed = self.follow()
        self.wire.last.answer(body=DATA[:-1] + b"!")
        self.look()
        self.assert_failed(followed, DigestMismatch)

    def test_encoded_body_is_seen_once_it_is_undone(self) -> None:
        """And never before, by nobody."""
        zeros = bytes(100_000)
        file = listed(sha256(zeros))
        self.fetch(file)
        followed = self.follow(file)
        encoded = gzipped(zeros)
        self.wire.last.send(response(200, encoded[:50], content_encoding="gzip", content_length=str(len(encoded))))
        self.look()
        self.assertEqual((False, 0), (followed.begun, followed.readable))
        self.wire.last.send(encoded[50:])
        self.look()
        self.assertEqual((True, 100_000), (followed.whole, followed.readable))
        self.assertEqual(zeros, os.pread(followed.fd, 200_000, 0))

    def test_another_process_takes_over(self) -> None:
        """Promise 5: it goes on where the killed one was, after having hashed what is there; readers see a pause."""
        self.fetch()
        self.head(etag='"v1"')
        followed = self.follow()
        self.wire.last.send(DATA[:10_000])
        self.look()
        self.kill(self.fetches)
        self.look(0.5)
        headers = self.wire.last.headers
        self.assertEqual(("bytes=10000-", '"v1"'), (headers["range"], headers["if-range"]))
        self.assertIsNone(followed.error)
        self.resume(10_000)
        self.assertTrue(followed.whole)
        self.assertEqual(DATA, os.pread(followed.fd, SIZE, 0))
        self.assert_stored()
        self.assertEqual(2, len(self.wire.exchanges))
        self.bury(self.fetches)

    def test_taken_over_file_is_checked_from_its_first_byte(self) -> None:
        """Promise 1: what the killed process wrote counts as much as what came after."""
        self.fetch()
        self.head()
        followed = self.follow()
        self.wire.last.send(DATA[:9_999] + b"!")
        self.look()
        self.kill(self.fetches)
        self.look(0.5)
        self.resume(10_000)
        self.assert_failed(followed, DigestMismatch)
        self.bury(self.fetches)

    def test_nothing_is_taken_over_where_a_mix_would_not_be_seen(self) -> None:
        """Neither validator nor digest: readers are told, and the next request begins anew."""
        self.fetch(listed(None))
        self.head()
        followed = self.follow(listed(None))
        self.wire.last.send(DATA[:10_000])
        self.look()
        self.kill(self.fetches)
        self.look(0.5)
        self.assertIsInstance(followed.error, Truncated)
        self.assertEqual(1, len(self.wire.exchanges))
        self.bury(self.fetches)

    def test_file_that_was_whole_when_its_process_was_killed_is_kept(self) -> None:
        """Nobody asks upstream again: its bytes are hashed once more, and put where they belong."""
        committing: Deferred[None] = Deferred()
        with mock.patch.object(self.storage, "commit", mock.Mock(return_value=committing)):
            self.fetch()
            followed = self.follow()
            self.wire.last.answer(body=DATA)
            self.look()
            self.assertTrue(followed.whole)
            self.kill(self.fetches)
        self.look(0.5)
        self.assert_stored()
        self.assertEqual(1, len(self.wire.exchanges))
        committing.callback(None)

    def test_what_a_stopped_process_leaves_is_gone_on_with(self) -> None:
        """Even when nobody followed: the next request asks for the rest alone."""
        content = self.fetch()
        self.head()
        self.wire.last.send(DATA[:10_000])
        self.now(self.fetches.stop())
        self.assertIsInstance(content.error, StillFetching)
        self.assertTrue(self.wire.last.closed)
        again = self.follow()
        self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
        self.resume(10_000)
        self.assertTrue(again.whole)
        self.assert_stored()

    def test_stop_hands_over_before_the_first_byte_too(self) -> None:
        """While upstream is being asked, and while the next try is waited for."""
        self.fetch()
        followed = self.follow()
        self.now(self.fetches.stop())
        self.look(0.5)
        self.assertEqual(2, len(self.wire.exchanges))
        self.cut_after(10_000)
        self.now(self.other.stop())
        self.assertIsInstance(followed.error, StillFetching)
        for left in (self.root / "drafts").iterdir():
            left.unlink()

    def test_stop_ends_following(self) -> None:
        """The one who fills goes on."""
        self.fetch()
        followed = self.follow()
        stopped = Deferred.fromCoroutine(self.other.stop())
        self.look()
        self.successResultOf(stopped)
        self.assertIsInstance(followed.error, StillFetching)
        self.wire.last.answer(body=DATA)
        self.assert_stored()

    def test_file_that_came_meanwhile_is_not_fetched_again(self) -> None:
        """Whoever looked just before it was stored looks again; where it can't be had from there, it is fetched."""
        self.fetch()
        self.wire.last.answer(body=DATA)
        self.assertIsInstance(self.follow().error, AlreadyStored)
        self.assertEqual(1, len(self.wire.exchanges))
        self.closing(self.other.start(listed(), anew=True))
        self.assertEqual(2, len(self.wire.exchanges))
        self.wire.last.answer(body=DATA)

    def test_another_host_holds_the_lease(self) -> None:
        """Its fetch is the one; here, clients hear how long it may take as far as that is known."""
        others = Leases(self.catalog, "another disk", self.clock)
        self.now(others.take(fetch_lease(listed().key), lambda: "42"))
        content, followed = self.fetch(), self.follow()
        self.look()
        for each in (content, followed):
            assert isinstance(each.error, FetchedElsewhere)
            self.assertEqual(42, each.error.retry_after)
        self.assertEqual([], self.wire.exchanges)
        self.now(others.release_if_held(fetch_lease(listed().key)))
        self.fetch()
        self.wire.last.answer(body=DATA)
        self.assert_stored()

    def test_other_hosts_hear_how_far_it_is(self) -> None:
        """In seconds, at the pace so far; once it is over, the lease is free."""
        self.fetch()
        self.head()
        self.clock.advance(4)
        self.wire.last.send(DATA[: SIZE // 4])
        self.clock.advance(1)
        held = self.now(cast("Awaitable[HeldLease | None]", self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))
        assert held is not None
        self.assertEqual(("disk", "15"), (held.owner, held.about))
        self.wire.last.send(DATA[SIZE // 4 :])
        free = self.catalog.take_lease(fetch_lease(listed().key), "x", 0.1)
        self.assertIsNone(self.now(cast("Awaitable[HeldLease | None]", free)))

    def test_file_on_its_way_to_other_hosts_is_not_fetched_by_them(self) -> None:
        """The storage passes it on, which takes a while: the lease is left standing for that."""
        with mock.patch.object(self.storage, "upload_window", 900.0):
            self.fetch()
            self.wire.last.answer(body=DATA)
        held = self.now(cast("Awaitable[HeldLease | None]", self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))
        assert held is not None
        self.assertEqual(900, held.left)

    def test_lease_is_free_once_the_file_was_passed_on(self) -> None:
        """However soon that was: the one who passed it on released the lease, and it stays so."""
        commit = self.storage.commit

        async def passed_on_at_once(key: str, draft: Path, digest: Digest) -> StoredFile:
            stored = await commit(key, draft, digest)
            await self.catalog.release_lease(fetch_lease(key), "disk")
            return stored

        with mock.patch.multiple(self.storage, upload_window=900.0, commit=passed_on_at_once):
            self.fetch()
            self.wire.last.answer(body=DATA)
        self.assert_stored()
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))

    def test_lease_is_free_where_the_file_could_not_be_kept(self) -> None:
        """Another host may have more luck."""
        with mock.patch.multiple(
            self.storage, upload_window=900.0, commit=mock.AsyncMock(side_effect=StorageDown("no luck"))
        ):
            self.fetch()
            self.wire.last.answer(body=DATA)
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))

    def test_without_redis_each_host_fetches_for_itself(self) -> None:
        """Promise 8: a catalog that is down keeps nobody from fetching."""
        self.catalog.down = "cable pulled"
        self.fetch()
        self.wire.last.answer(body=DATA)
        self.assert_stored()
