"""A small HTTP client that says what really came: no redirects followed, nothing decoded, nothing retried or hidden.

Knows HTTP/1.1 from the client's side. Must never know who answers.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http.client import BadStatusLine, HTTPConnection, HTTPException, HTTPResponse
from threading import Barrier
from typing import TypeVar
from urllib.parse import urlsplit

from attrs import field, frozen
from typing_extensions import Self

from .wire import BOUND

T = TypeVar("T")

#: Small, so that the kernel does not take in a whole body for a client that does not read it; bytes.
_SLOW_BUFFER = 16 * 1024
_PIECE = 64 * 1024
#: Seconds between two looks at something that is awaited.
_BETWEEN = 0.02


@frozen
class Answer:
    """
    What came back. `headers` is case-insensitive; one that is absent reads as None. `body` is as it came over the wire.

    Not `complete`: the connection ended before the body did. Then a `status` of 0 means: before the head did.
    """

    status: int
    headers: Message = field(repr=False, eq=False)
    body: bytes = field(repr=False)
    complete: bool

    @property
    def content(self) -> bytes:
        """The body without its Content-Encoding."""
        return gzip.decompress(self.body) if self.headers["Content-Encoding"] == "gzip" else self.body

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode()

    def json(self) -> object:
        """The content as JSON."""
        return json.loads(self.content)


def get(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes = b"",
    timeout: float = BOUND,
) -> Answer:
    """
    Ask once, on a connection of its own, with these headers and Host and nothing else; with a body, its length as well.

    A transfer that breaks is an answer that is not complete. Raises ConnectionRefusedError where nobody listens, and
    TimeoutError where nothing comes for `timeout` seconds.
    """
    connection = _connection(url, timeout)
    try:
        connection.connect()
        response = _ask(connection, url, headers, method, body)
        return _BROKEN if response is None else _Body(response).rest()
    finally:
        connection.close()


def head(url: str, headers: Mapping[str, str] | None = None) -> Answer:
    """As `get`, with HEAD."""
    return get(url, headers, method="HEAD")


def post(url: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    """As `get`, with POST."""
    return get(url, headers, method="POST", body=body)


def raw(host: str, port: int, data: bytes, timeout: float = BOUND) -> bytes:
    """
    Send these very bytes and return all that comes until the server closes: let them ask for ``Connection: close``.

    Raises TimeoutError where nothing comes for `timeout` seconds.
    """
    received = bytearray()
    with socket.create_connection((host, port), timeout) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(_PIECE):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # a server that refuses a request may well close without reading all of it
    return bytes(received)


class SlowReader:
    """
    A client that takes the head and then reads only when told to. Use as a context manager.

    Its receive buffer is small, so that what is not read stays with the server.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None, timeout: float = BOUND) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
        stream.settimeout(timeout)
        self._connection = _connection(url, timeout)
        self._connection.sock = self._stream = stream
        try:
            stream.connect((parts.hostname, parts.port or 80))
            response = _ask(self._connection, url, headers, "GET")
            assert response is not None, "the server closed the connection before its answer"
        except BaseException:
            self._connection.close()
            raise
        self._body = _Body(response)
        self.status = response.status
        self.headers: Message = response.headers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, count: int, timeout: float | None = None) -> bytes:
        """
        The next `count` bytes of the body; fewer only when it ends or breaks.

        Raises TimeoutError where nothing comes for `timeout` seconds, after which it can only be closed.
        """
        if timeout is not None:
            self._stream.settimeout(timeout)
        return self._body.read(count)

    def rest(self) -> Answer:
        """Read on to the end: the answer with what was left of the body."""
        return self._body.rest()

    def close(self) -> None:
        """Go away, in the middle of the body where that has not ended."""
        self._body.response.close()
        self._connection.close()


def parallel(count: int, work: Callable[[int], T]) -> list[T]:
    """Call ``work(0)`` to ``work(count - 1)`` at once, each in a thread; the results in order. Raises as they do."""
    start = Barrier(count)

    def run(number: int) -> T:
        start.wait(BOUND)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def eventually(ask: Callable[[], T], wanted: Callable[[T], object], timeout: float = BOUND) -> T:
    """
    Ask again and again until what comes back is wanted, and return that.

    Raises AssertionError, with what came last, when it does not come in time.
    """
    deadline = time.monotonic() + timeout
    while not wanted(answer := ask()):
        assert time.monotonic() < deadline, f"waited in vain, the last answer was {answer}"
        time.sleep(_BETWEEN)
    return answer


_BROKEN = Answer(0, Message(), b"", complete=False)


def _connection(url: str, timeout: float) -> HTTPConnection:
    return HTTPConnection(urlsplit(url).netloc, timeout=timeout)


def _ask(
    connection: HTTPConnection, url: str, headers: Mapping[str, str] | None, method: str, body: bytes = b""
) -> HTTPResponse | None:
    """The response whose head has come; None where the connection ended first."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    given = dict(headers or {}) | ({"Content-Length": str(len(body))} if body else {})
    try:
        own_host = any(name.lower() == "host" for name in given)
        connection.putrequest(method, target, skip_host=own_host, skip_accept_encoding=True)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders(body or None)
        return connection.getresponse()
    except (BadStatusLine, ConnectionError):
        return None


class _Body:
    """Reads a body and keeps count itself: HTTPResponse.read1 counts in some versions of Python only."""

    def __init__(self, response: HTTPResponse) -> None:
        self.response = response
        self._left = response.length
        self._broken = False

    def read(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count and (piece := self._some(count - len(received))):
            received += piece
        return bytes(received)

    def rest(self) -> Answer:
        received = bytearray()
        while piece := self._some(_PIECE):
            received += piece
        complete = not self._broken and not self._left
        return Answer(self.response.status, self.response.headers, bytes(received), complete)

    def _some(self, count: int) -> bytes:
        """At most so many bytes; none at the end, whichever end it is."""
        wanted = count if self._left is None else min(count, self._left)
        try:
            piece = self.response.read1(wanted) if wanted and not self._broken else b""
        except (HTTPException, ConnectionError):
            self._broken = True
            return b""
        if self._left is not None:
            self._left -= len(piece)
        return piece
