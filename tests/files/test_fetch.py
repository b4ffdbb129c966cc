"""Tests of fetches: transfers from upstream into drafts, their interruptions, checks and sharing."""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import twisted.internet.reactor  # noqa: F401 - otherwise LoopingCall imports it in the middle of a test
from attrs import evolve
from twisted.internet.defer import Deferred

from mypypi.coordination import HeldLease, fetch_lease
from mypypi.digests import Digest
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
from mypypi.files.fetch_tools import FetchTools
from mypypi.files.fetches import Fetches
from mypypi.files.receiver import BACKLOG
from mypypi.files.resuming import FRUITLESS
from mypypi.files.room import Room
from mypypi.model import PackageFile, StoredFile
from mypypi.redis.leases import Leases
from mypypi.storage.disk import DiskStorage
from mypypi.threads import Threads
from mypypi.upstream.backoff import Backoff
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
#: A file that is too long to be held back as a whole.
LONG = DATA * 5
SIZE = len(DATA)
DIGEST = sha256(DATA)
TIMEOUT = 15


def listed(digest: Digest | None = DIGEST, size: int | None = None) -> PackageFile:
    return PackageFile(URL.replace("://", "/"), URL, digest, size)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class FetchTestCase(MemoryTestCase):
    """Fetches over an in-memory wire, with a clock that the test moves, and storage on disk."""

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
        self.fetches = self.make_fetches()

    def make_fetches(self, **options: Any) -> Fetches:
        upstream = Upstream(self.clock, "https://index.example", timeout=TIMEOUT, agent=self.wire.agent, **options)
        leases, backoff = Leases(self.catalog, "disk", self.clock), Backoff(self.catalog, self.clock)
        tools = FetchTools(upstream, self.storage, self.threads, self.clock, leases, backoff, self.catalog)
        room = Room(self.root / "room")
        self.addCleanup(room.close)
        return Fetches(tools, Drafts(self.root / "drafts", room))

    def assert_nothing_is_left(self) -> None:
        """Assert that no fetch, draft, descriptor or timer is left."""
        self.assertEqual(0, len(self.fetches))
        self.assertEqual([], os.listdir(self.root / "drafts"))
        self.assertEqual(self.before, open_descriptors())
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())

    def fetch(self, file: PackageFile | None = None) -> Content:
        return self.close_after_test(self.fetches.start(file or listed()))

    def close_after_test(self, content: Content) -> Content:
        # Cleanups run in reverse order: the content is closed before descriptors are counted.
        self.addCleanup(content.close)
        return content

    def send_head(self, status: int = 200, length: int = SIZE, **headers: str) -> None:
        """Send upstream's response head, without a body."""
        self.wire.last.send(response(status, b"", content_length=str(length), **headers))

    def wait_out_backoff(self) -> None:
        """Let the longest back-off of a file end, and the time for which a refusal is remembered."""
        self.clock.advance(80)

    def wait_for_retry(self, seconds: float) -> None:
        """Wait for the next attempt, and assert that upstream gets one request."""
        before = len(self.wire.exchanges)
        self.clock.advance(seconds)
        self.assertEqual(before + 1, len(self.wire.exchanges))

    def send_and_cut(self, count: int, **headers: Any) -> None:
        """Send this many bytes of the file, and lose the connection."""
        self.send_head(**headers)
        self.wire.last.send(DATA[:count])
        self.wire.last.cut()

    def send_rest(self, at: int, **headers: str) -> None:
        """Send the rest of the file from this offset."""
        rest = DATA[at:]
        self.wire.last.answer(206, rest, content_range=f"bytes {at}-{SIZE - 1}/{SIZE}", **headers)

    def find_stored(self) -> StoredFile | None:
        return self.now(cast("Awaitable[StoredFile | None]", self.storage.find(listed().key)))

    def delete_stored(self) -> None:
        """Delete the file from the storage."""
        self.now(cast("Awaitable[None]", self.storage.delete(listed().key)))

    def assert_stored(self) -> None:
        stored = self.find_stored()
        assert stored is not None
        assert stored.path is not None
        self.assertEqual((DATA, DIGEST), (stored.path.read_bytes(), stored.digest))

    def assert_failed(self, content: Content, kind: type[Exception]) -> None:
        """Assert this error. The file is not stored, and its last bytes were never readable."""
        self.clock.advance(0)
        self.assertIs(kind, type(content.error), content.error)
        self.assertFalse(content.whole)
        self.assertLessEqual(content.readable, max(0, content.length - HELD_BACK))
        self.assertIsNone(self.find_stored())


