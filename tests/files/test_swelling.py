"""Tests of files that bring more bytes than they should: in the draft, and when they are decoded."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from attrs import evolve

from mypypi.digests import Digest
from mypypi.errors import BadUpstreamResponse, DigestMismatch, FileTooLarge, StillFetching, StorageFull
from mypypi.files.content import Content
from mypypi.files.receiver import MOST_BEYOND_LISTED
from mypypi.model import PackageFile
from tests.files.test_fetch import SIZE, FetchTestCase, chunked, listed
from tests.support.memory import WhenTold, gzipped, response, sha256
from tests.support.swollen import barely_swollen, swollen

LIMIT = 1_000_000
ENDLESS = 300_000_000
PIECE = bytes(64 * 1024)


class SwellingTestCase(FetchTestCase):
    """Fetches whose drafts may have a limited size."""

    def limit_drafts(self, limit: int = LIMIT) -> None:
        """Set MYPYPI_DRAFTS_MAX_BYTES."""
        self.fetches._drafts.room._limit = limit

    def bytes_on_disk(self) -> int:
        return sum(path.stat().st_size for path in (self.root / "drafts").glob("*.draft"))


class ArrivingTest(SwellingTestCase):
    """What arrives is counted while it arrives."""

    def send_endlessly(self, file: PackageFile, **headers: str) -> tuple[Content, int, int]:
        """
        Send a file of 300 MB. Stop when the connection is closed.

        Returns its content, and the bytes that were sent and the most that were on the disk.
        """
        self.wait_out_backoff()
        content = self.fetch(file)
        self.wire.last.send(response(200, b"", **headers))
        self.clock.advance(0)
        sent = most = 0
        while sent < ENDLESS and not self.wire.last.closed:
            self.wire.last.send(chunked(PIECE) if "transfer_encoding" in headers else PIECE)
            sent += len(PIECE)
            most = max(most, self.bytes_on_disk())
            self.clock.advance(0)
        return content, sent, most

    def test_drafts_stay_within_their_limit(self) -> None:
        """
        A file of 300 MB takes no more than the limit of 1 MB, whatever upstream and its page say of its length.

        It ends as a full disk does: clients are redirected to upstream.
        """
        self.limit_drafts()
        of_300_mb = {"content_length": str(ENDLESS)}
        in_chunks = {"transfer_encoding": "chunked", "content_length": ""}
        until_close = {"content_length": ""}
        for headers in (of_300_mb, in_chunks, until_close, in_chunks | {"content_encoding": "gzip"}):
            for size in (None, 10):
                content, sent, most = self.send_endlessly(listed(size=size), **headers)
                self.assert_failed(content, FileTooLarge)
                self.assertEqual("content_length" in headers and bool(headers["content_length"]), sent == 0)
                self.assertLessEqual(sent, LIMIT + 2 * len(PIECE))
                self.assertLessEqual(most, LIMIT)
        self.assertEqual(8, len(self.wire.exchanges))

    def test_drafts_of_all_files_stay_within_their_limit(self) -> None:
        """Files that arrive at the same time in chunks share the limit."""
        self.limit_drafts()
        contents = []
        for number in range(4):
            url = f"https://files.example/{number}.whl"
            contents.append(self.fetch(PackageFile(url.replace("://", "/"), url)))
            self.wire.last.send(response(200, b"", transfer_encoding="chunked", content_length=""))
        exchanges = list(self.wire.exchanges)
        for _ in range(2 * LIMIT // len(PIECE)):
            for exchange in exchanges:
                if not exchange.closed:
                    exchange.send(chunked(PIECE))
            self.assertLessEqual(self.bytes_on_disk(), LIMIT)
            self.clock.advance(0)
        self.assertTrue(all(isinstance(content.error, StorageFull) for content in contents))

    def test_a_file_ends_soon_after_its_listed_size(self) -> None:
        """A file that goes on beyond the size on its page is ended, with and without a digest."""
        for digest in (sha256(b"other"), None):
            for headers in ({"transfer_encoding": "chunked", "content_length": ""}, {"content_length": ""}):
                content, sent, _ = self.send_endlessly(listed(digest, size=10), **headers)
                self.assert_failed(content, BadUpstreamResponse)
                self.assertIn("its page says 10", str(content.error))
                self.assertLess(sent, MOST_BEYOND_LISTED + 2 * len(PIECE))

    def test_a_file_that_announces_much_more_than_its_listed_size_is_not_read(self) -> None:
        """The announced length tells before the first byte."""
        content, sent, _ = self.send_endlessly(listed(size=10), content_length=str(ENDLESS))
        self.assert_failed(content, BadUpstreamResponse)
        self.assertEqual(0, sent)

    def test_a_page_may_be_a_little_wrong(self) -> None:
        """A file that is somewhat larger than its page says is accepted if its digest matches."""
        data = os.urandom(MOST_BEYOND_LISTED)
        content = self.fetch(listed(sha256(data), size=10))
        self.wire.last.answer(body=data)
        self.assertTrue(content.whole)


class DecodingTest(SwellingTestCase):
    """A gzip body that was not requested costs no more than it brings."""

    def fail_to_decode(self, body: bytes, file: PackageFile, error: type[Exception]) -> tuple[str, int]:
        """Send this body. Return the error's message, and the number of bytes that were written."""
        self.wait_out_backoff()
        content = self.fetch(file)
        with mock.patch("os.pwrite", side_effect=os.pwrite) as pwrite:
            self.wire.last.answer(body=body, content_encoding="gzip")
        self.assert_failed(content, error)
        return str(content.error), sum(len(call.args[1]) for call in pwrite.call_args_list)

    def test_a_body_that_swells_is_dropped(self) -> None:
        """A file of 1.5 MB that has 1.5 GB when it is decoded is dropped before anything of it is on the disk."""
        body = swollen(1_500_000_000)
        self.assertLess(len(body), 1_600_000)
        for digest, size, error in (
            (sha256(b"other"), None, DigestMismatch),
            (sha256(b"other"), 1_500_000_000, DigestMismatch),
            (None, None, BadUpstreamResponse),
            (None, 10, BadUpstreamResponse),
        ):
            message, written = self.fail_to_decode(body, listed(digest, size), error)
            self.assertIn("grows more than 200 times" if size != 10 else "its page says 10", message)
            self.assertLess(written, len(body) + 10_000)

    def test_a_file_that_does_not_match_is_not_written(self) -> None:
        """With a digest, decoded bytes come to the disk only once they match."""
        body = barely_swollen(bytes(20_000_000))
        _, written = self.fail_to_decode(body, listed(), DigestMismatch)
        self.assertLess(written, len(body) + 10_000)

    def test_decoded_bytes_stay_within_the_limit(self) -> None:
        """Decoded bytes take room before they are written, with and without a digest. Clients are redirected."""
        self.limit_drafts()
        file = bytes(20_000_000)
        for digest in (sha256(file), None):
            body = barely_swollen(file)
            _, written = self.fail_to_decode(body, listed(digest), FileTooLarge)
            self.assertLess(written, LIMIT)

    def test_decoded_bytes_take_room_of_other_drafts(self) -> None:
        """The encoded and the decoded bytes count together, against what all drafts may have."""
        file = bytes(500_000)
        body = barely_swollen(file)
        self.limit_drafts()
        other = self.fetches._drafts.room.share()
        other.ask(LIMIT - len(body) - len(file) + 1)
        self.fail_to_decode(body, listed(sha256(file)), StorageFull)
        other.ask(LIMIT - len(body) - len(file))
        content = self.fetch(listed(sha256(file)))
        self.wire.last.answer(body=body, content_encoding="gzip")
        self.assertTrue(content.whole)
        other.give_back()

    def test_a_decoded_file_is_stored(self) -> None:
        """A file of several gzip members is decoded, and the draft has its size."""
        file = os.urandom(300_000)
        body = gzipped(file[:1000]) + gzipped(b"") + gzipped(file[1000:])
        content = self.fetch(listed(sha256(file), size=len(file)))
        self.wire.last.answer(body=body, content_encoding="gzip")
        self.assertEqual((True, len(file)), (content.whole, content.total))
        stored = self.find_stored()
        assert stored is not None
        assert stored.path is not None
        self.assertEqual(file, Path(stored.path).read_bytes())

    def test_empty_members_are_dropped(self) -> None:
        """A file of gzip members with nothing in them is dropped after a few."""
        for digest, error in ((sha256(b"other"), DigestMismatch), (None, BadUpstreamResponse)):
            message, _ = self.fail_to_decode(gzipped(b"") * 50_000, listed(digest), error)
            self.assertIn("next to nothing in them", message)

    def test_trailing_garbage_is_damage(self) -> None:
        """What follows the last member is no file."""
        file = os.urandom(10_000)
        for digest, error in ((sha256(file), DigestMismatch), (None, BadUpstreamResponse)):
            message, written = self.fail_to_decode(gzipped(file) + bytes(100_000), listed(digest), error)
            self.assertIn("damaged gzip encoding", message)
            self.assertLess(written, 150_000)


