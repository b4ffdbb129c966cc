"""Tests of which origins of files are known to answer ranges: one probe for a new one, and what is remembered."""

from __future__ import annotations

from unittest import mock

from twisted.internet.defer import Deferred

from mypypi.byte_range import ByteRange
from mypypi.errors import MyPyPiError, NotFound, UpstreamDown
from mypypi.upstream.range_support import RangeSupport
from mypypi.upstream.responses import FileRange
from tests.upstream.cases import FILE, TIMEOUT, UpstreamTestCase

ORIGIN = "https/files.example"
OTHER = "https://files.example/other/b.whl"
#: Seconds that a page waits for a probe.
PATIENCE = 3
ANSWER = {"content_range": "bytes 99-99/100"}


class RangeSupportTestCase(UpstreamTestCase):
    """One process's knowledge, over a catalog that it shares with others."""

    def setUp(self) -> None:
        super().setUp()
        self.ranges = self.another_process()

    def another_process(self) -> RangeSupport:
        return RangeSupport(self.make_upstream(), self.catalog, self.clock)

    def find_out(self, *urls: str, ranges: RangeSupport | None = None) -> Deferred[None]:
        return self.start((ranges or self.ranges).find_out(urls or (FILE,)))

    def ask(self, url: str = FILE) -> Deferred[FileRange | None]:
        return self.start(self.ranges.ask(url, ByteRange(None, 1), "a client"))

    def answer_range(self) -> None:
        self.wire.last.answer(206, b"x", **ANSWER)

    def known(self, ranges: RangeSupport | None = None) -> bool | None:
        """Return whether the origin is known to answer ranges (True) or not to (False); None if it is not known."""
        ranges = ranges or self.ranges
        answers, lacks = ORIGIN in ranges.ranged, ranges.lacks_ranges(f"{ORIGIN}/any.whl")
        self.assertFalse(answers and lacks)
        self.assertEqual(answers or lacks, ranges.is_known([FILE]))
        return answers if answers or lacks else None

    def in_catalog(self, origin: str = ORIGIN) -> bool | None:
        return self.now(self.catalog.answers_ranges(origin))


class ProbeTest(RangeSupportTestCase):
    """A new origin is asked for the last byte of a file."""

    def test_nothing_is_known_at_first(self) -> None:
        """Without a probe, nothing is claimed of any origin."""
        self.assertIsNone(self.known())
        self.assertEqual(frozenset(), self.ranges.ranged)

    def test_origin_that_answers_a_range(self) -> None:
        """One byte is requested, without a compression that would change it."""
        pending = self.find_out()
        self.assertEqual(("GET", FILE), (self.wire.last.method, self.wire.last.url))
        self.assertEqual("bytes=-1", self.wire.last.headers["range"])
        self.assertEqual("identity", self.wire.last.headers["accept-encoding"])
        self.answer_range()
        self.now(pending)
        self.assertEqual((True, True), (self.known(), self.in_catalog()))
        self.assertEqual(frozenset([ORIGIN]), self.ranges.ranged)

    def test_many_pages_share_one_probe(self) -> None:
        """However many pages wait for it, at once or later, there is one request."""
        waiting = [self.find_out(FILE if number % 2 else OTHER) for number in range(10)]
        for each in waiting:
            self.assertNoResult(each)
        self.answer_range()
        for each in waiting:
            self.now(each)
        self.now(self.find_out(OTHER))
        self.assertEqual(1, self.request_count)

    def test_each_origin_has_its_own(self) -> None:
        """Another port, scheme or host is another origin, and may answer otherwise."""
        urls = [FILE, "http://files.example/a.whl", "https://files.example:8443/a.whl", "https://other.example/a.whl"]
        pending = self.find_out(*urls, *urls)
        for number, url in enumerate(urls):
            probe = self.wire.exchanges[number]
            self.assertEqual(url, probe.url)
            if number % 2:
                probe.answer(200, b"whole")
            else:
                probe.answer(206, b"x", **ANSWER)
            self.clock.advance(0)
        self.now(pending)
        self.assertEqual(len(urls), self.request_count)
        self.assertEqual(frozenset([ORIGIN, "https/files.example:8443"]), self.ranges.ranged)
        self.assertTrue(self.ranges.is_known(urls))

    def test_empty_list_asks_for_nothing(self) -> None:
        """A page without wheels asks for nothing, and has nothing unknown."""
        self.now(self.start(self.ranges.find_out(())))
        self.assertTrue(self.ranges.is_known(()))
        self.assertEqual(0, self.request_count)


