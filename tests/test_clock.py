"""Tests of a clock that is a day ahead and is mended, in memory. `tests.redis.test_clock_jumps` tests the records."""

from __future__ import annotations

import os
import re
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from twisted.internet.base import ReactorBase
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers

from mypypi import clock
from mypypi.clock import MOST_SKEW, SharedClock, remaining, use_steady_clock
from mypypi.errors import NotFound, UpstreamDown, UpstreamRefused
from mypypi.files.drafts import ABANDONED_SECONDS, Drafts
from mypypi.files.room import Room
from mypypi.pages.fleet import POLL_INTERVAL
from mypypi.proxy.answers import LocalContent
from mypypi.storage.bucket import LINK_MARGIN
from mypypi.upstream.responses import retry_after
from tests.pages.test_page_cache import (
    CACHE_TIME,
    NEGATIVE_CACHE_TIME,
    PATH,
    THING,
    PagesTestCase,
    page_of,
    versions,
)
from tests.proxy.test_proxy import DATA, FILE, PAGE, ProxyTestCase, listed
from tests.support.buckets import BucketTestCase
from tests.support.fakes import MemoryCatalog
from tests.support.memory import NOW, MemoryTestCase
from tests.upstream.cases import BreakerTestCase, paths

DAY = 86_400.0


@pytest.mark.parametrize(
    ("until", "longest", "left"),
    [
        (NOW + 5, 60, 5),
        (NOW, 60, 0),
        (NOW - DAY, 60, 0),
        (NOW + 60 + MOST_SKEW, 60, 60),
        (NOW + 61 + MOST_SKEW, 60, 0),
        (NOW + DAY, 60, 0),
    ],
)
def test_time_left_is_bounded(until: float, longest: float, left: float) -> None:
    """No time left is longer than it was meant to be. One that can't have been meant counts as over."""
    assert remaining(until, NOW, longest) == left


def test_moments_keep_every_bit() -> None:
    """
    A moment is the same when it is read again, whenever that is.

    The two clocks of a process are read one after the other, and may drift apart by a little.
    """
    own, wall = Clock(), Clock()
    own.advance(NOW)
    wall.advance(NOW + DAY + 0.0123)
    shared = SharedClock(own, wall.seconds)
    moment = NOW + 0.1234567
    written = shared.to_shared(moment)
    assert DAY <= written - moment < DAY + 0.1
    for _ in range(5):
        own.advance(0.3)
        wall.advance(0.30001)
        assert shared.to_own(written) == moment


def test_timers_do_not_follow_the_time_of_day() -> None:
    """After the time of day was set by a day, a timer is due when it was due before."""
    reactor: Any = SelectReactor()
    use_steady_clock(reactor)
    timer, began = reactor.callLater(60, print), reactor.seconds()
    assert abs(began - time.time()) < 60  # an epoch's time, which is good enough for a date
    for ahead in (DAY, -DAY):
        with mock.patch.object(ReactorBase, "seconds", return_value=began + ahead):
            assert 59 < timer.getTime() - reactor.seconds() <= 60
            assert 59 < reactor.timeout() <= 60
    reactor.runUntilCurrent()
    assert timer.active()
    assert clock.steady_seconds() >= began


@pytest.mark.parametrize("tap", sorted(Path(clock.__file__).parent.glob("daemon/*_tap.py")), ids=lambda path: path.stem)
def test_every_daemon_has_steady_timers(tap: Path) -> None:
    """Each composition root makes the reactor's timers steady, right after it has imported the reactor."""
    text = tap.read_text()
    steps = re.split(r"from twisted\.internet import reactor.*", text)[1:]
    assert steps
    assert all(step.split()[0] == "use_steady_clock(reactor)" for step in steps)


class HostCase(MemoryTestCase):
    """A process on a host whose time of day is `ahead` seconds ahead. Its own clock is steady."""

    ahead = 0.0

    def wall(self) -> float:
        return float(self.clock.seconds()) + self.ahead


