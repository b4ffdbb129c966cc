"""Puts the server together from its parts, and starts and stops them in order.

The one place that knows every part. What a part does is none of its business.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource

from mypypi.drafts import Drafts
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.fetch import Fetches
from mypypi.pages import Pages
from mypypi.press import Press
from mypypi.proxy import ColdFiles, Proxy
from mypypi.redis import RedisCatalog, RedisClient
from mypypi.storage.disk import DiskStorage
from mypypi.threads import Threads
from mypypi.upstream import Credentials, Upstream
from mypypi.web.address import Addresses
from mypypi.web.files import Files
from mypypi.web.gate import Gate
from mypypi.web.health import Health, OperatorRoutes
from mypypi.web.npm import NPMRoutes
from mypypi.web.pages import PageResponses
from mypypi.web.pypi import PyPIRoutes
from mypypi.web.site import WebSite

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort
    from twisted.web.iweb import IAgent

    from mypypi.interfaces import ICatalog, IStorage
    from mypypi.settings import Settings
    from mypypi.texts import RedisUrl

_DISK_THREADS = 8
_PRESS_THREADS = 2
_ROUTES: dict[str, type[PyPIRoutes | NPMRoutes]] = {"pypi": PyPIRoutes, "npm": NPMRoutes}


class CannotStart(SystemExit, Exception):
    """
    Something that the user has to put right. twistd ends with status 1 and this one line, without a traceback.

    twistd tidies up after an Exception alone, and Python prints a SystemExit as it is.
    """


@frozen
class Parts:
    """What the server is made of besides the reactor: replaced by tests, where they have something simpler."""

    catalog: ICatalog
    storage: IStorage
    upstream: Upstream
    drafts: Drafts
    disk_threads: Threads
    press_threads: Threads


def make_resource(settings: Settings, parts: Parts, reactor: Any) -> IResource:
    """The whole application as a resource."""
    ecosystem = ECOSYSTEMS[settings.package_type](settings.upstream_url)
    press = Press(settings.package_type, settings.upstream_url, parts.press_threads)
    pages = Pages(
        ecosystem,
        parts.catalog,
        parts.upstream,
        press,
        parts.press_threads,
        reactor,
        cache_time=settings.cache_time,
        negative_cache_time=settings.negative_cache_time,
    )
    fetches = Fetches(parts.upstream, parts.drafts, parts.storage, parts.disk_threads, reactor)
    cold_files = ColdFiles(
        redirect=settings.cold_files == "redirect",
        strict=settings.upstream_strict,
        strict_wait=settings.strict_wait,
        most_fetches=4 * settings.upstream_concurrency,
    )
    proxy = Proxy(ecosystem, pages, parts.catalog, parts.storage, fetches, parts.upstream, reactor, cold_files)
    routes = _ROUTES[settings.package_type](
        PageResponses(proxy, parts.press_threads, Addresses(settings.public_url, settings.trusted_proxies)),
        Files(proxy, parts.upstream, parts.disk_threads, reactor),
        parts.upstream,
    )

    async def check_storage() -> None:
        await parts.storage.check()
        await fetches.check()

    health = Health({"redis": parts.catalog.check, "storage": check_storage, "upstream": pages.check})
    trunk = _Trunk(routes.app.resource(), OperatorRoutes(health).app.resource())
    return Gate(trunk, routes.methods, scoped=ecosystem.scoped)


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


def make_upstream(settings: Settings, reactor: Any, agent: IAgent | None = None) -> Upstream:
    """Upstream as the settings say."""
    credentials = None
    if settings.upstream_username is not None and settings.upstream_password is not None:
        credentials = Credentials(settings.upstream_username, settings.upstream_password.reveal())
    return Upstream(
        reactor,
        settings.upstream_url,
        credentials=credentials,
        concurrency=settings.upstream_concurrency,
        timeout=settings.upstream_timeout,
        agent=agent,
    )


class Server(Service):
    """Serves at the endpoint that the settings name. Started with Redis there or not."""

    log = Logger()

    def __init__(self, settings: Settings, redis_url: RedisUrl, reactor: Any) -> None:
        self.settings = settings
        self._reactor = reactor
        self._redis = RedisClient(reactor, redis_url)
        disk_threads = Threads(reactor, "disk", _DISK_THREADS)
        self._parts = Parts(
            RedisCatalog(self._redis, settings.redis_prefix, settings.package_type, reactor),
            DiskStorage(settings.file_storage_directory, disk_threads),
            make_upstream(settings, reactor),
            Drafts(drafts_directory(settings)),
            disk_threads,
            Threads(reactor, "press", _PRESS_THREADS),
        )
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """Bind, before twistd gives up privileges. Raises CannotStart with what keeps it from listening."""
        site = WebSite(make_resource(self.settings, self._parts, self._reactor), self._reactor)
        problems: list[Failure] = []
        try:
            listening = serverFromString(self._reactor, self.settings.listen).listen(site)
            listening.addCallbacks(self._listening, problems.append)
            if problems:
                problems[0].raiseException()
        except Exception as error:  # each kind of endpoint has its own: no such certificate, no such socket
            raise CannotStart(f"can't listen at {self.settings.listen}: {error}") from error

    def startService(self) -> None:
        super().startService()
        if self._port is None:
            self.privilegedStartService()
        self._parts.disk_threads.startService()
        self._parts.press_threads.startService()
        self._redis.start()
        try:
            self._parts.drafts.sweep()
        except OSError as error:
            self.log.error("the drafts can't be looked at: {why}", why=error)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port

    @property
    def address(self) -> str:
        """Where it listens, as a URL with a trailing slash where it is one."""
        return address_of(self._port) if self._port is not None else self.settings.listen

    async def check_redis(self) -> None:
        """Raises CatalogDown with a reason when Redis does not answer."""
        await self._redis.check()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        """No new connections first, the stores last."""
        if self._port is not None:
            await (self._port.stopListening() or Deferred.fromCoroutine(_nothing()))
        await self._parts.upstream.stop()
        await self._redis.stop()
        self._parts.press_threads.stopService()
        self._parts.disk_threads.stopService()


def drafts_directory(settings: Settings) -> Path:
    """Where drafts lie in the data directory."""
    return settings.data_directory / "drafts"


def address_of(port: IListeningPort) -> str:
    """The URL of a listening port; its own words where it is none of TCP's."""
    host = port.getHost()
    if not isinstance(host, IPv4Address | IPv6Address):
        return str(host)
    name = f"[{host.host}]" if ":" in host.host else host.host
    if name in ("0.0.0.0", "[::]"):  # noqa: S104 - said, not bound
        name = "127.0.0.1"
    return f"http://{name}:{host.port}/"


async def _nothing() -> None:
    pass
