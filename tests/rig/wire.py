"""One HTTP exchange as a server sees it, and the threaded server that reads requests and hands them to its owner.

Knows HTTP/1.1 and sockets. Must never decide what is answered.
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

#: Seconds after which anything in the rig that waits gives up, so that a broken test ends.
BOUND = 30.0

_PIECE = 256 * 1024


@define(eq=False)
class Request:
    """
    What a client sent, and how its answer went. `path` is as it came over the wire, without the query.

    `number` counts from 0 in order of arrival, `connection` tells TCP connections apart, `at` is seconds on the
    monotonic clock. `headers` is case-insensitive; a header that is absent reads as None. Once `done`, `sent` body
    bytes were handed over, and `broken` tells whether the connection was cut, by the client or by a fault.
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
    """What a server that behaves would send. ``Content-Length`` is among the headers."""

    status: int
    headers: Mapping[str, str]
    body: bytes | memoryview = field(default=b"", repr=False)

    @classmethod
    def text(cls, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> Reply:
        """A short plain answer; without a text, the status's own phrase."""
        body = (text or HTTPStatus(status).phrase).encode()
        plain = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
        return cls(status, plain | dict(headers or {}), body)


class Wire:
    """The server's end of one exchange. `sent` counts body bytes handed to the kernel."""

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
        """Send these bytes of the body; nothing where the request was HEAD."""
        if self._bodiless:
            return
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self._connection.sendall(view[start : start + _PIECE])
            self.sent += len(view[start : start + _PIECE])

    def reply(self, reply: Reply) -> None:
        """Send all of it, as promised."""
        self.head(reply)
        self.body(reply.body)

    def cut(self) -> None:
        """Close the connection; what was sent still arrives."""
        self.is_cut = True
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Owner(Protocol):
    """What a `Server` tells of its connections and requests, each from the connection's own thread."""

    def opened(self, connection: socket.socket) -> int:
        """A client connected; returns the number of its connection."""

    def closed(self, connection: socket.socket) -> None:
        """This connection is over."""

    def arrived(self, connection: int, method: str, target: str, headers: Message, body: bytes) -> Request:
        """A request was read."""

    def serve(self, request: Request, wire: Wire) -> None:
        """Answer it, well or badly."""

    def ended(self, request: Request, wire: Wire, *, broken: bool) -> None:
        """Its answer was sent, or as much of it as could be."""


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
        """Say nothing: requests are recorded."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = self.requestline.split()[1]  # not self.path, which the base class has tidied
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
    """Listens on `address` (port 0: any), or on a socket that is bound to it already."""

    request_queue_size = 128  # the base class's 5 would drop connections that come at once
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