class PagesTest(HostCase, PagesTestCase):
    """Pages that were fetched while the clock was wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.catalog = MemoryCatalog(self.clock, self.wall)
        self.pages, self.other = self.make_cache(), self.make_cache()

    def test_page_is_not_fresh_for_a_day(self) -> None:
        """A page that was fetched a day ahead is revalidated by the first request after the clock is mended."""
        self.ahead = DAY
        self.upstream_has("1.0")
        self.now(self.other.get(THING))
        self.assertEqual((CACHE_TIME, 1), (self.get().ttl, self.upstream_requests))  # the fault: it is fresh until then
        self.ahead = 0.0
        self.clock.advance(1.1)  # a process looks into the catalog once a second
        self.upstream_has("1.0", "2.0")
        new = self.get()
        self.assertEqual((["1.0", "2.0"], CACHE_TIME), (versions(new), new.ttl))
        self.assertEqual(2, self.upstream_requests)

    def test_stale_page_is_served_while_upstream_is_down(self) -> None:
        """A page whose time can't be right is still served if upstream fails, in a new process as well."""
        self.ahead = DAY
        self.upstream_has("1.0")
        self.get()
        self.ahead = 0.0
        self.clock.advance(1.1)
        self.upstream_answers(500)
        for pages in (self.pages, self.make_cache()):
            answer = self.now(pages.get(THING))
            self.assertEqual((["1.0"], True), (versions(answer), answer.ttl <= 0))

    def test_missing_page_is_not_missing_for_a_day(self) -> None:
        """A 404 that was received a day ahead is forgotten when the clock is mended."""
        self.ahead = DAY
        self.upstream_answers(404)
        self.failing(self.pages.get(THING), NotFound)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(1, self.upstream_requests)
        self.ahead = 0.0
        self.clock.advance(1.1)
        self.upstream_has("1.0")
        self.assertEqual(["1.0"], versions(self.get()))

    def test_back_off_of_a_page_is_not_a_day_long(self) -> None:
        """A page that failed a day ahead is requested again when the clock is mended, also by other processes."""
        self.ahead = DAY
        self.wire.reply(PATH, 503, retry_after="30")
        self.failing(self.other.get(THING), UpstreamDown)
        self.assertEqual(30, self.failing(self.pages.get(THING), UpstreamDown).retry_after)
        self.assertEqual(1, self.upstream_requests)
        self.ahead = 0.0
        self.clock.advance(1.1)
        self.upstream_has("1.0")
        self.assertEqual(["1.0"], versions(self.get()))

    def test_client_that_waits_for_another_process_is_not_disturbed(self) -> None:
        """A client that waits for the page that another process requests gets that page, though the clock jumps."""
        self.upstream_answers(404)
        self.failing(self.pages.get(THING), NotFound)
        self.clock.advance(NEGATIVE_CACHE_TIME)
        self.assert_waits_until_the_page_comes()
        self.assertEqual(2, self.upstream_requests)

    def test_back_off_that_is_over_does_not_seem_new(self) -> None:
        """Nor does it get the error of an earlier back-off, whose times differ after a jump."""
        self.wire.reply(PATH, 500)
        self.failing(self.pages.get(THING), UpstreamDown)
        self.clock.advance(10)
        self.assert_waits_until_the_page_comes()

    def assert_waits_until_the_page_comes(self) -> None:
        """Let the clock jump while another process requests the page. A client here waits, and both get it."""
        self.upstream_hangs()
        asked, waiting = self.start(self.other.get(THING)), self.request_page()
        for self.ahead in (DAY, -DAY, 0.0):
            self.clock.pump([POLL_INTERVAL] * 3)
            self.assertNoResult(waiting)
        self.wire.last.answer(body=page_of("1.0"), content_type="application/json")
        self.clock.advance(POLL_INTERVAL)
        for pending in (asked, waiting):
            self.assertEqual(["1.0"], versions(self.now(pending)))

    def test_jump_makes_no_page_fresh_and_none_negative(self) -> None:
        """While the clock jumps ahead and back, no page is fresh for longer than MYPYPI_CACHE_TIME."""
        self.upstream_has("1.0")
        for self.ahead in (0.0, DAY, 0.0, -DAY, 0.0):
            self.clock.advance(1.1)
            for pages in (self.pages, self.other):
                self.assertTrue(0 < self.now(pages.get(THING)).ttl <= CACHE_TIME)


