"""Copies from a file to a client's socket: by the kernel where that works, else by reads and writes.

On a plain socket the kernel copies (sendfile), so the bytes never enter Python. Elsewhere (TLS, tests in memory, no
descriptor left) a thread reads blocks, and the reactor writes them. Knows requests and sockets. Must never know what
is sent, or when it ends: its `Reader` does.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

from twisted.internet.interfaces import IPushProducer, IWriteDescriptor
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.files.content import Content

#: A `mypypi.web.content_reader.Reader`, whose module imports this one.
Reader: TypeAlias = Any
#: Bytes in one read and write, and bytes in one sendfile, of which the kernel sends as many as the socket accepts.
_BLOCK = 256 * 1024
_KERNEL_BLOCK = 4 * 1024 * 1024
#: Tells the kernel that more follows, so that the head is sent with the first bytes of the body (Linux).
_MORE = getattr(socket, "MSG_MORE", 0)
#: Error numbers of a file system or socket that does not support sendfile.
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
#: Error numbers of a socket whose client can't be reached any more, besides those of ConnectionError and TimeoutError.
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)


def send_at_once(transport: Any, head: bytes, content: Content) -> int:
    """
    Send a head, and as much of a whole content as a plain socket takes. Return how many bytes of the content it took.

    What goes wrong shows when the rest is sent.
    """
    try:
        sent = transport.socket.send(head, _MORE)
    except OSError:
        sent = 0
    if sent < len(head):
        transport.write(head[sent:])
        return 0
    try:
        return os.sendfile(transport.fileno(), content.fd, 0, content.length)
    except OSError:
        return 0


@implementer(IWriteDescriptor)
class SendfileCopier:
    """Copies with sendfile to a duplicate of the client's socket. The reactor watches it besides the socket."""

    def __init__(self, reader: Reader, request: Request, fd: int, reactor: Any) -> None:
        self._reader = reader
        self._request = request
        self._fd = fd
        self._reactor = reactor
        self._watched = False

    @classmethod
    def take(cls, reader: Reader, request: Request, reactor: Any) -> SendfileCopier | None:
        """
        Take over a plain TCP socket whose transport has sent everything.

        Returns None for any other, and where no descriptor is left for the duplicate.
        """
        transport = getattr(request.channel, "transport", None)
        if not isinstance(transport, Connection) or getattr(transport, "TLS", False) or not hasattr(os, "sendfile"):
            return None
        if request.chunked or transport.doWrite() is not None or transport.dataBuffer or transport._tempDataBuffer:  # noqa: SLF001 - the other half of dataBuffer
            return None
        try:
            return cls(reader, request, os.dup(transport.fileno()), reactor)
        except OSError:
            return None

    def wake(self) -> None:
        if not self._watched:
            self._watched = True
            self._reactor.addWriter(self)

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:
        return "reader"

    def doWrite(self) -> None:
        try:
            self._copy()
        except Exception:  # noqa: BLE001 - whatever it is, the response has begun
            self._reader.fail(Failure())

    def _copy(self) -> None:
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
            elif isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _UNREACHABLE:
                self._reader.disconnect()
            else:
                self._reader.fail(Failure())
            return
        if count == 0:
            self._reader.fail_truncated()
            return
        self._request.sentLength += count
        self._reader.sent(count)

    def connectionLost(self, reason: Failure) -> None:
        self._watched = False
        self._reader.disconnect()

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
class WriteCopier:
    """Reads blocks in a thread and writes them, while the transport accepts more."""

    def __init__(self, reader: Reader, request: Request) -> None:
        self._reader = reader
        self._request = request
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
                self._reader.read(part).addCallback(self._read).addErrback(self._fail)

    def _read(self, block: bytes) -> None:
        self._reading = False
        if self._stopped:
            return
        if not block:
            self._reader.fail_truncated()
            return
        self._write(block)
        self.wake()

    def _fail(self, failure: Failure) -> None:
        self._reading = False
        if not self._stopped:
            self._reader.fail(failure)

    def _write(self, block: bytes) -> None:
        self._request.write(block)
        if not self._stopped:
            self._reader.sent(len(block))

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._reader.wake()

    def stopProducing(self) -> None:
        """Pause: the connection is lost, and the request is about to be cancelled."""
        self._paused = True

    def stop(self) -> None:
        self._stopped = True
        if self._request.channel is not None:
            self._request.unregisterProducer()
