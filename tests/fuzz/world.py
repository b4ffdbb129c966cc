"""A whole in-memory server with a scripted upstream.

It checks what must always hold. Knows the server's parts, the wire, and HTTP as a strict client parses it. Must never
know how inputs are made.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from attrs import define, evolve, field, frozen
from twisted.internet import error
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.web.resource import IResource

from mypypi.daemon.application import make_application
from mypypi.daemon.backends import Backends
from mypypi.daemon.index import Index
from mypypi.settings.loading import load_settings
from mypypi.settings.types import RedisUrl
from mypypi.upstream.client import Upstream
from mypypi.upstream.resolver import Resolver
from mypypi.web.site import WebSite
from tests.support.fakes import MemoryCatalog, MemoryQueue
from tests.support.memory import NOW, AtOnce, Connection, Exchange, Reply, Wire, all_names_are_public, render_at_once

UPSTREAM_HOST = "up.example"
UPSTREAM = f"https://{UPSTREAM_HOST}"
USER = "somebody"
PASSWORD = "correct-horse"
_TOKEN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
#: Steps of the clock, each to the next scheduled call. This is more than any transfer with all its pauses needs.
_MAX_STEPS = 2000
#: Seconds after which upstream checks again whether it can send.
_RETRY_SECONDS = 0.1

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [\x20-\x7e]*")
#: field-line of RFC 9112, section 5, in visible ASCII: no response of the server needs more.
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ?([\x20-\x7e]*)")
_CHUNK = re.compile(rb"([0-9a-fA-F]+)\r\n")
#: Statuses without a body (RFC 9112, section 6.3).
_BODILESS = (204, 304)


class Violation(AssertionError):
    """Raised for something that must never happen."""


@frozen
class Answer:
    """A response as a strict client parses it. `whole`: every byte of it arrived."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool


def read_answer(data: bytes, *, head: bool = False) -> Answer:
    """
    Parse the first response in the bytes that a client received.

    Raises Violation if it is malformed.
    """
    return _split(data, head=head)[0]


def read_answers(data: bytes, heads: Sequence[bool]) -> list[Answer]:
    """
    Parse all responses in the bytes that a client received on one connection, without interim ones.

    `heads` tells of each request whether it was HEAD; further ones were not. Raises Violation if a response is
    malformed.
    """
    found: list[Answer] = []
    while data:
        answer, data = _split(data, head=len(found) < len(heads) and heads[len(found)])
        if answer.status >= 200:  # others are interim
            found.append(answer)
    return found


def _split(data: bytes, *, head: bool) -> tuple[Answer, bytes]:
    """Parse the first response. Returns it with the bytes after it."""
    top, end, rest = data.partition(b"\r\n\r\n")
    lines = top.split(b"\r\n")
    started = _STATUS_LINE.fullmatch(lines[0])
    if not end or started is None:
        raise Violation(f"an invalid response: {data[:200]!r}")
    fields = [_FIELD.fullmatch(line) for line in lines[1:]]
    if not all(fields):
        raise Violation(f"an invalid or non-ASCII header: {top!r}")
    headers = {found[1].decode().lower(): found[2].decode().strip() for found in fields if found}
    status = int(started[1])
    for name in ("content-length", "location", "content-type", "etag", "transfer-encoding"):
        if sum(found is not None and found[1].decode().lower() == name for found in fields) > 1:
            raise Violation(f"the header {name} is repeated: {top!r}")
    if head or status in _BODILESS or status < 200:  # interim responses have no body
        return Answer(status, headers, b"", whole=True), rest
    if headers.get("transfer-encoding") == "chunked":
        body, after = _chunks(rest)
        return Answer(status, headers, body, after is not None), after or b""
    if "content-length" in headers:
        length = int(headers["content-length"])
        return Answer(status, headers, rest[:length], whole=len(rest) >= length), rest[length:]
    return Answer(status, headers, rest, whole=True), b""


