"""Tests of refusals: what clients are told for each status, and which of upstream's words are repeated."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from base64 import b64encode
from collections.abc import Mapping

import pytest
from twisted.internet.defer import CancelledError

from mypypi.errors import MyPyPiError, NotFound, UpstreamRefused
from mypypi.upstream.refusals import RULES, reason_of, refusal
from mypypi.upstream.requester import Credentials
from tests.support.memory import gzipped, response
from tests.upstream.cases import UpstreamTestCase

JSON = "application/json"
#: The longest time, in seconds, for which a refusal waits for its reason.
PATIENCE = 2.0


@pytest.mark.parametrize(
    ("status", "passed_on", "replaces"),
    [
        (401, 403, False),
        (402, 402, True),
        (403, 403, True),
        (404, 404, True),
        (407, 502, False),
        (410, 410, True),
        (451, 451, True),
    ],
)
def test_table_of_refusals(status: int, passed_on: int, replaces: bool) -> None:  # noqa: FBT001 - a column of a table
    """
    Each refusal has a status for clients, and replaces a cached page or not.

    A client has no credentials to give for a 401. A 401 and a 407 may be a mistake of our own credentials.
    """
    assert (RULES[status].status, RULES[status].replaces) == (passed_on, replaces)
    error = refusal(status, "Because", JSON, b'{"error": "licence expired"}', ())
    assert error.status == passed_on
    if isinstance(error, UpstreamRefused):
        assert error.upstream_status == status
        assert str(error) == f"{RULES[status].words} ({status}): licence expired"
    else:
        assert isinstance(error, NotFound)
        assert str(error) == RULES[status].words


def test_no_other_status_is_a_refusal() -> None:
    """The table has no status that may be over soon, such as 429."""
    assert set(RULES) == {401, 402, 403, 404, 407, 410, 451}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "licence expired"}, "licence expired"),
        ({"message": "licence expired"}, "licence expired"),
        ({"detail": "licence expired"}, "licence expired"),
        ({"reason": "licence expired"}, "licence expired"),
        ({"error": {"message": "licence expired", "code": 7}}, "licence expired"),
        ({"errors": [{"status": 403, "message": "licence expired"}]}, "licence expired"),
        ({"error": True, "message": "licence expired"}, "licence expired"),
        ({"error": None, "detail": {"message": "licence expired"}}, "licence expired"),
        ({"error": "", "message": "licence expired"}, "licence expired"),
        ("licence expired", "licence expired"),
        ({"error": "  licence\r\n\texpired  "}, "licence expired"),
        ({"error": "Lizenz für dich, nicht: \N{SNOWMAN}"}, "Lizenz für dich, nicht: \N{SNOWMAN}"),
        ({"error": 7}, ""),
        ({"error": {"error": {"error": {"error": {"error": "too deep"}}}}}, ""),
        ({"status": "blocked"}, ""),
        ({"errors": []}, ""),
        ([], ""),
        (None, ""),
    ],
)
def test_reason_of_json(body: object, reason: str) -> None:
    """The reason is the first text of the members in which registries write it."""
    data = json.dumps(body).encode()
    assert reason_of(JSON, data) == reason
    assert reason_of("Application/Problem+JSON; charset=utf-8", data) == reason
    if isinstance(body, dict):
        assert reason_of("", data) == reason, "some registries send JSON without its type"


@pytest.mark.parametrize(
    ("content_type", "body", "reason"),
    [
        ("text/plain", b"licence expired\n", "licence expired"),
        ("text/plain; charset=utf-8", "nicht für dich".encode(), "nicht für dich"),
        ("text/html", b"<html><body>licence expired</body></html>", ""),
        ("text/html", b"licence expired", ""),
        ("text/plain", b"<html>licence expired</html>", ""),
        ("", b"licence expired", ""),
        ("text/plain", b"", ""),
        (JSON, b"", ""),
        (JSON, b'{"error": "<script>alert(1)</script>"}', ""),
        (JSON, b'{"error": "licen', ""),
        (JSON, b"[" * 60_000, ""),
        (JSON, b'{"error":' * 7_000, ""),
        ("text/plain", b"\xff\xfe\x00\x01", ""),
        ("application/octet-stream", b"\x00" * 100, ""),
    ],
)
def test_reason_of_other_bodies(content_type: str, body: bytes, reason: str) -> None:
    """A plain text is a reason. HTML, a damaged body and an unknown type are none."""
    assert reason_of(content_type, body) == reason


@pytest.mark.parametrize("text", ["\x1b[31mred", "bell\x07", "\x00", "\u202egnirts", "\u200b", "\x85\x9b", "a\x7fb"])
def test_control_characters_are_not_repeated(text: str) -> None:
    """A reason with control characters is dropped, as it could harm a terminal or a log."""
    assert reason_of(JSON, json.dumps({"error": f"licence {text} expired"}).encode()) == ""
    assert reason_of("text/plain", f"licence {text} expired".encode()) == ""
    error = refusal(403, f"licence {text} expired", "", b"", ())
    assert str(error) == "upstream forbids access to this (403)"


def test_reason_has_at_most_300_characters() -> None:
    """A longer reason is cut, wherever it comes from."""
    for error in (
        refusal(403, "", JSON, json.dumps({"error": "x" * 9_000}).encode(), ()),
        refusal(403, "", "text/plain", b"x" * 9_000, ()),
        refusal(403, "x" * 9_000, "", b"", ()),
    ):
        reason = str(error).partition(": ")[2]
        assert reason == "x" * 299 + "…"
    assert reason_of("text/plain", b"x" * 300) == "x" * 300


def test_reason_phrase_is_the_reason_without_a_body() -> None:
    """Without a usable body, the reason phrase is the reason, but never with markup in it."""
    assert str(refusal(402, "Pay First", "text/html", b"<p>Pay", ())).endswith("(402): Pay First")
    assert str(refusal(402, "", "", b"", ())).endswith("(402)")
    assert str(refusal(402, "<b>Pay", "", b"", ())).endswith("(402)")


@pytest.mark.parametrize("secret", ["hunter2", "two  spaces", 'quo"te', "päss"])
def test_secrets_are_not_repeated(secret: str) -> None:
    """
    A reason with a secret in it is dropped, in a body and in the phrase.

    This also holds where the reason would be cut within the secret.
    """
    long = "x" * 296 + secret
    for text in (f"wrong password {secret}", long):
        for error in (
            refusal(401, "Because", JSON, json.dumps({"error": text}).encode(), [secret]),
            refusal(401, "Because", "text/plain", text.encode(), [secret]),
        ):
            assert str(error).endswith("(401): Because")
        assert str(refusal(401, text, "", b"", [secret])).endswith("(401)")


def test_empty_password_is_no_secret() -> None:
    """An empty password does not stop every reason."""
    assert reason_of("text/plain", b"licence expired", ["", "hunter2"]) == "licence expired"


class RefusedRequestTest(UpstreamTestCase):
    """A request that upstream refuses fails at once, with upstream's reason if it comes soon."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream(credentials=Credentials("jane", "hunter2"), concurrency=1)

    def refused(self, status: int, body: bytes, headers: Mapping[str, str], *, file: bool = False) -> MyPyPiError:
        pending = self.file() if file else self.page()
        self.wire.last.answer(status, body, **headers)
        error = self.failing(pending, MyPyPiError)
        assert isinstance(error, MyPyPiError)
        return error

    def test_page_and_file_are_refused_with_the_reason(self) -> None:
        """The statuses of the table are passed on with the reason, for pages and for files."""
        body = b'{"error": "licence expired"}'
        for status in (401, 402, 403, 407, 410, 451):
            for file in (False, True):
                error = self.refused(status, body, {"content_type": JSON}, file=file)
                self.assertEqual((RULES[status].status, None), (error.status, error.retry_after))
                self.assertEqual(f"{RULES[status].words} ({status}): licence expired", str(error))

    def test_reason_phrase_is_passed_on(self) -> None:
        error = self.refused(403, b"<html>no</html>", {"content_type": "text/html"})
        self.assertTrue(str(error).endswith("(403): Because"))

    def test_missing_page_does_not_wait_for_its_body(self) -> None:
        """A 404 is an answer without its body, which may be long or slow."""
        pending = self.page()
        self.wire.last.send(response(404, b"not", content_length="999"))
        self.failing(pending, NotFound)

    def test_compressed_reason_is_read(self) -> None:
        """A reason may be compressed. A damaged or an unknown encoding leaves the reason phrase."""
        body = gzipped(b'{"message": "licence expired"}')
        for data, encoding, reason in (
            (body, "gzip", "licence expired"),
            (body[:-8], "gzip", "licence expired"),
            (body[:9], "gzip", "Because"),
            (b"{}", "gzip", "Because"),
            (body, "br", "Because"),
        ):
            error = self.refused(403, data, {"content_type": JSON, "content_encoding": encoding})
            self.assertTrue(str(error).endswith(f"(403): {reason}"), (str(error), encoding))

    def test_compressed_bomb_is_not_decoded(self) -> None:
        """A body that is huge when decoded costs no memory, and the refusal has the reason phrase."""
        bomb = gzip.compress(b'{"error": "' + b"x" * 40_000_000 + b'"}', mtime=0)
        self.assertLess(len(bomb), 64 * 1024)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        error = self.refused(403, bomb, {"content_type": JSON, "content_encoding": "gzip"})
        self.assertLess(tracemalloc.get_traced_memory()[1], 4_000_000)
        self.assertTrue(str(error).endswith("(403): Because"))

    def test_long_body_is_not_read_to_its_end(self) -> None:
        """After 64 kB the connection is closed, and the refusal has the reason phrase."""
        pending = self.page()
        exchange = self.wire.last
        exchange.send(response(403, b'{"error": "', content_length="999999999", content_type=JSON))
        exchange.send(b"x" * 70_000)
        self.assertTrue(str(self.failing(pending, UpstreamRefused)).endswith("(403): Because"))
        self.assertTrue(exchange.closed)

    def test_slow_body_is_not_waited_for(self) -> None:
        """A body that stalls, or comes a byte at a time, delays the refusal by two seconds and not more."""
        for chunk in (b"", b"x"):
            pending = self.page()
            exchange = self.wire.last
            exchange.send(response(403, b'{"error": "', content_length="999", content_type=JSON))
            for _ in range(7):
                self.clock.advance(PATIENCE / 8)
                exchange.send(chunk)
            self.assertNoResult(pending)
            self.clock.advance(PATIENCE / 8)
            self.assertTrue(str(self.failing(pending, UpstreamRefused)).endswith("(403): Because"))
            self.assertTrue(exchange.closed)

    def test_body_that_is_cut_leaves_the_phrase(self) -> None:
        """A connection that is lost within the reason does not hide the refusal."""
        pending = self.page()
        self.wire.last.send(response(451, b'{"error": "', content_length="999", content_type=JSON))
        self.wire.last.cut()
        error = self.failing(pending, UpstreamRefused)
        self.assertEqual((451, 451), (error.status, error.upstream_status))

    def test_no_end_of_a_refusal_leaves_a_place_or_a_timer(self) -> None:
        """A refusal frees its slot and its timers, however its body ends."""

        def cancel_while_reading() -> None:
            pending = self.page()
            self.wire.last.send(response(403, b"{", content_length="9"))
            pending.cancel()
            self.failing(pending, CancelledError)

        for end in (
            self.test_page_and_file_are_refused_with_the_reason,
            self.test_slow_body_is_not_waited_for,
            self.test_long_body_is_not_read_to_its_end,
            self.test_body_that_is_cut_leaves_the_phrase,
            cancel_while_reading,
        ):
            end()
            self.clock.advance(0)
            self.assertEqual([], self.clock.getDelayedCalls())
            self.assertTrue(self.upstream.has_spare_capacity("page"))

    def test_credentials_are_not_repeated(self) -> None:
        """An upstream that repeats the password, or what HTTP made of it, is not quoted."""
        sent = b64encode(b"jane:hunter2").decode()
        for text in ("wrong password: hunter2", f"wrong header: Basic {sent}"):
            error = self.refused(401, json.dumps({"error": text}).encode(), {"content_type": JSON})
            self.assertEqual((403, 401), (error.status, getattr(error, "upstream_status", 0)))
            self.assertTrue(str(error).endswith("(401): Because"))