class UninterruptedTest(FetchTestCase):
    """Transfers without an interruption."""

    def test_file_is_checked_and_stored(self) -> None:
        """A stored file is complete and matches its digest (promise 1)."""
        content = self.fetch()
        self.assertNotIn("range", self.wire.last.headers)
        self.wire.last.answer(body=DATA)
        self.assertEqual((True, SIZE, DIGEST), (content.whole, content.readable, content.digest))
        self.assert_stored()

    def test_bytes_are_readable_as_they_arrive(self) -> None:
        """Bytes are readable as they arrive, except the last ones. The total is known from the response head on."""
        content = self.fetch(listed(sha256(LONG)))
        self.assertFalse(content.begun)
        self.wire.last.send(response(200, content_length=str(len(LONG))))
        self.assertEqual((True, len(LONG), 0), (content.may_be_read, content.total, content.readable))
        self.wire.last.send(LONG[: HELD_BACK + 100])
        self.assertEqual(100, content.readable)
        self.assertEqual(LONG[:100], os.pread(content.fd, 100, 0))
        self.wire.last.send(LONG[HELD_BACK + 100 :])
        self.assertTrue(content.whole)

    def test_small_file_is_readable_once_it_is_checked(self) -> None:
        """No byte of a small file is readable before its digest agreed, with a length from upstream or without."""
        for data, length in ((DATA, str(SIZE)), (DATA[::-1], "")):
            content = self.fetch(listed(sha256(data)))
            self.wire.last.send(response(200, content_length=length))
            self.wire.last.send(data[:-1])
            self.assertEqual((True, False, 0), (content.begun, content.may_be_read, content.readable))
            self.wire.last.send(data[-1:])
            self.wire.last.end()
            self.assertEqual((True, SIZE), (content.may_be_read, content.readable))

    def test_one_fetch_serves_all_clients(self) -> None:
        """All clients share one request and one content (promise 3). A fetch that has ended can't be joined."""
        content = self.fetch()
        joined = self.fetches.join(listed())
        assert joined is not None
        self.close_after_test(joined)
        self.assertIs(content, joined)
        self.assertEqual(1, len(self.fetches))
        self.wire.last.answer(body=DATA)
        self.assertIsNone(self.fetches.join(listed()))
        self.assertEqual(1, len(self.wire.exchanges))

    def test_other_digest_is_another_fetch(self) -> None:
        """A URL with another digest is another fetch (promise 2). Clients never get bytes of another digest."""
        self.fetch()
        self.assertIsNone(self.fetches.join(listed(sha256(b"other bytes"))))
        self.wire.last.answer(body=DATA)

    def test_fetch_continues_without_readers(self) -> None:
        """A file is stored even if all clients have left (promise 4)."""
        self.fetches.start(listed()).close()
        self.wire.last.answer(body=DATA)
        self.assert_stored()

    def test_file_without_a_digest_gets_one(self) -> None:
        """A file listed without a digest is stored with its sha256. Only its length is checked."""
        content = self.fetch(listed(None))
        self.wire.last.answer(body=DATA)
        self.assertEqual(DIGEST, content.digest)
        self.assert_stored()

    def test_digest_is_checked_with_the_index_algorithm(self) -> None:
        """A file is checked and stored with the index's digest algorithm."""
        digest = Digest("md5", "0" * 32).hasher()
        digest.update(DATA)
        self.fetch(listed(Digest("md5", digest.hexdigest())))
        self.wire.last.answer(body=DATA)
        stored = self.find_stored()
        assert stored is not None
        self.assertEqual(f"md5-{digest.hexdigest()}", str(stored.digest))

    def test_listed_size_does_not_replace_a_missing_length(self) -> None:
        """A chunked body has no total before its end: the size on the page may be wrong."""
        for size in (SIZE, SIZE + 1):
            content = self.fetch(listed(size=size))
            self.wire.last.send(response(200, b"", content_length="", transfer_encoding="chunked"))
            self.assertIsNone(content.total)
            self.wire.last.send(chunked(DATA) + b"0\r\n\r\n")
            self.assertEqual((True, SIZE), (content.whole, content.total))
            self.delete_stored()

    def test_empty_file_is_fetched(self) -> None:
        """An empty file is fetched and checked."""
        content = self.fetch(listed(sha256(b"")))
        self.wire.last.answer(body=b"")
        self.assertEqual((True, 0), (content.whole, content.total))


class WrongBytesTest(FetchTestCase):
    """A file whose bytes are wrong is not stored."""

    def test_other_bytes_are_discarded(self) -> None:
        """Bytes that do not match the digest are discarded (promise 1)."""
        content = self.fetch()
        self.wire.last.answer(body=DATA[:-1] + b"!")
        self.assert_failed(content, DigestMismatch)

    def test_other_size_than_listed_is_accepted(self) -> None:
        """The size on the page proves nothing, with and without a digest."""
        for digest in (sha256(DATA), None):
            content = self.fetch(listed(digest, SIZE + 1))
            self.wire.last.answer(body=DATA)
            self.assertTrue(content.whole)
            self.delete_stored()

    def test_any_of_several_digests_is_accepted(self) -> None:
        """A file may have any of the digests that the page gives (Subresource Integrity, section 3.5)."""
        wrong = sha256(b"wrong")
        content = self.fetch(evolve(listed(wrong), also=(sha256(DATA),)))
        self.wire.last.answer(body=DATA)
        self.assertEqual((True, sha256(DATA)), (content.whole, content.digest))
        self.delete_stored()
        content = self.fetch(evolve(listed(wrong), also=(sha256(b"too"),)))
        self.wire.last.answer(body=DATA)
        self.assert_failed(content, DigestMismatch)

    def test_unrequested_part_is_refused(self) -> None:
        """A 206 that was not requested is refused. Without a digest it could be mistaken for the whole file."""
        content = self.fetch(listed(None))
        self.wire.last.answer(206, DATA[5:], content_range=f"bytes 5-{SIZE - 1}/{SIZE}")
        self.assert_failed(content, BadUpstreamResponse)

    def test_body_without_length_is_accepted_if_the_digest_matches(self) -> None:
        """A body without a length is accepted if its digest or the listed size matches."""
        content = self.fetch()
        self.wire.last.answer(body=DATA, content_length="")
        self.wire.last.end()
        self.assertTrue(content.whole)
        self.delete_stored()
        sized = self.fetch(listed(None, SIZE))
        self.wire.last.answer(body=DATA, content_length="")
        self.wire.last.end()
        self.assertTrue(sized.whole)

    def test_each_status_has_its_error(self) -> None:
        """Each status of upstream has its own error. A missing file is not mistaken for a failing upstream."""
        for status, kind in {404: NotFound, 403: UpstreamRefused, 503: UpstreamDown, 418: BadUpstreamResponse}.items():
            content = self.fetch()
            self.wire.last.answer(status)
            self.assert_failed(content, kind)
            self.wait_out_backoff()


