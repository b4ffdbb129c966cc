"""The server: its routes put together from the parts, and the port that they are served at.

Knows every kind of part by its class. What a part does is none of its business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource

from mypypi.cold import Cold, ColdFiles
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import JobsFailed
from mypypi.pages import Pages
from mypypi.press import Press
from mypypi.proxy import Proxy
from mypypi.web.address import Addresses
from mypypi.web.files import Files
from mypypi.web.gate import Gate
from mypypi.web.health import Check, Health, OperatorRoutes
from mypypi.web.npm import NPMRoutes
from mypypi.web.pages import PageResponses
from mypypi.web.pypi import PyPIRoutes
from mypypi.web.site import WebSite

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from mypypi.parts import Parts

_ROUTES: dict[str, type[PyPIRoutes | NPMRoutes]] = {"pypi": PyPIRoutes, "npm": NPMRoutes}


class CannotStart(SystemExit, Exception):
    """
    Something that the user has to put right. twistd ends with status 1 and this one line, without a traceback.

    twistd tidies up after an Exception alone, and Python prints a SystemExit as it is.
    """


def make_resource(parts: Parts) -> IResource:
    """The whole application as a resource."""
    settings, reactor = parts.settings, parts.reactor
    ecosystem = ECOSYSTEMS[settings.package_type](settings.upstream_url)
    pages = Pages(
        ecosystem,
        parts.catalog,
        parts.upstream,
        Press(settings.package_type, settings.upstream_url, parts.press_threads),
        parts.press_threads,
        reactor,
        cache_time=settings.cache_time,
        negative_cache_time=settings.negative_cache_time,
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
        PageResponses(proxy, parts.press_threads, Addresses(settings.public_url, settings.trusted_proxies)),
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
    trunk = _Trunk(routes.app.resource(), OperatorRoutes(Health(checks)).app.resource())
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


class Server(Service):
    """Serves at the endpoint that the settings name. Started with Redis there or not."""

    log = Logger()

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._port: IListeningPort | None = None

    def privilegedStartService(self) -> None:
        """Bind, before twistd gives up privileges. Raises CannotStart with what keeps it from listening."""
        parts = self._parts
        listen, site = parts.settings.listen, WebSite(make_resource(parts), parts.reactor)
        problems: list[Failure] = []
        try:
            listening = serverFromString(parts.reactor, listen).listen(site)
            listening.addCallbacks(self._listening, problems.append)
            if problems:
                problems[0].raiseException()
        except Exception as error:  # each kind of endpoint has its own: no such certificate, no such socket
            raise CannotStart(f"can't listen at {listen}: {error}") from error

    def startService(self) -> None:
        super().startService()
        if self._port is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """Fires once no new connection is taken."""
        super().stopService()
        port, self._port = self._port, None
        return (port.stopListening() if port is not None else None) or succeed(None)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port

    @property
    def ready_line(self) -> str:
        """Where it serves what, where data lies, and the line to copy."""
        settings = self._parts.settings
        address = address_of(self._port) if self._port is not None else settings.listen
        base = f"{settings.public_url}/" if settings.public_url else address
        example = ECOSYSTEMS[settings.package_type](settings.upstream_url).example(base)
        return f"{address} serves {settings.upstream_url}, data in {settings.data_directory}; {example}"


def address_of(port: IListeningPort) -> str:
    """The URL of a listening port; its own words where it is none of TCP's."""
    host = port.getHost()
    if not isinstance(host, IPv4Address | IPv6Address):
        return str(host)
    name = f"[{host.host}]" if ":" in host.host else host.host
    if name in ("0.0.0.0", "[::]"):  # noqa: S104 - said, not bound
        name = "127.0.0.1"
    return f"http://{name}:{host.port}/"
