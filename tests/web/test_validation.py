"""Tests of the request validator: methods and paths."""

from __future__ import annotations

import pytest
from twisted.logger import capturedLogs
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from mypypi.errors import BadRequest
from mypypi.web.validation import RequestValidator, TargetTooLong, segments_of
from tests.support.memory import Connection, MemoryTestCase


class _RequestTarget:
    """A request with a target only. The validator looks at nothing else."""

    def __init__(self, uri: bytes) -> None:
        self.uri = uri


def segments(uri: bytes, *, scoped: bool = False) -> list[str]:
    return segments_of(_RequestTarget(uri), scoped=scoped)  # type: ignore[arg-type] # it has the one attribute that is used


class TestSegments:
    """Paths are decoded once, or refused."""

    @pytest.mark.parametrize(
        ("uri", "expected"),
        [
            (b"/", [""]), (b"/simple/", ["simple", ""]), (b"/simple/a%2Bb", ["simple", "a+b"]),
            (b"/file/https/h:80/a%20b.whl?x=/../%2F", ["file", "https", "h:80", "a b.whl"]),
            (b"/%E2%82%AC", ["\u20ac"]), (b"/\xe2\x82\xac", ["\u20ac"]), (b"/%25", ["%"]), (b"/%252F", ["%2F"]),
            (b"/...", ["..."]), (b"/a..b", ["a..b"]), (b"/~a/@b", ["~a", "@b"]),
        ],
    )  # fmt: skip
    def test_segments_are_decoded(self, uri: bytes, expected: list[str]) -> None:
        """Segments are decoded once, without the query."""
        assert segments(uri) == expected

    @pytest.mark.parametrize(
        "uri",
        [
            b"", b"simple/", b"*", b"http://other.example/simple/",
            b"//", b"//simple/", b"/simple//a", b"/./a", b"/a/.", b"/../a", b"/a/..", b"/%2e%2e/a", b"/.%2E/a",
            b"/a%2Fb", b"/a%2fb", b"/a\\b", b"/a%5Cb", b"/a%5cb",
            b"/a%", b"/a%2", b"/a%2g", b"/a%%20", b"/%u0041",
            b"/a%00b", b"/a%0a", b"/a%7f", b"/a%c2%80", b"/a%E2%80%AE", b"/\x00",
            b"/%ff", b"/%c0%af", b"/%ed%a0%80", b"/%e2%82",
        ],
    )  # fmt: skip
    def test_invalid_path_is_refused(self, uri: bytes) -> None:
        """A path with dot segments, encoded slashes, invalid encoding or control characters is refused."""
        with pytest.raises(BadRequest):
            segments(uri)

    def test_long_path_is_refused(self) -> None:
        """A target longer than 8 kB is a 414 (RFC 9110, section 15.5.15). Its query counts."""
        assert segments(b"/" + b"a" * 8191) == ["a" * 8191]
        for uri in (b"/" + b"a" * 8192, b"/?" + b"a" * 8191):
            with pytest.raises(TargetTooLong) as error:
                segments(uri)
            assert error.value.status == 414

    def test_scope_may_be_followed_by_an_encoded_slash(self) -> None:
        """An encoded slash may follow a scope in the first segment. Only ecosystems with scopes allow it."""
        for uri in (b"/@types%2fnode", b"/@types%2Fnode", b"/%40types%2fnode"):
            assert segments(uri, scoped=True) == ["@types", "node"]
            with pytest.raises(BadRequest):
                segments(uri)
        for uri in (b"/types%2fnode", b"/@types%2fnode%2fmore", b"/@types%2f..", b"/@types%2f%2fnode", b"/@%2fnode"):
            with pytest.raises(BadRequest):
                segments(uri, scoped=True)


class _Inner(Resource):
    isLeaf = True

    def render(self, request: Request) -> bytes:
        request.setHeader(b"content-length", b"6")
        return b"inside"


class RequestValidatorTest(MemoryTestCase):
    """The validator passes on or refuses requests over HTTP."""

    def send_request(self, line: bytes) -> Connection:
        validator = RequestValidator(
            _Inner(), lambda segments: ("GET", "HEAD", "POST") if segments[0] == "-" else ("GET", "HEAD")
        )
        return Connection(Site(validator, reactor=self.clock), line + b" HTTP/1.1\r\nHost: here\r\n\r\n")

    def test_allowed_methods_are_passed_on(self) -> None:
        """GET, HEAD and the methods of the route are passed on."""
        for line in (b"GET /simple/", b"HEAD /simple/", b"POST /-/search"):
            connection = self.send_request(line)
            self.assertIn("200 OK", connection.head)
            self.assertEqual(b"" if line.startswith(b"HEAD") else b"inside", connection.body)

    def test_other_methods_are_refused(self) -> None:
        """Other methods are a 405 with Allow (RFC 9110, section 15.5.6)."""
        for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"PURGE", b"OPTIONS", b"get", b"G%45T"):
            connection = self.send_request(method + b" /simple/")
            self.assertIn("405", connection.head.splitlines()[0], method)
            self.assertIn("allow: get, head", connection.head.lower().splitlines())
            self.assertNotIn(b"inside", connection.body)

    def test_bad_path_is_answered_with_a_reason(self) -> None:
        """A bad path is a 400 with a reason. It is not cached, and the connection stays open."""
        connection = self.send_request(b"GET /simple/..%2fsecret")
        self.assertIn("400", connection.head.splitlines()[0])
        self.assertIn("no-store", connection.head)
        self.assertIn(b"encoded slash", connection.body)
        self.assertFalse(connection.closed)

    def test_refused_head_logs_nothing(self) -> None:
        """A HEAD of a path with bytes that are no text is a 400 without a body, and no line of Twisted's log."""
        with capturedLogs() as events:
            connection = self.send_request(b"HEAD /simple/x/\x85")
        self.assertIn("400", connection.head.splitlines()[0])
        self.assertEqual(b"", connection.body)
        self.assertEqual([], [event for event in events if event["log_namespace"] != "mypypi.requests"])
