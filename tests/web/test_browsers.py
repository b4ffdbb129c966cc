"""Tests of what reaches a browser, on a whole server in memory: no response may run anything there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from twisted.logger import formatEvent

from mypypi.observability.logs import json_line, text_line
from tests.fuzz.world import Transmission, World, read_answer

SCRIPT = b"<script>alert(document.domain)</script>"
SEARCH = "/-/v1/search?text=x"


def answered(status: str, content_type: str, body: bytes = SCRIPT) -> Transmission:
    """Upstream's answer with this type, and with a Retry-After."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Retry-After: 7", content_type]
    return Transmission("\r\n".join([*filter(None, lines), "", ""]).encode("latin-1") + body)


def server(directory: Path, package_type: str, sent: Transmission) -> World:
    """A server whose upstream sends this."""
    return World(package_type, directory, lambda _: sent, lambda _: True)


class TestPassedOn:
    """Answers to a search or an audit."""

    @pytest.mark.parametrize(
        "content_type",
        ["Content-Type: text/html", "Content-Type: image/svg+xml", "Content-Type: application/jsonx", ""],
    )
    def test_only_json_is_passed_on(self, tmp_path: Path, content_type: str) -> None:
        """An answer of another type, or without one, is a 502 with our own JSON."""
        for method, target in ((b"GET", SEARCH), (b"POST", "/-/npm/v1/security/audits")):
            answer = server(tmp_path, "npm", answered("200 OK", content_type)).get(target, method)
            assert (answer.status, answer.headers["content-type"]) == (502, "application/json")
            assert b"not with JSON" in answer.body
            assert b"script" not in answer.body

    def test_an_error_keeps_its_status(self, tmp_path: Path) -> None:
        """An error of another type keeps its status and Retry-After, since clients act on them; the body is ours."""
        answer = server(tmp_path, "npm", answered("429 Too Many", "Content-Type: text/html")).get(SEARCH)
        assert (answer.status, answer.headers["content-type"]) == (429, "application/json")
        assert answer.headers["retry-after"] == "7"
        assert b"script" not in answer.body

    @pytest.mark.parametrize("status", ["7", "99", "600", "12345"])
    def test_an_invalid_status_is_not_passed_on(self, tmp_path: Path, status: str) -> None:
        """A number that is no status of a final answer is a 502, also where the body is JSON."""
        answer = server(tmp_path, "npm", answered(f"{status} Odd", "Content-Type: application/json", b"{}")).get(SEARCH)
        assert (answer.status, f"an invalid status, {status}" in answer.body.decode()) == (502, True)

    @pytest.mark.parametrize("content_type", ["text/html", "application/json; x=\xff"])
    @pytest.mark.parametrize("encoding", ["", "\r\nContent-Encoding: gzip"])
    @pytest.mark.parametrize("body", [b'{"a": "<script>"}', b"\xef\xbb\xbf \r\n[]"])
    def test_json_of_another_type_becomes_json(
        self, tmp_path: Path, content_type: str, encoding: str, body: bytes
    ) -> None:
        """JSON of any type is passed on as ``application/json``, since npm reads it."""
        data = gzip.compress(body) if encoding else body
        sent = answered("200 OK", f"Content-Type: {content_type}{encoding}", data)
        answer = server(tmp_path, "npm", sent).get(SEARCH, Accept_Encoding="gzip")
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", data)

    def test_other_bytes_of_another_encoding_are_no_json(self, tmp_path: Path) -> None:
        """A body that can't be decoded, of a type that is not JSON, is a 502."""
        sent = answered("200 OK", "Content-Type: text/html\r\nContent-Encoding: gzip", b"{}")
        assert server(tmp_path, "npm", sent).get(SEARCH, Accept_Encoding="gzip").status == 502

    @pytest.mark.parametrize(
        "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.npm.search-v1+json"]
    )
    def test_a_json_type_is_kept(self, tmp_path: Path, content_type: str) -> None:
        """An answer of a JSON type is passed on with its type."""
        answer = server(tmp_path, "npm", answered("200 OK", f"Content-Type: {content_type}", b"{}")).get(SEARCH)
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, content_type, b"{}")


