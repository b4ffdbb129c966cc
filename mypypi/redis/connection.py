"""One connection to Redis, on top of txredisapi's protocol.

Importing txredisapi installs the default reactor: import this module after the intended reactor has been installed.
Knows the protocol's handshake. Must never know when to connect, nor which commands are sent.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import txredisapi
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IProtocol, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure

from mypypi.tls import ExplainedTLS
from mypypi.turns import Turns

if TYPE_CHECKING:
    from mypypi.settings.types import RedisUrl


class Connection(txredisapi.RedisProtocol):  # type: ignore[misc] # txredisapi has no types
    """
    A connection that records when bytes last arrived, and why it ended.

    Many answers that arrive at once are handed over in several turns of the reactor: each lets a request go on.
    """

    def __init__(self, reactor: IReactorTime, url: RedisUrl) -> None:
        # By default, txredisapi converts replies, such as "1.10" to 1.1. A database is always selected: without any
        # command at the start, a connection would count as ready before TLS has checked the certificate.
        password = None if url.password is None else url.password.reveal()
        super().__init__(
            charset=None, password=password, dbid=url.db, convertNumbers=False, username=url.username or None
        )
        self._seconds = reactor.seconds
        self.heard_at = reactor.seconds()
        self.ended_because: BaseException | None = None
        self._turns = Turns(reactor)

    def replyReceived(self, reply: object) -> None:
        if self.ended_because is None:
            self._turns.begin(partial(super().replyReceived, reply))
        else:  # txredisapi answers the commands that wait, until none waits
            super().replyReceived(reply)

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:  # noqa: FBT001, FBT002 - txredisapi's signature
        self.heard_at = self._seconds()
        super().dataReceived(data, unpause)

    def connectionLost(self, why: Failure) -> None:
        self._turns.finish()
        self.ended_because = why.value
        super().connectionLost(why)


class ConnectionAttempt(Factory):
    """
    The factory of one connection, as txredisapi's protocol requires it.

    `ready` fires once: with None when the connection can be used, or with the reason why it can't.
    """

    noisy = False
    isLazy = False

    def __init__(self, reactor: Any, url: RedisUrl) -> None:
        self.ready: Deferred[None] = Deferred()
        self._reactor = reactor
        self._url = url
        # Made for each connection, since it reads the trusted certificates, which may have changed meanwhile.
        self._tls = ExplainedTLS(url.host, optionsForClientTLS(url.host)) if url.kind == "tls" else None

    def connect(self, timeout: float) -> Deferred[IProtocol]:
        """Connect to the URL, with TLS for ``rediss://``, within `timeout` seconds."""
        url = self._url
        endpoint: IStreamClientEndpoint
        if url.kind == "unix":
            endpoint = UNIXClientEndpoint(self._reactor, url.path, timeout=timeout)
        else:
            endpoint = HostnameEndpoint(self._reactor, url.host, url.port, timeout=timeout)
        if self._tls is not None:
            endpoint = wrapClientTLS(self._tls, endpoint)
        return endpoint.connect(self)

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        connection = Connection(self._reactor, self._url)
        connection.factory = self
        connection.whenConnected().addCallback(lambda _: self._settle(None))
        connection.whenDisconnected().addCallback(
            lambda _: self._settle(connection.ended_because or ConnectionError("connection lost"))
        )
        return connection

    def stopTrying(self) -> None:
        """
        Do nothing; the protocol calls this after a refused password or database.

        The client keeps trying, since an operator may correct the server's settings.
        """

    def connectionError(self, why: str) -> None:
        self._settle(ConnectionError(why.removeprefix("Redis error: ")))

    def _settle(self, error: BaseException | None) -> None:
        if self.ready.called:
            return
        if error is None:
            self.ready.callback(None)
            return
        explained = self._tls.explain(error) if self._tls is not None else None
        self.ready.errback(error if explained is None else ConnectionError(explained))
