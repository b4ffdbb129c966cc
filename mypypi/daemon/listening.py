"""Binds the socket that MYPYPI_LISTEN describes, or adopts it from the process that bound it.

Knows Twisted's endpoints and ports. Must never know what is served there.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import serverFromString
from twisted.internet.tcp import Port as TCPPort
from twisted.internet.unix import Port as UNIXPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from mypypi.daemon.certificates import BadCertificate, Certificate, certificates_of
from mypypi.daemon.description import Description
from mypypi.daemon.lifecycle import CannotStart

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort, IProtocolFactory

#: Connections that may wait to be accepted, unless the endpoint sets a backlog. Twisted's default of 50 is soon reached
#: when many clients start at once. The kernel has a limit as well (net.core.somaxconn).
_BACKLOG = 1024
#: Connections that are accepted in one turn of the reactor; Twisted accepts a hundred and more. Those that are refused
#: give their descriptors back after the turn, and other clients are answered between two turns.
_ACCEPTED_AT_ONCE = 4


def listen(
    reactor: Any, description: str, factory: IProtocolFactory, listening: Callable[[IListeningPort], object]
) -> None:
    """
    Serve the factory at this endpoint description; `listening` gets the port.

    Raises CannotStart with the reason if that is not possible.
    """
    problems: list[Failure] = []

    def listens(port: IListeningPort) -> None:
        if "backlog=" not in description and "systemd:" not in description:
            with _socket_of(port) as bound:
                bound.listen(_BACKLOG)
        _accept_few(port)
        listening(port)

    try:
        certificates_of(Description.parse(description))  # its errors name the file
        serverFromString(reactor, description).listen(factory).addCallback(listens).addErrback(problems.append)
        if problems:
            problems[0].raiseException()
    except Exception as error:  # each kind of endpoint has its own errors: no such certificate, no such socket
        raise CannotStart(f"can't listen at {description}: {error}") from error


def listen_anew(reactor: Any, port: Any, description: str, factory: IProtocolFactory) -> list[Certificate]:
    """
    Read the files again that `description` names, for new connections to this port. Others keep what they have.

    Returns the certificates in use from now on. Raises CannotStart with the reason if a file can't be used; then
    nothing changes.
    """
    certificates = check(description)
    if certificates:
        listen(_Catching(reactor, port), _without_systemd(description), factory, lambda _: None)
    return certificates


def check(description: str) -> list[Certificate]:
    """Return the certificates that this endpoint names; none without TLS. Raises CannotStart with the reason."""
    try:
        return certificates_of(Description.parse(description))
    except BadCertificate as error:
        raise CannotStart(f"the certificate can't be used: {error}") from error


def adopt(
    reactor: Any,
    fd: int,
    description: str,
    factory: IProtocolFactory,
    listening: Callable[[IListeningPort], object],
) -> None:
    """
    Like `listen`, at a socket that another process bound as `description` says.

    `fd` is a descriptor of the socket. The other process still owns the socket: this one does not shut it down, and
    does not delete the file of a unix socket.
    """
    listen(_Adopting(reactor, fd), _without_systemd(description), factory, listening)


def _without_systemd(description: str) -> str:
    """Replace an endpoint of systemd, which passes its descriptors to one process only, by one that needs none."""
    return re.sub("systemd:.*", "tcp:0:backlog=0", description)


class _Listening:
    """
    A reactor for endpoints that binds nothing: listening on anything calls `_listen` with the factory.

    So TLS, and any wrapper of a Twisted plugin, is the same there as in the process that bound the socket.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: IProtocolFactory, *_: object, **__: object) -> IListeningPort:
        return self._listen(factory)

    def listenSSL(self, port: int, factory: IProtocolFactory, contextFactory: Any, **_: object) -> IListeningPort:  # noqa: N803 - the interface's name
        return self._listen(TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(self, address: str, factory: IProtocolFactory, **_: object) -> IListeningPort:
        return self._listen(factory)

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        raise NotImplementedError


class _Catching(_Listening):
    """Gives the factory to a port that listens already, for its next connections."""

    def __init__(self, reactor: Any, port: Any) -> None:
        super().__init__(reactor)
        self._port = port

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        factory.doStart()
        self._port.factory.doStop()
        self._port.factory = factory
        return self._port  # type: ignore[no-any-return]


class _Adopting(_Listening):
    """Adopts the given socket."""

    def __init__(self, reactor: Any, fd: int) -> None:
        super().__init__(reactor)
        self._fd = fd

    def _listen(self, factory: IProtocolFactory) -> IListeningPort:
        with socket.socket(fileno=os.dup(self._fd)) as bound:
            family = bound.family
        port: Any
        if family == socket.AF_UNIX:
            port = UNIXPort._fromListeningDescriptor(self._reactor, self._fd, factory)  # noqa: SLF001 - as in adoptStreamPort
            port._bindPath = b"\0"  # noqa: SLF001 - no file: the port would set its mode and delete it
            port._shouldShutdown = False  # noqa: SLF001 - as in tcp.Port: a shutdown ends the socket for all its processes
            port.backlog = _BACKLOG  # startListening sets it again, for all processes that share the socket
            port.startListening()
        else:
            port = self._reactor.adoptStreamPort(self._fd, family, factory)
        os.close(self._fd)
        port.socket = _Shared(port.socket.detach(), port)
        port.fileno = port.socket.fileno
        return port  # type: ignore[no-any-return]


class _Shared(socket.socket):
    """A shared listening socket, which its owner may shut down before this process stops."""

    def __init__(self, fd: int, port: Any) -> None:
        super().__init__(fileno=fd)
        self._port = port

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno != errno.EINVAL:  # accept(2): the socket does not listen
                raise
            self._port.stopReading()
            raise BlockingIOError(errno.EAGAIN, "the socket was shut down") from None


def _accept_few(port: Any) -> None:
    """Limit the connections that the port accepts in one turn of the reactor."""
    is_limited = "doRead" in vars(port)
    if is_limited or not issubclass(type(port), TCPPort):
        return
    accept = port.doRead

    def accept_few() -> None:
        port.numberAccepts = min(port.numberAccepts, _ACCEPTED_AT_ONCE)
        accept()

    port.doRead = accept_few


def _socket_of(port: Any) -> socket.socket:
    """Return a duplicate of the port's socket. The caller closes it."""
    return socket.socket(fileno=os.dup(port.fileno()))


def url_of(port: IListeningPort, description: Description, name: str | None = None) -> str | None:
    """Return the URL of a listening TCP port, with this host name or else its address; None for another port."""
    host = port.getHost()
    if not isinstance(host, IPv4Address | IPv6Address):
        return None
    address = f"[{host.host}]" if ":" in host.host else host.host
    if address in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
        address = "127.0.0.1"
    return f"{'https' if description.has_tls else 'http'}://{name or address}:{host.port}/"


def socket_path_of(port: IListeningPort) -> str:
    """Return the path of a listening unix socket; empty for another port. An abstract socket's begins with "@"."""
    host = port.getHost()
    name = os.fsdecode(host.name or b"") if isinstance(host, UNIXAddress) else ""
    return f"@{name[1:]}" if name.startswith("\0") else name