class TestEveryResponse:
    """The headers that forbid a browser to run or guess anything."""

    REQUESTS = (
        *(f"GET {path} HTTP/1.1" for path in ("/", "/-/", "/-/metrics", "/-/health/live", "/nothing/at/all", "/%zz")),
        *("GET /simple/thing/ HTTP/1.1", "GET /simple HTTP/1.1", "GET /file/https/up.example/x.whl HTTP/1.1"),
        *("POST / HTTP/1.1", "HEAD / HTTP/1.1", "nonsense", "GET / HTTP/1.1\r\nContent-Length: 99999999999"),
        *("OPTIONS * HTTP/1.1", "GET * HTTP/1.1", "CONNECT here:80 HTTP/1.1", "GET /%2d/metrics HTTP/1.1"),
        *("GET http://here/ HTTP/1.1", "GET / HTTP/1.1\r\nTransfer-Encoding: gzip", f"GET /{'x' * 20_000} HTTP/1.1"),
    )

    @pytest.mark.parametrize("request_head", REQUESTS)
    def test_it_forbids_scripts_and_guessing(self, tmp_path: Path, request_head: str) -> None:
        """Pages, files, errors, refusals: each response has the two headers."""
        page = b'{"meta": {"api-version": "1.0"}, "name": "thing", "files": []}'
        sent = answered("200 OK", "Content-Type: application/vnd.pypi.simple.v1+json", page)
        world = server(tmp_path, "pypi", sent)
        data = world.ask(f"{request_head}\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        headers = read_answer(data, head=request_head.startswith("HEAD")).headers
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/-/", "/simple", "/nothing"])
@pytest.mark.parametrize("host", ["[....]", "[1.2.3.4]", "here:99999"])
def test_an_odd_host_is_a_bad_request(tmp_path: Path, host: str, path: str) -> None:
    """A Host that is no host gets a 400, and nothing unexpected is logged."""
    assert server(tmp_path, "pypi", answered("404 Not Found", "")).get(path, Host=host).status == 400


def test_a_page_varies_with_the_believed_headers(tmp_path: Path) -> None:
    """A packument, whose links depend on the proxy's headers, names them in Vary; a client's Forwarded is ignored."""
    version = {"name": "x", "version": "1.0.0", "dist": {"tarball": "https://up.example/x/-/x-1.0.0.tgz"}}
    page = json.dumps({"name": "x", "versions": {"1.0.0": version}, "dist-tags": {"latest": "1.0.0"}}).encode()
    world = server(tmp_path, "npm", answered("200 OK", "Content-Type: application/json", page))
    answer = world.get("/x", X_Forwarded_Host="npm.example", Forwarded="host=evil.example")
    assert b"http://npm.example/x/-/x-1.0.0.tgz" in answer.body
    assert b"evil" not in answer.body
    assert answer.headers["vary"] == "X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Prefix, Accept, Accept-Encoding"


@pytest.mark.parametrize("charset", ["charset*=utf-8''x%0aforged%1b[31m", "charset*=\"utf-8''x%0aforged%1b[31m\""])
def test_upstreams_charset_forges_no_log_line(tmp_path: Path, charset: str) -> None:
    """A charset that decodes to a line break and an escape sequence stays within its line of the log."""
    world = server(tmp_path, "pypi", answered("200 OK", f"Content-Type: application/json; {charset}", b"{}"))
    world.get("/simple/thing/")
    lines = [write(None, event) for event in world.logged for write in (text_line, json_line)]
    assert any("\nforged\x1b" in formatEvent(event) for event in world.logged)
    assert [line for line in lines if "\n" in line[:-1] or "\x1b" in line] == []
