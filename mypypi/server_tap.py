"""``twistd mypypi-server``: answers requests, with the Redis that the settings name."""

from __future__ import annotations

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import CatalogDown
from mypypi.options import ServerOptions as Options
from mypypi.server import Server
from mypypi.settings import Settings

log = Logger()


class _StandAlone(Server):
    """The server, which says so when it is ready, and whether Redis is."""

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._say_ready()).addErrback(lambda failure: log.failure("not ready", failure))

    async def _say_ready(self) -> None:
        try:
            await self.check_redis()
            redis = "Redis answers"
        except CatalogDown as error:
            redis = f"without Redis for now ({error})"
        log.info("ready: {ready}; {redis}", ready=ready_line(self.settings, self.address), redis=redis)


def ready_line(settings: Settings, address: str) -> str:
    """Where it serves what, where data lies, and the line to copy."""
    base = f"{settings.public_url}/" if settings.public_url else address
    example = ECOSYSTEMS[settings.package_type](settings.upstream_url).example(base)
    return f"{address} serves {settings.upstream_url}, data in {settings.data_directory}; {example}"


def makeService(options: Options) -> IService:
    """The service of this daemon."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    settings = options.settings
    assert settings.redis_url is not None
    if settings.workers > 1:
        log.info("one process serves in this version; WORKERS={workers} is for a later one", workers=settings.workers)
    return _StandAlone(settings, settings.redis_url, reactor)


__all__ = ["Options", "makeService", "ready_line"]