class CatalogTest(RangeSupportTestCase):
    """What one process finds out is known to all."""

    def test_known_origin_is_not_asked(self) -> None:
        """What the catalog knows needs no request."""
        for answers in (True, False):
            self.now(self.catalog.put_answers_ranges(ORIGIN, answers))
            other = self.another_process()
            self.now(self.find_out(ranges=other))
            self.assertEqual(answers, self.known(other))
        self.assertEqual(0, self.request_count)

    def test_one_probe_for_two_processes(self) -> None:
        """The second process reads what the first has found out."""
        pending = self.find_out()
        self.answer_range()
        self.now(pending)
        other = self.another_process()
        self.now(self.find_out(ranges=other))
        self.assertEqual((True, 1), (self.known(other), self.request_count))

    def test_catalog_that_is_down_is_done_without(self) -> None:
        """While the catalog can't be reached, each process asks for itself, and remembers it."""
        self.catalog.down = "gone"
        pending = self.find_out()
        self.answer_range()
        self.now(pending)
        self.now(self.find_out())
        self.assertEqual((True, 1), (self.known(), self.request_count))

    def test_what_is_known_is_asked_for_again_after_a_day(self) -> None:
        """A process asks the catalog again after a day, which another process may have told otherwise."""
        self.now(self.catalog.put_answers_ranges(ORIGIN, True))
        self.now(self.find_out())
        self.now(self.catalog.put_answers_ranges(ORIGIN, False))
        self.now(self.find_out())
        self.assertTrue(self.known())
        self.clock.advance(86_401)
        self.assertIsNone(self.known())
        self.now(self.find_out())
        self.assertEqual((False, 0), (self.known(), self.request_count))


class WithoutRangesTest(RangeSupportTestCase):
    """An origin that answers with the whole file."""

    def probe(self, status: int = 200, body: bytes = b"whole", **headers: str) -> None:
        pending = self.find_out()
        self.wire.last.answer(status, body, **headers)
        self.now(pending)

    def test_it_is_remembered_here_and_in_the_catalog(self) -> None:
        """The origin is not asked again for ten minutes, and other processes know it."""
        self.probe()
        self.assertEqual((False, False), (self.known(), self.in_catalog()))
        self.clock.advance(599)
        self.now(self.find_out())
        other = self.another_process()
        self.now(self.find_out(ranges=other))
        self.assertEqual((False, False, 1), (self.known(), self.known(other), self.request_count))

    def test_it_may_answer_ranges_later(self) -> None:
        """After ten minutes the catalog is asked, which forgets it after an hour. Then there is another probe."""
        self.probe()
        self.catalog._ranges.clear()
        self.clock.advance(601)
        self.assertIsNone(self.known())
        pending = self.find_out()
        self.answer_range()
        self.now(pending)
        self.assertEqual((True, True, 2), (self.known(), self.in_catalog(), self.request_count))

    def test_body_of_the_whole_file_is_not_read(self) -> None:
        """A file of gigabytes does not come in answer to a probe: the connection is closed after its head."""
        pending = self.find_out()
        self.wire.last.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000000000\r\n\r\n")
        self.now(pending)
        self.clock.advance(0)
        self.assertEqual((False, True), (self.known(), self.wire.last.closed))

    def test_odd_answers_are_none(self) -> None:
        """A range that was not asked for, an encoded one, or one of unknown length is no use."""
        for headers in (
            {"content_range": "bytes 0-0/100"},
            {"content_range": "bytes 99-99/*"},
            {"content_range": "x"},
            {**ANSWER, "content_encoding": "gzip"},
            {},
        ):
            self.ranges, self.catalog._ranges = self.another_process(), {}
            self.probe(206, b"x", **headers)
            self.assertEqual((False, False), (self.known(), self.in_catalog()))

    def test_refused_range_tells_it_too(self) -> None:
        """An origin that answers 416 knows ranges: its file is empty."""
        self.probe(416, b"", content_range="bytes */0")
        self.assertTrue(self.known())


