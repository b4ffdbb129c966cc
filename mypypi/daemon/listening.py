"""Where a server listens: the socket that MYPYPI_LISTEN describes, bound here or by the process that started this one.

Knows Twisted's endpoints and ports. Must never know what is served there.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.unix import Port as UNIXPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from mypypi.daemon.lifecycle import CannotStart

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory

#: Connections that may wait to be accepted, where the endpoint does not say: Twisted's own 50 are soon there when many
#: clients start at once. The kernel has a limit besides (net.core.somaxconn).
_BACKLOG = 1024


def listen(
    reactor: Any, description: str, factory: IProtocolFactory, listening: Callable[[IListeningPort], object]
) -> None:
    """Have the factory serve there; `listening` gets the port. Raises CannotStart with what keeps it from listening."""
    problems: list[Failure] = []

    def listens(port: IListeningPort) -> None:
        if "backlog=" not in description and "systemd:" not in description:
            with _socket_of(port) as bound:
                bound.listen(_BACKLOG)
        listening(port)

    try:
        serverFromString(reactor, description).listen(factory).addCallback(listens).addErrback(problems.append)
        if problems:
            problems[0].raiseException()
    except Exception as error:  # each kind of endpoint has its own: no such certificate, no such socket
        raise CannotStart(f"can't listen at {description}: {error}") from error


def adopt(
    reactor: Any,
    fd: int,
    description: str,
    factory: IProtocolFactory,
    listening: Callable[[IListeningPort], object],
) -> None:
    """
    As `listen`, at the socket behind this descriptor, which another process bound as `description` says.

    That one goes on owning it: here it is neither shut down nor, on a file system, taken away.
    """
    # systemd's descriptors are those of the process that it started; all that counts here is what lies around them.
    listen(_Adopting(reactor, fd), re.sub("systemd:.*", "tcp:0:backlog=0", description), factory, listening)


class _Adopting:
    """
    Stands in for the reactor where an endpoint is about to listen: whatever it asks for is the socket that is there.

    So TLS, and what a plugin of Twisted's lays around an endpoint, is here what it is where the socket was bound.
    """

    def __init__(self, reactor: Any, fd: int) -> None:
        self._reactor = reactor
        self._fd = fd

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: IProtocolFactory, **_: object) -> IListeningPort:
        return self._adopt(factory)

    def listenSSL(self, port: int, factory: IProtocolFactory, contextFactory: Any, **_: object) -> IListeningPort:  # noqa: N803 - the interface's name
        return self._adopt(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(self, address: str, factory: IProtocolFactory, **_: object) -> IListeningPort:
        return self._adopt(factory)

    def _adopt(self, factory: IProtocolFactory) -> IListeningPort:
        with socket.socket(fileno=os.dup(self._fd)) as bound:
            family = bound.family
        port: Any
        if family == socket.AF_UNIX:
            port = UNIXPort._fromListeningDescriptor(self._reactor, self._fd, factory)  # noqa: SLF001 - as in adoptStreamPort
            port._bindPath = b"\0"  # noqa: SLF001 - on no file system: it would set the file's mode, and delete it
            port._shouldShutdown = False  # noqa: SLF001 - as tcp.Port has it: that would end it for all who share it
            port.backlog = _BACKLOG  # it sets this anew, for all who share the socket
            port.startListening()
        else:
            port = self._reactor.adoptStreamPort(self._fd, family, factory)
        os.close(self._fd)
        port.socket = _Shared(port.socket.detach(), port)
        port.fileno = port.socket.fileno
        return port  # type: ignore[no-any-return]


class _Shared(socket.socket):
    """A listening socket, which its owner may shut before this process has heard that all is to end."""

    def __init__(self, fd: int, port: Any) -> None:
        super().__init__(fileno=fd)
        self._port = port

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno != errno.EINVAL:  # accept(2): it does not listen
                raise
            self._port.stopReading()
            raise BlockingIOError(errno.EAGAIN, "nobody connects any more") from None


def _socket_of(port: Any) -> socket.socket:
    """The port's socket once more, to be closed by whoever asks."""
    return socket.socket(fileno=os.dup(port.fileno()))


def address_of(port: IListeningPort, description: str) -> str:
    """The URL of a listening port; its own words where it is none of TCP's."""
    host = port.getHost()
    if not isinstance(host, IPv4Address | IPv6Address):
        return str(host)
    name = f"[{host.host}]" if ":" in host.host else host.host
    if name in ("0.0.0.0", "[::]"):  # noqa: S104 - said, not bound
        name = "127.0.0.1"
    return f"{'https' if description.startswith('ssl:') else 'http'}://{name}:{host.port}/"