class DecodingThreadsTest(FetchTestCase):
    """Decoding takes no time of the threads that others wait for."""

    def setUp(self) -> None:
        super().setUp()
        self.decoding = WhenTold()
        self.fetches._tools = evolve(self.fetches._tools, decoding=self.decoding)

    def start_decoding(self, digest: Digest, body: bytes, size: int | None = None) -> Content:
        content = self.fetch(
            PackageFile(f"https/files.example/{digest.hex}", "https://files.example/x.whl", digest, size)
        )
        self.wire.last.answer(body=body, content_encoding="gzip")
        self.assertFalse(content.ended)
        return content

    def test_a_file_is_served_while_others_are_decoded(self) -> None:
        """A file that needs no decoding does not wait for those that do."""
        files = [os.urandom(1000) for _ in range(3)]
        contents = [self.start_decoding(sha256(file), gzipped(file)) for file in files]
        self.assertEqual(3, len(self.decoding.waiting))
        content = self.fetch(listed(None, SIZE))
        self.wire.last.answer(body=bytes(SIZE))
        self.assertTrue(content.whole)
        self.decoding.finish()
        self.assertEqual([True] * 3, [content.whole for content in contents])

    def test_the_end_of_an_archive_is_looked_for_in_these_threads(self) -> None:
        """An archive without a length is unpacked to find its end, beside the others as well."""
        content = self.fetch(listed(None))
        self.wire.last.send(response(200, gzipped(b"x"), content_length=""))
        self.wire.last.end()
        self.assertEqual((False, 1), (content.ended, len(self.decoding.waiting)))
        self.decoding.finish()
        self.assertTrue(content.whole)

    def test_a_stop_does_not_wait_for_what_is_decoded(self) -> None:
        """When the server stops, files that wait to be decoded are left, and so is the one that is being decoded."""
        file = os.urandom(1000)
        content = self.start_decoding(sha256(file), gzipped(file))
        stopping = self.start(self.fetches.stop())
        with mock.patch("os.pread") as pread:
            self.decoding.finish()
        pread.assert_not_called()
        self.assertEqual((True, StillFetching), (stopping.called, type(content.error)))
        for path in (self.root / "drafts").iterdir():
            path.unlink()
