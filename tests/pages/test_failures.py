"""Tests of pages while upstream fails, refuses, or sends a page that is none."""

from __future__ import annotations

from functools import partial
from unittest import mock

from twisted.internet.task import deferLater

from mypypi.errors import BadUpstreamResponse, NotFound, UpstreamDown, UpstreamRefused
from mypypi.model import PageId
from mypypi.rendering.tasks import perform
from tests.pages.test_page_cache import (
    CACHE_TIME,
    NEGATIVE_CACHE_TIME,
    PATH,
    STALE_AFTER,
    THING,
    PagesTestCase,
    page_of,
    versions,
)


class FailingTest(PagesTestCase):
    """Cached pages are served while upstream fails (promise 7)."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0", etag='"1"')
        self.get()
        self.clock.advance(CACHE_TIME)

    def test_page_is_served_in_every_kind_of_failure(self) -> None:
        """
        A cached page of any age is served after each kind of failure.

        Upstream refuses the connection, answers with an error, or sends a page that can't be parsed.
        """
        self.clock.advance(365 * 86_400)
        statuses = (500, 502, 503, 429, 401, 407, 400, 302)
        bodies = (b"", b"neither JSON nor HTML", b'{"files": 5}')
        answers = [(status, b"") for status in statuses] + [(200, body) for body in bodies]
        for status, body in answers:
            self.clock.advance(100)  # processes that know of the pause do not ask upstream
            self.wire.reply(PATH, status, body, content_type="application/json")
            self.pages, before = self.make_cache(), self.upstream_requests
            self.assertEqual(["1.0"], versions(self.get()))
            tries = 2 if status == 400 else 1  # without the validators, which upstream may not be able to read
            self.assertEqual(before + tries, self.upstream_requests)
        self.clock.advance(100)
        self.wire.refuses = True
        self.pages = self.make_cache()
        answer = self.get()
        self.assertEqual((["1.0"], ""), (versions(answer), answer.forward_reason))
        self.assertLess(answer.ttl, -365 * 86_400)
        self.assertIn("refused", str(self.failing(self.pages.check(), UpstreamDown)))

    def test_pauses_grow_while_upstream_fails(self) -> None:
        """Pauses double from one second to a minute. During a pause the page is served without asking upstream."""
        self.upstream_answers(503)
        for pause in (1, 2, 4, 8, 16, 32, 60, 60, 60):
            before = self.upstream_requests
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(before + 1, self.upstream_requests, "one request is sent")
            self.upstream_hangs()
            self.clock.advance(pause - 0.01)
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(before + 1, self.upstream_requests, "no request is sent")
            self.upstream_answers(503)
            self.clock.advance(0.01)

    def test_pause_ends_when_upstream_answers(self) -> None:
        """An answer resets the back-off, so that the next pause is short again."""
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

    def test_each_page_has_its_own_backoff(self) -> None:
        """Each page has its own back-off. Upstream may fail for one page and serve another."""
        self.upstream_answers(503)
        self.get()
        self.wire.reply("/simple/other/", 200, page_of("3.0", project="other"), content_type="application/json")
        self.assertEqual(["3.0"], versions(self.now(self.pages.get(PageId("simple", "other")))))

    def test_pauses_vary_at_random(self) -> None:
        """Pauses vary at random. Otherwise all pages would be requested at once when upstream works again."""
        with mock.patch("random.uniform") as uniform:
            uniform.return_value = 1.25
            self.upstream_answers(503)
            self.get()
        (low, high), _ = uniform.call_args
        self.assertLess(low, 1)
        self.assertGreater(high, 1)
        before = self.upstream_requests
        self.clock.advance(1.2)
        self.get()
        self.assertEqual(before, self.upstream_requests)

    def test_failure_without_a_cached_page_is_an_error(self) -> None:
        """Without a cached page, upstream's error and Retry-After are passed on. Upstream is not asked until then."""
        unseen = PageId("simple", "unseen")
        self.wire.reply("/simple/unseen/", 503, retry_after="7")
        for left in (7, 6, 5):
            error = self.failing(self.pages.get(unseen), UpstreamDown)
            self.assertEqual(("upstream answered 503", left), (str(error), error.retry_after))
            self.clock.advance(1)
        self.assertEqual(2, self.upstream_requests)
        self.wire.reply("/simple/unseen/", 200, b"nonsense")
        self.clock.advance(4)
        self.failing(self.pages.get(unseen), BadUpstreamResponse)
        self.assertEqual(3, self.upstream_requests)

    def test_short_backoff_of_an_uncached_page_is_waited_out(self) -> None:
        """A request waits for the end of a short back-off. A client that tries again at once is not refused."""
        unseen = PageId("simple", "unseen")
        self.wire.reply("/simple/unseen/", 500)
        self.failing(self.pages.get(unseen), UpstreamDown)
        self.wire.reply("/simple/unseen/", 200, page_of("1.0", project="unseen"), content_type="application/json")
        waiting = self.start(self.pages.get(unseen))
        self.clock.advance(0.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        self.assertEqual(["1.0"], versions(self.now(waiting)))

    def test_page_that_is_hard_to_render_has_a_long_backoff(self) -> None:
        """The back-off of a page that can't be rendered is ten times as long as the work, and a minute at most."""
        for seconds, backoff in ((0.05, 1), (3, 30), (20, 60)):
            page = PageId("simple", f"hard{seconds}")
            self.pages = self.make_cache(partial(deferLater, self.clock, seconds, perform))
            self.wire.reply(f"/simple/{page.project}/", 200, b"nonsense")
            failing = self.start(self.pages.get(page))
            self.clock.pump([0, 0, seconds, 0])
            self.failing(failing, BadUpstreamResponse)
            pause = self.now(self.catalog.pause(f"page:{page}"))
            assert pause is not None
            self.assertAlmostEqual(backoff, pause.until - self.clock.seconds())

    def test_client_that_asks_for_failing_pages_does_not_affect_others(self) -> None:
        """Pages that fail, however often, never hold back another page."""
        for number in range(50):
            self.wire.reply(f"/simple/bad{number}/", 500 if number % 2 else 403)
            self.start(self.pages.get(PageId("simple", f"bad{number}"), "client")).addErrback(lambda _: None)
        self.clock.pump([0] * 10)
        self.assertEqual(51, self.upstream_requests)
        other = PageId("simple", "other")
        self.wire.reply("/simple/other/", 200, page_of("3.0", project="other"), content_type="application/json")
        self.assertEqual(["3.0"], versions(self.now(self.pages.get(other))))

    def test_health_check_reports_the_failure(self) -> None:
        """The health check fails with the last error until a page is fetched."""
        self.now(self.pages.check())
        self.upstream_answers(503)
        self.get()
        self.assertIn("503", str(self.failing(self.pages.check(), UpstreamDown)))
        self.clock.advance(1)
        self.upstream_has("1.0")
        self.get()
        self.now(self.pages.check())

    def test_page_that_upstream_no_longer_has_is_gone(self) -> None:
        """After a 404, no process serves the cached page any more."""
        self.upstream_answers(404)
        self.failing(self.pages.get(THING), NotFound)
        self.failing(self.other.get(THING), NotFound)
        kept = self.stored_page()
        assert kept is not None
        self.assertTrue(kept.missing)


class RefusedTest(PagesTestCase):
    """Upstream refuses a page."""

    def refuse(self, status: int, page: PageId = THING) -> UpstreamRefused:
        path = f"/simple/{page.project}/"
        self.wire.reply(path, status, b'{"message": "not yours"}', content_type="application/json")
        error = self.failing(self.pages.get(page), UpstreamRefused)
        assert isinstance(error, UpstreamRefused)
        return error

    def test_refusal_is_passed_on_and_remembered(self) -> None:
        """A refusal has upstream's status and reason, for all processes, until MYPYPI_NEGATIVE_CACHE_TIME is over."""
        for status, shown in ((401, 403), (402, 402), (403, 403), (410, 410), (451, 451)):
            page, before = PageId("simple", f"refused{status}"), self.upstream_requests
            error = self.refuse(status, page)
            self.assertEqual(shown, error.status)
            self.assertIn("not yours", str(error))
            for pages in (self.pages, self.other):
                again = self.failing(pages.get(page), UpstreamRefused)
                self.assertEqual((shown, str(error)), (again.status, str(again)))
            self.assertEqual(before + 1, self.upstream_requests)
            self.clock.advance(NEGATIVE_CACHE_TIME)
            self.refuse(status, page)
            self.assertEqual(before + 2, self.upstream_requests)

    def test_refusal_replaces_a_cached_page(self) -> None:
        """A cached page is not served once upstream forbids it, or has it no more."""
        for status in (402, 403, 410, 451):
            self.upstream_has("1.0")
            self.assertEqual(["1.0"], versions(self.get()))
            self.clock.advance(CACHE_TIME)
            self.assertEqual(status, self.refuse(status).status)
            self.assertEqual(status, self.failing(self.other.get(THING), UpstreamRefused).status)
            self.clock.advance(NEGATIVE_CACHE_TIME)

    def test_refusal_of_our_credentials_replaces_nothing(self) -> None:
        """A cached page is served while upstream rejects our credentials, since they may be mistaken."""
        self.upstream_has("1.0")
        self.get()
        for status in (401, 407):
            self.clock.advance(CACHE_TIME)
            before = self.upstream_requests
            self.upstream_answers(status)
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(["1.0"], versions(self.get()))
            self.assertEqual(before + 1, self.upstream_requests)

    def test_page_that_is_allowed_again_is_served(self) -> None:
        """A page is served when upstream allows it again."""
        self.refuse(403)
        self.upstream_has("1.0")
        self.clock.advance(NEGATIVE_CACHE_TIME)
        self.assertEqual(["1.0"], versions(self.get()))


class NoPageTest(PagesTestCase):
    """Upstream answers 200 with a page that is none. The page as it was is served."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_has("1.0")
        self.get()
        self.clock.advance(CACHE_TIME)

    def assert_kept(self, body: bytes, content_type: str, why: str) -> None:
        self.wire.reply(PATH, 200, body, content_type=content_type)
        before = self.upstream_requests
        self.assertEqual(["1.0"], versions(self.get()))
        self.assertEqual(before + 1, self.upstream_requests)
        self.assert_reason(why)
        self.clock.advance(100)

    def assert_reason(self, why: str) -> None:
        """Check the reason that processes and clients get, and that the health, which anybody may read, has no name."""
        pause = self.now(self.catalog.pause(f"page:{THING}"))
        assert pause is not None
        self.assertIn(why, pause.why)
        health = str(self.failing(self.pages.check(), UpstreamDown))
        self.assertEqual("a page of upstream's could not be used: the log says which one, and why", health)

    def test_form_to_sign_in_replaces_nothing(self) -> None:
        """A form to sign in, of a captive network or an expired session, does not replace a cached page."""
        form = b'<form action="/login"><input name="user"><a href="/lost/password">Lost?</a></form>'
        self.assert_kept(form, "text/html", "sign in")

    def test_redirect_to_a_form_replaces_nothing(self) -> None:
        """A redirect to a form to sign in does not replace a cached page."""
        self.wire.reply("/login", 200, b"<form><input name=user></form>", content_type="text/html")
        self.wire.reply(PATH, 302, location="/login")
        self.assertEqual(["1.0"], versions(self.get()))
        self.assert_reason("sign in")

    def test_page_of_another_project_replaces_nothing(self) -> None:
        """The page of another project does not replace a cached page."""
        self.assert_kept(page_of("9.0", project="other"), "application/json", "another project")

    def test_html_without_files_replaces_nothing(self) -> None:
        """HTML without a file replaces a page with files only if it says that it is a Simple page."""
        self.assert_kept(b"<html><body>Welcome<a href='/news'>news</a></body></html>", "text/html", "lists nothing")
        empty = b"<html><head><title>Links for thing</title></head><body></body></html>"
        self.wire.reply(PATH, 200, empty, content_type="text/html")
        self.assertEqual([], versions(self.get()))

    def test_html_without_files_is_accepted_as_a_first_page(self) -> None:
        """HTML without a file is a project without files, where no page with files is cached."""
        self.wire.reply("/simple/other/", 200, b"<html><body></body></html>", content_type="text/html")
        self.assertEqual([], versions(self.now(self.pages.get(PageId("simple", "other")))))


class MissingTest(PagesTestCase):
    """MYPYPI_NEGATIVE_CACHE_TIME bounds how long a 404 is cached."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream_answers(404)
        self.failing(self.pages.get(THING), NotFound)

    def test_missing_page_is_cached(self) -> None:
        """A 404 is cached for all processes until its time is over. Then upstream is asked again."""
        self.clock.advance(NEGATIVE_CACHE_TIME - 0.5)
        self.failing(self.pages.get(THING), NotFound)
        self.failing(self.other.get(THING), NotFound)
        self.assertEqual(1, self.upstream_requests)
        self.clock.advance(0.5)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.upstream_requests)
        self.clock.advance(NEGATIVE_CACHE_TIME - 0.5)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.upstream_requests)

    def test_page_that_appears_is_served(self) -> None:
        """A page that appears is served when the cached 404 expires."""
        self.upstream_has("1.0")
        self.clock.advance(NEGATIVE_CACHE_TIME)
        answer = self.get()
        self.assertEqual((["1.0"], "miss"), (versions(answer), answer.forward_reason))

    def test_upstream_that_fails_is_no_404(self) -> None:
        """An upstream failure after an expired 404 is a 503 (promise 7). The page may exist by now."""
        self.clock.advance(NEGATIVE_CACHE_TIME)
        for pause in (1, 2, 4):
            self.upstream_answers(500)
            self.failing(self.pages.get(THING), UpstreamDown)
            self.clock.advance(pause)
        self.wire.refuses = True
        self.failing(self.pages.get(THING), UpstreamDown)
        self.wire.refuses = False
        self.clock.advance(8)
        self.upstream_has("1.0")
        self.assertEqual(["1.0"], versions(self.get()))

    def test_upstream_that_hangs_is_no_404(self) -> None:
        """After an expired 404, clients wait until upstream times out."""
        self.clock.advance(NEGATIVE_CACHE_TIME)
        self.upstream_hangs()
        waiting = self.request_page()
        self.clock.advance(STALE_AFTER)
        self.assertNoResult(waiting)
        self.clock.advance(15 - STALE_AFTER)
        self.failing(waiting, UpstreamDown)

    def test_lost_404_is_cached_again(self) -> None:
        """
        A 404 that the catalog lost is cached again after one request.

        An emptied catalog does not cause a request per second.
        """
        self.now(self.catalog.delete_page(THING))
        self.clock.advance(1)
        self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.upstream_requests)
        for _ in range(5):
            self.clock.advance(1)
            self.failing(self.pages.get(THING), NotFound)
        self.assertEqual(2, self.upstream_requests)
