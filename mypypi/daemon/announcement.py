"""The message for the operator when a daemon is ready.

Knows the settings, the address and whether Redis answers. Must never know how a daemon is put together.
"""

from __future__ import annotations

from collections.abc import Callable
from shlex import quote
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi import __version__
from mypypi.daemon.certificates import host_of
from mypypi.daemon.description import Description
from mypypi.daemon.listening import socket_path_of, url_of
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import CatalogDown, RedisTooSlow

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from mypypi.redis.client import RedisClient
    from mypypi.settings.settings import Settings


#: Seconds for which a start waits for Redis, which may be starting as well. Clients that connect meanwhile wait, too.
REDIS_WAIT = 2.0
#: Seconds between two checks.
_CHECK_EVERY = 0.1
#: What curl can ask a server that package clients can't reach, and the server's name on a unix socket.
_PROBE, _ON_A_SOCKET = "-/health/ready", "http://localhost/"


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
    def of(cls, settings: Settings, port: IListeningPort, redis: str) -> ServerReady:
        """Return the message for these settings and this listening port."""
        description = Description.parse(settings.listen)
        url = url_of(port, description)
        address = url or f"unix:{socket_path_of(port)}"
        if url is None or description.proxied:
            address += ", for a proxy in front of it, which package clients need"
        example = _example(settings, port, description)
        serves = f"{settings.upstream_url} ({settings.package_type})"
        return cls(address, serves, str(settings.data_directory), redis, example)

    def __str__(self) -> str:
        """Five short lines for the operator."""
        rows = {"serves": self.serves, "data": self.data, "Redis": self.redis, "try": self.example}
        lines = [f"  {name:<8} {words}" for name, words in rows.items()]
        return "\n".join([f"ready: MyPyPi {__version__} listens at {self.address}", *lines])


def _example(settings: Settings, port: IListeningPort, description: Description) -> str:
    """Return a command to copy: of a package client, or of curl where only a proxy can connect."""
    base = None if description.proxied else url_of(port, description, host_of(description))
    if settings.public_url:
        base = f"{settings.public_url}/"
    if base is not None:
        return ECOSYSTEMS[settings.package_type](settings.upstream_url).example(base)
    path = socket_path_of(port)
    words = ["curl"]
    if path:
        words += ["--abstract-unix-socket", quote(path[1:])] if path.startswith("@") else ["--unix-socket", quote(path)]
    if description.proxied:
        words.append("--haproxy-protocol")
    return " ".join([*words, f"{url_of(port, description) or _ON_A_SOCKET}{_PROBE}"])


class Announcement(Service):
    """
    Waits for Redis for `REDIS_WAIT` seconds at most, then passes its state, in a few words, to `say_ready`.

    The daemon works without Redis as well. But what it has to answer with may be in Redis alone.
    """

    log = Logger()

    def __init__(self, redis: RedisClient, reactor: Any, say_ready: Callable[[str], None]) -> None:
        self._redis = redis
        self._reactor = reactor
        self._say_ready = say_ready
        self._waiting: Deferred[None] | None = None

    def startService(self) -> None:
        super().startService()
        self._waiting = Deferred.fromCoroutine(self._announce())
        self._waiting.addErrback(self._failed)

    def stopService(self) -> None:
        """Stop waiting."""
        super().stopService()
        if self._waiting is not None:
            self._waiting.cancel()

    async def _announce(self) -> None:
        self._say_ready(await self._state_of_redis())

    async def _state_of_redis(self) -> str:
        until = self._reactor.seconds() + REDIS_WAIT
        while True:
            try:
                left = max(0.0, until - self._reactor.seconds())  # less than nothing if the machine is very busy
                await Deferred.fromCoroutine(self._redis.check()).addTimeout(left, self._reactor)
            except RedisTooSlow as error:
                return f"answers, but slowly ({error})"
            except CatalogDown as error:
                why = str(error)
            except DeferredTimeout:
                why = f"no answer within {REDIS_WAIT:g} s"
            else:
                return "answers"
            if self._reactor.seconds() + _CHECK_EVERY >= until:
                return f"is not there yet ({why}), and is used as soon as it is"
            await deferLater(self._reactor, _CHECK_EVERY)

    def _failed(self, failure: Failure) -> None:
        if self.running:
            self.log.failure("the ready message could not be logged", failure)
