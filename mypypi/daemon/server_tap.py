"""``twistd mypypi-server``: answers requests, with the Redis that the settings name."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService
from twisted.logger import Logger

from mypypi.clock import use_steady_clock
from mypypi.daemon.announcement import Announcement
from mypypi.daemon.application import make_application
from mypypi.daemon.backends import Backends
from mypypi.daemon.child_process import LISTENING, Lifeline, child_number
from mypypi.daemon.index import Index
from mypypi.daemon.lifecycle import OrderedServices
from mypypi.daemon.options import ServerOptions as Options
from mypypi.daemon.server import Server
from mypypi.daemon.signals import Signals
from mypypi.daemon.supervisor import Supervisor
from mypypi.settings.settings import Settings

log = Logger()


def makeService(options: Options) -> IService:
    """Return the services of a single server, of a supervisor, or of its child."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    use_steady_clock(reactor)
    settings = options.settings
    if child_number() is not None:
        Signals(reactor, None).install()
        return _child(settings, reactor)
    if settings.workers > 1:
        supervisor = Supervisor(settings, reactor, relay=options.logs_elsewhere)
        Signals(reactor, [supervisor.reload]).install()
        return supervisor
    backends, index, server = _server(settings, reactor)
    Signals(reactor, [server.reload, backends.reload]).install()

    def start_serving(redis: str) -> None:
        server.accept()
        log.info("{record}", several_lines=True, record=server.ready(f"{settings.redis_url} {redis}"))

    return OrderedServices([backends, index, server, Announcement(backends.redis, reactor, start_serving)])


def _child(settings: Settings, reactor: Any) -> IService:
    backends, index, server = _server(settings, reactor, adopted=LISTENING)
    lifeline = Lifeline(reactor)

    def start_serving(redis: str) -> None:
        server.accept()
        lifeline.say_ready(redis)

    return OrderedServices([backends, index, server, lifeline, Announcement(backends.redis, reactor, start_serving)])


def _server(settings: Settings, reactor: Any, adopted: int | None = None) -> tuple[Backends, Index, Server]:
    assert settings.redis_url is not None
    backends = Backends(settings, settings.redis_url, reactor)
    index = Index(backends)
    return backends, index, Server(make_application(backends, index), settings, reactor, adopted)


__all__ = ["Options", "makeService"]
