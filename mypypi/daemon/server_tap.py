"""``twistd mypypi-server``: answers requests, with the Redis that the settings name."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi.daemon import child
from mypypi.daemon.backends import InOrder, Parts
from mypypi.daemon.options import ServerOptions as Options
from mypypi.daemon.server import Server
from mypypi.daemon.supervisor import ServerProcesses
from mypypi.errors import CatalogDown
from mypypi.settings.settings import Settings

log = Logger()


class _Announcement(Service):
    """Says that the server is ready, and whether Redis is."""

    def __init__(self, parts: Parts, say_ready: Callable[[str], None]) -> None:
        self._parts = parts
        self._say_ready = say_ready

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._find_out()).addErrback(lambda failure: log.failure("not ready", failure))

    async def _find_out(self) -> None:
        try:
            await self._parts.redis.check()
            redis = "Redis answers"
        except CatalogDown as error:
            redis = f"without Redis for now ({error})"
        if self.running:
            self._say_ready(redis)


def makeService(options: Options) -> IService:
    """The service of this daemon: the server, the parent of several, or one of those."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    settings = options.settings
    if child.number() is not None:
        return _one_of_several(settings, reactor)
    if settings.workers > 1:
        return ServerProcesses(settings, reactor, relay=options.logs_elsewhere)
    parts = _parts(settings, reactor)
    server = Server(parts)
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(_hung_up))  # type: ignore[attr-defined] # any reactor has it
    return InOrder([parts, server, _Announcement(parts, lambda redis: _say_ready(server, redis))])


def _one_of_several(settings: Settings, reactor: Any) -> IService:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # that is for the parent, whoever else gets it as well
    parts = _parts(settings, reactor)
    membership = child.Membership(reactor)
    announcement = _Announcement(parts, membership.say_ready)
    return InOrder([parts, Server(parts, adopted=child.LISTENING), membership, announcement])


def _parts(settings: Settings, reactor: Any) -> Parts:
    assert settings.redis_url is not None
    return Parts(settings, settings.redis_url, reactor)


def _say_ready(server: Server, redis: str) -> None:
    log.info("ready: {ready}; {redis}", ready=server.ready_line, redis=redis)


def _hung_up() -> None:
    """Without this, a reload would end the server at once."""
    log.warn("SIGHUP replaces server processes where there are several (WORKERS); this one serves on, restart it")


__all__ = ["Options", "makeService"]