class FailureTest(RangeSupportTestCase):
    """A probe that fails tells nothing."""

    def assert_pause(self) -> None:
        """Assert that the failure left the origin unknown, and that it is asked again after a minute."""
        asked = self.request_count
        self.assertEqual((None, None), (self.known(), self.in_catalog()))
        self.clock.advance(30)
        self.now(self.find_out())
        self.now(self.find_out(OTHER))
        self.assertEqual(asked, self.request_count)
        self.clock.advance(31)
        pending = self.find_out()
        self.assertEqual(asked + 1, self.request_count)
        self.answer_range()
        self.now(pending)
        self.assertTrue(self.known())

    def test_statuses_of_failures(self) -> None:
        """A missing, refused or failing file says nothing about its origin."""
        for status in (404, 403, 401, 410, 429, 500, 503, 301):
            self.ranges, self.catalog._ranges = self.another_process(), {}
            pending = self.find_out()
            self.wire.last.answer(status)
            self.now(pending)
            self.assert_pause()

    def test_refused_connection(self) -> None:
        """An origin that refuses connections is unknown, and a page does not wait for it."""
        self.wire.refuses = True
        self.now(self.find_out())
        self.wire.refuses = False
        self.assert_pause()

    def test_broken_connection(self) -> None:
        """A connection that breaks in the middle of the byte's answer is a failure."""
        pending = self.find_out()
        self.wire.last.send(
            b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\nContent-Range: bytes 99-99/100\r\n\r\n"
        )
        self.wire.last.cut()
        self.now(pending)
        self.assert_pause()

    def test_page_waits_for_three_seconds(self) -> None:
        """A page does not wait longer for an origin that does not answer, and the probe goes on."""
        pending = self.find_out()
        self.clock.advance(PATIENCE - 0.1)
        self.assertNoResult(pending)
        self.clock.advance(0.1)
        self.now(pending)
        self.assertEqual((None, False), (self.known(), self.wire.last.closed))
        self.answer_range()
        self.clock.advance(0)
        self.assertEqual((True, True, 1), (self.known(), self.in_catalog(), self.request_count))

    def test_origin_without_an_answer_is_left_alone(self) -> None:
        """Other pages join the probe, and after its time-out, the origin is not asked for a minute."""
        pending = self.find_out()
        self.clock.advance(PATIENCE)
        self.now(pending)
        pending = self.find_out(OTHER)
        self.clock.advance(PATIENCE)
        self.now(pending)
        self.assertEqual(1, self.request_count)
        self.clock.advance(TIMEOUT)
        self.assert_pause()

    def test_silent_origin_delays_pages_only_once(self) -> None:
        """While a probe has no answer for three seconds, further pages do not wait for it as long again."""
        pending = self.find_out()
        self.clock.advance(PATIENCE)
        self.now(pending)
        self.now(self.find_out(OTHER))

    def test_several_silent_origins_delay_a_page_only_once(self) -> None:
        """Clients time out after 15 seconds: a page with several silent origins waits for three seconds, too."""
        pending = self.find_out(*(f"https://h{number}.example/a.whl" for number in range(4)))
        self.clock.advance(PATIENCE)
        self.now(pending)

    def test_page_that_leaves_does_not_stop_the_probe(self) -> None:
        """A client that leaves takes its page's wait with it. The probe goes on for the others."""
        first, second = self.find_out(), self.find_out()
        first.addErrback(lambda _: None)
        first.cancel()
        self.assertNoResult(second)
        self.answer_range()
        self.now(second)
        self.assertEqual((True, 1), (self.known(), self.request_count))


class AskTest(RangeSupportTestCase):
    """Each range that is requested for a client tells about its origin, too."""

    def test_range_is_returned(self) -> None:
        """The result is that of upstream, and is remembered."""
        pending = self.ask()
        self.answer_range()
        self.assertEqual(FileRange(99, 100, b"x"), self.now(pending))
        self.assertEqual((True, True), (self.known(), self.in_catalog()))

    def test_what_is_known_changes_both_ways(self) -> None:
        """The last answer counts, here and in the catalog."""
        for answers in (True, False, True, False):
            pending = self.ask()
            if answers:
                self.answer_range()
            else:
                self.wire.last.answer(200, b"whole")
            self.assertEqual(answers, self.now(pending) is not None)
            self.assertEqual((answers, answers), (self.known(), self.in_catalog()))

    def test_failure_changes_nothing(self) -> None:
        """A missing file, or an origin that is down, leaves what is known as it was."""
        pending = self.ask()
        self.answer_range()
        self.now(pending)
        for status, error in ((404, NotFound), (500, UpstreamDown)):
            pending = self.ask()
            self.wire.last.answer(status)
            self.failing(pending, error)
            self.assertEqual((True, True), (self.known(), self.in_catalog()))

    def test_failure_of_a_range_is_the_clients(self) -> None:
        """Unlike that of a probe, a failure is raised."""
        self.wire.refuses = True
        self.failing(self.ask(), MyPyPiError)
        self.assertIsNone(self.known())

    def test_catalog_is_written_only_for_news(self) -> None:
        """A resolver reads ranges of hundreds of wheels. The catalog is told once."""
        with mock.patch.object(self.catalog, "put_answers_ranges", wraps=self.catalog.put_answers_ranges) as put:
            for _ in range(5):
                pending = self.ask()
                self.answer_range()
                self.now(pending)
        self.assertEqual(1, put.call_count)

    def test_no_probe_after_a_range(self) -> None:
        """An origin that has answered a client's range is not probed."""
        pending = self.ask()
        self.answer_range()
        self.now(pending)
        self.now(self.find_out(OTHER))
        self.assertEqual(1, self.request_count)


class BoundsTest(RangeSupportTestCase):
    """Pages name the origins, and a hostile one may name many."""

    def test_a_thousand_origins_are_remembered(self) -> None:
        """Beyond that, old ones are forgotten, and found out again when a page needs them."""
        self.wire.refuses = True
        for number in range(3000):
            answers = bool(number % 2)
            origin = f"https/h{number}.example"
            self.now(self.catalog.put_answers_ranges(origin, answers))
            self.now(self.find_out(f"https://h{number}.example/a.whl"))
            self.now(self.find_out(f"https://failing{number}.example/a.whl"))
        kept = [len(known) for known in (self.ranges._ranged, self.ranges._without, self.ranges._failed)]
        self.assertEqual([1000, 1000, 1000], kept)
        self.assertEqual(1000, len(self.ranges.ranged))
        self.assertIn("https/h2999.example", self.ranges.ranged)
        self.now(self.find_out("https://h1.example/a.whl"))
        self.assertIn("https/h1.example", self.ranges.ranged)
