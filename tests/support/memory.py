"""In-memory replacements of sockets, threads and time for the fast tests.

There is an upstream at the end of an in-memory wire, and threads that run on demand. The wire uses real HTTP: Twisted's
own client parses every byte that a test lets upstream send.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from attrs import Factory, frozen
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI, Agent
from twisted.web.iweb import IAgentEndpointFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from mypypi.digests import Digest
from mypypi.rendering.tasks import perform
from mypypi.threads import Threads
from mypypi.upstream.agent import connection_pool
from mypypi.web.errors import respond_to

P = ParamSpec("P")
T = TypeVar("T")

#: The start time of clocks, in seconds since the epoch, since pages have dates.
NOW = 1_793_000_000.0


def clock_now() -> Clock:
    """A clock that starts at `NOW`, and advances only on demand."""
    clock = Clock()
    clock.rightNow = NOW
    return clock


def sha256(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def open_descriptors() -> int:
    """
    The number of this process's open descriptors of files and devices.

    Sockets and pipes are not counted, since those of earlier tests may be closed at any time.
    """
    return sum(_is_file(name) for name in os.listdir("/proc/self/fd"))


def _is_file(name: str) -> bool:
    try:
        return Path("/proc/self/fd", name).readlink().is_absolute()
    except FileNotFoundError:  # this descriptor was used for listing the directory
        return False


class AtOnce(Threads):
    """Threads that run each function at once, while its caller waits."""

    running = 1

    def __init__(self) -> None:
        pass

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return maybeDeferred(function, *args, **kwargs)


def all_names_are_public(host: str, *_: object) -> list[tuple[Any, ...]]:
    """Resolve a name as `socket.getaddrinfo` does, but to one public address, and a number to the address it is."""
    try:
        address = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        address = "192.88.99.1"
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]


def render_at_once(task: bytes) -> Deferred[bytes]:
    """Do a render task in this process, at once."""
    return maybeDeferred(perform, task)


class WhenTold(Threads):
    """
    Threads that run a function only on demand.

    `step` runs the function that has waited longest.
    """

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        done: Deferred[T] = Deferred()
        self.waiting.append(lambda: maybeDeferred(function, *args, **kwargs).chainDeferred(done))
        return done

    def step(self) -> None:
        self.waiting.pop(0)()

    def finish(self) -> None:
        while self.waiting:
            self.step()


def response(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """A complete HTTP response; ``content_length=""`` leaves the length out."""
    fields = {"content_length": str(len(body))} | headers
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return "\r\n".join([f"HTTP/1.1 {status} Because", *lines, "", ""]).encode() + body


def simple_page(*files: dict[str, object], project: str = "thing") -> bytes:
    """Upstream's JSON page of a project with these files (PEP 691)."""
    return json.dumps({"meta": {"api-version": "1.0"}, "name": project, "files": files}).encode()


class Exchange(StringTransport):
    """A connection to upstream, with the received request and methods to answer."""

    #: Whether upstream confirms that the connection closes; over TLS, `loseConnection` waits for that.
    polite = True

    def __init__(self, origin: str, protocol: IProtocol, wire: Wire) -> None:
        super().__init__()
        self.origin = origin
        self.closed = False
        self._protocol = protocol
        self._wire = wire

    @property
    def _lines(self) -> list[str]:
        return cast("str", self.value().decode("latin-1")).split("\r\n")

    @property
    def method(self) -> str:
        return self._lines[0].split()[0]

    @property
    def path(self) -> str:
        return self._lines[0].split()[1]

    @property
    def url(self) -> str:
        return self.origin + self.path

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers, by lower-case name."""
        fields = (line.partition(":") for line in self._lines[1:] if line)
        return {name.lower(): value.strip() for name, _, value in fields}

    @property
    def paused(self) -> bool:
        return bool(self.producerState == "paused")

    def send(self, data: bytes) -> None:
        assert not self.paused, "a paused transport delivers nothing"
        self._protocol.dataReceived(data)

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send(response(status, body, **headers))

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.value().endswith(b"\r\n\r\n") and self.path in self._wire.replies:
            self._wire.clock.callLater(0, self._wire.replies[self.path].to, self)

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def cut(self) -> None:
        """Break the connection without an orderly close."""
        self._lost(error.ConnectionLost())

    def end(self) -> None:
        """Close the connection in order, which ends a body without a length."""
        self._lost(error.ConnectionDone())

    def loseConnection(self) -> None:
        if self.polite:
            self._close(error.ConnectionDone())

    def abortConnection(self) -> None:
        self._close(error.ConnectionAborted())

    def _close(self, reason: Exception) -> None:
        """Report the end of the connection later, as a socket does."""
        self._wire.clock.callLater(0, self._lost, reason)

    def _lost(self, reason: Exception) -> None:
        if not self.closed:
            self.closed = True
            self._protocol.connectionLost(Failure(reason))


@frozen
class Reply:
    """Upstream's fixed reply at one path. With an ETag, it answers 304 where that matches."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = Factory(dict)

    def to(self, exchange: Exchange) -> None:
        etag = self.headers.get("etag")
        if etag is not None and exchange.headers.get("if-none-match") == etag:
            exchange.answer(304, etag=etag)
        else:
            exchange.answer(self.status, self.body, **self.headers)


