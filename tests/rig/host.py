"""A threaded file server on loopback that fails on demand.

It records all requests. Knows HTTP: credentials, ranges, connections. Must never know what a package index is.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from email.message import Message
from email.utils import parsedate_to_datetime
from threading import Condition, RLock
from typing import TypeVar
from urllib.parse import unquote

from attrs import define, evolve
from typing_extensions import Self

from .faults import Fault
from .wire import BOUND, Reply, Request, Server, Wire

FaultT = TypeVar("FaultT", bound=Fault)


@define
class Served:
    """
    The content of one path. If `encodable`, it is sent as gzip to clients that accept that.

    PyPI does the same with metadata files.
    """

    content: bytes
    etag: str
    encodable: bool = False


def matches(prefix: str, path: str) -> bool:
    """
    True if `path` is `prefix`, or below a `prefix` with a final slash.

    So a wheel's path does not match its ``.metadata`` as well, nor a package's page its tarballs.
    """
    return path == prefix or (prefix.endswith("/") and path.startswith(prefix))


class FileHost:
    """
    A file server on loopback: `url` is its address, without a trailing slash.

    `auth` is the user and password that it requires. With `plain` it answers as a simple intermediary does, with
    Content-Type and Content-Length only. Without `ranges` it sends whole files only. Use as a context manager.
    """

    def __init__(
        self,
        *,
        auth: tuple[str, str] | None = None,
        plain: bool = False,
        ranges: bool = True,
        address: str = "127.0.0.1",
    ) -> None:
        self.plain = plain
        self.ranges = ranges and not plain
        self.auth = auth
        self.requests: list[Request] = []
        self.connections = 0
        self.most_in_flight = 0
        self.changed = Condition(RLock())
        self._files: dict[str, Served] = {}
        self._faults: list[tuple[str, Fault, int | None]] = []
        self._all_faults: list[Fault] = []
        self._refused = 0
        self._open: set[socket.socket] = set()
        self._server = Server((address, 0), self)
        self.host, self.port = address, self._server.server_port
        self.url = f"http://{address}:{self.port}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening, release all faults, and close all connections."""
        for fault in self._all_faults:
            fault.release()
        self._server.stop()
        self._cut_connections()

    # Content

    def put(self, path: str, content: bytes, *, encodable: bool = False) -> None:
        """Serve this content at a path, in place of any earlier content."""
        etag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
        with self.changed:
            self._files[path] = Served(content, etag, encodable)

    def drop(self, path: str) -> None:
        """Answer 404 for this path from now on."""
        with self.changed:
            self._files.pop(path, None)

    def answer(self, request: Request) -> Reply:
        """The correct reply to this request. Called in the connection's own thread."""
        if request.method not in ("GET", "HEAD"):
            return Reply.text(405, headers={"Allow": "GET, HEAD"})
        with self.changed:
            served = self._files.get(unquote(request.path))
        return Reply.text(404) if served is None else self._file(request, served)

    def _file(self, request: Request, served: Served) -> Reply:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(served.content))}
        reply = Reply(200, headers, memoryview(served.content))
        if self.plain:
            return reply
        headers |= {"ETag": served.etag, "Cache-Control": "max-age=365000000, immutable, public"}
        if served.encodable:
            return compressed(request, evolve(reply, headers=headers))
        if not self.ranges:
            return evolve(reply, headers=headers)
        return _ranged(request, evolve(reply, headers=headers | {"Accept-Ranges": "bytes"}))

    # Requests

    def seen(self, prefix: str) -> list[Request]:
        """
        The requests for or below this path, in order of arrival.

        See `matches`.
        """
        with self.changed:
            return [request for request in self.requests if matches(prefix, request.path)]

    def count(self, prefix: str) -> int:
        """The number of requests for this path, or below it."""
        return len(self.seen(prefix))

    def wait_for(self, predicate: Callable[[], bool], timeout: float = BOUND) -> None:
        """
        Wait until the predicate holds. It is evaluated whenever a request arrives or ends.

        Raises AssertionError, with the requests seen so far, if it does not hold in time.
        """
        with self.changed:
            held = self.changed.wait_for(predicate, timeout)
            assert held, "\n".join(
                ["the condition did not become true in time; requests so far:", *map(str, self.requests)]
            )

    # Faults

    def fault(self, prefix: str, fault: FaultT, times: int | None = None) -> FaultT:
        """
        Set a fault for requests that match `prefix` (see `matches`).

        It applies to the next `times` requests; with None, to all.
        """
        with self.changed:
            self._faults.append((prefix, fault, times))
            self._all_faults.append(fault)
        return fault

    def mend(self) -> None:
        """Remove and release all faults."""
        with self.changed:
            self._faults.clear()
        for fault in self._all_faults:
            fault.release()

    @property
    def faults_served(self) -> Counter[str]:
        """
        How often clients met each kind of fault, by class name.

        Each use of `refusing` counts as one ``Refusing``.
        """
        counts = Counter({"Refusing": self._refused})
        for fault in self._all_faults:
            counts[type(fault).__name__] += fault.served
        return counts

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """
        Close the port and every connection, and later listen on it again.

        The connections that a closed port refuses can't be counted. Instead, one attempt is made here, which must be
        refused.
        """
        self._server.stop()
        # Bound but not listening: connections are refused, and no other process gets the port meanwhile.
        placeholder = socket.socket()
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        placeholder.bind((self.host, self.port))
        self._cut_connections()
        with socket.socket() as probe:
            assert probe.connect_ex((self.host, self.port)) != 0, "the port is still open"
        self._refused += 1
        try:
            yield
        finally:
            self._server = Server((self.host, self.port), self, placeholder)
            self._server.start()

    # Events of its server (see `Owner`)

    def opened(self, connection: socket.socket) -> int:
        """Called when a client connects. Returns the number of its connection."""
        with self.changed:
            self.connections += 1
            self._open.add(connection)
            self.changed.notify_all()
            return self.connections

    def closed(self, connection: socket.socket) -> None:
        """Called when a connection is closed."""
        with self.changed:
            self._open.discard(connection)

    def arrived(self, connection: int, method: str, target: str, headers: Message, body: bytes) -> Request:
        """Called when a request was read."""
        path, _, query = target.partition("?")
        with self.changed:
            request = Request(len(self.requests), connection, method, path, query, headers, body)
            self.requests.append(request)
            self.most_in_flight = max(self.most_in_flight, sum(not each.done for each in self.requests))
            self.changed.notify_all()
        return request

    def ended(self, request: Request, wire: Wire, *, broken: bool) -> None:
        """Called when the reply was sent, or when sending it failed."""
        with self.changed:
            request.status, request.sent, request.broken, request.done = wire.status, wire.sent, broken, True
            self.changed.notify_all()

    def serve(self, request: Request, wire: Wire) -> None:
        """Answer a request, with the next fault if there is one."""
        reply = self.answer(request) if self._authorised(request) else _unauthorised()
        if request.method == "HEAD":
            reply = evolve(reply, body=b"")
        fault = self._next_fault(request.path)
        if fault is None:
            wire.reply(reply)
        else:
            fault.serve(reply, wire)

    def _next_fault(self, path: str) -> Fault | None:
        with self.changed:
            for index, (prefix, fault, times) in enumerate(self._faults):
                if matches(prefix, path) and times != 0:
                    self._faults[index] = (prefix, fault, times if times is None else times - 1)
                    return fault
        return None

    def _authorised(self, request: Request) -> bool:
        if self.auth is None:
            return True
        expected = base64.b64encode(":".join(self.auth).encode()).decode()
        return request.headers.get("Authorization") == f"Basic {expected}"

    def _cut_connections(self) -> None:
        with self.changed:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def compressed(request: Request, reply: Reply) -> Reply:
    """
    Encode the reply with gzip if the client accepts that.

    The encoded reply has another ETag. Vary is set in either case.
    """
    headers = {**reply.headers, "Vary": "Accept, Accept-Encoding"}
    if "gzip" not in (request.headers.get("Accept-Encoding") or ""):
        return evolve(reply, headers=headers)
    body = gzip.compress(reply.body, compresslevel=1, mtime=0)
    headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
    if "ETag" in headers:
        headers["ETag"] = headers["ETag"][:-1] + '-gzip"'
    return evolve(reply, headers=headers, body=body)


