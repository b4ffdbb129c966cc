"""``twistd mypypi-server``: answers requests, with the Redis that the settings name."""

from __future__ import annotations

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi.errors import CatalogDown
from mypypi.options import ServerOptions as Options
from mypypi.parts import InOrder, Parts
from mypypi.server import Server

log = Logger()


class _Announcement(Service):
    """Says that the server is ready, and whether Redis is."""

    def __init__(self, parts: Parts, server: Server) -> None:
        self._parts = parts
        self._server = server

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._say_ready()).addErrback(lambda failure: log.failure("not ready", failure))

    async def _say_ready(self) -> None:
        try:
            await self._parts.redis.check()
            redis = "Redis answers"
        except CatalogDown as error:
            redis = f"without Redis for now ({error})"
        log.info("ready: {ready}; {redis}", ready=self._server.ready_line, redis=redis)


def makeService(options: Options) -> IService:
    """The service of this daemon."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    settings = options.settings
    assert settings.redis_url is not None
    if settings.workers > 1:
        log.info("one process serves in this version; WORKERS={workers} is for a later one", workers=settings.workers)
    parts = Parts(settings, settings.redis_url, reactor)
    server = Server(parts)
    return InOrder([parts, server, _Announcement(parts, server)])


__all__ = ["Options", "makeService"]
