"""Tests of ready answers: a request that came before has the answer that the ordinary way gives, only quicker."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent
from twisted.web.http_headers import Headers

from mypypi.web import hot_answers
from mypypi.web.hot_answers import LONGEST_HEAD, READ, UNSUITABLE, HotAnswers, is_one_head
from mypypi.web.request import WebRequest
from mypypi.web.request_log import RequestRecord
from mypypi.web.site import WebSite
from tests.fuzz.world import Transmission, World, observed
from tests.support.memory import Connection, Exchange

PAGE: dict[str, object] = {
    "name": "thing",
    "meta": {"api-version": "1.1"},
    "versions": ["1.0"],
    "files": [
        {
            "filename": "thing-1.0-py3-none-any.whl",
            "url": "https://up.example/thing-1.0-py3-none-any.whl",
            "hashes": {"sha256": "0" * 64},
            "size": 7,
        }
    ],
}
PACKUMENT: dict[str, object] = {
    "name": "thing",
    "dist-tags": {"latest": "1.0.0"},
    "versions": {
        "1.0.0": {
            "name": "thing",
            "version": "1.0.0",
            "dist": {"tarball": "https://up.example/thing/-/thing-1.0.0.tgz"},
        }
    },
    "time": {"modified": "2026-01-02T03:04:05.678Z"},
}
KINDS = {
    "pypi": ("/simple/thing/", "application/vnd.pypi.simple.v1+json", PAGE),
    "npm": ("/thing", "application/json", PACKUMENT),
}
#: The proxies that the server trusts, as the world's settings say.
TRUSTED = (IPv4Network("192.0.2.0/24"),)
#: What differs between two responses to the same request: the date and the id.
CHANGING = re.compile(rb"(?i)(?<=\r\n)(date|x-request-id): [^\r]*")


class Cold(HotAnswers):
    """Has no answers."""

    def find(self, asked: bytes, side: str) -> None:
        return None


class Counting(HotAnswers):
    """Counts the answers that it gives."""

    given = 0

    def head_of(self, answer: Any, ttl: float) -> tuple[bytes, str]:
        self.given += 1
        return super().head_of(answer, ttl)


class Served:
    """A server whose answers are kept, and one of the same pages whose answers are not."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.target, self.media_type, self._document = KINDS[kind]
        self.asked = 0
        self.world = World(kind, directory, self._answer, lambda _origin: True)
        self.answers = Counting(TRUSTED)
        self.hot = self._site(self.answers)
        self.cold = self._site(Cold(TRUSTED))

    def _answer(self, exchange: Exchange) -> Transmission:
        """Answer as upstream does: it has a page for each name."""
        self.asked += 1
        name = exchange.path.strip("/").rpartition("/")[2]
        body = json.dumps(self._document | {"name": name}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {self.media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        return Transmission(head.encode() + body)

    def _site(self, answers: HotAnswers) -> WebSite:
        return WebSite(self.world.site.resource, self.world.reactor, hot=answers)

    def ask(self, site: WebSite, *pieces: bytes, host: str = "203.0.113.1") -> tuple[bytes, list[RequestRecord], bool]:
        """Send these bytes. Return what is received, what is logged, and whether the connection stays open."""
        events: list[LogEvent] = []
        with observed(events):
            client = Connection(site, b"", host)
            for piece in pieces:
                if not client.closed:
                    cast("Any", client.channel).dataReceived(piece)
                self.settle()
            received, is_open = client.value(), not client.closed
            if is_open:
                client.leave()
        records = [event["record"] for event in events if isinstance(event.get("record"), RequestRecord)]
        for record in records:
            record.seconds, record.request_id = 0.0, ""
        return CHANGING.sub(rb"\1", received), records, is_open

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(50):
            self.world.reactor.advance(0)

    def request(self, method: str = "GET", target: str = "", **headers: str) -> bytes:
        fields = {"Host": "here.example", "Accept": self.media_type, "Accept-Encoding": "gzip"} | headers
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        return "\r\n".join([f"{method} {target or self.target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


@pytest.fixture(params=sorted(KINDS))
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Served:
    return Served(request.param, tmp_path)


VARIANTS: list[dict[str, str]] = [
    {},
    {"method": "HEAD"},
    {"Accept_Encoding": "identity"},
    {"User_Agent": "pip/26.0 (with 100% more)", "X_Forwarded_For": "198.51.100.7"},
    {"If_None_Match": "*"},
    {"If_None_Match": '"other"'},
    {"Connection": "keep-alive"},
    {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "cache.example", "X_Forwarded_Prefix": "/python"},
]


@pytest.mark.parametrize("host", ["203.0.113.1", "192.0.2.1"], ids=["client", "proxy"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_repeated_request_has_the_same_answer(served: Served, variant: dict[str, str], host: str) -> None:
    """The second answer is a ready one. It has the bytes and the log line of the ordinary way."""
    request = served.request(**variant)
    served.ask(served.cold, served.request(), host=host)
    ordinary = served.ask(served.cold, request, host=host)
    served.ask(served.hot, request, host=host)
    assert served.answers.given == 0
    repeated = served.ask(served.hot, request, host=host)
    assert served.answers.given == 1
    assert repeated == ordinary
    assert ordinary[0].startswith((b"HTTP/1.1 200", b"HTTP/1.1 304"))
    assert len(repeated[1]) == 1


def test_clients_that_differ_in_nothing_that_counts_share_an_answer(served: Served) -> None:
    """A header that no answer depends on makes no other answer, whatever its place."""
    served.ask(served.hot, served.request())
    for number in range(10):
        served.ask(served.hot, served.request(User_Agent=f"client/{number}", NPM_Session=str(number)))
    served.world.reactor.advance(0)
    before = served.answers.given
    other = "/simple/things/" if served.target.startswith("/simple/") else "/things"
    served.ask(served.hot, served.request(target=other))
    for number in range(10):
        served.ask(served.hot, served.request(target=other, User_Agent=f"client/{number}", NPM_Session=str(number)))
    assert served.answers.given == before + 10


@pytest.mark.parametrize(
    "variant",
    [
        {"Connection": "close"},
        {"Content_Length": "0"},
        {"Expect": "100-continue"},
        {"X_Request_ID": "mine"},
        {"Transfer_Encoding": "chunked"},
        {"X_Long": "a" * LONGEST_HEAD},
        {"target": "/-/health/live"},
        {"target": "/missing/here"},
        {"method": "POST"},
    ],
    ids=str,
)
def test_other_requests_go_the_ordinary_way(served: Served, variant: dict[str, str]) -> None:
    """A request that can't be known by its head, or that is no page's, is answered the ordinary way each time."""
    served.ask(served.cold, served.request())
    request = served.request(**variant)
    for _ in range(3):
        assert served.ask(served.hot, request) == served.ask(served.cold, request)
    assert served.answers.given == 0


def test_freshness_is_that_of_now(served: Served) -> None:
    """The seconds for which a client may keep a page become fewer, and a stale page is asked for again."""
    request = served.request()
    for _ in range(2):
        served.ask(served.hot, request)
    (first,) = re.findall(rb"max-age=(\d+)", served.ask(served.hot, request)[0])
    given, asked = served.answers.given, served.asked
    for _ in range(50):
        served.world.reactor.advance(0.4)  # the catalog is read again meanwhile, so that the page stays at hand
        received, _, _ = served.ask(served.hot, request)
    assert served.answers.given == given + 50
    (later,) = re.findall(rb"max-age=(\d+)", received)
    assert int(first) - int(later) in (19, 20, 21)
    assert received.count(b"ttl=%b" % later) == 1
    served.world.reactor.advance(10_000)
    assert b"fwd=stale" in served.ask(served.hot, request)[0]
    assert served.ask(served.hot, request) == served.ask(served.cold, request)
    assert served.asked == asked + 1


def test_an_answer_ends_with_its_page(served: Served) -> None:
    """Once a page has changed, nobody gets what it was before."""
    request = served.request()
    before = [served.ask(served.hot, request)[0] for _ in range(2)]
    with (
        mock.patch.dict(PAGE, versions=["1.0", "2.0"]),
        mock.patch.dict(PACKUMENT, {"dist-tags": {"latest": "1.0.0", "x": "1.0.0"}}),
    ):
        served.world.reactor.advance(10_000)
        after = [served.ask(served.hot, request)[0] for _ in range(2)]
    assert len({*before[1:], *after}) == 3
    assert served.ask(served.cold, request)[0] == served.ask(served.hot, request)[0]


def test_a_connection_stays_open_after_an_answer(served: Served) -> None:
    """A ready answer restarts the time that a connection may be idle."""
    request = served.request()
    client = Connection(served.hot, b"")
    for count in range(1, 6):
        cast("Any", client.channel).dataReceived(request)
        served.settle()
        assert client.value().count(b"HTTP/1.1 200") == count
        served.world.reactor.advance(0.4 if count < 4 else 70)
    assert not client.closed
    assert served.answers.given >= 3
    served.world.reactor.advance(76)
    assert client.closed


def test_a_stopping_server_gives_no_ready_answers(served: Served) -> None:
    """In a drain, the response says that the connection closes."""
    request = served.request()
    for _ in range(2):
        served.ask(served.hot, request)
    client = Connection(served.hot, b"")
    served.hot.drain()
    cast("Any", client.channel).dataReceived(request)
    served.settle()
    assert b"\r\nConnection: close\r\n" in client.value()
    assert served.answers.given == 1


@pytest.mark.parametrize("before", [1, 2])
def test_the_end_of_a_request_is_no_request(served: Served, before: int) -> None:
    """Wherever the bytes of several requests are cut, the last one is not taken for another that ends alike."""
    first, end = served.request() * before, served.request(target="?x").partition(b"?x")[2]
    page, other = (
        first + f"GET {target}?x".encode() for target in (served.target, served.target.replace("thing", "other"))
    )
    ordinary = [served.ask(served.cold, begun + end) for begun in (page, other, page, other)][2:]
    assert ordinary[0] != ordinary[1]
    for cut in range(len(end)):
        for _ in range(2):
            for begun, expected in zip((page, other), ordinary, strict=True):
                assert served.ask(served.hot, begun + end[:cut], end[cut:]) == expected, cut


def test_memory_is_bounded(served: Served) -> None:
    """However many requests differ, the answers and heads that are kept take no more than their limits."""
    with mock.patch.multiple(hot_answers, MOST_ANSWERS=20_000, MOST_HEADS=20_000):
        served.hot.hot = answers = Counting(TRUSTED)
    for number in range(100):
        served.ask(served.hot, served.request(Host=f"{number}.example", If_None_Match=f'"{number}"'))
    assert 2 < len(answers._answers) < 20
    assert 2 < len(answers._meanings) < 20
    assert answers._meanings.currsize <= 20_000
    assert answers._answers.currsize <= 20_000


def test_every_header_that_an_answer_depends_on_is_known(served: Served) -> None:
    """A page's answer reads no header of the request but those that tell answers apart."""
    names: set[bytes] = set()
    received: set[int] = set()
    get, receive = Headers.getRawHeaders, WebRequest.requestReceived

    def note(self: Headers, name: Any, *default: Any) -> Any:
        if id(self) in received:
            names.add((name if isinstance(name, bytes) else name.encode()).lower())
        return get(self, name, *default)

    def note_request(self: WebRequest, *args: bytes) -> None:
        received.add(id(self.requestHeaders))
        receive(self, *args)
        received.discard(id(self.requestHeaders))  # a later one may have the same id

    with (
        mock.patch.object(Headers, "getRawHeaders", note),
        mock.patch.object(WebRequest, "requestReceived", note_request),
    ):
        for variant in VARIANTS:
            for host in ("203.0.113.1", "192.0.2.1"):
                for _ in range(2):  # from upstream, and from memory: then all is read at once
                    served.ask(served.cold, served.request(**variant), host=host)
    assert names <= {*READ, *UNSUITABLE, b"x-forwarded-for", b"cookie", b"content-type"}
    assert {b"accept", b"accept-encoding", b"host", b"x-forwarded-proto"} <= names


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\n", False),
        (b"GET / HTTP/1.1\r\n\r\n\r\n", False),
        (b"\r\n\r\n", True),
        (b"GET", False),
        (b"", False),
        (b"a" * LONGEST_HEAD + b"\r\n\r\n", False),
    ],
)
def test_one_head(data: bytes, *, expected: bool) -> None:
    """Bytes are one head if they end where the first one ends."""
    assert is_one_head(data) is expected


VALUES = ["", "*", "gzip", "identity;q=1, gzip;q=0", "text/html", "application/json", "keep-alive", "close", "https"]
VALUES += [
    "application/vnd.npm.install-v1+json",
    '"a", W/"b"',
    "Sat, 28 Nov 2026 00:00:00 GMT",
    "x.example",
    "%",
    "\xe9",
]
NAMES = [name.decode() for name in (*READ, *UNSUITABLE)] + ["User-Agent", "Range", "Cookie", "X", "HOST"]
TARGETS = {
    "pypi": ["/simple/thing/", "/simple/thing/?format=application/vnd.pypi.simple.v1%2Bjson", "/simple/%74hing/", "/"],
    "npm": ["/thing", "/thing/1.0.0", "/%74hing", "/-/ping"],
}


@st.composite
def requests(draw: st.DrawFn, kind: str) -> bytes:
    """A request's bytes: usual and odd ones."""
    odd = draw(st.integers(0, 3)) == 0
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "get"] if odd else ["GET"]))
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2"] if odd else ["HTTP/1.1"]))
    end = draw(st.sampled_from(["\r\n", "\n", " \r\n"] if odd else ["\r\n"]))
    lines = [f"{method} {draw(st.sampled_from(TARGETS[kind]))} {version}"]
    lines += [] if odd and draw(st.booleans()) else ["Host: here.example"]
    for _ in range(draw(st.integers(0, 3 if odd else 2))):
        lines.append(f"{draw(st.sampled_from(NAMES))}: {draw(st.sampled_from(VALUES))}")
    return end.join([*lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_any_requests_have_the_same_answers(kind: str, tmp_path: Path) -> None:
    """Whatever is sent on a connection, in whatever pieces, both ways answer and log the same."""
    served = Served(kind, tmp_path)

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(requests(kind), min_size=1, max_size=3), st.data())
    def check(sent: list[bytes], data: st.DataObject) -> None:
        pieces = sent if data.draw(st.integers(0, 3)) else [b"".join(sent)]
        if not data.draw(st.integers(0, 2)):
            whole = b"".join(pieces)
            cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), min_size=1, max_size=3)))
            pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        host = data.draw(st.sampled_from(["203.0.113.1", "192.0.2.1"]))
        served.world.reactor.advance(data.draw(st.sampled_from([0, 0, 0, 0.3, 0.8, 5, 2000])))
        for piece in pieces:
            served.ask(served.cold, piece, host=host)  # asks upstream, if need be
        served.ask(served.hot, *pieces, host=host)
        ordinary = served.ask(served.cold, *pieces, host=host)
        assert served.ask(served.hot, *pieces, host=host) == ordinary

    check()
    assert served.answers.given > 100
