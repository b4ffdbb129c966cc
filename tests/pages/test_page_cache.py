"""A page's life, with time in the test's hands: fresh, confirmed, replaced, stale, missing, unconfirmed."""

from __future__ import annotations

import json
import zlib
from itertools import count
from typing import cast
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred

from mypypi.ecosystems.pypi import PyPI
from mypypi.errors import BadUpstreamResponse, CatalogDown, NotFound, UpstreamDown
from mypypi.interfaces import ICatalog
from mypypi.model import Page, PageId
from mypypi.pages.memory_cache import MemoryCache
from mypypi.pages.page_cache import CachedPage, PageCache
from mypypi.pages.rendering import Renderer
from mypypi.pages.revalidation import PAGE_LEASE
from mypypi.redis.leases import Leases
from mypypi.threads import Threads
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.client import Upstream
from tests.support.fakes import MemoryCatalog
from tests.support.memory import NOW, AtOnce, MemoryTestCase, WhenTold, Wire, simple_page

URL = "https://index.example"
PATH = "/simple/thing/"
THING = PageId("simple", "thing")
CACHE_TIME = 300
NEGATIVE_CACHE_TIME = 60
STALE_AFTER = 3
LINK = "https/files.example/thing-1.0-py3-none-any.whl"


def page_of(*versions: str, metadata: bool = False) -> bytes:
    """What upstream says of a project with a wheel for each of these versions."""
    files: list[dict[str, object]] = [
        {
            "filename": f"thing-{version}-py3-none-any.whl",
            "url": f"https://files.example/thing-{version}-py3-none-any.whl",
            "hashes": {"sha256": "0" * 64},
        }
        | ({"core-metadata": True} if metadata else {})
        for version in versions
    ]
    return simple_page(*files)


def document(page: Page) -> dict[str, list[dict[str, object]]]:
    return cast("dict[str, list[dict[str, object]]]", json.loads(zlib.decompress(page.forms["json"].body, 31)))


def versions(answer: CachedPage) -> list[str]:
    return [str(file["filename"]).split("-")[1] for file in document(answer.page)["files"]]


class PagesTestCase(MemoryTestCase):
    """The page cache of one process, over a wire and a catalog in memory. `other` are those of another process."""

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.addCleanup(self.wire.hang_up)
        self.catalog = MemoryCatalog(self.clock)
        self.processes = count()
        self.pages, self.other = self.make(), self.make()
        uniform = mock.patch("random.uniform", lambda low, high: (low + high) / 2)
        uniform.start()
        self.addCleanup(uniform.stop)

    def make(self, threads: Threads | None = None, cache_time: float = CACHE_TIME) -> PageCache:
        return PageCache(
            PyPI(URL),
            self.catalog,
            Upstream(self.clock, URL, agent=self.wire.agent),
            Renderer("pypi", URL, AtOnce()),
            threads or AtOnce(),
            self.clock,
            Leases(self.catalog, f"process {next(self.processes)}", self.clock, PAGE_LEASE),
            Backoff(self.catalog, self.clock),
            cache_time=cache_time,
            negative_cache_time=NEGATIVE_CACHE_TIME,
            stale_after=STALE_AFTER,
            memory=MemoryCache(100_000_000),
        )

    def upstream_has(self, *versions: str, etag: str = "", metadata: bool = False) -> None:
        self.wire.reply(PATH, 200, page_of(*versions, metadata=metadata), content_type="application/json", etag=etag)

    def upstream_answers(self, status: int) -> None:
        self.wire.reply(PATH, status)

    def upstream_hangs(self) -> None:
        self.wire.replies.clear()

    def get(self) -> CachedPage:
        """The page as it is answered at once."""
        return self.now(self.pages.get(THING))

    def asking(self) -> Deferred[CachedPage]:
        """The page for one who may have to wait."""
        return self.start(self.pages.get(THING))

    def kept(self) -> Page | None:
        return self.now(self.catalog.get_page(THING))

    @property
    def asked(self) -> int:
        """How often upstream was asked."""
        return len(self.wire.exchanges)


