"""Bytes that arrive, and those who wait for them."""

from __future__ import annotations

import os

from twisted.internet.defer import CancelledError

from mypypi.errors import UpstreamDown
from mypypi.files.content import HELD_BACK, Content
from tests.support.memory import MemoryTestCase, open_descriptors, sha256

DIGEST = sha256(b"")


class ContentTest(MemoryTestCase):
    """How much may be read, who hears of changes, and when the descriptor is closed."""

    def setUp(self) -> None:
        super().setUp()
        self.before = open_descriptors()
        self.content = Content(os.open(os.devnull, os.O_RDONLY))
        self.addCleanup(self.release_if_held)

    def release_if_held(self) -> None:
        while self.content.fd >= 0:
            self.content.close()

    def test_last_bytes_are_held_back_until_the_digest_agrees(self) -> None:
        """Promise 2: nobody can have the whole of what is not checked."""
        self.content.begin(None)
        self.content.grow(HELD_BACK)
        self.assertEqual(0, self.content.readable)
        self.content.grow(1000)
        self.assertEqual(1000, self.content.readable)
        self.content.finish(DIGEST)
        self.assertEqual(HELD_BACK + 1000, self.content.readable)

    def test_held_back_bytes_are_those_of_the_announced_end(self) -> None:
        """An upstream that sends more than it announced does not loosen what is held."""
        self.content.begin(HELD_BACK + 10)
        self.content.grow(HELD_BACK + 500)
        self.assertEqual(10, self.content.readable)

    def test_finished_content_knows_its_size_and_digest(self) -> None:
        """Whatever was announced, or not."""
        self.content.begin(None)
        self.content.grow(7)
        self.content.finish(DIGEST)
        self.assertEqual((7, True, True, DIGEST), (self.content.total, self.content.whole, self.content.ended, DIGEST))

    def test_content_that_never_began_may_be_whole_all_the_same(self) -> None:
        """An encoded body shows nothing until it is undone and checked."""
        self.content.grow(7)
        self.assertFalse(self.content.begun)
        self.content.finish(DIGEST)
        self.assertTrue(self.content.begun)

    def test_first_ending_counts(self) -> None:
        """What is whole does not fail any more; what failed keeps its reason."""
        self.content.finish(DIGEST)
        self.content.fail(UpstreamDown("too late"))
        self.assertIsNone(self.content.error)
        other = Content(-1)
        other.fail(UpstreamDown("first"))
        other.fail(UpstreamDown("second"))
        self.assertEqual("first", str(other.error))

    def test_watcher_hears_of_each_change(self) -> None:
        """Until it asks not to."""
        heard: list[int] = []

        def watcher() -> None:
            heard.append(self.content.length)

        self.content.watch(watcher)
        self.content.begin(9)
        self.content.grow(4)
        self.content.grow(5)
        self.content.unwatch(watcher)
        self.content.unwatch(watcher)
        self.content.finish(DIGEST)
        self.assertEqual([0, 4, 9], heard)

    def test_waiting_ends_when_it_has_happened(self) -> None:
        """At once where it has; each with a Deferred of its own, which takes nobody else along."""
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

    def test_one_who_waits_may_make_another_leave(self) -> None:
        """A connection that ends because of what it hears may be another waiter's as well."""
        first = self.content.wait_until(lambda: self.content.ended)
        second = self.content.wait_until(lambda: self.content.ended)
        third = self.content.wait_until(lambda: self.content.ended)
        first.addCallback(lambda _: second.cancel())
        self.content.finish(DIGEST)
        self.failing(second, CancelledError)
        self.now(third)

    def test_one_who_waits_may_cause_a_change(self) -> None:
        """A change within a change is heard once."""
        first = self.content.wait_until(lambda: self.content.length > 0)
        second = self.content.wait_until(lambda: self.content.length > 0)
        first.addCallback(lambda _: self.content.changed())
        self.content.grow(1)
        self.now(first)
        self.now(second)

    def test_last_user_closes_the_descriptor(self) -> None:
        """Others go on reading until then."""
        self.content.open()
        self.content.close()
        self.assertEqual(self.before + 1, open_descriptors())
        self.content.close()
        self.assertEqual(self.before, open_descriptors())

    def test_stored_file_is_whole_from_the_start(self) -> None:
        """Every byte may be read; one that is gone is an OSError."""
        path = self.directory() / "file"
        path.write_bytes(b"12345")
        content = Content.stored(path, 5)
        self.addCleanup(content.close)
        self.assertEqual((5, 5, True, True), (content.readable, content.total, content.begun, content.whole))
        with self.assertRaises(FileNotFoundError):
            Content.stored(path.with_name("gone"), 5)
