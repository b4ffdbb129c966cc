"""Tests of `Content`: bytes that arrive on disk, and the readers that wait for them."""

from __future__ import annotations

import os

from twisted.internet.defer import CancelledError

from mypypi.errors import UpstreamDown
from mypypi.files.content import HELD_BACK, HELD_WHOLE, Content
from tests.support.memory import MemoryTestCase, open_descriptors, sha256

DIGEST = sha256(b"")


class ContentTest(MemoryTestCase):
    """The readable bytes, the watchers and the file descriptor of a content."""

    def setUp(self) -> None:
        super().setUp()
        self.before = open_descriptors()
        self.content = Content(os.open(os.devnull, os.O_RDONLY))
        self.addCleanup(self.release_if_held)

    def release_if_held(self) -> None:
        while self.content.fd >= 0:
            self.content.close()

    def test_last_bytes_are_held_back_until_the_digest_is_checked(self) -> None:
        """The last bytes are held back until the digest has been checked (promise 2)."""
        self.content.begin(10 * HELD_WHOLE)
        self.content.grow(HELD_BACK)
        self.assertEqual((True, 0), (self.content.may_be_read, self.content.readable))
        self.content.grow(1000)
        self.assertEqual(1000, self.content.readable)
        self.content.finish(DIGEST)
        self.assertEqual(HELD_BACK + 1000, self.content.readable)

    def test_small_files_are_held_back_as_a_whole(self) -> None:
        """No byte of a file of up to 64 KiB may be read before its digest has been checked."""
        self.content.begin(HELD_WHOLE)
        self.content.grow(HELD_WHOLE)
        self.assertEqual((False, 0), (self.content.may_be_read, self.content.readable))
        self.content.finish(DIGEST)
        self.assertEqual((True, HELD_WHOLE), (self.content.may_be_read, self.content.readable))

    def test_files_of_unknown_length_are_held_back_until_they_are_long(self) -> None:
        """No byte of a file of unknown length may be read before there are more than 64 KiB of it."""
        self.content.begin(None)
        self.content.grow(HELD_WHOLE)
        self.assertEqual((False, 0), (self.content.may_be_read, self.content.readable))
        self.content.grow(1)
        self.assertEqual((True, HELD_WHOLE + 1 - HELD_BACK), (self.content.may_be_read, self.content.readable))

    def test_held_back_bytes_are_counted_from_the_announced_size(self) -> None:
        """Held-back bytes are counted from the announced size, even if upstream sends more."""
        self.content.begin(HELD_WHOLE + 10)
        self.content.grow(HELD_WHOLE + 500)
        self.assertEqual(HELD_WHOLE + 10 - HELD_BACK, self.content.readable)

    def test_finished_content_has_its_size_and_digest(self) -> None:
        """Finished content has its size and digest, even if none was announced."""
        self.content.begin(None)
        self.content.grow(7)
        self.content.finish(DIGEST)
        self.assertEqual(
            (7, True, True, DIGEST), (self.content.total, self.content.whole, self.content.ended, self.content.digest)
        )

    def test_content_can_finish_without_begin(self) -> None:
        """Content can finish without `begin`. An encoded body has no readable bytes until it is decoded and checked."""
        self.content.grow(7)
        self.assertFalse(self.content.begun)
        self.content.finish(DIGEST)
        self.assertTrue(self.content.begun)

    def test_first_end_counts(self) -> None:
        """Whole content can't fail, and failed content keeps its first error."""
        self.content.finish(DIGEST)
        self.content.fail(UpstreamDown("too late"))
        self.assertIsNone(self.content.error)
        other = Content(-1)
        other.fail(UpstreamDown("first"))
        other.fail(UpstreamDown("second"))
        self.assertEqual("first", str(other.error))

    def test_watcher_is_called_after_each_change(self) -> None:
        """A watcher is called after each change until it is removed."""
        lengths: list[int] = []

        def watcher() -> None:
            lengths.append(self.content.length)

        self.content.watch(watcher)
        self.content.begin(9)
        self.content.grow(4)
        self.content.grow(5)
        self.content.unwatch(watcher)
        self.content.unwatch(watcher)
        self.content.finish(DIGEST)
        self.assertEqual([0, 4, 9], lengths)

    def test_wait_until_fires_when_it_has_happened(self) -> None:
        """Each call of `wait_until` has its own Deferred. Cancelling one does not affect others."""
        self.now(self.content.wait_until(lambda: True))
        leaving = self.content.wait_until(lambda: self.content.ended)
        staying = self.content.wait_until(lambda: self.content.ended)
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.content.grow(1)
        self.assertNoResult(staying)
        self.content.finish(DIGEST)
        self.now(staying)
        self.assertEqual([], self.content._watchers)

    def test_callback_may_cancel_another_wait(self) -> None:
        """A callback may cancel another Deferred of `wait_until`. One closing connection may close another."""
        first = self.content.wait_until(lambda: self.content.ended)
        second = self.content.wait_until(lambda: self.content.ended)
        third = self.content.wait_until(lambda: self.content.ended)
        first.addCallback(lambda _: second.cancel())
        self.content.finish(DIGEST)
        self.failing(second, CancelledError)
        self.now(third)

    def test_callback_may_cause_a_change(self) -> None:
        """A change during a change fires each Deferred once."""
        first = self.content.wait_until(lambda: self.content.length > 0)
        second = self.content.wait_until(lambda: self.content.length > 0)
        first.addCallback(lambda _: self.content.changed())
        self.content.grow(1)
        self.now(first)
        self.now(second)

    def test_last_user_closes_the_descriptor(self) -> None:
        """The descriptor stays open until its last user closes it."""
        self.content.open()
        self.content.close()
        self.assertEqual(self.before + 1, open_descriptors())
        self.content.close()
        self.assertEqual(self.before, open_descriptors())

    def test_stored_file_is_whole_from_the_start(self) -> None:
        """All bytes of a stored file are readable. A missing file raises an OSError."""
        path = self.directory() / "file"
        path.write_bytes(b"12345")
        content = Content.stored(path, 5)
        self.addCleanup(content.close)
        self.assertEqual((5, 5, True, True), (content.readable, content.total, content.begun, content.whole))
        with self.assertRaises(FileNotFoundError):
            Content.stored(path.with_name("gone"), 5)
