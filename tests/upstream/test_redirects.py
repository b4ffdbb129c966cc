"""Tests of redirects of passed-on requests, and of conditions that upstream refuses."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from mypypi.errors import BadUpstreamResponse, MyPyPiError
from mypypi.upstream.requester import Credentials
from mypypi.upstream.responses import PassedResponse
from tests.support.memory import response
from tests.upstream.cases import FILE, JSON, UpstreamTestCase

AUDIT = b'{"thing": ["1.0.0"]}'
HEADERS = {"accept": JSON, "content-type": "application/json", "content-encoding": "gzip", "npm-command": "audit"}


class PassedOnTest(UpstreamTestCase):
    """Redirects of searches and audits are followed as clients follow them."""

    def pass_on(self, method: str = "POST", kind: str = "audit") -> Deferred[PassedResponse]:
        content = AUDIT if method == "POST" else b""
        return self.start(self.upstream.pass_on(kind, method, "/-/audit", HEADERS, content))

    def assert_sent(self, method: str, url: str, content: bytes) -> None:
        """Assert that this was the last request."""
        line, _, rest = self.wire.last.value().partition(b"\r\n")
        self.assertEqual((method, url), (line.split()[0].decode(), self.wire.last.url))
        self.assertEqual(content, rest.partition(b"\r\n\r\n")[2])

    def test_307_and_308_keep_method_and_body(self) -> None:
        """An audit that is redirected with 307 or 308 is sent again as it is, and its answer is passed on."""
        for status in (307, 308):
            passed = self.pass_on()
            self.wire.last.answer(status, b"moved", location="https://audit.example/v1/bulk?a=b")
            self.assert_sent("POST", "https://audit.example/v1/bulk?a=b", AUDIT)
            sent = self.wire.last.headers
            self.assertEqual(HEADERS, {name: sent[name] for name in HEADERS})
            self.wire.last.answer(201, b"{}", content_type=JSON)
            answer = self.now(passed)
            self.assertEqual((201, b"{}", JSON), (answer.status, answer.body, answer.headers["content-type"]))

    def test_301_302_and_303_become_get(self) -> None:
        """An audit that is redirected with 301, 302 or 303 becomes a GET without a body, as in npm."""
        for status in (301, 302, 303):
            passed = self.pass_on()
            self.wire.last.answer(status, location="/elsewhere")
            self.assert_sent("GET", "https://index.example/elsewhere", b"")
            sent = self.wire.last.headers
            self.assertEqual(set(), {"content-type", "content-encoding", "content-length"} & set(sent))
            self.assertEqual((JSON, "audit"), (sent["accept"], sent["npm-command"]))
            self.wire.last.answer(404, b"no")
            self.assertEqual(404, self.now(passed).status)

    def test_search_is_followed(self) -> None:
        """A search that is redirected is followed with GET."""
        for status in (301, 302, 303, 307, 308):
            passed = self.pass_on("GET", "search")
            self.wire.last.answer(status, location="https://search.example/")
            self.assert_sent("GET", "https://search.example/", b"")
            self.wire.last.answer(body=b"[]")
            self.assertEqual(b"[]", self.now(passed).body)

    def test_keys_are_followed(self) -> None:
        """Signing keys are a page of their own kind, which is followed, too."""
        pending = self.page("/-/npm/v1/keys", kind="keys")
        self.wire.last.answer(307, location="https://keys.example/")
        self.wire.last.answer(body=b'{"keys": []}')
        source = self.now(pending).source
        assert source is not None
        self.assertEqual((b'{"keys": []}', "https://keys.example/"), (source.body, source.url))

    def test_redirects_have_the_same_bounds_as_those_of_pages(self) -> None:
        """Five redirects are followed, and none to an address that is invalid or less secure."""
        passed = self.pass_on()
        for _ in range(6):
            self.wire.last.answer(307, location="/again")
        self.assertIn("redirects more than 5 times", str(self.failing(passed, BadUpstreamResponse)))
        self.assertEqual(6, self.request_count)
        for location in (
            "http://index.example/a",
            "ftp://index.example/a",
            "https://[index.example/",
            "",
            "https://a@b/",
        ):
            passed, before = self.pass_on(), self.request_count
            self.wire.last.answer(307, location=location)
            self.failing(passed, BadUpstreamResponse)
            self.assertEqual(before, self.request_count, location)

    def test_place_is_free_after_redirects(self) -> None:
        """A redirected audit takes one place, which is free once it has ended."""
        self.upstream = self.make_upstream(concurrency=1)
        for end in (200, 307):
            passed = self.pass_on()
            self.wire.last.answer(307, location="/b")
            self.wire.last.answer(end, b"{}")
            self.settle(passed)
        self.assert_slot_is_free(self.upstream)

    def settle(self, pending: Deferred[Any]) -> None:
        pending.addErrback(lambda failure: failure.trap(MyPyPiError) and None)
        self.now(pending)


class RedirectedCredentialsTest(UpstreamTestCase):
    """Credentials go to upstream's own origin alone, and not where another origin leads."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream(credentials=Credentials("jane", "secret"))

    def redirect(self, target: str) -> bool:
        """Redirect the last request, assert that it is followed, and return whether credentials are sent along."""
        before = self.request_count
        self.wire.last.answer(302, location=target)
        self.assertEqual((before + 1, target), (self.request_count, self.wire.last.url))
        return "authorization" in self.wire.last.headers

    def test_redirects_within_the_origin_carry_credentials(self) -> None:
        """Each request of a chain that never leaves upstream's origin carries the credentials."""
        self.page()
        self.assertIn("authorization", self.wire.last.headers)
        for target in ("https://index.example/elsewhere", "https://index.example/at/last"):
            self.assertTrue(self.redirect(target))

    def test_redirect_that_comes_back_carries_no_credentials(self) -> None:
        """A page or an audit that is redirected to another origin and back is requested without credentials."""
        for start in (self.page, self.audit):
            for elsewhere in ("https://evil.example/", "https://index.example:8443/"):
                start()
                self.assertIn("authorization", self.wire.last.headers)
                self.assertFalse(self.redirect(elsewhere))
                self.assertFalse(self.redirect("https://index.example/private"))
                self.assertFalse(self.redirect("https://index.example/more/private"))

    def test_file_elsewhere_does_not_lead_to_private_paths(self) -> None:
        """A file on another host that redirects to upstream's own origin is requested without credentials."""
        for start in (self.file, lambda: self.start(self.upstream.size_of(FILE))):
            start()
            self.assertNotIn("authorization", self.wire.last.headers)
            self.assertFalse(self.redirect("https://index.example/private"))

    def test_refused_condition_does_not_bring_credentials_back(self) -> None:
        """A redirected request that is repeated without its conditions carries no credentials either."""
        self.page(etag='"1"')
        self.redirect("https://evil.example/")
        self.redirect("https://index.example/private")
        before = self.request_count
        self.wire.last.answer(412)
        self.assertEqual((before + 1, "https://index.example/private"), (self.request_count, self.wire.last.url))
        self.assertNotIn("authorization", self.wire.last.headers)

    def test_retry_does_not_bring_credentials_back(self) -> None:
        """A redirected request that is sent again after a quick failure carries no credentials either."""
        self.upstream = self.make_upstream(credentials=Credentials("jane", "secret"), retries=(0.2,))
        self.file()
        self.redirect("https://index.example/private")
        before = self.request_count
        self.wire.last.answer(503)
        self.clock.advance(1)
        self.assertEqual((before + 1, "https://index.example/private"), (self.request_count, self.wire.last.url))
        self.assertNotIn("authorization", self.wire.last.headers)