class FreshTest(PagesTestCase):
    """MYPYPI_CACHE_TIME bounds how late something new appears, and how often upstream is asked."""

    def test_page_is_asked_for_once_while_it_is_fresh(self) -> None:
        """To the last moment where nobody asks for it shortly before; from then on upstream is asked again."""
        self.upstream_has("1.0")
        self.assertEqual(
            (["1.0"], CACHE_TIME, "miss"), (versions(first := self.get()), first.ttl, first.forward_reason)
        )
        self.upstream_has("1.0", "2.0")
        self.clock.advance(CACHE_TIME * 0.8)
        self.assertEqual((["1.0"], CACHE_TIME * 0.2, ""), (versions(last := self.get()), last.ttl, last.forward_reason))
        self.assertEqual(1, self.asked)
        self.clock.advance(CACHE_TIME * 0.2)
        self.assertEqual(
            (["1.0", "2.0"], CACHE_TIME, "stale"), (versions(new := self.get()), new.ttl, new.forward_reason)
        )
        self.assertEqual(2, self.asked)

    def test_unchanged_page_is_confirmed(self) -> None:
        """By its validator: one conditional request, and it is fresh again, everywhere."""
        self.upstream_has("1.0", etag='"1"')
        before = self.get().page
        self.clock.advance(CACHE_TIME)
        with mock.patch("mypypi.pages.rendering.render") as press:
            after = self.get()
        press.assert_not_called()
        self.assertEqual('"1"', self.wire.last.headers["if-none-match"])
        self.assertEqual((before.version, before.forms, CACHE_TIME), (after.page.version, after.page.forms, after.ttl))
        self.assertEqual((before.version, NOW + CACHE_TIME), self.now(self.catalog.page_stamp(THING)))

    def test_unchanged_page_is_known_without_validators(self) -> None:
        """By its bytes: it is neither rendered nor put anew."""
        self.upstream_has("1.0")
        before = self.get().page
        self.clock.advance(CACHE_TIME)
        with mock.patch("mypypi.pages.rendering.render") as press:
            after = self.get()
        press.assert_not_called()
        self.assertNotIn("if-none-match", self.wire.last.headers)
        self.assertEqual((before.version, CACHE_TIME), (after.page.version, after.ttl))

    def test_page_that_another_process_has_asked_for_is_taken_from_the_catalog(self) -> None:
        """Also after a restart: with the freshness that is left."""
        self.upstream_has("1.0")
        self.now(self.other.get(THING))
        self.clock.advance(100)
        answer = self.get()
        self.assertEqual((["1.0"], CACHE_TIME - 100, ""), (versions(answer), answer.ttl, answer.forward_reason))
        self.assertEqual(1, self.asked)

    def test_held_page_is_no_question_to_upstream(self) -> None:
        """However old it is; None where there is none."""
        self.assertIsNone(self.now(self.pages.cached(THING)))
        self.upstream_has("1.0")
        page = self.get().page
        self.clock.advance(10 * CACHE_TIME)
        self.assertEqual(page, self.now(self.pages.cached(THING)))
        self.assertEqual(1, self.asked)

    def test_listing_is_read_once(self) -> None:
        """Each version's; a page that lists nothing has an empty one."""
        self.upstream_has("1.0")
        page = self.get().page
        with mock.patch.object(PyPI, "listing", autospec=True, side_effect=PyPI.listing) as listing:
            self.assertEqual([LINK], list(self.now(self.pages.listing(page))))
            self.assertEqual([LINK], list(self.now(self.pages.listing(page))))
        self.assertEqual(1, listing.call_count)
        self.assertEqual({}, self.now(self.pages.listing(Page(PageId("root"), 0.0))))
        self.assertEqual({}, self.now(self.pages.listing(Page(THING, 0.0, missing=True))))