def or_not_modified(request: Request, reply: Reply) -> Reply:
    """
    Return 304 if the client's validators match.

    The ETag takes precedence over the date (RFC 9110, section 13.2.2).
    """
    if_none_match, if_modified_since = request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")
    if if_none_match is not None:
        etags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        is_current = not etags.isdisjoint({reply.headers["ETag"], "*"})
    else:
        modified = reply.headers.get("Last-Modified")
        is_current = bool(
            if_modified_since
            and modified
            and parsedate_to_datetime(if_modified_since) >= parsedate_to_datetime(modified)
        )
    if not is_current:
        return reply
    kept = ("ETag", "Last-Modified", "Cache-Control", "Vary")
    return Reply(304, {name: reply.headers[name] for name in kept if name in reply.headers})


def _ranged(request: Request, reply: Reply) -> Reply:
    """
    The reply to a request for one range (RFC 9110, section 14.2).

    A request for several ranges gets the whole file, which the RFC allows.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
    if match is None or not any(match.groups()) or request.method == "HEAD":
        return reply
    if request.headers.get("If-Range", reply.headers["ETag"]) != reply.headers["ETag"]:
        return reply
    size = len(reply.body)
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return reply
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return Reply.text(416, headers={"Content-Range": f"bytes */{size}"})
    part = {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
    return Reply(206, {**reply.headers, **part}, reply.body[start:stop])


def _unauthorised() -> Reply:
    return Reply.text(401, headers={"WWW-Authenticate": 'Basic realm="index"'})
