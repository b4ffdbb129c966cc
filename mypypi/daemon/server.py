"""The server: its routes put together from the parts, and the port that they are served at.

Knows every kind of part by its class. What a part does is none of its business.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.resource import IResource, Resource

from mypypi.daemon.listening import address_of, adopt, listen
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import CatalogDown, JobsFailed
from mypypi.observability.metrics import Asked, latest
from mypypi.pages.memory_cache import MemoryCache
from mypypi.pages.page_cache import Pages
from mypypi.pages.rendering import Press
from mypypi.pages.revalidation import PAGE_LEASE
from mypypi.proxy.cold_files import Cold, ColdFiles
from mypypi.proxy.proxy import Proxy
from mypypi.redis.leases import Leases
from mypypi.web.files import Files
from mypypi.web.health import Check, Health, OperatorRoutes
from mypypi.web.npm import NPMRoutes
from mypypi.web.pages import PageResponses
from mypypi.web.public_address import Addresses
from mypypi.web.pypi import PyPIRoutes
from mypypi.web.site import WebSite
from mypypi.web.validation import Gate

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from mypypi.daemon.backends import Parts
    from mypypi.model import QueueState
    from mypypi.settings.settings import Settings

#: Seconds for which a scrape waits to hear of the queue.
_QUEUE_PATIENCE = 3.0
_ROUTES: dict[str, type[PyPIRoutes | NPMRoutes]] = {"pypi": PyPIRoutes, "npm": NPMRoutes}


def make_resource(parts: Parts) -> IResource:
    """The whole application as a resource."""
    settings, reactor = parts.settings, parts.reactor
    ecosystem = ECOSYSTEMS[settings.package_type](settings.upstream_url)
    derived_bytes = settings.hot_pages_bytes // 4
    pages = Pages(
        ecosystem,
        parts.catalog,
        parts.upstream,
        Press(settings.package_type, settings.upstream_url, parts.press_threads),
        parts.press_threads,
        reactor,
        Leases(parts.catalog, parts.process, reactor, PAGE_LEASE),
        parts.pauses,
        cache_time=settings.cache_time,
        negative_cache_time=settings.negative_cache_time,
        stale_after=settings.stale_after,
        memory=MemoryCache(settings.hot_pages_bytes - derived_bytes, derived_bytes),
    )
    policy = ColdFiles(
        redirect=settings.cold_files == "redirect",
        strict=settings.upstream_strict,
        strict_wait=settings.strict_wait,
        most_fetches=4 * settings.upstream_concurrency,
        disk=parts.disk if settings.file_storage_driver == "local" else "",
    )
    cold = Cold(policy, parts.fetches, parts.queue, parts.upstream, reactor)
    through = settings.s3_serve == "proxy"
    proxy = Proxy(ecosystem, pages, parts.catalog, parts.storage, cold, through=through)
    routes = _ROUTES[settings.package_type](
        PageResponses(proxy, Addresses(settings.public_url, settings.trusted_proxies)),
        Files(proxy, parts.upstream, parts.bucket_reader, parts.disk_threads, reactor),
        parts.upstream,
    )

    async def check_storage() -> None:
        await parts.storage.check()
        await parts.fetches.check()

    async def check_queue() -> None:
        state = await parts.queue.state()
        if state.later:
            raise JobsFailed(f"{state.later} jobs failed and are tried again; {state.dead} were given up so far")

    checks: dict[str, Check] = {
        "redis": parts.catalog.check,
        "storage": check_storage,
        "upstream": pages.check,
        "queue": check_queue,
    }
    operator = OperatorRoutes(Health(checks, reactor), lambda outcomes: _scrape(parts, outcomes))
    trunk = _Trunk(routes.app.resource(), operator.app.resource())
    return Gate(trunk, routes.methods, scoped=ecosystem.scoped)


async def _scrape(parts: Parts, outcomes: dict[str, str]) -> bytes:
    """What is counted, and what these checks found; how much there is in the queue where Redis can say it in time."""
    jobs: dict[str, int] = {}
    oldest = None
    if outcomes["redis"] == "ok":
        try:
            state = await Deferred.fromCoroutine(_state(parts)).addTimeout(_QUEUE_PATIENCE, parts.reactor)
        except (CatalogDown, TimeoutError):
            pass
        else:
            jobs = {"waiting": state.waiting, "later": state.later, "dead": state.dead}
            oldest = state.oldest
    degraded = {part: outcome != "ok" for part, outcome in outcomes.items()}
    return await parts.press_threads.run(latest, Asked(degraded, jobs, oldest))


async def _state(parts: Parts) -> QueueState:
    return await parts.queue.state()


class _Trunk(Resource):
    """Sends what is below ``/-/`` to the operator's routes, all else to the ecosystem's."""

    isLeaf = True

    def __init__(self, routes: IResource, operator: IResource) -> None:
        super().__init__()
        self._routes = routes
        self._operator = operator

    def render(self, request: Any) -> Any:
        if request.postpath[:2] in ([b"-", b"health"], [b"-", b"metrics"]):
            request.prepath.append(request.postpath.pop(0))
            return self._operator.render(request)
        return self._routes.render(request)


class Server(Service):
    """
    Serves at the endpoint that the settings name, or with `adopted` at the socket behind that descriptor, which was
    bound there. Started with Redis there or not.
    """

    log = Logger()

    def __init__(self, parts: Parts, adopted: int | None = None) -> None:
        self._parts = parts
        self._adopted = adopted
        self._port: IListeningPort | None = None
        self._site: WebSite | None = None

    def privilegedStartService(self) -> None:
        """Bind, before twistd gives up privileges. Raises CannotStart with what keeps it from listening."""
        parts, description = self._parts, self._parts.settings.listen
        self._site = site = WebSite(
            make_resource(parts), parts.reactor, per_address=parts.settings.connections_per_address
        )
        if self._adopted is None:
            listen(parts.reactor, description, site, self._listening)
        else:
            adopt(parts.reactor, self._adopted, description, site, self._listening)

    def startService(self) -> None:
        super().startService()
        if self._port is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """
        Fires once no connection is left: none is taken from now on, those that nothing goes on on are closed, and the
        others have MYPYPI_DRAIN_TIME seconds for what they are at.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        reactor = self._parts.reactor
        await deferLater(reactor, 0)  # requests that have arrived by now are read first
        if self._site is not None:
            drained = self._site.drain()
            patience = reactor.callLater(self._parts.settings.drain_time, self._break, self._site)
            await drained
            if patience.active():
                patience.cancel()

    def _break(self, site: WebSite) -> None:
        count, seconds = site.abort(), self._parts.settings.drain_time
        self.log.warn("{count} connections were broken: they did not end in {seconds} s", count=count, seconds=seconds)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port

    @property
    def ready_line(self) -> str:
        """What to tell whoever started it."""
        return ready_line(self._parts.settings, self._port)


def ready_line(settings: Settings, port: IListeningPort | None) -> str:
    """Where it serves what, where data lies, and the line to copy."""
    address = address_of(port, settings.listen) if port is not None else settings.listen
    base = f"{settings.public_url}/" if settings.public_url else address
    example = ECOSYSTEMS[settings.package_type](settings.upstream_url).example(base)
    return f"{address} serves {settings.upstream_url}, data in {settings.data_directory}; {example}"


def give_up(reactor: Any) -> None:
    """End the daemon with status 1; why, was logged."""
    # twistd has no exit code of its own for this; by then it has removed its pid file and closed its log.
    atexit.register(os._exit, 1)
    reactor.callWhenRunning(reactor.stop)  # what fails at once does so before the reactor runs
