"""Copies a content to a client, at the client's pace, and ends in one of two ways: all is sent, or the rest can't be.

Knows contents and requests. Must never know what it sends, or how bytes get from the file to the socket: that is
`mypypi.web.copiers`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.errors import StorageDown
from mypypi.web.copiers import SendfileCopier, WriteCopier
from mypypi.web.errors import abort

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.files.content import Content
    from mypypi.threads import Threads

#: Seconds in which a client must read, and the bytes of a file that it must read meanwhile if they are there. Else its
#: connection is aborted: a client that reads a few bytes now and then would keep its connection and its file for ever.
CLIENT_SILENCE = 300.0
LEAST_READ = 64 * 1024


@define
class Span:
    """Bytes of the content from `start` to before `stop`. None is its end, which may not be known yet."""

    start: int
    stop: int | None


class Reader:
    """
    Sends parts of a content as a response body, after the headers are set. Closes the content at the end.

    It needs no descriptor of its own: with a second one for the client's socket, the kernel can copy.
    """

    log = Logger()

    def __init__(
        self, request: Request, content: Content, parts: Sequence[bytes | Span], threads: Threads, reactor: Any
    ) -> None:
        self._request = request
        self._content = content
        self._parts = list(parts)
        self._threads = threads
        self._reactor = reactor
        self._done: Deferred[None] = Deferred(lambda _: self._stop())
        self._copier: SendfileCopier | WriteCopier | None = None
        self._stall_timer: Any = None
        self._progress = 0  # bytes since the timer was started
        self._waits = True  # for bytes of the content
        self._stopped = False

    def run(self) -> Deferred[None]:
        """
        Start sending; fires when everything has been handed over.

        It fails if the rest can't be sent: with the content's error, or with an OSError. It is cancelled with the
        request.
        """
        try:
            self._request.write(b"")  # send the headers first: sendfile writes past the transport
            self._stall_timer = self._reactor.callLater(CLIENT_SILENCE, self._check_stalled)
            self._content.watch(self.wake)
            sendfile = SendfileCopier.take(self, self._request, self._reactor)
            self._copier = sendfile or WriteCopier(self, self._request)
        except Exception:  # noqa: BLE001 - whatever it is, the response has begun
            self.fail(Failure())
        self.wake()
        return self._done

    def wake(self) -> None:
        """Send what has become available. Raises nothing: the source of the content calls it."""
        try:
            if self._waits and not self._stopped and self.next_part(1) is not None:
                self._waits = False
                self._restart_timer()
            if self._copier is not None:
                self._copier.wake()
        except Exception:  # noqa: BLE001 - whatever it is, the response has begun
            self.fail(Failure())

    def next_part(self, most: int) -> bytes | Span | None:
        """Return the part that can be sent now, or None. A span is cut to `most` bytes, and to the readable ones."""
        if self._content.error is not None:
            return None
        while self._parts:
            part = self._parts[0]
            if isinstance(part, bytes):
                return part
            stop = self._content.readable
            if part.stop is not None:
                stop = min(stop, part.stop)
            if part.start < stop:
                return Span(part.start, min(stop, part.start + most))
            if part.stop is None and not self._content.whole:
                return None
            if part.stop is not None and part.start < part.stop:
                return None
            self._parts.pop(0)
        return None

    def sent(self, count: int) -> None:
        """Note that `count` bytes of the first part were sent."""
        part = self._parts[0]
        if isinstance(part, Span):
            part.start += count
        elif count == len(part):
            self._parts.pop(0)
        else:
            self._parts[0] = part[count:]
        self._progress += count
        self._waits = self.next_part(1) is None
        if self._waits or self._progress >= LEAST_READ:
            self._restart_timer()

    def read(self, span: Span) -> Deferred[bytes]:
        """Read a span in a thread. The descriptor stays open until the thread is done, also if the reader ends."""
        reading = self._threads.run(os.pread, self._content.fd, (span.stop or 0) - span.start, span.start)
        content = self._content.open()

        def close(result: bytes | Failure) -> bytes | Failure:
            content.close()
            return result

        return reading.addBoth(close)

    def finish_if_done(self) -> None:
        """Finish if all is sent, or fail if the content has."""
        if self._stopped:
            return
        if not self._parts:
            self._stop()
            self._done.callback(None)
        elif self._content.error is not None:
            self.fail(Failure(self._content.error))

    def fail(self, failure: Failure) -> None:
        """End with an error: the rest can't be sent."""
        self._stop()
        if not self._done.called:
            self._done.errback(failure)

    def fail_truncated(self) -> None:
        """End since the file on disk has become shorter."""
        self.fail(Failure(StorageDown("the file on disk has become shorter while it was sent")))

    def disconnect(self) -> None:
        """Abort the connection, whose client is gone or does not read. That cancels the request."""
        self._stop()
        abort(self._request)

    def use_writes(self) -> None:
        """Go on with writes: the kernel can't copy this file to this socket."""
        self._copier = WriteCopier(self, self._request)
        self._copier.wake()

    @property
    def fd(self) -> int:
        """The file descriptor of the content."""
        return self._content.fd

    def _restart_timer(self) -> None:
        self._progress = 0
        self._stall_timer.reset(CLIENT_SILENCE)

    def _check_stalled(self) -> None:
        self._stall_timer = self._reactor.callLater(CLIENT_SILENCE, self._check_stalled)
        if self.next_part(1) is not None:
            self.log.info(
                "a connection was aborted: its client read {count} bytes in {seconds} s",
                count=self._progress,
                seconds=CLIENT_SILENCE,
            )
            self.disconnect()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        copier, self._copier = self._copier, None
        if copier is not None:
            copier.stop()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._content.unwatch(self.wake)
        self._content.close()
