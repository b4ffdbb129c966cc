"""``twistd mypypi``: server and worker in one daemon. It runs a Redis if the settings name none."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.clock import use_steady_clock
from mypypi.daemon.announcement import Announcement
from mypypi.daemon.application import make_application
from mypypi.daemon.backends import Backends
from mypypi.daemon.directories import check_directories
from mypypi.daemon.embedded_redis import EmbeddedRedis
from mypypi.daemon.index import Index
from mypypi.daemon.lifecycle import CannotStart, OrderedServices, stop_with_failure
from mypypi.daemon.options import ServerOptions
from mypypi.daemon.redis_program import EmbeddedRedisError, NoRedisServer, find_server
from mypypi.daemon.server import Server
from mypypi.daemon.signals import Signals
from mypypi.daemon.supervisor import Supervisor
from mypypi.daemon.worker_tap import make_worker
from mypypi.settings.settings import Settings
from mypypi.settings.types import RedisUrl

#: Seconds for which a start waits for the embedded Redis, which may have much data to load. Then it serves without it.
#: Clients that have connected wait as well; pip gives up after 15 s.
_EMBEDDED_WAIT = 10.0


class Options(ServerOptions):
    """
    The options of the daemon for one machine.

    The settings must name a Redis, or a redis-server must be installed.
    """

    embedded = True

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if settings.redis_url is None and find_server() is None:
            raise CannotStart(str(NoRedisServer()))


class AllInOne(Service):
    """Starts Redis, then the server (or several) and the worker; stops them in reverse order."""

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any, *, relay: bool = False) -> None:
        """With `relay`, several server processes log to this process's log."""
        self._settings = settings
        self._reactor = reactor
        self._redis: EmbeddedRedis | None = None
        redis_url = settings.redis_url
        if redis_url is None:
            self._redis = EmbeddedRedis(reactor, settings.data_directory)
            redis_url = RedisUrl.parse(self._redis.url)
        self._redis_words = (
            f"{redis_url}" if self._redis is None else f"a private one, in {settings.data_directory / 'redis'},"
        )
        backends = Backends(settings, redis_url, reactor)
        index = Index(backends)
        self._server: Server | Supervisor
        if settings.workers == 1:
            self._server = Server(make_application(backends, index), settings, reactor)
        else:
            url = self._redis.url if self._redis is not None else None
            self._server = Supervisor(settings, reactor, redis_url=url, relay=relay)
        both = MultiService()  # stops both at the same time: each waits for its own requests or jobs
        for service in (self._server, make_worker(backends, index)):
            service.setServiceParent(both)
        # A supervisor's children wait for Redis themselves, and it says when all are ready.
        announcement = [Announcement(backends.redis, reactor, self._serve)] if settings.workers == 1 else []
        self._rest = OrderedServices([backends, index, both, *announcement])
        #: What SIGHUP does.
        self.reloads = [self._server.reload, backends.reload]

    def privilegedStartService(self) -> None:
        self._server.privilegedStartService()

    def startService(self) -> None:
        check_directories(self._settings)
        super().startService()
        Deferred.fromCoroutine(self._start()).addErrback(self._failed)

    async def _start(self) -> None:
        if self._redis is not None:
            ready = self._redis.when_ready()  # before the start: without a waiter, a failure is logged there too
            self._redis.startService()
            try:
                await ready.addTimeout(_EMBEDDED_WAIT, self._reactor)
            except DeferredTimeout:
                self._redis.keep_trying()
        if self.running:
            self._rest.startService()

    def _serve(self, redis: str) -> None:
        assert isinstance(self._server, Server)
        self._server.accept()
        ready = self._server.ready(f"{self._redis_words} {redis}")
        self.log.info("{record}", several_lines=True, record=ready)

    def _failed(self, failure: Failure) -> None:
        if not self.running:
            return
        if failure.check(EmbeddedRedisError, CannotStart):
            self.log.critical("{why}", why=failure.value)
        else:
            self.log.failure("the daemon could not start", failure)
        stop_with_failure(self._reactor)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._rest.running:
            await self._rest.stopService()
        if self._redis is not None:
            await self._redis.stopService()


def makeService(options: Options) -> IService:
    """Return the service of server, worker and Redis."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    use_steady_clock(reactor)
    daemon = AllInOne(options.settings, reactor, relay=options.logs_elsewhere)
    Signals(reactor, daemon.reloads).install()
    return daemon


__all__ = ["Options", "makeService"]