class PausesTest(HostCase, BreakerTestCase):
    """Pauses of an origin and of a kind of requests that began while the clock was wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.catalog = MemoryCatalog(self.clock, self.wall)
        self.upstream, self.other = self.make_upstream(), self.make_upstream(owner="two")

    def test_pause_of_an_origin_is_not_a_day_long(self) -> None:
        """Other processes wait for an origin no longer than its pause, and not at all once the clock is mended."""
        self.ahead = DAY
        self.refuse_connections()
        self.assert_paused()
        self.assert_paused(self.other)
        self.ahead = 0.0
        self.clock.advance(1.1)
        self.assert_request_succeeds(self.make_upstream(owner="three"))
        self.assert_request_succeeds(self.other)

    def test_pause_of_a_kind_is_not_a_day_long(self) -> None:
        """A minute that upstream asked for is not a day, whichever clock was wrong."""
        self.ahead = DAY
        self.fail_requests(429, *paths(5), retry_after="60")
        self.assertEqual(60, self.assert_paused(self.other).retry_after)
        self.ahead = 0.0
        self.clock.advance(1.1)
        self.assert_request_succeeds(self.other)


def test_date_of_retry_after_is_counted_on_the_clock_of_upstream() -> None:
    """A date in Retry-After is counted from the Date of the same answer, so that no other clock matters."""
    upstream = datetime.fromtimestamp(NOW - DAY, timezone.utc)
    headers = Headers({"date": [format_datetime(upstream, usegmt=True)]})
    headers.addRawHeader("retry-after", format_datetime(upstream + timedelta(seconds=7), usegmt=True))
    assert retry_after(headers, NOW) == 7


class FilesTest(HostCase, ProxyTestCase):
    """Files that were fetched or refused while the clock was wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.catalog = MemoryCatalog(self.clock, self.wall)
        self.proxy = self.make_proxy()

    def test_refused_file_is_not_refused_for_a_day(self) -> None:
        """A refusal of a file is remembered for a minute, and not at all once the clock is mended."""
        self.ahead = DAY
        pending = self.start_fetch()
        self.wire.last.answer(403)
        self.failing(pending, UpstreamRefused)
        self.failing(self.request_file(), UpstreamRefused)
        self.ahead = 0.0
        self.proxy = self.make_proxy()  # another process
        pending = self.request_file()
        self.wire.last.answer(body=DATA)
        self.assertIsInstance(self.now(pending), LocalContent)

    def test_file_check_is_not_believed_for_a_day(self) -> None:
        """A file without a digest is checked again once its page was confirmed, though a check claims to be newer."""
        self.ahead = DAY
        self.upstream_lists(listed(hashes={}))
        pending = self.start_fetch()
        self.wire.last.answer(body=DATA, etag='"1"')
        self.now(pending)
        before = self.wire.paths.count(FILE)
        self.assertTrue(self.get_content().hit)
        self.assertEqual(before, self.wire.paths.count(FILE))
        self.ahead = 0.0
        self.clock.advance(1.1)
        self.cache_page()
        self.assertEqual(2, self.wire.paths.count(PAGE))
        pending = self.request_file()
        self.assertEqual(before + 1, self.wire.paths.count(FILE))
        self.assertEqual('"1"', self.wire.last.headers["if-none-match"])
        self.wire.last.answer(304)
        self.assertIsInstance(self.now(pending), LocalContent)


class SignedLinkTest(BucketTestCase):
    """Signed links that were made while the clock was wrong."""

    __test__ = True

    def test_link_is_not_used_after_it_ran_out(self) -> None:
        """A link that was signed a day ahead is replaced once the clock is mended. Clients can use the new one."""
        ahead = DAY
        self.catalog = MemoryCatalog(self.clock, lambda: self.clock.seconds() + ahead)
        self.storage = self.make_storage(self.bucket)
        self.keep(b"a wheel")
        self.upload()
        stored = self.found()
        tomorrow = datetime.now(timezone.utc) + timedelta(seconds=ahead)
        with mock.patch("botocore.auth.get_current_datetime", return_value=tomorrow.replace(tzinfo=None)):
            first = self.now(self.storage.link(stored))
        self.assertEqual(first.url, self.now(self.storage.link(stored)).url)
        ahead = 0.0
        second = self.now(self.storage.link(stored))
        assert first is not None
        assert second is not None
        self.assertNotEqual(first.url, second.url)
        self.assertEqual(600 - LINK_MARGIN, second.max_age)
        self.assertEqual(b"a wheel", self.read(stored))


def test_draft_of_tomorrow_is_swept(tmp_path: Path) -> None:
    """An abandoned draft whose files have a time of tomorrow is swept after the usual time, as if they were of now."""
    drafts = Drafts(tmp_path / "drafts", Room(tmp_path / "room"))
    with mock.patch("mypypi.files.drafts.time.time", return_value=NOW) as now:
        draft, alone = drafts.open("0123"), tmp_path / "drafts" / "4567.draft"
        draft.write(b"half", 0)
        draft.close()
        alone.touch()
        for path in (draft.path, draft.path.with_suffix(".note"), alone):
            os.utime(path, (NOW + DAY, NOW + DAY))
        assert drafts.sweep() == 0  # another process may continue it
        now.return_value += ABANDONED_SECONDS + 1
        assert drafts.sweep() == 2
    assert list((tmp_path / "drafts").iterdir()) == []
