"""The message for the operator when a daemon is ready.

Knows the settings, the address and whether Redis answers. Must never know how a daemon is put together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi import __version__
from mypypi.daemon.listening import address_of
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import CatalogDown

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from mypypi.redis.client import RedisClient
    from mypypi.settings.settings import Settings


class ServerReady(msgspec.Struct):
    """
    The message of a server that is ready.

    It names the address, what is served, the data directory, the state of Redis, and a command to copy.
    """

    address: str
    serves: str
    data: str
    redis: str
    example: str

    @classmethod
    def of(cls, settings: Settings, port: IListeningPort | None, redis: str) -> ServerReady:
        """Return the message for these settings and this listening port."""
        address = address_of(port, settings.listen) if port is not None else settings.listen
        base = f"{settings.public_url}/" if settings.public_url else address
        example = ECOSYSTEMS[settings.package_type](settings.upstream_url).example(base)
        serves = f"{settings.upstream_url} ({settings.package_type})"
        return cls(address, serves, str(settings.data_directory), redis, example)

    def __str__(self) -> str:
        """Five short lines for the operator."""
        rows = {"serves": self.serves, "data": self.data, "Redis": self.redis, "try": self.example}
        lines = [f"  {name:<8} {words}" for name, words in rows.items()]
        return "\n".join([f"ready: MyPyPi {__version__} listens at {self.address}", *lines])


class Announcement(Service):
    """Checks Redis once, then passes its state, in a few words, to `say_ready`."""

    log = Logger()

    def __init__(self, redis: RedisClient, say_ready: Callable[[str], None]) -> None:
        self._redis = redis
        self._say_ready = say_ready

    def startService(self) -> None:
        super().startService()
        Deferred.fromCoroutine(self._announce()).addErrback(
            lambda failure: self.log.failure("the ready message could not be logged", failure)
        )

    async def _announce(self) -> None:
        try:
            await self._redis.check()
            redis = "answers"
        except CatalogDown as error:
            redis = f"is not there yet ({error})"
        if self.running:
            self._say_ready(redis)