class EncodedTest(FetchTestCase):
    """Upstream sends an encoded body that was not requested."""

    def test_gzip_file_is_not_decoded(self) -> None:
        """A gzip file that upstream labels as gzip-encoded is not decoded if its digest matches."""
        sdist = gzipped(DATA)
        content = self.fetch(listed(sha256(sdist)))
        self.wire.last.answer(body=sdist, content_encoding="gzip")
        self.assertEqual((True, sha256(sdist)), (content.whole, content.digest))

    def test_gzip_is_decoded_if_the_digest_matches_then(self) -> None:
        """A gzip-encoded body is decoded if the decoded bytes match the digest. No byte is readable before."""
        content = self.fetch()
        self.wire.last.send(response(200, gzipped(DATA)[:100], content_encoding="gzip", content_length="200"))
        self.assertFalse(content.begun)
        self.wire.last.cut()
        self.assert_failed(content, Interrupted)

        self.wait_out_backoff()
        content = self.fetch()
        self.wire.last.answer(body=gzipped(DATA), content_encoding="gzip")
        self.assertEqual((True, SIZE, DIGEST), (content.whole, content.total, content.digest))
        self.assertEqual(DATA, os.pread(content.fd, 2 * SIZE, 0))
        self.assert_stored()

    def test_gzip_is_decoded_in_blocks(self) -> None:
        """Gzip is decoded in blocks. Each system call may write only some of the bytes."""
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
        """A gzip body with other content, invalid gzip and truncated gzip are discarded."""
        for body in (gzipped(b"something else"), b"no gzip", gzipped(DATA)[:-20]):
            content = self.fetch()
            self.wire.last.answer(body=body, content_encoding="gzip")
            self.assert_failed(content, DigestMismatch)
            self.wait_out_backoff()

    def test_gzip_bomb_stops_at_the_listed_size(self) -> None:
        """Decoding stops at the listed size, so that a gzip bomb can't fill the disk."""
        bomb = gzipped(bytes(50_000_000))
        content = self.fetch(listed(size=SIZE))
        with mock.patch("os.pwrite", side_effect=os.pwrite) as pwrite:
            self.wire.last.answer(body=bomb, content_encoding="gzip")
        self.assert_failed(content, DigestMismatch)
        self.assertLess(sum(len(call.args[1]) for call in pwrite.call_args_list), 1_000_000)

    def test_full_disk_while_decoding_is_a_storage_error(self) -> None:
        """A disk that fills up while decoding is a storage error. Clients are then redirected to upstream."""
        content = self.fetch()
        with mock.patch("mypypi.files.transfer.decode", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.wire.last.answer(body=gzipped(DATA), content_encoding="gzip")
        self.assert_failed(content, StorageFull)

    def test_first_bytes_tell_the_encoding_of_a_file_without_a_digest(self) -> None:
        """
        Without a digest, the first bytes tell whether upstream has encoded the file or names its own format.

        ``x-gzip`` is gzip (RFC 9110, section 8.4.1.3).
        """
        archive = gzipped(DATA)
        for name, sent, file in (
            ("thing-1.0.tar.gz", archive, archive),
            ("thing-1.0.tar.gz", gzipped(archive), archive),
            ("thing-1.0.tgz", archive, archive),
            ("thing-1.0.whl", gzipped(DATA), DATA),
            ("thing-1.0.whl", DATA, DATA),
        ):
            for encoding in ("gzip", "x-gzip"):
                content = self.fetch(PackageFile(name, f"https://files.example/{name}"))
                self.wire.last.answer(body=sent, content_encoding=encoding)
                self.assertEqual((True, sha256(file)), (content.whole, content.digest))
                self.assertEqual(file, os.pread(content.fd, 2 * len(file), 0))
                self.now(self.storage.delete(f"https/files.example/{name}"))

    def test_damaged_encoding_without_a_digest_is_refused(self) -> None:
        """Without a digest, an encoding that ends early is an error, since the file may be cut off."""
        content = self.fetch(listed(None))
        self.wire.last.answer(body=gzipped(DATA)[:-9], content_encoding="gzip")
        self.assert_failed(content, BadUpstreamResponse)

    def test_unknown_encoding_without_a_digest_is_refused(self) -> None:
        """Without a digest, an encoding other than gzip is refused."""
        content = self.fetch(listed(None))
        self.wire.last.answer(body=DATA, content_encoding="br")
        self.assert_failed(content, BadUpstreamResponse)

    def test_other_encodings_are_not_decoded(self) -> None:
        """Only gzip is decoded. Other encodings do not match the digest."""
        content = self.fetch()
        self.wire.last.answer(body=zlib.compress(DATA), content_encoding="deflate")
        self.assert_failed(content, DigestMismatch)


class ResumeTest(FetchTestCase):
    """An interrupted transfer is resumed if a mix of two versions would be detected."""

    def test_etag_is_sent_as_if_range(self) -> None:
        """A strong etag is sent as If-Range (RFC 9110, section 13.1.5), to get the rest of the same version."""
        content = self.fetch()
        self.send_and_cut(10_000, etag='"v1"', last_modified="then")
        self.wait_for_retry(0.2)
        headers = self.wire.last.headers
        self.assertEqual(("bytes=10000-", '"v1"'), (headers["range"], headers["if-range"]))
        self.send_rest(10_000)
        self.assertTrue(content.whole)
        self.assert_stored()

    def test_date_is_sent_as_if_range_without_an_etag(self) -> None:
        """Last-Modified is sent as If-Range if there is no etag. With a weak etag, neither is sent."""
        self.fetch()
        self.send_and_cut(10_000, last_modified="Mon, 02 Nov 2026 10:00:00 GMT")
        self.wait_for_retry(0.2)
        self.assertEqual("Mon, 02 Nov 2026 10:00:00 GMT", self.wire.last.headers["if-range"])
        self.send_rest(10_000)
        self.assert_stored()

    def test_range_is_sent_alone_without_a_validator(self) -> None:
        """Without a validator, Range is sent alone if the digest can detect a mix."""
        for etag in ('W/"v1"', ""):
            content = self.fetch()
            self.send_and_cut(10_000, etag=etag)
            self.wait_for_retry(0.2)
            self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
            self.assertNotIn("if-range", self.wire.last.headers)
            self.send_rest(10_000)
            self.assertTrue(content.whole)
            self.delete_stored()

    def test_mix_of_two_versions_is_detected(self) -> None:
        """A mix of two versions fails the digest check, and is not stored."""
        content = self.fetch()
        self.send_and_cut(10_000)
        self.wait_for_retry(0.2)
        self.wire.last.answer(206, bytes(SIZE - 10_000), content_range=f"bytes 10000-{SIZE - 1}/{SIZE}")
        self.assert_failed(content, DigestMismatch)

    def test_nothing_is_resumed_without_validator_and_digest(self) -> None:
        """Without validator and digest, an interruption is an error for readers."""
        content = self.fetch(listed(None))
        self.send_and_cut(10_000, etag='W/"v1"')
        self.clock.pump([60] * 5)
        self.assertEqual(1, len(self.wire.exchanges))
        self.assertIsInstance(content.error, Truncated)

    def test_nothing_is_resumed_before_the_first_byte(self) -> None:
        """An interruption before the first byte is an error soon. A request after the back-off fetches again."""
        content = self.fetch()
        for _ in range(2):  # the second request is sent on a new connection
            self.wire.last.cut()
        self.assert_failed(content, UpstreamUnreachable)
        self.assertEqual(2, len(self.wire.exchanges))
        self.wait_out_backoff()
        content = self.fetch()
        self.send_and_cut(0)
        self.assertIsInstance(content.error, Truncated)

    def test_whole_body_in_answer_to_a_range_is_skipped(self) -> None:
        """
        If upstream answers a Range with 200, the bytes in the draft are skipped.

        The digest is checked at the end.
        """
        content = self.fetch()
        self.send_and_cut(10_000, etag='"v1"')
        self.wait_for_retry(0.2)
        self.send_head(etag='"v1"')
        for start in range(0, SIZE, 3_000):
            self.wire.last.send(DATA[start : start + 3_000])
        self.assertTrue(content.whole)
        self.assert_stored()

    def test_whole_body_of_another_version_is_detected(self) -> None:
        """A 200 with another version fails the digest check."""
        content = self.fetch()
        self.send_and_cut(10_000, etag='"v1"')
        self.wait_for_retry(0.2)
        self.wire.last.answer(body=bytes(SIZE), etag='"v2"')
        self.assert_failed(content, DigestMismatch)

    def test_whole_body_is_refused_without_a_digest(self) -> None:
        """A 200 to a Range is an error without a digest. It may be another version."""
        content = self.fetch(listed(None))
        self.send_and_cut(10_000, etag='"v1"')
        self.wait_for_retry(0.2)
        self.wire.last.answer(body=DATA, etag='"v2"')
        self.clock.advance(0)
        self.assertIsInstance(content.error, Truncated)

    def test_part_from_another_offset_is_refused(self) -> None:
        """A 206 with another offset than requested, or without one, is refused."""
        for where in ("bytes 0-20479/20480", f"bytes 10001-{SIZE - 1}/{SIZE}", "items 10000-1/2", ""):
            content = self.fetch()
            self.send_and_cut(10_000)
            self.wait_for_retry(0.2)
            self.wire.last.answer(206, DATA[10_000:], content_range=where)
            self.assert_failed(content, Truncated)
            self.wait_out_backoff()

    def test_transfer_survives_many_interruptions(self) -> None:
        """After an attempt with new bytes, the next delay is short again."""
        content = self.fetch()
        self.send_and_cut(1_000)
        for at in range(1_000, 20_000, 1_000):
            self.wait_for_retry(0.2)
            self.assertEqual(f"bytes={at}-", self.wire.last.headers["range"])
            self.send_head(206, SIZE - at, content_range=f"bytes {at}-{SIZE - 1}/{SIZE}")
            self.wire.last.send(DATA[at : at + 1_000])
            self.wire.last.cut()
        self.wait_for_retry(0.2)
        self.send_rest(20_000)
        self.assertTrue(content.whole)
        self.assert_stored()

    def test_attempts_without_new_bytes_end(self) -> None:
        """Delays double after attempts without new bytes. After several of them, readers get the error."""
        content = self.fetch()
        self.send_and_cut(10_000)
        for fruitless in range(FRUITLESS + 1):
            self.assertIsNone(content.error)
            self.wait_for_retry(0.2 * 2**fruitless)
            self.wire.last.answer(503)
        self.clock.pump([60] * 5)
        self.assertEqual(FRUITLESS + 2, len(self.wire.exchanges))
        self.assertIsInstance(content.error, UpstreamDown)
        self.assertIsNone(self.find_stored())

    def test_transfer_ends_after_many_attempts(self) -> None:
        """A transfer ends after 50 attempts, even if each brings a byte."""
        content = self.fetch()
        self.send_and_cut(1)
        for at in range(1, 50):
            self.wait_for_retry(0.2)
            self.send_head(206, SIZE - at, content_range=f"bytes {at}-{SIZE - 1}/{SIZE}")
            self.wire.last.send(DATA[at : at + 1])
            self.wire.last.cut()
        self.clock.pump([60] * 5)
        self.assertEqual(50, len(self.wire.exchanges))
        self.assertIsInstance(content.error, Truncated)

    def test_404_ends_the_transfer(self) -> None:
        """A 404 to a Range is no interruption, and ends the transfer."""
        content = self.fetch()
        self.send_and_cut(10_000)
        self.wait_for_retry(0.2)
        self.wire.last.answer(404)
        self.clock.advance(0)
        self.assertIsInstance(content.error, NotFound)

    def test_truncated_chunked_body_is_resumed(self) -> None:
        """A chunked body without its last chunk is resumed."""
        content = self.fetch()
        self.wire.last.send(response(200, b"", content_length="", transfer_encoding="chunked"))
        self.wire.last.send(chunked(DATA[:10_000]))
        self.wire.last.cut()
        self.wait_for_retry(0.2)
        self.send_rest(10_000)
        self.assertTrue(content.whole)


class SilenceTest(FetchTestCase):
    """Upstream stalls in the middle of a body."""

    def test_stalled_body_is_resumed(self) -> None:
        """After the timeout, the connection is closed and the transfer is resumed."""
        content = self.fetch()
        self.send_head()
        self.wire.last.send(DATA[:10_000])
        self.clock.advance(TIMEOUT - 0.1)
        self.assertFalse(self.wire.last.closed)
        self.clock.advance(0.1)
        self.assertTrue(self.wire.last.closed)
        self.wait_for_retry(0.2)
        self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
        self.send_rest(10_000)
        self.assertTrue(content.whole)

    def test_each_byte_restarts_the_timeout(self) -> None:
        """Each byte restarts the timeout. Without a minimum rate, a slow upstream does not time out."""
        self.fetches = self.make_fetches(min_rate=0)
        self.fetch()
        self.send_head()
        for at in range(0, SIZE, 1_024):
            self.wire.last.send(DATA[at : at + 1_024])
            self.clock.advance(TIMEOUT - 1)
        self.assert_stored()

    def test_connection_that_does_not_close_is_aborted(self) -> None:
        """
        A connection that does not close in order is aborted.

        With TLS an orderly close waits for upstream's answer.
        """
        content = self.fetch()
        self.send_head()
        self.wire.last.send(DATA[:10_000])
        self.wire.last.polite = False
        self.clock.advance(TIMEOUT)
        self.wait_for_retry(0.2)
        self.send_rest(10_000)
        self.assertTrue(content.whole)


class SlowDiskTestCase(FetchTestCase):
    """A disk that is slower than upstream, and a file of several backlogs."""

    threads: WhenTold

    def setUp(self) -> None:
        super().setUp()
        self.threads = WhenTold()
        self.fetches = self.make_fetches()
        self.large = os.urandom(64) * (3 * BACKLOG // 64)

    def send_head(self, status: int = 200, length: int = SIZE, **headers: str) -> None:
        """Send upstream's response head, and let the thread take room for the draft."""
        super().send_head(status, length, **headers)
        self.threads.step()

    def send(self, data: bytes) -> int:
        """Send until upstream is paused, and return the number of bytes sent."""
        sent = 0
        while sent < len(data) and not self.wire.last.paused:
            self.wire.last.send(data[sent : sent + 65_536])
            sent += 65_536
        return sent


class SlowDiskTest(SlowDiskTestCase):
    """The disk is slower than upstream, and sets the pace."""

    def test_upstream_is_paused_while_bytes_wait_for_the_disk(self) -> None:
        """Upstream is paused while too many bytes wait for the disk. This bounds the memory."""
        content = self.fetch(listed(sha256(self.large)))
        self.send_head(length=len(self.large))
        sent = self.send(self.large)
        self.assertTrue(self.wire.last.paused)
        self.assertLessEqual(sent, BACKLOG + 65_536)
        while sent < len(self.large):
            while self.wire.last.paused:
                self.threads.step()
            sent += self.send(self.large[sent:])
        self.threads.finish()
        self.assertEqual((True, len(self.large)), (content.whole, content.length))

    def test_paused_upstream_does_not_time_out(self) -> None:
        """The timeout does not run while upstream is paused. It restarts when upstream may continue."""
        content = self.fetch(listed(sha256(self.large)))
        self.send_head(length=len(self.large))
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
        self.wait_for_retry(0.2)
        self.assertEqual(f"bytes={sent}-", self.wire.last.headers["range"])
        self.wire.last.answer(404)
        self.clock.advance(0)
        self.assertIsInstance(content.error, NotFound)

    def test_bytes_are_readable_when_they_are_on_disk(self) -> None:
        """Bytes that wait for the disk are not readable yet."""
        content = self.fetch(listed(sha256(self.large)))
        self.send_head(length=len(self.large))
        self.wire.last.send(self.large[:50_000])
        self.assertEqual(0, content.length)
        self.threads.step()
        self.assertEqual(50_000, content.length)
        self.wire.last.cut()
        self.clock.advance(0.2)
        self.wire.last.answer(404)
        self.clock.advance(0)

    def test_end_waits_for_the_disk(self) -> None:
        """A file is whole only after its last byte is written and checked."""
        content = self.fetch()
        self.wire.last.answer(body=DATA)
        self.assertFalse(content.ended)
        self.threads.finish()
        self.assertTrue(content.whole)

    def test_interrupted_transfer_waits_for_the_disk(self) -> None:
        """A transfer is resumed after the received bytes are written."""
        content = self.fetch(listed(sha256(self.large)))
        self.send_head(length=len(self.large))
        self.wire.last.send(self.large[:4_000])
        self.wire.last.send(self.large[4_000:10_000])
        self.wire.last.cut()
        self.clock.advance(5)
        self.assertEqual(1, len(self.wire.exchanges))
        self.threads.finish()
        self.wait_for_retry(0.2)
        self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
        total = len(self.large)
        rest = {"content_length": str(total - 10_000), "content_range": f"bytes 10000-{total - 1}/{total}"}
        self.wire.last.send(response(206, b"", **rest))
        sent = 10_000
        while sent < total:
            self.threads.finish()
            sent += self.send(self.large[sent:])
        self.threads.finish()
        self.assertTrue(content.whole)

    def test_small_file_does_not_wait_for_a_thread(self) -> None:
        """The bytes of a small file are written and hashed at once."""
        content = self.fetch()
        self.send_head()
        self.wire.last.send(DATA[:10_000])
        self.assertEqual(10_000, content.length)
        self.wire.last.send(DATA[10_000:])
        self.assertTrue(content.whole)
        self.assertIsNotNone(self.find_stored())
        self.assertEqual([], self.threads.waiting)


class DiskFailureTest(FetchTestCase):
    """The disk fails, and the errors do not blame upstream."""

    def test_disk_that_fills_up_ends_the_transfer(self) -> None:
        """A full disk ends the transfer and its connection at once, without a retry."""
        content = self.fetch()
        self.send_head()
        with mock.patch("os.pwrite", side_effect=OSError(errno.ENOSPC, "No space left on device")):
            self.wire.last.send(DATA[:10_000])
        self.clock.advance(0)
        self.assertTrue(self.wire.last.closed)
        self.clock.pump([60] * 3)
        self.assertEqual(1, len(self.wire.exchanges))
        self.assert_failed(content, StorageFull)

    def test_file_larger_than_the_disk_is_not_requested(self) -> None:
        """A file that is listed as larger than the free space is not requested."""
        content = self.fetch(listed(size=2**60))
        self.assert_failed(content, StorageFull)
        self.assertEqual([], self.wire.exchanges)

    def test_file_that_is_announced_as_larger_than_the_disk_is_not_read(self) -> None:
        """A response that announces more than the free space is closed at once, without a retry and a back-off."""
        content = self.fetch(listed(size=SIZE))  # the page may be wrong
        self.send_head(length=2**60)
        self.clock.advance(0)
        self.assert_failed(content, StorageFull)
        self.assertTrue(self.wire.last.closed)
        self.assertTrue(self.whole_fetch())

    def whole_fetch(self) -> bool:
        """Fetch the file as if nothing had happened."""
        content = self.fetch()
        self.wire.last.answer(body=DATA)
        return content.whole

    def test_draft_that_can_not_be_created_is_storage_down(self) -> None:
        """If no draft can be created, upstream gets no request."""
        (self.root / "drafts").mkdir()
        error = OSError(errno.EROFS, "Read-only file system")
        with mock.patch.object(Drafts, "open", side_effect=error), self.assertRaises(StorageDown):
            self.fetches.start(listed())
        self.assertEqual([], self.wire.exchanges)

    def test_file_that_can_not_be_stored_is_served(self) -> None:
        """A complete file that can't be stored is still served to its readers (promise 8)."""
        (self.root / "files").write_bytes(b"in the way")
        content = self.fetch()
        self.wire.last.answer(body=DATA)
        self.assertTrue(content.whole)
        self.assertEqual(DATA, os.pread(content.fd, SIZE, 0))

    def test_unexpected_exception_is_logged(self) -> None:
        """An unexpected exception is logged, and ends the content with an error."""
        content = self.fetch()
        with mock.patch.object(self.storage, "commit", side_effect=ZeroDivisionError):
            self.wire.last.answer(body=DATA)
        self.assertTrue(content.ended)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))


