"""A small HTTP client that returns what the server really sent.

It follows no redirects, decodes nothing and retries nothing. Knows HTTP/1.1 from the client's side. Must never know
which server answers.
"""

from __future__ import annotations

import gzip
import json
import socket
import ssl
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

#: Receive buffer in bytes. It is small, so that the kernel does not receive a whole body for a client that does not
#: read.
_SLOW_BUFFER = 16 * 1024
_PIECE = 64 * 1024
#: Seconds between two polls.
_POLL_INTERVAL = 0.02


@frozen
class Answer:
    """
    A response. Absent `headers` read as None; `body` is as it came over the wire.

    `headers` is case-insensitive. If the connection ended before the body did, the answer is not `complete`; if it
    ended before the head did, `status` is 0.
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
    source: str = "",
) -> Answer:
    """
    Send one request on a new connection, from the address `source` where that is given.

    It has these headers, Host, and a body's Content-Length, and no others. A transfer that breaks returns an answer
    that is not complete. Raises ConnectionRefusedError if nothing listens at the address, and TimeoutError after
    `timeout` seconds without a byte.
    """
    connection = _connection(url, timeout, source)
    try:
        connection.connect()
        response = _send(connection, url, headers, method, body)
        return _NO_RESPONSE if response is None else _Body(response).rest()
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
    Send exactly these bytes and return everything until the server closes.

    The bytes should therefore ask for ``Connection: close``. Raises TimeoutError after `timeout` seconds without a
    byte.
    """
    received = bytearray()
    with socket.create_connection((host, port), timeout) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(_PIECE):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass  # a server that refuses a request may close before it has read all of it
    return bytes(received)


class Session:
    """
    A client that keeps one connection for several requests, sent as `get` does. Use as a context manager.

    Its receive buffer is small, so that the server can't send all of a large body while nothing is read.
    """

    def __init__(self, url: str, timeout: float = BOUND) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = _connection(url, timeout)
        self._connection.sock = stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
        stream.settimeout(timeout)
        stream.connect((parts.hostname, parts.port or 80))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def get(
        self, url: str, headers: Mapping[str, str] | None = None, meanwhile: Callable[[], object] = lambda: None
    ) -> Answer:
        """Send a request. `meanwhile` is called after the head of the response was read, and before its body."""
        response = _send(self._connection, url, headers, "GET")
        if response is None:
            return _NO_RESPONSE
        meanwhile()
        answer = _Body(response).rest()
        response.close()
        return answer


class SlowReader:
    """
    A client that reads the head, and then reads only on demand. Use as a context manager.

    With https, it accepts any certificate.
    Its receive buffer is small, so that bytes that it does not read stay with the server.
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
            if parts.scheme == "https":
                self._connection.sock = self._stream = _unverified().wrap_socket(stream)
            response = _send(self._connection, url, headers, "GET")
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
        Return the next `count` bytes of the body.

        There are fewer only if the body ends or breaks. Raises TimeoutError after `timeout` seconds without a byte;
        then the reader can only be closed.
        """
        if timeout is not None:
            self._stream.settimeout(timeout)
        return self._body.read(count)

    def rest(self) -> Answer:
        """Read the rest of the body, and return it as an answer."""
        return self._body.rest()

    def close(self) -> None:
        """Close the connection, even in the middle of the body."""
        self._body.response.close()
        self._connection.close()


def parallel(count: int, work: Callable[[int], T]) -> list[T]:
    """
    Call ``work(0)`` to ``work(count - 1)`` at once, each in a thread.

    Returns the results in order. Raises the error of a call that fails.
    """
    start = Barrier(count)

    def run(number: int) -> T:
        start.wait(BOUND)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def eventually(ask: Callable[[], T], wanted: Callable[[T], object], timeout: float = BOUND) -> T:
    """
    Call `ask` repeatedly until `wanted` accepts its result, and return that result.

    Raises AssertionError, with the last result, if none is accepted in time.
    """
    deadline = time.monotonic() + timeout
    while not wanted(answer := ask()):
        assert time.monotonic() < deadline, f"no accepted answer in time; the last answer was {answer}"
        time.sleep(_POLL_INTERVAL)
    return answer


_NO_RESPONSE = Answer(0, Message(), b"", complete=False)


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _connection(url: str, timeout: float, source: str = "") -> HTTPConnection:
    return HTTPConnection(urlsplit(url).netloc, timeout=timeout, source_address=(source, 0) if source else None)


def _send(
    connection: HTTPConnection, url: str, headers: Mapping[str, str] | None, method: str, body: bytes = b""
) -> HTTPResponse | None:
    """
    Send the request and return the response after its head.

    Returns None if the connection ended first.
    """
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields = dict(headers or {}) | ({"Content-Length": str(len(body))} if body else {})
    try:
        own_host = any(name.lower() == "host" for name in fields)
        connection.putrequest(method, target, skip_host=own_host, skip_accept_encoding=True)
        for name, value in fields.items():
            connection.putheader(name, value)
        connection.endheaders(body or None)
        return connection.getresponse()
    except (BadStatusLine, ConnectionError):
        return None


class _Body:
    """
    Reads a body and counts its bytes.

    HTTPResponse.read1 counts them in some versions of Python only.
    """

    def __init__(self, response: HTTPResponse) -> None:
        self.response = response
        self._left = response.length
        self._broken = False

    def read(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count and (piece := self._read_some(count - len(received))):
            received += piece
        return bytes(received)

    def rest(self) -> Answer:
        received = bytearray()
        while piece := self._read_some(_PIECE):
            received += piece
        complete = not self._broken and not self._left
        return Answer(self.response.status, self.response.headers, bytes(received), complete)

    def _read_some(self, count: int) -> bytes:
        """Return at most `count` bytes; none at the body's end."""
        wanted = count if self._left is None else min(count, self._left)
        try:
            piece = self.response.read1(wanted) if wanted and not self._broken else b""
        except (HTTPException, ConnectionError):
            self._broken = True
            return b""
        if self._left is not None:
            self._left -= len(piece)
        return piece