def _chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """Return the content of a chunked body, and the bytes after it; None if it is not whole."""
    body = b""
    while data:
        size = _CHUNK.match(data)
        if size is None:
            raise Violation(f"an invalid chunk: {data[:80]!r}")
        count = int(size[1], 16)
        data = data[size.end() :]
        if count == 0:
            return body, data[2:] if data.startswith(b"\r\n") else None
        if len(data) > count and not data[count:].startswith(b"\r\n"[: len(data) - count]):
            raise Violation("a chunk is longer than its declared size")
        body += data[:count]
        data = data[count + 2 :]
    return body, None


@frozen
class Transmission:
    """
    The bytes that upstream sends on one connection.

    It sends them in pieces of `piece` bytes. If `cut`, it closes the connection afterwards.
    """

    data: bytes
    piece: int = 1 << 16
    cut: bool = False

    def to(self, exchange: Exchange) -> None:
        """Send as much as the exchange accepts now, and the rest later."""
        rest = self.data
        while rest and not (exchange.closed or exchange.disconnecting or exchange.paused):
            exchange.send(rest[: self.piece])
            rest = rest[self.piece :]
        if exchange.closed or exchange.disconnecting:
            return
        if rest:
            exchange._wire.clock.callLater(_RETRY_SECONDS, evolve(self, data=rest).to, exchange)
        elif self.cut:
            exchange.end()


class _Replies(dict[str, Reply]):
    """Asks the world for the answer to every path, once per connection."""

    def __init__(self, answer: Callable[[Exchange], Transmission]) -> None:
        super().__init__()
        self._answer = answer
        self._answered: set[int] = set()

    def __contains__(self, path: object) -> bool:
        return True

    def __getitem__(self, path: str) -> Reply:
        return cast("Reply", self)

    def to(self, exchange: Exchange) -> None:
        if id(exchange) not in self._answered:
            self._answered.add(id(exchange))
            self._answer(exchange).to(exchange)


