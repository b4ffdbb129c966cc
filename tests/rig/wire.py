"""One HTTP exchange from the server's side, and a threaded server.

The server passes requests to its owner. Knows HTTP/1.1 and sockets. Must never decide which answer is sent.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Protocol

from attrs import define, field, frozen

#: Timeout in seconds for every wait in the rig, so that a broken test ends.
BOUND = 30.0

_PIECE = 256 * 1024


@define(eq=False)
class Request:
    """
    A request of a client, and the state of its answer.

    `path` is as it came over the wire, without the query. `number` counts from 0 in order of arrival, `connection`
    identifies the TCP connection, `at` is in seconds on the monotonic clock. `headers` is case-insensitive; absent
    headers read as None. Once the request is `done`, `sent` is the number of body bytes that were sent, and `broken` is
    true if the client or a fault cut the connection.
    """

    number: int
    connection: int
    method: str
    path: str
    query: str
    headers: Message = field(repr=False)
    body: bytes = field(repr=False)
    at: float = field(factory=time.monotonic, repr=False)
    status: int = 0
    sent: int = 0
    broken: bool = False
    done: bool = False


@frozen
class Reply:
    """The response of a correct server. Its headers include ``Content-Length``."""

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview = field(default=b"", repr=False)

    @classmethod
    def text(cls, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> Reply:
        """A short plain-text response, by default the status's phrase."""
        body = (text or HTTPStatus(status).phrase).encode()
        plain = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
        return cls(status, plain | dict(headers or {}), body)


class Wire:
    """The server's end of one exchange. `sent` counts body bytes passed to the kernel."""

    def __init__(self, connection: socket.socket, path: str, *, bodiless: bool) -> None:
        self.path = path
        self.sent = 0
        self.status = 0
        self.is_cut = False
        self._connection = connection
        self._bodiless = bodiless

    def head(self, reply: Reply) -> None:
        """Send the status line and the headers."""
        lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        self._connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        self.status = reply.status

    def body(self, data: bytes | memoryview) -> None:
        """Send these bytes of the body, unless the request was HEAD."""
        if self._bodiless:
            return
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._connection.sendall(view[start : start + _PIECE])
            self.sent += len(view[start : start + _PIECE])

    def reply(self, reply: Reply) -> None:
        """Send the head and the whole body."""
        self.head(reply)
        self.body(reply.body)

    def cut(self) -> None:
        """Close the connection. Bytes that were already sent still arrive."""
        self.is_cut = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Owner(Protocol):
    """
    The owner of a `Server`, which handles its connections and requests.

    Each call comes from the connection's own thread.
    """

    def opened(self, connection: socket.socket) -> int:
        """A client has connected. Returns the number of its connection."""

    def closed(self, connection: socket.socket) -> None:
        """A connection was closed."""

    def arrived(self, connection: int, method: str, target: str, headers: Message, body: bytes) -> Request:
        """A request was read."""

    def serve(self, request: Request, wire: Wire) -> None:
        """Answer a request, well or badly."""

    def ended(self, request: Request, wire: Wire, *, broken: bool) -> None:
        """The reply was sent, or sending it failed."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.number = self.server.owner.opened(self.connection)

    def finish(self) -> None:
        self.server.owner.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: requests are recorded."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = self.requestline.split()[1]  # not self.path, which the base class has normalised
        owner = self.server.owner
        request = owner.arrived(self.number, self.command, target, self.headers, body)
        wire = Wire(self.connection, request.path, bodiless=self.command == "HEAD")
        failed = True
        try:
            owner.serve(request, wire)
            failed = False
        except OSError:  # the client left, or a fault was never released
            wire.cut()
        finally:
            self.close_connection |= wire.is_cut
            owner.ended(request, wire, broken=failed or wire.is_cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _serve


class Server(ThreadingHTTPServer):
    """
    A threaded server on `address` (port 0: any free port).

    `bound` is a socket that is already bound to the address.
    """

    request_queue_size = 128  # the base class's 5 would drop simultaneous connections
    daemon_threads = True

    def __init__(self, address: tuple[str, int], owner: Owner, bound: socket.socket | None = None) -> None:
        super().__init__(address, _Handler, bind_and_activate=False)
        self.owner = owner
        if bound is None:
            self.server_bind()
        else:
            self.socket.close()
            self.socket = bound
        self.server_activate()
        self._thread = Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