class RefusedConditionTest(UpstreamTestCase):
    """An upstream that refuses our validators is asked again without them."""

    def test_page_is_asked_for_without_its_validators(self) -> None:
        """After 412, 428 or 400 the page is requested once more, without conditions, and its answer counts."""
        for status in (412, 428, 400):
            pending = self.page(etag="odd", modified="never")
            self.assertEqual("odd", self.wire.last.headers["if-none-match"])
            self.wire.last.answer(status, b"no")
            sent = self.wire.last.headers
            self.assertEqual(set(), {"if-none-match", "if-modified-since"} & set(sent))
            self.assertEqual(JSON, sent["accept"])
            self.wire.last.answer(body=b"{}", etag='"2"')
            answer = self.now(pending)
            assert answer.source is not None
            self.assertEqual((b"{}", '"2"'), (answer.source.body, answer.etag))

    def test_page_is_asked_for_once_more(self) -> None:
        """What upstream answers without conditions is its answer, and a page without validators is not repeated."""
        for etag, tries in (('"1"', 2), ("", 1)):
            before = self.request_count
            pending = self.page(etag=etag)
            for _ in range(tries):
                self.wire.last.answer(400)
            self.assertIn("400", str(self.failing(pending, BadUpstreamResponse)))
            self.assertEqual(before + tries, self.request_count)

    def test_304_without_a_condition_is_no_answer(self) -> None:
        """An upstream that refuses the validators, and then answers 304 without them, fails."""
        pending = self.page(etag='"1"')
        self.wire.last.answer(412)
        self.wire.last.answer(304)
        self.failing(pending, BadUpstreamResponse)

    def test_conditions_are_left_out_after_a_redirect_too(self) -> None:
        """The target of a redirect is asked again without conditions."""
        pending = self.page(etag='"1"')
        self.wire.last.answer(302, location="https://other.example/simple/a/")
        self.wire.last.answer(412)
        self.assertEqual("https://other.example/simple/a/", self.wire.last.url)
        self.assertNotIn("if-none-match", self.wire.last.headers)
        self.wire.last.answer(body=b"{}")
        self.assertIsNotNone(self.now(pending).source)

    def test_rest_of_a_file_is_not_asked_for_without_its_condition(self) -> None:
        """After a refused If-Range the whole file is requested. A part could belong to another version."""
        pending = self.file(**{"Range": "bytes=5-", "If-Range": '"1"'})
        self.wire.last.answer(412)
        self.assertEqual(set(), {"range", "if-range"} & set(self.wire.last.headers))
        self.wire.last.send(response(200, b"", content_length="9"))
        self.assertEqual(200, self.now(pending).status)


class AcceptTest(UpstreamTestCase):
    """Files are requested with an Accept that every server answers."""

    def test_file_is_accepted_in_any_type(self) -> None:
        """A file request has ``Accept: */*``, also after a redirect. Some servers answer 406 without it."""
        self.file()
        self.assertEqual("*/*", self.wire.last.headers["accept"])
        self.wire.last.answer(302, location="/b.whl")
        self.assertEqual("*/*", self.wire.last.headers["accept"])
