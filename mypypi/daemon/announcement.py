"""What a daemon tells the person who started it, once it is ready.

Knows the settings, the address and whether Redis answers. Must never know how a daemon is put together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi.daemon.listening import address_of
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import CatalogDown

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from mypypi.redis.client import RedisClient
    from mypypi.settings.settings import Settings


class Announcement(Service):
    """Asks Redis once, and then calls `say_ready` with a few words about how Redis answered."""

    log = Logger()

    def __init__(self, redis: RedisClient, say_ready: Callable[[str], None]) -> None:
        self._redis = redis
        self._say_ready = say_ready

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._announce()).addErrback(
            lambda failure: self.log.failure("the daemon could not say that it is ready", failure)
        )

    async def _announce(self) -> None:
        try:
            await self._redis.check()
            redis = "Redis answers"
        except CatalogDown as error:
            redis = f"without Redis for now ({error})"
        if self.running:
            self._say_ready(redis)


def ready_line(settings: Settings, port: IListeningPort | None) -> str:
    """Where the server listens, what it serves, where data lies, and a command to copy."""
    address = address_of(port, settings.listen) if port is not None else settings.listen
    base = f"{settings.public_url}/" if settings.public_url else address
    example = ECOSYSTEMS[settings.package_type](settings.upstream_url).example(base)
    return f"{address} serves {settings.upstream_url}, data in {settings.data_directory}; {example}"
