"""Tests that no cookie of upstream's hosts is kept or sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from tests.support.memory import response
from tests.upstream.cases import FILE, UpstreamTestCase

_COOKIES = 30
_LARGE = "a" * 1900


class CookieTest(UpstreamTestCase):
    """Whatever cookies a host sends, later requests carry none."""

    def answer_with_cookies(self, domain: str = "", status: int = 200, **headers: str) -> None:
        """Answer the last request with many large cookies, which nearly fill a head."""
        lines = "".join(f"\r\nSet-Cookie: c{number}={_LARGE}; Path=/{domain}" for number in range(_COOKIES))
        older = f'\r\nSet-Cookie2: old={_LARGE}; Version="1"; Path="/"'
        head, separator, body = response(status, b"{}", **headers).partition(b"\r\n\r\n")
        sent = head + lines.encode() + older.encode() + separator + body
        self.assertGreater(len(sent), 55_000)
        self.wire.last.send(sent)

    def assert_no_cookie(self, sent: int) -> None:
        """Assert that so many requests were sent, and that the last one carries no cookie and no large header."""
        self.assertEqual(sent, self.request_count)
        self.assertNotIn("cookie", self.wire.last.headers)
        self.assertLess(len(self.wire.last.value()), 1000)

    def test_later_requests_to_the_host_carry_no_cookie(self) -> None:
        """Cookies of a file, of a page or of an audit are not sent with later requests of any kind to their host."""
        self.upstream = self.make_upstream("https://files.example")
        starts: list[Callable[[], Deferred[Any]]] = [self.file, self.page, self.audit]
        for start in starts:
            pending = start()
            self.answer_with_cookies()
            answer = self.now(pending)
            getattr(answer, "close", lambda: None)()
            for later in starts:
                before = self.request_count
                later()
                self.assert_no_cookie(before + 1)
                self.wire.last.answer(404)

    def test_cookies_do_not_reach_other_hosts(self) -> None:
        """A cookie for a whole domain is not sent to the domain's other hosts."""
        self.file("https://a.files.example/a.whl")
        self.answer_with_cookies("; Domain=files.example")
        self.file("https://b.files.example/b.whl")
        self.assert_no_cookie(2)

    def test_redirect_carries_no_cookie(self) -> None:
        """A redirect does not take the cookies along that came with it."""
        self.file()
        self.answer_with_cookies(status=302, location="/b.whl")
        self.assertEqual("https://files.example/b.whl", self.wire.last.url)
        self.assert_no_cookie(2)

    def test_refused_file_leaves_no_cookie(self) -> None:
        """The cookies of a refusal are not kept either."""
        self.file(FILE)
        self.answer_with_cookies(status=403)
        self.file(FILE)
        self.assert_no_cookie(2)

    def test_cookies_are_not_passed_on(self) -> None:
        """A client that gets upstream's answer does not get upstream's cookies."""
        passed = self.audit()
        self.answer_with_cookies()
        self.assertNotIn("set-cookie", self.now(passed).headers)