class Client(Connection):
    """A client that learns of its connection's end afterwards, as with a socket."""

    def __init__(self, site: WebSite, reactor: MemoryReactorClock, pieces: list[bytes]) -> None:
        self._reactor = reactor
        self.ending = False
        super().__init__(site, b"")
        for piece in pieces:
            if not self.ending:
                cast("Any", self.channel).dataReceived(piece)

    def loseConnection(self) -> None:
        self._end(error.ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = True
        self._end(error.ConnectionAborted())

    def disconnect(self) -> None:
        """Close the connection from the client's side."""
        self._end(error.ConnectionLost())

    def _end(self, reason: Exception) -> None:
        if not self.ending:
            self.ending = True
            self._reactor.callLater(0, self._lost, reason)

    def write(self, data: bytes) -> None:
        if not self.aborted:
            super().write(data)


@define
class World:
    """
    A server of this package type over `directory`, with a scripted upstream.

    `upstream` returns the transmission for each exchange. `allowed` returns whether a connection to this origin
    (``https://host:443``) is permitted.
    """

    package_type: str
    directory: Path
    upstream: Callable[[Exchange], Transmission]
    allowed: Callable[[str], bool]
    extra_settings: dict[str, str] = field(factory=dict)
    reactor: MemoryReactorClock = field(init=False)
    wire: Wire = field(init=False)
    site: WebSite = field(init=False)
    logged: list[LogEvent] = field(init=False, factory=list)

    def __attrs_post_init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.rightNow = NOW
        self.wire = Wire(self.reactor)
        self.wire.replies = _Replies(self.upstream)
        self.site = WebSite(self._application(), self.reactor)

    def _application(self) -> IResource:
        texts = {
            "MYPYPI_PACKAGE_TYPE": self.package_type,
            "MYPYPI_UPSTREAM_URL": UPSTREAM,
            "MYPYPI_UPSTREAM_USERNAME": USER,
            "MYPYPI_UPSTREAM_PASSWORD": PASSWORD,
            "MYPYPI_DATA_DIRECTORY": str(self.directory),
            "MYPYPI_TRUSTED_PROXIES": "192.0.2.0/24",
            **self.extra_settings,
        }
        with patch.multiple(
            "mypypi.daemon.backends",
            RedisCatalog=lambda *_args, **_kwargs: MemoryCatalog(self.reactor),
            RedisQueue=lambda *_args, **_kwargs: MemoryQueue(self.reactor),
            Threads=lambda *_args, **_kwargs: AtOnce(),
            RenderPool=lambda *_args, **_kwargs: SimpleNamespace(run=render_at_once),
        ):
            backends = Backends(load_settings(texts), RedisUrl(kind="tcp"), self.reactor)
        resolver = partial(Resolver, getaddrinfo=all_names_are_public, threads=AtOnce())
        with (
            patch("mypypi.daemon.index.Upstream", partial(Upstream, agent=self.wire.agent)),
            patch("mypypi.daemon.index.Resolver", resolver),
        ):
            return make_application(backends, Index(backends))

    def ask(self, *pieces: bytes, leave: bool = False) -> bytes:
        """
        Send these bytes as a client, and return everything that the client receives.

        It returns once no call is scheduled any more. With `leave`, the client disconnects after the first byte of an
        answer. Raises Violation if something happened that must not.
        """
        with observed(self.logged):
            client = Client(self.site, self.reactor, list(pieces))
            for _ in range(_MAX_STEPS):
                if leave and client.value():
                    client.disconnect()
                calls = self.reactor.getDelayedCalls()
                if not calls:
                    break
                self.reactor.advance(max(0.0, min(call.getTime() for call in calls) - self.reactor.seconds()))
            else:
                raise Violation(f"calls are still scheduled after {_MAX_STEPS} steps: {self.reactor.getDelayedCalls()}")
            if not client.ending:
                raise Violation(f"the client's connection is never closed: {client.value()[:200]!r}")
        data: bytes = client.value()
        self._check(data)
        return data

    def get(self, target: str | bytes, method: bytes = b"GET", **headers: str) -> Answer:
        """
        The answer to a well-formed request.

        Its status is 0 if the connection is closed without an answer.
        """
        fields = {"Host": "here.example", "Connection": "close"} | headers
        lines = [f"{name.replace('_', '-')}: {value}".encode() for name, value in fields.items()]
        path = target.encode() if isinstance(target, str) else target
        data = self.ask(b"\r\n".join([b"%s %s HTTP/1.1" % (method, path), *lines, b"", b""]))
        return read_answer(data, head=method == b"HEAD") if data else Answer(0, {}, b"", whole=False)

    def _check(self, data: bytes) -> None:
        check_log(self.logged)
        if PASSWORD.encode() in data or _TOKEN.encode() in data:
            raise Violation(f"a client received the password: {data!r}")
        is_upstreams = b"fwd=bypass" in data
        if b"internal error: see the server's log" in data or (data.startswith(b"HTTP/1.1 500") and not is_upstreams):
            raise Violation(f"an internal error: {data[:500]!r}")
        for exchange in self.wire.exchanges:
            if not exchange.closed:
                raise Violation(f"the connection to {exchange.origin} is never closed")
            if not self.allowed(exchange.origin):
                raise Violation(f"a forbidden connection to {exchange.origin}")
            sent: bytes = exchange.value()
            secret = PASSWORD.encode() in sent or _TOKEN.encode() in sent or "authorization" in exchange.headers
            if secret and exchange.origin not in (UPSTREAM, f"{UPSTREAM}:443"):
                raise Violation(f"credentials were sent to {exchange.origin}: {sent!r}")
            if sent.count(b"\r\n\r\n") != 1 and not sent.startswith(b"POST"):
                raise Violation(f"more than one request on a connection to upstream: {sent!r}")


@contextmanager
def observed(events: list[LogEvent]) -> Iterator[None]:
    """Collect the log events during the context."""
    observer = cast("ILogObserver", events.append)
    globalLogPublisher.addObserver(observer)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(observer)


def check_log(events: list[LogEvent]) -> None:
    """Raise Violation if the log has an unexpected exception."""
    for event in events:
        failure: Failure | None = event.get("log_failure")
        if failure is not None or event.get("log_level") == LogLevel.critical:
            trace = failure.getTraceback() if failure is not None else ""
            raise Violation(f"an error was logged: {event.get('log_format') or event.get('why') or event}\n{trace}")
