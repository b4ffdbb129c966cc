"""``twistd mypypi-worker``: takes jobs from the queue. As many as wanted, on any host."""

from __future__ import annotations

from typing import Any

from twisted.application.service import IService, Service
from twisted.logger import Logger

from mypypi.daemon.backends import InOrder, Parts
from mypypi.daemon.options import SettingsOptions as Options
from mypypi.settings.settings import Settings

log = Logger()


class _Announcement(Service):
    """Says which jobs it takes, once it can be told to stop."""

    def __init__(self, settings: Settings, reactor: Any) -> None:
        self._settings = settings
        self._reactor = reactor

    def startService(self) -> None:
        super().startService()
        self._reactor.callWhenRunning(self._say_ready)

    def _say_ready(self) -> None:
        log.info(
            "ready: takes jobs from Redis at {redis}, {most} at once, data in {data}",
            redis=str(self._settings.redis_url),
            most=self._settings.worker_concurrency,
            data=str(self._settings.data_directory),
        )


def makeService(options: Options) -> IService:
    """The service of this daemon."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    settings = options.settings
    assert settings.redis_url is not None
    parts = Parts(settings, settings.redis_url, reactor)
    return InOrder([parts, parts.make_worker(), _Announcement(settings, reactor)])


__all__ = ["Options", "makeService"]