class TogetherTest(PagesTestCase):
    """Many ask at once."""

    def test_one_refresh_serves_all_who_wait(self) -> None:
        """For a page that nobody has asked for before, and for one that is stale."""
        for _ in range(2):
            self.upstream_hangs()
            before = self.asked
            waiting = [self.asking() for _ in range(20)]
            self.assertEqual(before + 1, self.asked)
            self.wire.last.answer(body=page_of("1.0"), content_type="application/json")
            self.assertEqual([["1.0"]] * 20, [versions(self.now(each)) for each in waiting])
            self.clock.advance(CACHE_TIME)

    def test_one_who_looked_before_the_page_was_taken_in_asks_nobody(self) -> None:
        """The catalog's answer may come late: what was taken in here meanwhile counts, and not what it says."""
        self.upstream_has("1.0")
        late: Deferred[None] = Deferred()

        async def look(_: PageId) -> Page | None:
            await late
            return None

        with mock.patch.object(self.catalog, "get_page", look):
            slow = self.asking()
        self.assertEqual(["1.0"], versions(self.get()))
        late.callback(None)
        self.assertEqual((["1.0"], 1), (versions(self.successResultOf(slow)), self.asked))

    def test_one_who_leaves_takes_nothing_from_the_others(self) -> None:
        """Promise 4, for pages: neither the answer of the others nor the refresh."""
        leaving, staying = self.asking(), self.asking()
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.assertFalse(self.wire.last.closed)
        self.wire.last.answer(body=page_of("1.0"), content_type="application/json")
        self.assertEqual(["1.0"], versions(self.now(staying)))

    def test_refresh_goes_on_when_all_have_left(self) -> None:
        """Its result is there for whoever asks next, stale or not."""
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        self.upstream_hangs()
        leaving = self.asking()
        leaving.cancel()
        self.failing(leaving, CancelledError)
        self.clock.advance(STALE_AFTER)
        self.wire.last.answer(body=page_of("1.0", "2.0"), content_type="application/json")
        self.assertEqual(["1.0", "2.0"], versions(self.get()))
        self.assertEqual(2, self.asked)

    def test_pages_do_not_wait_for_each_other(self) -> None:
        """One that hangs holds up no other."""
        self.asking()
        self.wire.reply("/simple/other/", 200, page_of("3.0"), content_type="application/json")
        self.assertEqual(["3.0"], versions(self.now(self.pages.get(PageId("simple", "other")))))


