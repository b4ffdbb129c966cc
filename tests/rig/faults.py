"""The ways in which an upstream fails, as values for a path.

Knows the wire of one exchange. Must never know what is served, and must never sleep: a delayed response waits until the
test releases it. A fault counts itself as served only if the client has really met it.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from threading import Condition

from attrs import define, evolve, field

from .wire import BOUND, Reply, Wire


@define(eq=False)
class Fault:
    """One way to fail. `served` counts the clients that met it."""

    served: int = field(default=0, init=False)
    _changed: Condition = field(factory=Condition, init=False, repr=False)
    _released: bool = field(default=False, init=False, repr=False)

    def serve(self, reply: Reply, wire: Wire) -> None:
        """Send this reply in the way of the fault."""
        raise NotImplementedError

    def release(self) -> None:
        """Stop holding responses back, now and in later requests."""
        with self._changed:
            self._released = True
            self._changed.notify_all()

    def wait_served(self, count: int = 1, timeout: float = BOUND) -> None:
        """
        Wait until clients have met this fault `count` times.

        Raises AssertionError if they have not in time.
        """
        with self._changed:
            met = self._changed.wait_for(lambda: self.served >= count, timeout)
        assert met, f"{self} was met {self.served} times, not {count}"

    def _happened(self) -> None:
        with self._changed:
            self.served += 1
            self._changed.notify_all()

    def _hold(self, until: Callable[[], bool] = lambda: False) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._released or until(), BOUND):
                raise TimeoutError(f"{self} was never released")


@define(eq=False)
class Hang(Fault):
    """Sends nothing, not even a status line, until it is released. Then it answers well."""

    def serve(self, reply: Reply, wire: Wire) -> None:
        if not self._released:
            self._happened()
            self._hold()
        wire.reply(reply)


@define(eq=False)
class Stall(Fault):
    """Stops in the body after `after` bytes until it is released. Then it sends the rest."""

    after: int

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.head(reply)
        wire.body(reply.body[: self.after])
        if len(reply.body) > self.after and not self._released:
            self._happened()
            self._hold()
        wire.body(reply.body[self.after :])


@define(eq=False)
class CloseEarly(Fault):
    """Closes the connection after `after` bytes of a longer body."""

    after: int

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.head(reply)
        wire.body(reply.body[: self.after])
        if len(reply.body) > self.after:
            wire.cut()
            self._happened()


@define(eq=False)
class WrongLength(Fault):
    """
    Announces `by` bytes more than it sends, then closes the connection.

    A negative `by` announces fewer.
    """

    by: int

    def serve(self, reply: Reply, wire: Wire) -> None:
        length = int(reply.headers["Content-Length"]) + self.by
        wire.reply(evolve(reply, headers={**reply.headers, "Content-Length": str(length)}))
        wire.cut()
        self._happened()


@define(eq=False)
class Unsized(Fault):
    """
    Announces no length: the body is chunked, or else ends with the connection.

    HTTP allows this, but it is not usual.
    """

    chunked: bool = True

    def serve(self, reply: Reply, wire: Wire) -> None:
        headers = {name: value for name, value in reply.headers.items() if name != "Content-Length"}
        headers |= {"Transfer-Encoding": "chunked"} if self.chunked else {"Connection": "close"}
        wire.head(evolve(reply, headers=headers))
        if self.chunked:
            if reply.body:
                wire.body(b"%x\r\n" % len(reply.body) + bytes(reply.body) + b"\r\n")
            wire.body(b"0\r\n\r\n")
        else:
            wire.body(reply.body)
            wire.cut()
        self._happened()


@define(eq=False)
class WrongBytes(Fault):
    """Sends a body of the right length with a wrong last byte."""

    def serve(self, reply: Reply, wire: Wire) -> None:
        if not reply.body:
            wire.reply(reply)
            return
        wire.head(reply)
        wire.body(reply.body[:-1])
        wire.body(bytes([reply.body[-1] ^ 0xFF]))
        self._happened()


@define(eq=False)
class Instead(Fault):
    """Sends this body in place of the right one, with these additional headers."""

    body: bytes
    headers: Mapping[str, str] = field(factory=dict)

    def serve(self, reply: Reply, wire: Wire) -> None:
        headers = {**reply.headers, "Content-Length": str(len(self.body)), **self.headers}
        wire.head(evolve(reply, status=200, headers=headers))  # a 304 would have no body
        self._happened()  # before the body, since the client may abort on the headers
        wire.body(self.body)


@define(eq=False)
class Status(Fault):
    """Answers with this status. `retry_after` is in seconds, or an HTTP date."""

    code: int
    retry_after: int | str | None = None

    def serve(self, reply: Reply, wire: Wire) -> None:
        wait = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        bodiless = self.code in (204, 304)
        wire.reply(Reply(self.code, wait) if bodiless else Reply.text(self.code, headers=wait))
        self._happened()


@define(eq=False)
class Gzipped(Fault):
    """Encodes the body with gzip, even if the client did not accept that."""

    def serve(self, reply: Reply, wire: Wire) -> None:
        if not reply.body or "Content-Encoding" in reply.headers:
            wire.reply(reply)
            return
        body = gzip.compress(reply.body, mtime=0)
        headers = {**reply.headers, "Content-Encoding": "gzip", "Content-Length": str(len(body))}
        wire.reply(Reply(reply.status, headers, body))
        self._happened()


@define(eq=False)
class Redirect(Fault):
    """Redirects the client to `location`, where ``{path}`` stands for the requested path."""

    location: str
    code: int = 302

    def serve(self, reply: Reply, wire: Wire) -> None:
        location = self.location.replace("{path}", wire.path)
        wire.reply(Reply.text(self.code, headers={"Location": location}))
        self._happened()


@define(eq=False)
class Trickle(Fault):
    """
    Sends the body at `rate` bytes per second, until it is released.

    Each write is `piece` bytes long.
    """

    rate: float
    piece: int = 1

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.head(reply)
        at = 0
        while at < len(reply.body) and not self._released:
            if at == self.piece:
                self._happened()
            wire.body(reply.body[at : at + self.piece])
            at += self.piece
            with self._changed:
                self._changed.wait_for(lambda: self._released, self.piece / self.rate)
        wire.body(reply.body[at:])


@define(eq=False)
class Gate(Fault):
    """
    Sends the head, and of each body only the allowed bytes.

    The allowed bytes count from the body's start. `allow_all` removes the limit.
    """

    _allowed: int = field(default=0, init=False)
    _sent: int = field(default=0, init=False)

    def allow(self, count: int) -> None:
        """Allow `count` more bytes."""
        with self._changed:
            self._allowed += count
            self._changed.notify_all()

    def allow_all(self) -> None:
        """Remove the limit, now and for later requests."""
        self.release()

    def wait_sent(self, count: int, timeout: float = BOUND) -> None:
        """
        Wait until `count` bytes of a body have been sent.

        Raises AssertionError if they have not in time.
        """
        with self._changed:
            met = self._changed.wait_for(lambda: self._sent >= count, timeout)
        assert met, f"{self} sent {self._sent} bytes, not {count}"

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.head(reply)
        if reply.body and not self._released:
            self._happened()
        at = 0
        while at < len(reply.body):
            self._hold(lambda: self._allowed > at)  # noqa: B023 - called before `at` moves on
            upto = len(reply.body) if self._released else min(self._allowed, len(reply.body))
            wire.body(reply.body[at:upto])
            at = upto
            with self._changed:
                self._sent = max(self._sent, at)
                self._changed.notify_all()
