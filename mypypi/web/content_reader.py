"""Copies a content to a client, at the client's pace.

On a plain socket the kernel copies (sendfile), so the bytes never enter Python. Elsewhere (TLS, tests in memory) a
thread reads blocks, and the reactor writes them. Knows contents, requests and sockets. Must never know what it sends.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IWriteDescriptor
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.files.content import Content
    from mypypi.threads import Threads

#: Bytes in one read and write, and bytes in one sendfile, of which the kernel sends as many as the socket accepts.
_BLOCK = 256 * 1024
_KERNEL_BLOCK = 4 * 1024 * 1024
#: Seconds without a byte read by the client, after which its connection is aborted.
CLIENT_SILENCE = 300.0
#: Error numbers of a file system or socket that does not support sendfile.
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@define
class Span:
    """Bytes of the content from `start` to before `stop`. None is its end, which may not be known yet."""

    start: int
    stop: int | None


def abort(request: Request) -> None:
    """Abort the connection, which shows the client that its response is incomplete."""
    transport = getattr(request.channel, "transport", None)
    if transport is not None:
        transport.abortConnection()


class Reader:
    """Sends parts of a content as a response body, after the headers are set. Closes the content at the end."""

    log = Logger()

    def __init__(
        self, request: Request, content: Content, parts: Sequence[bytes | Span], threads: Threads, reactor: Any
    ) -> None:
        self._request = request
        self._content = content
        self._parts = list(parts)
        self._threads = threads
        self._reactor = reactor
        self._copier: _SendfileCopier | _WriteCopier | None = None
        self._stall_timer: Any = None

    def run(self) -> Deferred[None]:
        """
        Start sending; fires when everything has been handed over.

        If the content fails, the connection is aborted instead, and the Deferred is cancelled with the request.
        """
        done: Deferred[None] = Deferred(lambda _: self._stop())
        self._done = done
        self._request.write(b"")  # send the headers first: sendfile writes past the transport
        self._stall_timer = self._reactor.callLater(CLIENT_SILENCE, self._check_stalled)
        self._content.watch(self.wake)
        sendfile = _SendfileCopier.take(self, self._request, self._reactor)
        self._copier = sendfile or _WriteCopier(self, self._request, self._threads)
        self._copier.wake()
        return done

    def wake(self) -> None:
        """Send what has become available."""
        if self._copier is not None:
            self._copier.wake()

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
        self._stall_timer.reset(CLIENT_SILENCE)
        part = self._parts[0]
        if isinstance(part, Span):
            part.start += count
        elif count == len(part):
            self._parts.pop(0)
        else:
            self._parts[0] = part[count:]

    def finish_if_done(self) -> bool:
        """Finish if all is sent, or abort if the content failed. Return whether the reader has ended."""
        if self._copier is None:
            return True
        if not self._parts:
            self._stop()
            self._done.callback(None)
            return True
        if self._content.error is not None:
            self.abort()
            return True
        return False

    def abort(self) -> None:
        """Abort the connection: the rest can't be sent."""
        self._stop()
        abort(self._request)

    def use_writes(self) -> None:
        """Go on with writes: the kernel can't copy this file to this socket."""
        self._copier = _WriteCopier(self, self._request, self._threads)
        self._copier.wake()

    @property
    def fd(self) -> int:
        """The file descriptor of the content."""
        return self._content.fd

    def _check_stalled(self) -> None:
        self._stall_timer = self._reactor.callLater(CLIENT_SILENCE, self._check_stalled)
        if self.next_part(1) is not None:
            self.log.info("a connection was aborted: its client read nothing for {seconds} s", seconds=CLIENT_SILENCE)
            self.abort()

    def _stop(self) -> None:
        if self._copier is None:
            return
        self._copier.stop()
        self._copier = None
        self._stall_timer.cancel()
        self._content.unwatch(self.wake)
        self._content.close()


@implementer(IWriteDescriptor)
class _SendfileCopier:
    """Copies with sendfile to a duplicate of the client's socket. The reactor watches it besides the socket."""

    def __init__(self, reader: Reader, request: Request, fd: int, reactor: Any) -> None:
        self._reader = reader
        self._request = request
        self._fd = fd
        self._reactor = reactor
        self._watched = False

    @classmethod
    def take(cls, reader: Reader, request: Request, reactor: Any) -> _SendfileCopier | None:
        """Take over a plain TCP socket whose transport has sent everything; return None for any other."""
        transport = getattr(request.channel, "transport", None)
        if not isinstance(transport, Connection) or getattr(transport, "TLS", False) or not hasattr(os, "sendfile"):
            return None
        if request.chunked or transport.doWrite() is not None or transport.dataBuffer or transport._tempDataBuffer:  # noqa: SLF001 - the other half of dataBuffer
            return None
        return cls(reader, request, os.dup(transport.fileno()), reactor)

    def wake(self) -> None:
        if not self._watched:
            self._watched = True
            self._reactor.addWriter(self)

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "reader"

    def doWrite(self) -> None:
        part = self._reader.next_part(_KERNEL_BLOCK)
        if part is None:
            self._unwatch()
            self._reader.finish_if_done()
            return
        try:
            if isinstance(part, bytes):
                count = os.write(self._fd, part)
            else:
                count = os.sendfile(self._fd, self._reader.fd, part.start, (part.stop or 0) - part.start)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _NO_SENDFILE:
                self.stop()
                self._reader.use_writes()
            else:
                self._reader.abort()
            return
        if count == 0:
            self._reader.abort()  # the file was truncated
            return
        self._request.sentLength += count
        self._reader.sent(count)

    def connectionLost(self, reason: Failure) -> None:
        self._watched = False
        self._reader.abort()

    def stop(self) -> None:
        self._unwatch()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._reactor.removeWriter(self)


@implementer(IPushProducer)
class _WriteCopier:
    """Reads blocks in a thread and writes them, while the transport accepts more."""

    def __init__(self, reader: Reader, request: Request, threads: Threads) -> None:
        self._reader = reader
        self._request = request
        self._threads = threads
        self._paused = False
        self._reading = False
        self._stopped = False
        request.registerProducer(self, True)

    def wake(self) -> None:
        while not (self._paused or self._reading or self._stopped):
            part = self._reader.next_part(_BLOCK)
            if part is None:
                self._reader.finish_if_done()
                return
            if isinstance(part, bytes):
                self._write(part)
            else:
                self._reading = True
                fd = os.dup(self._reader.fd)  # the reader may close its own before the thread is done
                reading = self._threads.run(_pread, fd, (part.stop or 0) - part.start, part.start)
                reading.addCallbacks(self._read, self._not_read)

    def _read(self, block: bytes) -> None:
        self._reading = False
        if self._stopped:
            return
        if not block:
            self._reader.abort()
            return
        self._write(block)
        self.wake()

    def _not_read(self, failure: Failure) -> None:
        self._reading = False
        if not self._stopped:
            self._reader.abort()

    def _write(self, block: bytes) -> None:
        self._request.write(block)
        if not self._stopped:
            self._reader.sent(len(block))

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self.wake()

    def stopProducing(self) -> None:
        """Pause: the connection is lost, and the request is about to be cancelled."""
        self._paused = True

    def stop(self) -> None:
        self._stopped = True
        if self._request.channel is not None:
            self._request.unregisterProducer()


def _pread(fd: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)
