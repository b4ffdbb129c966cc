"""``twistd mypypi-server``: answers requests, with the Redis that the settings name."""

from __future__ import annotations

import signal
from typing import Any

from twisted.application.service import IService
from twisted.logger import Logger

from mypypi.daemon.announcement import Announcement
from mypypi.daemon.application import make_application
from mypypi.daemon.backends import Backends
from mypypi.daemon.child_process import LISTENING, Lifeline, child_number
from mypypi.daemon.index import Index
from mypypi.daemon.lifecycle import OrderedServices
from mypypi.daemon.options import ServerOptions as Options
from mypypi.daemon.server import Server
from mypypi.daemon.supervisor import Supervisor
from mypypi.settings.settings import Settings

log = Logger()


def makeService(options: Options) -> IService:
    """Return the services of a single server, of a supervisor, or of its child."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    settings = options.settings
    if child_number() is not None:
        return _child(settings, reactor)
    if settings.workers > 1:
        return Supervisor(settings, reactor, relay=options.logs_elsewhere)
    backends, index, server = _server(settings, reactor)
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(_log_sighup))  # type: ignore[attr-defined] # any reactor has it
    announcement = Announcement(backends.redis, lambda redis: _say_ready(server, f"{settings.redis_url} {redis}"))
    return OrderedServices([backends, index, server, announcement])


def _child(settings: Settings, reactor: Any) -> IService:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # SIGHUP is for the supervisor, even where children get it as well
    backends, index, server = _server(settings, reactor, adopted=LISTENING)
    lifeline = Lifeline(reactor)
    return OrderedServices([backends, index, server, lifeline, Announcement(backends.redis, lifeline.say_ready)])


def _server(settings: Settings, reactor: Any, adopted: int | None = None) -> tuple[Backends, Index, Server]:
    assert settings.redis_url is not None
    backends = Backends(settings, settings.redis_url, reactor)
    index = Index(backends)
    return backends, index, Server(make_application(backends, index), settings, reactor, adopted)


def _say_ready(server: Server, redis: str) -> None:
    log.info("{record}", record=server.ready(redis))


def _log_sighup() -> None:
    """Warn about a SIGHUP. Without a handler, it would end the server at once."""
    log.warn("SIGHUP was ignored: there are no server processes to replace, since WORKERS is 1; restart the server")


__all__ = ["Options", "makeService"]
