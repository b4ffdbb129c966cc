"""The server: binds the port, serves the application, and drains its connections.

Knows ports and connections. Must never know what is served.
"""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import IResource

from mypypi.daemon.announcement import ServerReady
from mypypi.daemon.listening import adopt, listen, listen_anew
from mypypi.settings.settings import Settings
from mypypi.web.connections import Connections
from mypypi.web.hot_answers import HotAnswers
from mypypi.web.site import WebSite


class Server(Service):
    """
    Serves an application at the endpoint in the settings, with or without Redis, from `accept` on.

    With `adopted`, it serves at the socket with that descriptor, which another process bound.
    """

    log = Logger()

    def __init__(self, application: IResource, settings: Settings, reactor: Any, adopted: int | None = None) -> None:
        self._application = application
        self._settings = settings
        self._reactor = reactor
        self._adopted = adopted
        self._port: Any = None
        self._accepts = False
        self._site: WebSite | None = None

    def privilegedStartService(self) -> None:
        """Bind the port, before twistd drops privileges. Raises CannotStart with the reason."""
        settings = self._settings
        most, per_address = settings.max_connections, settings.connections_per_address
        connections = Connections(self._reactor, most, per_address, settings.trusted_proxies)
        hot = HotAnswers(settings.trusted_proxies)
        self._site = site = WebSite(self._application, self._reactor, connections, hot)
        if self._adopted is None:
            listen(self._reactor, settings.listen, site, self._listening)
        else:
            adopt(self._reactor, self._adopted, settings.listen, site, self._listening)

    def startService(self) -> None:
        super().startService()
        if self._port is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """
        Drain the server; fires once no connection is left.

        It stops listening and closes idle connections. Requests get MYPYPI_DRAIN_TIME seconds, and are aborted then.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def reload(self) -> None:
        """
        Use the certificate that is on the disk by now, for new connections. Others go on as they are.

        Raises CannotStart, with the reason, if a file can't be used; then the old certificate stays.
        """
        if self._port is not None and self._site is not None:
            for certificate in listen_anew(self._reactor, self._port, self._settings.listen, self._site):
                self.log.info("new connections get the certificate {certificate}", certificate=str(certificate))

    def accept(self) -> None:
        """Accept connections from now on. Until then, the clients that have connected wait."""
        self._accepts = True
        if self._port is not None:
            self._port.startReading()

    def ready(self, redis: str) -> ServerReady:
        """Return the message for the operator; `redis` describes the Redis in use."""
        return ServerReady.of(self._settings, self._port, redis)

    async def _stop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        await deferLater(self._reactor, 0)  # requests that have arrived by now are read first
        if self._site is not None:
            drained = self._site.drain()
            deadline = self._reactor.callLater(self._settings.drain_time, self._abort, self._site)
            await drained
            if deadline.active():
                deadline.cancel()

    def _abort(self, site: WebSite) -> None:
        count, seconds = site.abort(), self._settings.drain_time
        self.log.warn("{count} connections were broken: they did not end in {seconds} s", count=count, seconds=seconds)

    def _listening(self, port: Any) -> None:
        self._port = port
        if not self._accepts:
            port.stopReading()