@implementer(IAgentEndpointFactory)
class Wire:
    """
    Upstream, as an HTTP agent reaches it.

    A request for a path in `replies` is answered as soon as the clock advances, even by 0. All other requests wait in
    `exchanges` until the test answers them. While it `refuses`, connections are refused. While it is `silent`,
    connection attempts neither succeed nor fail.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.exchanges: list[Exchange] = []
        self.replies: dict[str, Reply] = {}
        self.refuses = False
        self.silent = False
        reactor = MemoryReactorClock()
        self.agent = Agent.usingEndpointFactory(reactor, self, pool=connection_pool(reactor, 0))

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return cast("IStreamClientEndpoint", _Endpoint(self, f"{uri.scheme.decode()}://{uri.netloc.decode()}"))

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    @property
    def paths(self) -> list[str]:
        """The requested paths, in order."""
        return [exchange.path for exchange in self.exchanges]

    def hang_up(self) -> None:
        """Break all connections, refuse new ones, and let all waiting callers time out."""
        self.refuses = True
        for exchange in self.exchanges:
            exchange.cut()
        self.clock.pump([60] * 5)

    def reply(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.replies[path] = Reply(status, body, headers)


@implementer(IStreamClientEndpoint)
@frozen
class _Endpoint:
    wire: Wire
    origin: str

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:  # noqa: N803 - the interface's name
        if self.wire.refuses:
            return fail(error.ConnectionRefusedError())
        if self.wire.silent:
            return Deferred()
        protocol = protocolFactory.buildProtocol(IPv4Address("TCP", "192.0.2.2", 443))
        assert protocol is not None
        exchange = Exchange(self.origin, protocol, self.wire)
        self.wire.exchanges.append(exchange)
        protocol.makeConnection(exchange)
        return succeed(protocol)


class Connection(StringTransport):
    """
    A client's connection to an in-memory server.

    It holds the bytes that the client received, and whether the server aborted it.
    """

    def __init__(
        self, site: Site, request: bytes = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", host: str = "192.0.2.1"
    ) -> None:
        address = IPv4Address("TCP", host, 50_000)
        super().__init__(peerAddress=address)
        self.aborted = self.closed = False
        self.channel = site.buildProtocol(address)
        assert self.channel is not None
        self.channel.makeConnection(self)
        if request:
            self.channel.dataReceived(request)

    @property
    def head(self) -> str:
        return str(self.value().partition(b"\r\n\r\n")[0].decode())

    @property
    def body(self) -> bytes:
        return bytes(self.value().partition(b"\r\n\r\n")[2])

    def full(self) -> None:
        """The client's receive buffer is full: pause the server's producer."""
        cast("Any", self.producer).pauseProducing()

    def drained(self) -> None:
        """The client reads again: resume the server's producer."""
        cast("Any", self.producer).resumeProducing()

    def leave(self) -> None:
        """The client disconnects."""
        self._lost(error.ConnectionLost())

    def loseConnection(self) -> None:
        self._lost(error.ConnectionDone())

    def abortConnection(self) -> None:
        self.aborted = True
        self._lost(error.ConnectionAborted())

    def _lost(self, reason: Exception) -> None:
        if not self.closed:
            self.closed = True
            assert self.channel is not None
            self.channel.connectionLost(Failure(reason))


class Handling(Resource):
    """
    A resource that answers requests with a test's coroutine.

    As in Klein, the coroutine is cancelled when the client disconnects, and its failure is answered or breaks off the
    response.
    """

    isLeaf = True

    def __init__(self, handler: Callable[[Request], Deferred[None]]) -> None:
        super().__init__()
        self._handler = handler

    def render(self, request: Request) -> int:
        done = self._handler(request)
        request.notifyFinish().addErrback(lambda _: done.cancel())
        done.addCallbacks(lambda _: request.finish(), lambda failure: self._fail(request, failure))
        return NOT_DONE_YET

    @staticmethod
    def _fail(request: Request, failure: Failure) -> None:
        if getattr(request, "channel", None) is None:  # the client has left
            failure.trap(CancelledError)
            return
        answer = respond_to(request, failure)
        if isinstance(answer, bytes):
            request.write(answer)
            request.finish()


class MemoryTestCase(SynchronousTestCase):
    """A test case with the steps that most of the fast tests need."""

    def setUp(self) -> None:
        self.clock = clock_now()

    def start(self, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """Start the work and return its Deferred. Errors after the test are ignored."""
        started = Deferred.fromCoroutine(work)
        self.addCleanup(started.addErrback, lambda _: None)
        return started

    def now(self, work: Awaitable[T]) -> T:
        """The result of the work, after all calls that are due now."""
        return self.successResultOf(self._settled(work))

    def failing(self, work: Awaitable[Any], kind: type[Exception]) -> Any:
        """
        The error of the work, after all calls that are due now.

        It must be of this kind.
        """
        return self.failureResultOf(self._settled(work), kind).value

    def _settled(self, work: Awaitable[T]) -> Deferred[T]:
        waiting = work if isinstance(work, Deferred) else Deferred.fromCoroutine(cast("Coroutine[Any, Any, T]", work))
        self.clock.advance(0)
        return waiting

    def log_events(self) -> list[LogEvent]:
        """The events that are logged from now on, in a list that grows."""
        events: list[LogEvent] = []
        observer = cast("ILogObserver", events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        return events

    def directory(self) -> Path:
        """An empty directory that is deleted after the test."""
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        return Path(temporary.name)
