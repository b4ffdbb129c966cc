"""Tests of reads from a bucket that fails: its breaker, what is forgotten, and how often S3 is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from twisted.internet.task import Clock

from mypypi.errors import NotFound, StorageDown, StorageRefused
from mypypi.model import StoredFile
from mypypi.storage.bucket import BucketStorage
from mypypi.storage.bucket_breaker import CALM_SECONDS, CONFIRMED_SECONDS, FIRST_PAUSE, LONGEST_PAUSE, BucketBreaker
from mypypi.storage.bucket_reads import ANSWER_TIMEOUT
from tests.rig.faults import Status
from tests.rig.s3 import Refuse
from tests.support.buckets import DISK, KEY, BucketTestCase
from tests.support.fakes import MemoryQueue
from tests.support.memory import WhenTold

OTHER = "https/files.example/other-1.0.whl"
WHEEL = b"a wheel"


class TestBreaker:
    """The breaker itself, and its log."""

    @pytest.fixture
    def clock(self) -> Clock:
        clock = Clock()
        clock.advance(1_000.0)
        return clock

    @pytest.fixture
    def breaker(self, clock: Clock) -> Iterator[BucketBreaker]:
        breaker = BucketBreaker(clock)
        with mock.patch.object(BucketBreaker, "log"):
            yield breaker

    def logged(self, breaker: BucketBreaker) -> tuple[int, int]:
        log: Any = breaker.log
        return log.error.call_count, log.info.call_count

    def test_one_read_is_tried_now_and_then_while_it_is_open(self, breaker: BucketBreaker, clock: Clock) -> None:
        """A failure opens the breaker. Afterwards single reads are admitted, after pauses that double up to 5 s."""
        assert breaker.admit()
        for _ in range(2):
            breaker.failed("S3 answered 500", clock.seconds())
            assert (breaker.why, breaker.admit()) == ("S3 answered 500", False)
            for pause in (FIRST_PAUSE, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_PAUSE, LONGEST_PAUSE):
                clock.advance(pause - 0.05)
                assert not breaker.admit()
                clock.advance(0.06)
                assert [breaker.admit(), breaker.admit()] == [True, False]
            breaker.succeeded()
            clock.advance(CALM_SECONDS)

    def test_a_bucket_that_fails_now_and_then_opens_it_seldom(self, breaker: BucketBreaker, clock: Clock) -> None:
        """A bucket that answers every other read well fills no log: pauses grow although reads succeed between."""
        for number in range(6000):
            clock.advance(0.01)
            if breaker.admit():
                breaker.failed("S3 answered 503", clock.seconds()) if number % 2 else breaker.succeeded()
        assert self.logged(breaker)[0] < 20

    def test_it_logs_once_at_the_beginning_and_once_at_the_end(self, breaker: BucketBreaker, clock: Clock) -> None:
        """Failures are logged once, with the first reason, and the end once."""
        breaker.succeeded()
        assert self.logged(breaker) == (0, 0)
        for why in ("refused", "timed out"):
            clock.advance(1)
            breaker.failed(why, clock.seconds())
        assert self.logged(breaker) == (1, 0)
        breaker.succeeded()
        breaker.succeeded()
        assert self.logged(breaker) == (1, 1)
        assert (breaker.why, breaker.admit()) == ("", True)

    def test_an_answer_counts_for_a_few_seconds(self, breaker: BucketBreaker, clock: Clock) -> None:
        """An answer confirms the bucket for five seconds, unless a read fails in them."""
        confirmed = [breaker.is_confirmed]
        breaker.succeeded()
        for seconds in (0.1, CONFIRMED_SECONDS - 0.2, 0.1):
            clock.advance(seconds)
            confirmed.append(breaker.is_confirmed)
        assert confirmed == [False, True, True, False]
        breaker.succeeded()
        clock.advance(1)
        breaker.failed("refused", clock.seconds())
        assert not breaker.is_confirmed

    def test_a_read_that_began_before_the_recovery_does_not_open_it(self, breaker: BucketBreaker, clock: Clock) -> None:
        """Reads that hung during the failure end after it. They say nothing about the bucket any more."""
        since = clock.seconds()
        breaker.failed("timed out", since)
        clock.advance(2)
        breaker.succeeded()
        clock.advance(1)
        breaker.failed("timed out", since)
        assert breaker.admit()
        assert self.logged(breaker) == (1, 1)

    def test_a_clock_that_is_put_back_does_not_keep_it_open(self, breaker: BucketBreaker, clock: Clock) -> None:
        """After a jump of the clock by a day, the next read is the trial, and no old answer counts."""
        breaker.succeeded()
        breaker.failed("refused", clock.seconds())
        clock.rightNow -= 86_400
        assert breaker.admit()
        breaker.succeeded()
        clock.rightNow -= 86_400
        assert not breaker.is_confirmed


class ReadsTest(BucketTestCase):
    """A storage with two uploaded files, over moto's server and a proxy that fails on demand."""

    __test__ = True

    def setUp(self) -> None:
        super().setUp()
        for key in (KEY, OTHER):
            self.keep(WHEEL, key)
            self.upload(key)
        self.stored, self.other = self.found(KEY), self.found(OTHER)

    def asks(self) -> int:
        """The number of HEAD requests for objects so far."""
        return sum(request.method == "HEAD" for request in self.proxy.requests)

    def assert_unreadable(self, why: str, storage: BucketStorage | None = None) -> None:
        """Assert that no client is sent to the bucket, for this reason, and that nothing is forgotten."""
        error = self.failing((storage or self.storage).link(self.stored), StorageDown)
        self.assertEqual(f"the stored file can't be read: {why}", str(error))
        self.assert_remembered(KEY, OTHER)

    def assert_remembered(self, *keys: str) -> None:
        self.assertEqual([True] * len(keys), [self.now(self.catalog.stored(key)) is not None for key in keys])

    def assert_readable(self) -> None:
        """Assert that clients are sent to the bucket, at the latest when the next trial is due."""
        self.clock.advance(LONGEST_PAUSE)
        self.assertEqual(WHEEL, self.read(self.stored))

    @contextmanager
    def failing_bucket(self, failure: str) -> Iterator[str]:
        """Make the bucket fail in this way, and yield the reason that is given."""
        if failure == "refusing":
            with self.proxy.refusing():
                yield "S3 can't be reached: EndpointConnectionError"
            return
        self.proxy.fault("/", Refuse(403, "AccessDenied") if failure == "403" else Status(int(failure)))
        yield f"S3 answered {failure} to HeadObject"
        self.proxy.mend()

    def test_no_client_is_sent_to_a_bucket_that_fails(self) -> None:
        """
        The bucket is asked before a client is sent there, unless it has just answered.

        Health tells the failure until it ends. A read that succeeds ends it.
        """
        for failure in ("500", "503", "403", "refusing"):
            self.assert_readable()
            self.clock.advance(CONFIRMED_SECONDS)
            with self.failing_bucket(failure) as why:
                self.assert_unreadable(why)
                before = self.asks()
                self.assert_unreadable(why)  # the breaker is open: S3 is not asked
                self.assertEqual(before, self.asks())
                self.assertIn("S3", str(self.failing(self.storage.check(), StorageDown)))
            self.assert_readable()
            self.now(self.storage.check())

    def test_one_question_serves_all_clients(self) -> None:
        """Concurrent clients share one question, whatever file they want. Its answer counts for five seconds."""
        threads = WhenTold()
        storage = self.make_storage(self.bucket, threads)
        waiting = [self.start(storage.link(stored)) for stored in (self.stored, self.other) * 10]
        self.assertEqual(1, len(threads.waiting))
        before = self.asks()
        threads.finish()
        self.assertEqual(20, sum(self.successResultOf(each).max_age is not None for each in waiting))
        self.clock.advance(CONFIRMED_SECONDS - 0.1)
        self.start(storage.link(self.other))
        threads.finish()
        self.assertEqual(before + 1, self.asks())

    def test_a_bucket_that_hangs_costs_a_few_seconds_once(self) -> None:
        """A bucket that does not answer costs the first clients three seconds, and the next ones nothing."""
        threads = WhenTold()
        storage = self.make_storage(self.bucket, threads)
        waiting = [self.start(storage.link(self.stored)) for _ in range(3)]
        self.clock.advance(ANSWER_TIMEOUT - 0.1)
        for each in waiting:
            self.assertNoResult(each)
        self.clock.advance(0.2)
        for each in waiting:
            self.failureResultOf(each, StorageDown)
        self.assert_unreadable(f"S3 did not answer within {ANSWER_TIMEOUT} s", storage)
        self.assertIsNone(self.now(storage.find("https/files.example/unknown")))
        self.assertEqual(1, len(threads.waiting))

    def test_a_single_failure_is_tried_once_more(self) -> None:
        """S3 answers 500 now and then. Such an answer opens nothing, since the next one is right."""
        self.clock.advance(CONFIRMED_SECONDS)
        fault = self.proxy.fault("HEAD /", Status(500), times=1)
        self.assertEqual(WHEEL, self.read(self.stored))
        fault.wait_served()

    def test_recovery_is_noticed_although_no_client_comes(self) -> None:
        """A process looks at a failing bucket again by itself, and so does its health, which says what fails."""
        for look in (self.storage.look, self.storage.check):
            self.clock.advance(CONFIRMED_SECONDS)
            self.proxy.fault(f"HEAD {self.proxy.path_of('pre/fix/')}", Status(500))  # objects, but not the bucket
            self.assert_unreadable("S3 answered 500 to HeadObject")
            self.clock.advance(LONGEST_PAUSE)
            self.now(self.storage.look())
            error = self.failing(self.storage.check(), StorageDown)
            self.assertTrue(str(error).endswith("from upstream: S3 answered 500 to HeadObject"))
            self.proxy.mend()
            self.clock.advance(LONGEST_PAUSE)
            self.assertFalse(self.storage.reaches_others)
            self.now(look())
            self.assertTrue(self.storage.reaches_others)

    def test_an_upload_neither_opens_nor_closes_it(self) -> None:
        """A bucket that refuses uploads is read, and one that can't be read takes uploads."""
        self.proxy.fault("PUT /", Refuse(403, "AccessDenied"))
        self.keep(b"another", "https/files.example/more")
        self.upload_error(StorageDown, "https/files.example/more")
        self.assertEqual(WHEEL, self.read(self.stored))
        self.proxy.mend()
        self.clock.advance(CONFIRMED_SECONDS)
        self.proxy.fault("HEAD /", Status(500), times=2)
        self.assert_unreadable("S3 answered 500 to HeadObject")
        self.upload("https/files.example/more")
        self.assert_unreadable("S3 answered 500 to HeadObject")

    def test_a_file_that_is_fetched_again_stays_on_the_disk_until_the_bucket_works(self) -> None:
        """
        A stored file that is fetched again has no upload until the bucket can be read, so that it is fetched once.

        A new file has its upload at once.
        """
        self.begin_failure()
        self.assertFalse(self.storage.reaches_others)
        self.keep(WHEEL)
        self.assertEqual(0, self.jobs())
        self.keep(WHEEL, "https/files.example/new")
        self.assertEqual(1, self.jobs())
        self.proxy.mend()
        self.assertEqual((False, 1), (self.found().path is None, self.jobs()))
        self.clock.advance(LONGEST_PAUSE)
        self.now(self.storage.look())
        self.assertEqual((False, 2), (self.found().path is None, self.jobs()))
        self.assertTrue(self.storage.reaches_others)
        self.upload()
        self.assertIsNone(self.found().path)

    def test_other_bytes_are_uploaded_at_once(self) -> None:
        """A file that upstream has replaced is uploaded as ever while the bucket can't be read."""
        self.begin_failure()
        self.keep(b"another wheel")
        self.assertEqual(1, self.jobs())

    def begin_failure(self) -> None:
        """Let the reads of a storage with an empty queue fail."""
        self.queue = MemoryQueue(self.clock, DISK)
        self.storage = self.make_storage(self.bucket)
        self.proxy.fault("/", Status(500))
        self.assert_unreadable("S3 answered 500 to HeadObject")

    def jobs(self) -> int:
        return self.now(self.queue.state()).waiting

    def test_a_missing_object_is_forgotten(self) -> None:
        """A file that S3 does not have is forgotten when a client would be sent there. Others are served."""
        self.server.delete(self.name())
        self.clock.advance(CONFIRMED_SECONDS)
        self.failing(self.storage.link(self.stored), NotFound)
        self.assertIsNone(self.find())
        self.assert_remembered(OTHER)
        self.assertEqual(WHEEL, self.read(self.other))

    def test_one_refused_object_is_forgotten_while_others_can_be_read(self) -> None:
        """
        S3 answers 403 for a missing object to an account that may not list the bucket.

        The file is fetched again, and the breaker stays closed for the others.
        """
        self.clock.advance(CONFIRMED_SECONDS)
        self.assertEqual(WHEEL, self.read(self.other))  # it is known to be readable
        self.clock.advance(CONFIRMED_SECONDS)
        self.proxy.fault(self.proxy.path_of(self.name()), Refuse(403, "AccessDenied"))
        self.failing(self.storage.link(self.stored), NotFound)
        self.assertIsNone(self.now(self.catalog.stored(KEY)))
        self.assertEqual(WHEEL, self.read(self.other))
        self.now(self.storage.check())

    def test_a_refused_object_does_not_keep_the_breaker_open(self) -> None:
        """A process that has read nothing yet takes a refused object for a failure, until it reads another one."""
        self.clock.advance(CONFIRMED_SECONDS)
        storage = self.make_storage(self.bucket)
        self.proxy.fault(self.proxy.path_of(self.name()), Refuse(403, "AccessDenied"))
        self.assert_unreadable("S3 answered 403 to HeadObject", storage)
        self.clock.advance(LONGEST_PAUSE)
        self.assertIn("Signature", self.now(storage.link(self.other)).url)
        self.clock.advance(CONFIRMED_SECONDS)
        self.failing(storage.link(self.stored), NotFound)

    def test_a_look_up_that_is_refused_changes_nothing(self) -> None:
        """An unknown file may be missing when S3 answers 403. Stored files are served on."""
        self.clock.advance(CONFIRMED_SECONDS)
        unknown = "https/files.example/unknown"
        self.proxy.fault(self.proxy.path_of(self.name(unknown)), fault := Refuse(403, "AccessDenied"))
        self.assertIsNone(self.find(unknown))
        fault.wait_served()
        self.assertEqual(WHEEL, self.read(self.stored))

    def test_records_stay_if_their_objects_are_refused(self) -> None:
        """The daily sweep deletes no record of an object that S3 refuses to describe."""
        self.server.delete(self.name())
        self.proxy.fault("HEAD /", Refuse(403, "AccessDenied"))
        self.failing(self.storage.sweep_records(), StorageRefused)
        self.proxy.mend()
        self.assert_remembered(KEY, OTHER)

    def test_reads_through_the_server(self) -> None:
        """
        With MYPYPI_S3_SERVE=proxy the reads themselves count: 403 for all and other failures open the breaker.

        Nothing is asked before a read, except about a refused one.
        """
        self.clock.advance(CONFIRMED_SECONDS)
        storage = self.make_storage(self.bucket, proxied=True)
        before = self.asks()

        def note(stored: StoredFile, error: NotFound | StorageDown | None) -> bool:
            self.now(storage.link(stored))
            return self.now(storage.note_read(stored, self.clock.seconds(), error))

        self.assertTrue(note(self.other, None))
        self.assertFalse(note(self.stored, NotFound("S3 answered 404")))
        self.assertIsNone(self.now(self.catalog.stored(KEY)))
        self.now(self.catalog.put_stored(self.stored))
        self.assertEqual(before, self.asks())
        self.assertFalse(note(self.stored, StorageRefused("S3 answered 403")))
        self.now(self.catalog.put_stored(self.stored))
        self.assertEqual(before + 1, self.asks())
        self.clock.advance(1)
        for error in (StorageDown("S3 answered 500"), StorageRefused("S3 answered 403")):
            self.proxy.fault("/", Refuse(403, "AccessDenied"))
            self.assertTrue(note(self.stored, error))
            self.proxy.mend()
            self.assert_unreadable(str(error), storage)
            self.clock.advance(LONGEST_PAUSE)
            self.assertTrue(note(self.stored, None))
            self.clock.advance(1)
