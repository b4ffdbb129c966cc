"""A threaded HTTP server on loopback that serves files, remembers every request, and misbehaves when told to.

Knows HTTP: credentials, ranges, connections. Must never know what a package index is.
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
    """Bytes behind a path of a host. `encodable`: sent as gzip to whoever accepts that, as PyPI does with metadata."""

    content: bytes
    etag: str
    encodable: bool = False


def matches(prefix: str, path: str) -> bool:
    """True for the very path, and for all below it where it ends with a slash: a wheel's path stands for itself, and
    not for its ``.metadata`` as well, nor a package's page for its tarballs."""
    return path == prefix or (prefix.endswith("/") and path.startswith(prefix))


class FileHost:
    """
    A host of files on loopback: `url` is its address, without a trailing slash.

    `auth` is the user and password it asks for. With `plain` it answers as a bare intermediary does, with Content-Type
    and Content-Length only. Without `ranges` it sends whole files only. Use as a context manager.
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
        """Stop listening, let go of whatever faults hold back, and close all connections."""
        for fault in self._all_faults:
            fault.release()
        self._server.stop()
        self._cut_connections()

    # What it serves

    def put(self, path: str, content: bytes, *, encodable: bool = False) -> None:
        """Serve these bytes behind a path, in place of what was there before."""
        etag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
        with self.changed:
            self._files[path] = Served(content, etag, encodable)

    def drop(self, path: str) -> None:
        """Answer 404 for this path from now on."""
        with self.changed:
            self._files.pop(path, None)

    def answer(self, request: Request) -> Reply:
        """What a good server sends for this request. Called in the connection's own thread."""
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

    # What it saw

    def seen(self, prefix: str) -> list[Request]:
        """The requests for this path, or those below it (see `matches`), in order of arrival."""
        with self.changed:
            return [request for request in self.requests if matches(prefix, request.path)]

    def count(self, prefix: str) -> int:
        """How many requests came for this path, or below it."""
        return len(self.seen(prefix))

    def wait_for(self, predicate: Callable[[], bool], timeout: float = BOUND) -> None:
        """
        Wait until this holds; it is asked again whenever a request arrives or ends.

        Raises AssertionError, with the requests seen so far, when it does not hold in time.
        """
        with self.changed:
            held = self.changed.wait_for(predicate, timeout)
            assert held, "\n".join(["waited in vain; requests so far:", *map(str, self.requests)])

    # How it misbehaves

    def fault(self, prefix: str, fault: FaultT, times: int | None = None) -> FaultT:
        """Misbehave so for the next `times` requests (None: for all) for this path, or below it (see `matches`)."""
        with self.changed:
            self._faults.append((prefix, fault, times))
            self._all_faults.append(fault)
        return fault

    def mend(self) -> None:
        """Behave again; whatever faults hold back is let go."""
        with self.changed:
            self._faults.clear()
        for fault in self._all_faults:
            fault.release()

    @property
    def faults_served(self) -> Counter[str]:
        """How often clients met each kind of fault, by its class's name; `refusing` counts as ``Refusing``."""
        counts = Counter({"Refusing": self._refused})
        for fault in self._all_faults:
            counts[type(fault).__name__] += fault.served
        return counts

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """
        Close the port and every connection; listen on the same port again afterwards.

        Nobody can count the connections that a closed port refuses: that one from here was refused is checked.
        """
        self._server.stop()
        # Bound but not listening: connections are refused, and no one else is given the port meanwhile.
        keeper = socket.socket()
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind((self.host, self.port))
        self._cut_connections()
        with socket.socket() as probe:
            assert probe.connect_ex((self.host, self.port)) != 0, "the port is still open"
        self._refused += 1
        try:
            yield
        finally:
            self._server = Server((self.host, self.port), self, keeper)
            self._server.start()

    # What its server tells it (see `Owner`)

    def opened(self, connection: socket.socket) -> int:
        """A client connected: the number of its connection."""
        with self.changed:
            self.connections += 1
            self._open.add(connection)
            self.changed.notify_all()
            return self.connections

    def closed(self, connection: socket.socket) -> None:
        """This connection is over."""
        with self.changed:
            self._open.discard(connection)

    def arrived(self, connection: int, method: str, target: str, headers: Message, body: bytes) -> Request:
        """A request was read."""
        path, _, query = target.partition("?")
        with self.changed:
            request = Request(len(self.requests), connection, method, path, query, headers, body)
            self.requests.append(request)
            self.most_in_flight = max(self.most_in_flight, sum(not each.done for each in self.requests))
            self.changed.notify_all()
        return request

    def ended(self, request: Request, wire: Wire, *, broken: bool) -> None:
        """Its answer was sent, or as much of it as could be."""
        with self.changed:
            request.status, request.sent, request.broken, request.done = wire.status, wire.sent, broken, True
            self.changed.notify_all()

    def serve(self, request: Request, wire: Wire) -> None:
        """Answer, well or badly."""
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
    """As gzip with an ETag of its own where the client accepts that, else as it is; Vary says so in both."""
    headers = {**reply.headers, "Vary": "Accept, Accept-Encoding"}
    if "gzip" not in (request.headers.get("Accept-Encoding") or ""):
        return evolve(reply, headers=headers)
    body = gzip.compress(reply.body, compresslevel=1, mtime=0)
    headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(body))}
    if "ETag" in headers:
        headers["ETag"] = headers["ETag"][:-1] + '-gzip"'
    return evolve(reply, headers=headers, body=body)


def unless_known(request: Request, reply: Reply) -> Reply:
    """304 where the client says, by etag or else by date, that it has it (RFC 9110, section 13.2.2)."""
    named, since = request.headers.get("If-None-Match"), request.headers.get("If-Modified-Since")
    if named is not None:
        known = {tag.strip().removeprefix("W/") for tag in named.split(",")}
        has_it = not known.isdisjoint({reply.headers["ETag"], "*"})
    else:
        modified = reply.headers.get("Last-Modified")
        has_it = bool(since and modified and parsedate_to_datetime(since) >= parsedate_to_datetime(modified))
    if not has_it:
        return reply
    kept = ("ETag", "Last-Modified", "Cache-Control", "Vary")
    return Reply(304, {name: reply.headers[name] for name in kept if name in reply.headers})


def _ranged(request: Request, reply: Reply) -> Reply:
    """The one range asked for (RFC 9110, section 14.2); several at once get the whole, which is allowed."""
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