class SlowTest(PagesTestCase):
    """Upstream takes its time."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.clock.advance(CACHE_TIME)
        self.upstream_hangs()

    def test_stale_page_is_answered_while_upstream_takes_long(self) -> None:
        """After some seconds, below what clients wait; the refresh goes on, and its result is used afterwards."""
        waiting = self.asking()
        self.clock.advance(STALE_AFTER - 0.1)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        stale = self.now(waiting)
        self.assertEqual((["1.0"], ""), (versions(stale), stale.forward_reason))
        self.assertLess(stale.ttl, 0)
        self.assertFalse(self.wire.last.closed)
        self.wire.last.answer(body=page_of("2.0"), content_type="application/json")
        fresh = self.get()
        self.assertEqual((["2.0"], CACHE_TIME, ""), (versions(fresh), fresh.ttl, fresh.forward_reason))
        self.assertEqual(2, self.asked)

    def test_answer_in_time_is_awaited(self) -> None:
        """A fresh page is worth some seconds, and leaves no timer behind."""
        waiting = self.asking()
        self.clock.advance(STALE_AFTER - 0.1)
        self.wire.last.answer(body=page_of("2.0"), content_type="application/json")
        self.assertEqual(["2.0"], versions(self.now(waiting)))
        self.clock.advance(0)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_first_answer_is_waited_for(self) -> None:
        """Without anything to fall back on, until upstream's own limit; and then it is no 404."""
        waiting = self.start(self.pages.get(PageId("simple", "unseen")))
        self.clock.advance(14.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.failing(waiting, UpstreamDown)

    def test_upstream_that_hangs_is_left_alone_for_a_while(self) -> None:
        """Once its limit has passed, the page is answered at once."""
        waiting = self.asking()
        self.clock.advance(15)
        self.now(waiting)
        self.assertEqual((["1.0"], 2), (versions(self.get()), self.asked))

    def test_upstream_that_hangs_is_left_alone_for_other_pages_too(self) -> None:
        """An install reads hundreds of pages one after another: it does not wait for each of them."""
        other = PageId("simple", "other")
        self.wire.reply("/simple/other/", 200, page_of("3.0"), content_type="application/json")
        self.now(self.pages.get(other))
        self.clock.advance(CACHE_TIME)
        self.upstream_hangs()
        waiting = self.asking()
        self.clock.advance(STALE_AFTER)
        self.now(waiting)
        self.assertEqual(["3.0"], versions(self.now(self.pages.get(other))))
        self.clock.advance(2)
        self.wire.reply("/simple/other/", 200, page_of("4.0"), content_type="application/json")
        self.assertEqual(["4.0"], versions(self.now(self.pages.get(other))))


class FailingTest(PagesTestCase):
    """Promise 7: upstream fails, and what was ever seen is served."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.clock.advance(CACHE_TIME)

    def test_page_is_served_in_every_kind_of_failure(self) -> None:
        """Refused, failing, busy, unwilling, or sending what can't be read: however old the page is."""
        self.clock.advance(365 * 86_400)
        statuses = (500, 502, 503, 429, 401, 403, 400, 302)
        bodies = (b"", b"neither JSON nor HTML", b'{"files": 5}')
        answers = [(status, b"") for status in statuses] + [(200, body) for body in bodies]
        for status, body in answers:
            self.clock.advance(100)  # another process knows of the pause, and would not ask
            self.wire.reply(PATH, status, body, content_type="application/json")
            self.pages, before = self.make(), self.asked
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(before + 1, self.asked, "upstream is asked")
        self.clock.advance(100)
        self.wire.refuses = True
        self.pages = self.make()
        answer = self.get()
        self.assertEqual((["1.0"], ""), (versions(answer), answer.forward_reason))
        self.assertLess(answer.ttl, -365 * 86_400)
        self.assertIn("refused", str(self.failing(self.pages.check(), UpstreamDown)))

    def test_pauses_grow_while_upstream_fails(self) -> None:
        """One second, then twice as long each time, up to a minute; meanwhile answers come at once, without asking."""
        self.upstream_answers(503)
        for pause in (1, 2, 4, 8, 16, 32, 60, 60, 60):
            before = self.asked
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(before + 1, self.asked, "upstream is asked")
            self.upstream_hangs()
            self.clock.advance(pause - 0.01)
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(before + 1, self.asked, "upstream is left alone")
            self.upstream_answers(503)
            self.clock.advance(0.01)

    def test_pause_ends_when_upstream_answers(self) -> None:
        """The next failure starts with a short one."""
        self.upstream_answers(503)
        for pause in (1, 2, 4):
            self.get()
            self.clock.advance(pause)
        self.upstream_has("2.0")
        self.assertEqual(["2.0"], versions(self.get()))
        self.clock.advance(CACHE_TIME)
        self.upstream_answers(503)
        self.get()
        self.clock.advance(1)
        self.upstream_has("3.0")
        self.assertEqual(["3.0"], versions(self.get()))

    def test_pause_of_one_page_is_not_anothers(self) -> None:
        """Upstream may fail for one page and serve the next."""
        self.upstream_answers(503)
        self.get()
        self.wire.reply("/simple/other/", 200, page_of("3.0"), content_type="application/json")
        self.assertEqual(["3.0"], versions(self.now(self.pages.get(PageId("simple", "other")))))

    def test_pauses_of_several_pages_drift_apart(self) -> None:
        """They differ a little, so that an upstream that comes back is not asked for everything at once."""
        with mock.patch("random.uniform") as uniform:
            uniform.return_value = 1.25
            self.upstream_answers(503)
            self.get()
        (low, high), _ = uniform.call_args
        self.assertLess(low, 1)
        self.assertGreater(high, 1)
        before = self.asked
        self.clock.advance(1.2)
        self.get()
        self.assertEqual(before, self.asked)

    def test_failure_without_anything_to_fall_back_on_is_told(self) -> None:
        """As what it is, with what upstream says of when to come back; each request tries anew."""
        self.wire.reply("/simple/unseen/", 503, retry_after="7")
        for _ in range(2):
            before = self.asked
            error = self.failing(self.pages.get(PageId("simple", "unseen")), UpstreamDown)
            self.assertEqual((7, before + 1), (error.retry_after, self.asked))
        self.wire.reply("/simple/unseen/", 200, b"nonsense")
        self.failing(self.pages.get(PageId("simple", "unseen")), BadUpstreamResponse)

    def test_trouble_is_told_while_it_lasts(self) -> None:
        """For the health check: the last reason, until a page is had again."""
        self.now(self.pages.check())
        self.upstream_answers(503)
        self.get()
        self.assertIn("503", str(self.failing(self.pages.check(), UpstreamDown)))
        self.clock.advance(1)
        self.upstream_has("1.0")
        self.get()
        self.now(self.pages.check())

    def test_page_that_upstream_no_longer_has_is_gone(self) -> None:
        """404 is an answer: what was there is not served any more, here or anywhere."""
        self.upstream_answers(404)
        self.failing(self.pages.get(THING), NotFound)
        self.failing(self.other.get(THING), NotFound)
        kept = self.kept()
        assert kept is not None
        self.assertTrue(kept.missing)


class MissingTest(PagesTestCase):
    """MYPYPI_NEGATIVE_CACHE_TIME: how long a 404 of upstream's is believed."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_answers(404)
        self.failing(self.pages.get(THING), NotFound)

    def test_missing_page_is_remembered(self) -> None:
        """By every process, to the last moment; then upstream is asked again."""
        self.clock.advance(NEGATIVE_CACHE_TIME - 0.5)
        self.failing(self.pages.get(THING), NotFound)
        self.failing(self.other.get(THING), NotFound)
        self.assertEqual(1, self.asked)
        self.clock.advance(0.5)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.asked)
        self.clock.advance(NEGATIVE_CACHE_TIME - 0.5)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.asked)

    def test_page_that_appears_is_served(self) -> None:
        """As soon as the 404 is no longer believed, and its files are listed."""
        self.upstream_has("1.0")
        self.clock.advance(NEGATIVE_CACHE_TIME)
        answer = self.get()
        self.assertEqual((["1.0"], "miss"), (versions(answer), answer.forward_reason))

    def test_upstream_that_fails_is_no_404(self) -> None:
        """Promise 7: what was missing once may be there by now. 503, and not the 404 of before."""
        self.clock.advance(NEGATIVE_CACHE_TIME)
        for _ in range(2):
            self.upstream_answers(500)
            self.failing(self.pages.get(THING), UpstreamDown)
        self.wire.refuses = True
        self.failing(self.pages.get(THING), UpstreamDown)
        self.wire.refuses = False
        self.upstream_has("1.0")
        self.assertEqual(["1.0"], versions(self.get()))

    def test_upstream_that_hangs_is_no_404(self) -> None:
        """It is waited for, as for a page that nobody has asked for."""
        self.clock.advance(NEGATIVE_CACHE_TIME)
        self.upstream_hangs()
        waiting = self.asking()
        self.clock.advance(STALE_AFTER)
        self.assertNoResult(waiting)
        self.clock.advance(15 - STALE_AFTER)
        self.failing(waiting, UpstreamDown)

    def test_lost_404_is_remembered_again(self) -> None:
        """A catalog that was emptied does not make each process ask upstream every second for what it lacks."""
        self.now(self.catalog.delete_page(THING))
        self.clock.advance(1)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.asked)
        for _ in range(5):
            self.clock.advance(1)
            self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.asked)


class CatalogTest(PagesTestCase):
    """What several processes know together, and what one knows alone while the catalog is gone."""

    def test_page_that_another_process_has_put_is_seen_within_a_second(self) -> None:
        """A hot page asks the catalog at most once a second, and at least when it is asked for after that."""
        self.upstream_has("1.0")
        self.get()
        self.now(self.catalog.delete_page(THING))
        self.upstream_has("2.0")
        self.now(self.other.get(THING))
        with mock.patch.object(self.catalog, "page_stamp", side_effect=self.catalog.page_stamp) as stamp:
            self.clock.advance(0.9)
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(0, stamp.call_count)
            self.clock.advance(0.1)
            self.assertEqual([["2.0"]] * 5, [versions(self.get()) for _ in range(5)])
            self.assertEqual(1, stamp.call_count)
        self.assertEqual(2, self.asked)

    def test_purge_is_seen_within_a_second(self) -> None:
        """A page that was deleted is asked of upstream again, however fresh it was."""
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.upstream_has("2.0", etag='"2"')
        self.now(self.catalog.delete_page(THING))
        self.clock.advance(1)
        self.assertEqual(["2.0"], versions(self.get()))
        self.assertNotIn("if-none-match", self.wire.last.headers)
        kept = self.kept()
        assert kept is not None
        self.assertEqual('"2"', kept.upstream_etag)

    def test_purged_page_is_served_while_upstream_fails(self) -> None:
        """Promise 7 outlives the catalog: who holds the page serves it, stale, and puts it back for those who don't."""
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.upstream_answers(503)
        self.now(self.catalog.delete_page(THING))
        for _ in range(3):
            self.clock.advance(1)
            answer = self.get()
            self.assertEqual(["1.0"], versions(answer))
            self.assertLess(answer.ttl, 0)
        kept = self.kept()
        assert kept is not None
        self.assertEqual((0.0, ""), (kept.checked_at, kept.upstream_etag))

    def test_page_that_the_catalog_lost_is_put_again(self) -> None:
        """As soon as upstream answers, also where it has nothing new: other processes have it from the catalog."""
        self.upstream_has("1.0", etag='"1"')
        before = self.get().page
        self.upstream_answers(503)
        self.now(self.catalog.delete_page(THING))
        self.clock.advance(1)
        self.get()
        self.clock.advance(1)
        self.upstream_has("1.0", etag='"1"')
        self.get()
        kept = self.kept()
        assert kept is not None
        self.assertEqual((before.version, before.forms), (kept.version, kept.forms))
        before_asked = self.asked
        for _ in range(5):
            self.clock.advance(1)
            self.assertEqual("", self.get().forward_reason)
        self.now(self.other.get(THING))
        self.assertEqual(before_asked, self.asked)

    def test_other_process_confirms_for_all(self) -> None:
        """The time of a page that another process found unchanged is taken over."""
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.clock.advance(CACHE_TIME)
        self.now(self.other.get(THING))
        self.assertEqual((CACHE_TIME, 2), (self.get().ttl, self.asked))

    def test_pages_are_served_without_a_catalog(self) -> None:
        """Promise 8: from upstream, then from memory while they are fresh, then confirmed."""
        self.catalog.down = "no Redis here"
        self.upstream_has("1.0", etag='"1"')
        self.assertEqual((["1.0"], "miss"), (versions(first := self.get()), first.forward_reason))
        self.clock.advance(CACHE_TIME / 2)
        self.assertEqual((["1.0"], ""), (versions(second := self.get()), second.forward_reason))
        self.clock.advance(CACHE_TIME / 2)
        self.assertEqual("stale", self.get().forward_reason)
        self.assertEqual(2, self.asked)
        self.catalog.down = None
        self.clock.advance(1)
        self.get()
        self.assertIsNotNone(self.kept())

    def test_catalog_may_fail_at_every_step(self) -> None:
        """Whichever question it does not answer, the page is served, fresh or stale, and 404 is 404."""
        for method in ICatalog.names():
            with self.subTest(method):
                self.setUp()
                with mock.patch.object(self.catalog, method, side_effect=CatalogDown("not now")):
                    self.upstream_has("1.0", etag='"1"')
                    self.assertEqual(["1.0"], versions(self.get()))
                    self.clock.advance(CACHE_TIME)
                    self.assertEqual(["1.0"], versions(self.get()))
                    self.clock.advance(CACHE_TIME)
                    self.upstream_has("2.0", etag='"2"')
                    self.assertEqual(["2.0"], versions(self.get()))
                    self.clock.advance(CACHE_TIME)
                    self.upstream_answers(503)
                    self.assertEqual(["2.0"], versions(self.get()))
                    self.now(self.pages.withhold(THING, LINK))
                    self.clock.advance(CACHE_TIME)
                    self.upstream_answers(404)
                    self.failing(self.pages.get(THING), NotFound)

    def test_hot_page_is_served_while_the_catalog_is_gone(self) -> None:
        """With upstream gone as well."""
        self.upstream_has("1.0")
        self.get()
        self.catalog.down = "gone"
        self.wire.refuses = True
        self.clock.advance(CACHE_TIME)
        self.assertEqual(["1.0"], versions(self.get()))


class WithheldTest(PagesTestCase):
    """What upstream advertises and does not have is not advertised here."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0", etag='"1"', metadata=True)
        self.assertTrue(self.advertised(self.pages))
        self.assertTrue(self.advertised(self.other))
        self.now(self.pages.withhold(THING, f"{LINK}.metadata"))

    def advertised(self, pages: PageCache) -> bool:
        """Whether these pages say that the wheel's metadata can be had by itself."""
        page = self.now(pages.get(THING)).page
        listed = f"{LINK}.metadata" in self.now(pages.listing(page))
        self.assertEqual(listed, "core-metadata" in document(page)["files"][0])
        return listed

    def test_withheld_link_is_gone_from_the_next_answer(self) -> None:
        """However fresh the page is: the next answer is rendered anew."""
        self.assertFalse(self.advertised(self.pages))

    def test_withheld_link_is_gone_everywhere_within_a_second(self) -> None:
        """Whichever process is asked first: none lets upstream's 304 confirm what it holds."""
        self.clock.advance(1)
        self.assertFalse(self.advertised(self.other))
        self.assertFalse(self.advertised(self.pages))

    def test_withheld_link_stays_away(self) -> None:
        """While upstream confirms the page as it was, and when there is a new version of it."""
        self.assertFalse(self.advertised(self.pages))
        self.clock.advance(CACHE_TIME)
        self.assertFalse(self.advertised(self.pages))
        self.assertEqual('"1"', self.wire.last.headers["if-none-match"])
        self.upstream_has("1.0", etag='"2"', metadata=True)
        self.clock.advance(CACHE_TIME)
        self.assertFalse(self.advertised(self.pages))

    def test_withheld_link_comes_back_with_a_new_page_after_a_day(self) -> None:
        """Upstream may have it by then."""
        self.assertFalse(self.advertised(self.pages))
        self.clock.advance(86_400)
        self.upstream_has("1.0", "2.0", etag='"2"', metadata=True)
        self.assertTrue(self.advertised(self.pages))

    def test_page_is_served_as_it_was_while_upstream_fails(self) -> None:
        """An unconfirmed page is better than none."""
        self.upstream_answers(503)
        self.assertTrue(self.advertised(self.pages))
        self.clock.advance(1)
        self.assertTrue(self.advertised(self.other))

    def test_withholding_once_more_changes_nothing(self) -> None:
        """Many clients that meet the same 404 do not make upstream be asked again and again."""
        self.assertFalse(self.advertised(self.pages))
        before = self.asked
        self.now(self.pages.withhold(THING, f"{LINK}.metadata"))
        self.assertFalse(self.advertised(self.pages))
        self.assertEqual(before, self.asked)


class BusyTest(PagesTestCase):
    """The threads that press pages are busy."""

    def test_one_who_waits_for_the_render_is_answered_from_what_is_held(self) -> None:
        """It counts towards the same seconds as upstream does."""
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)
        busy = WhenTold()
        self.pages = self.make(busy)
        self.upstream_has("2.0")
        waiting = self.asking()
        self.clock.advance(STALE_AFTER)
        self.assertEqual(["1.0"], versions(self.now(waiting)))
        busy.finish()
        self.assertEqual(["2.0"], versions(self.get()))
