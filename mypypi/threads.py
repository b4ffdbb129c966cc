"""A pool of threads of one's own, as a service.

The reactor's pool also resolves host names, so work that may take long never goes there. Knows nothing of the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorFromThreads

P = ParamSpec("P")
T = TypeVar("T")


class _Pool(ThreadPool):
    """Its threads do not keep the process from ending."""

    threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment] # it is called, and nothing else


class Threads(Service):
    """
    Runs functions in at most `size` threads. Stopping waits for those that are running; where `patience` is given,
    for so many seconds at most, after which they end with the process.
    """

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int, patience: float | None = None) -> None:
        self._reactor = reactor
        self._patience = patience
        self._pool = ThreadPool(0, size, name) if patience is None else _Pool(0, size, name)

    def startService(self) -> None:
        super().startService()
        self._pool.start()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """A Deferred of what the function returns or raises, called in one of the threads."""
        return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs)

    def stopService(self) -> None:
        super().stopService()
        stopping = Thread(target=self._pool.stop, daemon=True)
        stopping.start()
        stopping.join(self._patience)
