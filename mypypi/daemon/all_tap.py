"""``twistd mypypi``: server and worker in one process, with a Redis of their own where the settings name none."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python import usage

from mypypi.daemon.backends import InOrder, Parts
from mypypi.daemon.embedded_redis import EmbeddedRedis, EmbeddedRedisError, NoServer, find_server
from mypypi.daemon.listening import CannotStart
from mypypi.daemon.options import ServerOptions
from mypypi.daemon.server import Server, give_up
from mypypi.daemon.supervisor import ServerProcesses
from mypypi.settings.settings import Settings
from mypypi.settings.types import RedisUrl


class Options(ServerOptions):
    """The defaults of one machine; a Redis must be named or be there to be started."""

    embedded = True

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if settings.redis_url is None and find_server() is None:
            raise usage.UsageError(str(NoServer()))


class Everything(Service):
    """Starts Redis, then the server, or several, and the worker; stops them the other way round."""

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any, *, relay: bool = False) -> None:
        self._settings = settings
        self._reactor = reactor
        self._redis: EmbeddedRedis | None = None
        redis_url = settings.redis_url
        if redis_url is None:
            self._redis = EmbeddedRedis(reactor, settings.data_directory)
            redis_url = RedisUrl.parse(self._redis.url)
        parts = Parts(settings, redis_url, reactor)
        self._server: Server | ServerProcesses
        if settings.workers == 1:
            self._server = Server(parts)
        else:
            url = self._redis.url if self._redis is not None else None
            self._server = ServerProcesses(settings, reactor, redis_url=url, relay=relay)
        both = MultiService()  # which stops them at the same time: each waits for what it has under way
        for service in (self._server, parts.make_worker()):
            service.setServiceParent(both)
        self._rest = InOrder([parts, both])

    def privilegedStartService(self) -> None:
        self._server.privilegedStartService()

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._start()).addErrback(self._give_up)

    async def _start(self) -> None:
        if self._redis is not None:
            ready = self._redis.when_ready()  # asked for first: a failure that nobody waits for is logged there as well
            self._redis.startService()
            await ready
        if self.running:
            self._rest.startService()
            if isinstance(self._server, Server):  # several say so themselves, when all of them are
                self.log.info("ready: {ready}", ready=self._server.ready_line)

    def _give_up(self, failure: Any) -> None:
        if not self.running:
            return
        if failure.check(EmbeddedRedisError, CannotStart):
            self.log.critical("{why}", why=failure.value)
        else:
            self.log.failure("could not start", failure)
        give_up(self._reactor)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._rest.running:
            await self._rest.stopService()
        if self._redis is not None:
            await self._redis.stopService()


def makeService(options: Options) -> IService:
    """The service of this daemon."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    return Everything(options.settings, reactor, relay=options.logs_elsewhere)


__all__ = ["Options", "makeService"]