class DeadDraft(Draft):
    """The draft of a killed process. Nothing is written to it."""

    __slots__ = ()

    def write(self, data: bytes, offset: int) -> None:
        pass

    def write_note(self, state: State) -> None:
        pass

    def drop(self) -> None:
        pass


class SharedTest(FetchTestCase):
    """Processes and hosts share one fetch. Each `Fetches` stands for a process."""

    def setUp(self) -> None:
        super().setUp()
        self.other = self.make_fetches()
        self.addCleanup(lambda: self.assertEqual(0, len(self.other)))

    def follow(self, file: PackageFile | None = None) -> Content:
        """Request the file in the other process."""
        content = self.close_after_test(self.other.start(file or listed()))
        self.clock.advance(0)
        return content

    def wait_for_follower(self, seconds: float = 0.1) -> None:
        """Advance the clock until a follower has looked at the draft."""
        self.clock.pump([0.01] * round(seconds * 100))

    def kill(self, fetches: Fetches) -> None:
        """Simulate that the process was killed: its locks are released, and it writes nothing more."""
        (fetch,) = fetches._running.values()
        fcntl.flock(fetch.draft._lock, fcntl.LOCK_UN)
        fetch.draft.__class__ = DeadDraft

    def stop_killed(self, fetches: Fetches) -> None:
        """Stop the fetches of a killed process that are left in this process."""
        self.now(self.start(fetches.stop()))

    def test_another_process_follows(self) -> None:
        """
        Another process follows the draft, without a second request (promise 3).

        Its readers get the last bytes after the check.
        """
        size, digest = len(LONG), sha256(LONG)
        content = self.fetch(listed(digest))
        followed = self.follow(listed(digest))
        self.assertFalse(followed.begun)
        self.wire.last.send(response(200, content_length=str(size)))
        self.wire.last.send(LONG[:10_000])
        self.wait_for_follower()
        self.assertEqual((True, size, 10_000 - HELD_BACK), (followed.begun, followed.total, followed.readable))
        self.assertEqual(LONG[:10_000], os.pread(followed.fd, size, 0))
        self.wire.last.send(LONG[10_000:])
        self.assertTrue(content.whole)
        self.wait_for_follower()
        self.assertEqual((True, size, digest), (followed.whole, followed.readable, followed.digest))
        self.assertEqual(LONG, os.pread(followed.fd, size, 0))
        self.assertEqual(1, len(self.wire.exchanges))
        stored = self.find_stored()
        assert stored is not None
        self.assertEqual(digest, stored.digest)

    def test_another_process_holds_a_small_file_back(self) -> None:
        """Followers get no byte of a small file before its digest agreed."""
        self.fetch()
        followed = self.follow()
        self.send_head()
        self.wire.last.send(DATA[:-1])
        self.wait_for_follower()
        self.assertEqual((True, SIZE - 1, False, 0), self.progress_of(followed))
        self.wire.last.send(DATA[-1:])
        self.wait_for_follower()
        self.assertEqual((True, SIZE, True, SIZE), self.progress_of(followed))

    def progress_of(self, content: Content) -> tuple[bool, int, bool, int]:
        return content.begun, content.length, content.may_be_read, content.readable

    def test_all_processes_get_the_error(self) -> None:
        """All processes get the same error, without another request."""
        for status, kind in {404: NotFound, 403: UpstreamRefused, 503: UpstreamDown}.items():
            self.fetch()
            followed = self.follow()
            before = len(self.wire.exchanges)
            self.wire.last.answer(status)
            self.wait_for_follower()
            self.assert_failed(followed, kind)
            self.assertEqual(before, len(self.wire.exchanges))
            self.wait_out_backoff()

    def test_wrong_bytes_are_held_back_in_all_processes(self) -> None:
        """Followers do not get the last bytes of a wrong file (promise 2)."""
        self.fetch()
        followed = self.follow()
        self.wire.last.answer(body=DATA[:-1] + b"!")
        self.wait_for_follower()
        self.assert_failed(followed, DigestMismatch)

    def test_encoded_body_is_readable_once_decoded(self) -> None:
        """Followers get no byte of an encoded body before it is decoded."""
        zeros = bytes(100_000)
        file = listed(sha256(zeros))
        self.fetch(file)
        followed = self.follow(file)
        encoded = gzipped(zeros)
        self.wire.last.send(response(200, encoded[:50], content_encoding="gzip", content_length=str(len(encoded))))
        self.wait_for_follower()
        self.assertEqual((False, 0), (followed.begun, followed.readable))
        self.wire.last.send(encoded[50:])
        self.wait_for_follower()
        self.assertEqual((True, 100_000), (followed.whole, followed.readable))
        self.assertEqual(zeros, os.pread(followed.fd, 200_000, 0))

    def test_another_process_takes_over(self) -> None:
        """
        A follower resumes the transfer of a killed process (promise 5).

        It hashes the draft first, and readers only wait.
        """
        self.fetch()
        self.send_head(etag='"v1"')
        followed = self.follow()
        self.wire.last.send(DATA[:10_000])
        self.wait_for_follower()
        self.kill(self.fetches)
        self.wait_for_follower(0.5)
        headers = self.wire.last.headers
        self.assertEqual(("bytes=10000-", '"v1"'), (headers["range"], headers["if-range"]))
        self.assertIsNone(followed.error)
        self.send_rest(10_000)
        self.assertTrue(followed.whole)
        self.assertEqual(DATA, os.pread(followed.fd, SIZE, 0))
        self.assert_stored()
        self.assertEqual(2, len(self.wire.exchanges))
        self.stop_killed(self.fetches)

    def test_taken_over_file_is_checked_from_its_first_byte(self) -> None:
        """The digest check includes the bytes of the killed process (promise 1)."""
        self.fetch()
        self.send_head()
        followed = self.follow()
        self.wire.last.send(DATA[:9_999] + b"!")
        self.wait_for_follower()
        self.kill(self.fetches)
        self.wait_for_follower(0.5)
        self.send_rest(10_000)
        self.assert_failed(followed, DigestMismatch)
        self.stop_killed(self.fetches)

    def test_nothing_is_taken_over_without_validator_and_digest(self) -> None:
        """
        Without validator and digest, a follower does not take over.

        Its readers get an error, and the next request fetches again.
        """
        self.fetch(listed(None))
        self.send_head()
        followed = self.follow(listed(None))
        self.wire.last.send(DATA[:10_000])
        self.wait_for_follower()
        self.kill(self.fetches)
        self.wait_for_follower(0.5)
        self.assertIsInstance(followed.error, Truncated)
        self.assertEqual(1, len(self.wire.exchanges))
        self.stop_killed(self.fetches)

    def test_complete_draft_of_a_killed_process_is_stored(self) -> None:
        """A complete draft of a killed process is hashed and stored, without another request."""
        committing: Deferred[None] = Deferred()
        with mock.patch.object(self.storage, "commit", mock.Mock(return_value=committing)):
            self.fetch()
            followed = self.follow()
            self.wire.last.answer(body=DATA)
            self.wait_for_follower()
            self.assertTrue(followed.whole)
            self.kill(self.fetches)
        self.wait_for_follower(0.5)
        self.assert_stored()
        self.assertEqual(1, len(self.wire.exchanges))
        committing.callback(None)

    def test_draft_of_a_stopped_process_is_resumed(self) -> None:
        """The draft of a stopped process is resumed by the next request."""
        content = self.fetch()
        self.send_head()
        self.wire.last.send(DATA[:10_000])
        self.now(self.fetches.stop())
        self.assertIsInstance(content.error, StillFetching)
        self.assertTrue(self.wire.last.closed)
        again = self.follow()
        self.assertEqual("bytes=10000-", self.wire.last.headers["range"])
        self.send_rest(10_000)
        self.assertTrue(again.whole)
        self.assert_stored()

    def test_stop_hands_over_before_the_first_byte_too(self) -> None:
        """
        A follower takes over from a stopped process that has no byte yet.

        Stopping also ends the wait for the next attempt.
        """
        self.fetch()
        followed = self.follow()
        self.now(self.fetches.stop())
        self.wait_for_follower(0.5)
        self.assertEqual(2, len(self.wire.exchanges))
        self.send_and_cut(10_000)
        self.now(self.other.stop())
        self.assertIsInstance(followed.error, StillFetching)
        for left in (self.root / "drafts").iterdir():
            left.unlink()

    def test_stop_ends_following(self) -> None:
        """A follower that stops does not end the fetch."""
        self.fetch()
        followed = self.follow()
        stopped = Deferred.fromCoroutine(self.other.stop())
        self.wait_for_follower()
        self.successResultOf(stopped)
        self.assertIsInstance(followed.error, StillFetching)
        self.wire.last.answer(body=DATA)
        self.assert_stored()

    def test_file_stored_meanwhile_is_not_fetched_again(self) -> None:
        """
        A file that was stored meanwhile is not fetched again.

        With `anew` it is, for a file that can't be read from storage.
        """
        self.fetch()
        self.wire.last.answer(body=DATA)
        self.assertIsInstance(self.follow().error, AlreadyStored)
        self.assertEqual(1, len(self.wire.exchanges))
        self.close_after_test(self.other.start(listed(), anew=True))
        self.assertEqual(2, len(self.wire.exchanges))
        self.wire.last.answer(body=DATA)

    def test_host_fetches_for_itself_if_no_other_can_hand_the_file_over(self) -> None:
        """A stored file is fetched again despite the lease of another host while the bucket fails for all of them."""
        others = Leases(self.catalog, "another disk", self.clock)
        self.now(others.take(fetch_lease(listed().key)))
        self.storage.reaches_others = False
        for anew, requests in ((False, 0), (True, 1)):
            self.close_after_test(self.other.start(listed(), anew=anew))
            self.assertEqual(requests, len(self.wire.exchanges))
        self.wire.last.answer(body=DATA)
        self.assertIsNotNone(self.now(self.catalog.take_lease(fetch_lease(listed().key), "a third disk", 1)))
        self.now(others.release_if_held(fetch_lease(listed().key)))

    def test_another_host_holds_the_lease(self) -> None:
        """Only the holder of the lease fetches. On other hosts, clients get its estimate of the remaining time."""
        others = Leases(self.catalog, "another disk", self.clock)
        self.now(others.take(fetch_lease(listed().key), lambda: "42"))
        content, followed = self.fetch(), self.follow()
        self.wait_for_follower()
        for each in (content, followed):
            assert isinstance(each.error, FetchedElsewhere)
            self.assertEqual(42, each.error.retry_after)
        self.assertEqual([], self.wire.exchanges)
        self.now(others.release_if_held(fetch_lease(listed().key)))
        self.fetch()
        self.wire.last.answer(body=DATA)
        self.assert_stored()

    def test_other_hosts_see_the_remaining_time(self) -> None:
        """The lease has an estimate in seconds, from the pace so far. It is released at the end of the fetch."""
        self.fetch()
        self.send_head()
        self.clock.advance(4)
        self.wire.last.send(DATA[: SIZE // 4])
        self.clock.advance(1)
        held = self.now(cast("Awaitable[HeldLease | None]", self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))
        assert held is not None
        self.assertEqual(("disk", "15"), (held.owner, held.about))
        self.wire.last.send(DATA[SIZE // 4 :])
        free = self.catalog.take_lease(fetch_lease(listed().key), "x", 0.1)
        self.assertIsNone(self.now(cast("Awaitable[HeldLease | None]", free)))

    def test_lease_is_kept_during_the_upload(self) -> None:
        """The lease is kept while a worker uploads the file. Other hosts do not see the file until then."""
        with mock.patch.object(self.storage, "upload_window", 900.0):
            self.fetch()
            self.wire.last.answer(body=DATA)
        held = self.now(cast("Awaitable[HeldLease | None]", self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))
        assert held is not None
        self.assertEqual(900, held.left)

    def test_lease_is_free_after_the_upload(self) -> None:
        """The lease stays free if the upload ended before the fetch did. The worker has released it."""
        commit = self.storage.commit

        async def commit_and_upload(key: str, draft: Path, digest: Digest) -> StoredFile:
            stored = await commit(key, draft, digest)
            await self.catalog.release_lease(fetch_lease(key), "disk")
            return stored

        with mock.patch.multiple(self.storage, upload_window=900.0, commit=commit_and_upload):
            self.fetch()
            self.wire.last.answer(body=DATA)
        self.assert_stored()
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))

    def test_lease_is_released_if_the_file_can_not_be_stored(self) -> None:
        """The lease is released if the file can't be stored. Another host may be able to store it."""
        with mock.patch.multiple(
            self.storage, upload_window=900.0, commit=mock.AsyncMock(side_effect=StorageDown("no luck"))
        ):
            self.fetch()
            self.wire.last.answer(body=DATA)
        self.assertIsNone(self.now(self.catalog.take_lease(fetch_lease(listed().key), "x", 1)))

    def test_without_redis_each_host_fetches_for_itself(self) -> None:
        """Files are fetched without a catalog (promise 8)."""
        self.catalog.down = "cable pulled"
        self.fetch()
        self.wire.last.answer(body=DATA)
        self.assert_stored()
