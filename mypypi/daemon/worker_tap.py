"""``twistd mypypi-worker``: runs jobs from the queue. Any number of workers may run, on any host."""

from __future__ import annotations

from twisted.application.service import IService
from twisted.logger import Logger

from mypypi.clock import use_steady_clock
from mypypi.daemon.announcement import Announcement
from mypypi.daemon.backends import Backends
from mypypi.daemon.index import Index
from mypypi.daemon.lifecycle import OrderedServices
from mypypi.daemon.options import SettingsOptions as Options
from mypypi.daemon.signals import Signals
from mypypi.settings.settings import Settings
from mypypi.worker.jobs import Jobs
from mypypi.worker.worker import Worker

log = Logger()


def makeService(options: Options) -> IService:
    """Return the services of a worker."""
    from twisted.internet import reactor  # noqa: PLC0415 - a composition root

    use_steady_clock(reactor)
    settings = options.settings
    assert settings.redis_url is not None
    backends = Backends(settings, settings.redis_url, reactor, renders=False)
    index = Index(backends)
    Signals(reactor, [backends.reload]).install()
    announcement = Announcement(backends.redis, reactor, lambda redis: _say_ready(settings, redis))
    return OrderedServices([backends, index, make_worker(backends, index), announcement])


def make_worker(backends: Backends, index: Index) -> Worker:
    """Return a worker for the jobs of this index."""
    jobs = Jobs(backends.storage, index.fetches)
    concurrency = backends.settings.worker_concurrency
    return Worker(backends.queue, jobs, backends.reactor, concurrency=concurrency, disk=backends.disk)


def _say_ready(settings: Settings, redis: str) -> None:
    log.info(
        "ready: takes jobs from Redis at {url}, {most} at once, data in {data}; {redis}",
        url=str(settings.redis_url),
        most=settings.worker_concurrency,
        data=str(settings.data_directory),
        redis=redis,
    )


__all__ = ["Options", "makeService"]
