"""A client's view of a content: copies it to the client at the client's pace.

On a plain socket the kernel copies (sendfile), so bytes never enter Python; elsewhere (TLS, tests in memory) blocks are
read in a thread and written. Knows contents, requests and sockets. Must never know what the bytes are.
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

#: What is read and written at once, and what the kernel is asked to send at once, which is as much as the socket takes.
_BLOCK = 256 * 1024
_KERNEL_BLOCK = 4 * 1024 * 1024
#: Seconds without a byte taken, after which a client counts as gone.
CLIENT_SILENCE = 300.0
#: A file system or socket that can't do sendfile says so in one of these ways.
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@define
class Span:
    """A part of the content still to be sent: from `start` up to `stop`, both bytes; None for the end, wherever."""

    start: int
    stop: int | None


def abort(request: Request) -> None:
    """Break the connection, so that what was sent so far can't be taken for all of it."""
    transport = getattr(request.channel, "transport", None)
    if transport is not None:
        transport.abortConnection()


class Reader:
    """Sends `parts` of a content as the body of a response whose headers are set. Closes the content in the end."""

    log = Logger()

    def __init__(
        self, request: Request, content: Content, parts: Sequence[bytes | Span], threads: Threads, reactor: Any
    ) -> None:
        self._request = request
        self._content = content
        self._parts = list(parts)
        self._threads = threads
        self._reactor = reactor
        self._way: _Kernel | _Writes | None = None
        self._patience: Any = None

    def run(self) -> Deferred[None]:
        """
        Fires when all has been handed over. When the content fails, the connection is broken instead, and the
        Deferred stays as it is until whoever handles the request cancels it.
        """
        done: Deferred[None] = Deferred(lambda _: self._stop())
        self._done = done
        self._request.write(b"")  # the headers, which must be on their way before the kernel writes behind our back
        self._patience = self._reactor.callLater(CLIENT_SILENCE, self._lost_patience)
        self._content.watch(self.go_on)
        self._way = _Kernel.take(self, self._request, self._reactor) or _Writes(self, self._request, self._threads)
        self._way.wake()
        return done

    def go_on(self) -> None:
        """Look again for what can be sent."""
        if self._way is not None:
            self._way.wake()

    def next_part(self, most: int) -> bytes | Span | None:
        """What can be sent now, a span cut to what may be read and to `most` bytes; None where that is nothing."""
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
        """The client has taken so many bytes of the first part."""
        self._patience.reset(CLIENT_SILENCE)
        part = self._parts[0]
        if isinstance(part, Span):
            part.start += count
        elif count == len(part):
            self._parts.pop(0)
        else:
            self._parts[0] = part[count:]

    def settle(self) -> bool:
        """Nothing can be sent now: whether that is for good, all sent or all lost."""
        if self._way is None:
            return True
        if not self._parts:
            self._stop()
            self._done.callback(None)
            return True
        if self._content.error is not None:
            self.broken()
            return True
        return False

    def broken(self) -> None:
        """The rest can't be sent."""
        self._stop()
        abort(self._request)

    def use_writes(self) -> None:
        """The kernel can't copy this file to this socket."""
        self._way = _Writes(self, self._request, self._threads)
        self._way.wake()

    @property
    def fd(self) -> int:
        """The content's descriptor."""
        return self._content.fd

    def _lost_patience(self) -> None:
        self._patience = self._reactor.callLater(CLIENT_SILENCE, self._lost_patience)
        if self.next_part(1) is not None:
            self.log.info("a client took nothing for {seconds} s, closing", seconds=CLIENT_SILENCE)
            self.broken()

    def _stop(self) -> None:
        if self._way is None:
            return
        self._way.stop()
        self._way = None
        self._patience.cancel()
        self._content.unwatch(self.go_on)
        self._content.close()


@implementer(IWriteDescriptor)
class _Kernel:
    """sendfile to a duplicate of the client's socket, which the reactor watches on its own."""

    def __init__(self, reader: Reader, request: Request, fd: int, reactor: Any) -> None:
        self._reader = reader
        self._request = request
        self._fd = fd
        self._reactor = reactor
        self._watched = False

    @classmethod
    def take(cls, reader: Reader, request: Request, reactor: Any) -> _Kernel | None:
        """Take over the client's socket once what was written to it is out; None where that can't be done."""
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
            self._reader.settle()
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
                self._reader.broken()
            return
        if count == 0:
            self._reader.broken()  # the file is shorter than it was
            return
        self._request.sentLength += count
        self._reader.sent(count)

    def connectionLost(self, reason: Failure) -> None:
        self._watched = False
        self._reader.broken()

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
class _Writes:
    """Blocks read in a thread and written to the request, as long as its transport wants more."""

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
                self._reader.settle()
                return
            if isinstance(part, bytes):
                self._write(part)
            else:
                self._reading = True
                fd = os.dup(self._reader.fd)  # the reader may be gone before the thread is done
                reading = self._threads.run(_pread, fd, (part.stop or 0) - part.start, part.start)
                reading.addCallbacks(self._read, self._not_read)

    def _read(self, block: bytes) -> None:
        self._reading = False
        if self._stopped:
            return
        if not block:
            self._reader.broken()
            return
        self._write(block)
        self.wake()

    def _not_read(self, failure: Failure) -> None:
        self._reading = False
        if not self._stopped:
            self._reader.broken()

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
        """The connection is gone, which whoever handles the request learns as well."""
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
