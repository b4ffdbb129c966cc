"""A thread pool that runs as a service, separate from the reactor's own pool.

The reactor's pool also resolves host names, so slow work must not occupy it. Knows threads. Must never know the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from mypypi.errors import TemporarilyUnavailable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorFromThreads

P = ParamSpec("P")
T = TypeVar("T")


class _DaemonThreadPool(ThreadPool):
    """A pool of daemon threads, which do not delay the end of the process."""

    # A plain partial would become a bound method here (CPython 3.14 and later).
    threadFactory = staticmethod(partial(Thread, daemon=True))  # type: ignore[assignment] # the pool only calls it


class Threads(Service):
    """
    Runs functions in at most `size` threads.

    Stopping blocks until the running functions have returned. With `patience`, it blocks for at most that many seconds;
    functions that still run then end with the process. With `most`, no more functions than that run or wait.
    """

    def __init__(
        self,
        reactor: IReactorFromThreads,
        name: str,
        size: int,
        patience: float | None = None,
        *,
        most: int | None = None,
    ) -> None:
        self._reactor = reactor
        self._name = name
        self._most = most
        self._pending = 0
        self._patience = patience
        self._pool = ThreadPool(0, size, name) if patience is None else _DaemonThreadPool(0, size, name)

    def startService(self) -> None:
        super().startService()
        self._pool.start()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Call the function in a thread; the Deferred fires with its result or exception.

        It fails with TemporarilyUnavailable if too many others wait.
        """
        if self._most is not None and self._pending >= self._most:
            return fail(TemporarilyUnavailable(f"too much work waits for the {self._name} threads: try again"))
        self._pending += 1
        return deferToThreadPool(self._reactor, self._pool, function, *args, **kwargs).addBoth(self._ended)

    def _ended(self, result: T) -> T:
        self._pending -= 1
        return result

    def stopService(self) -> None:
        super().stopService()
        stopping = Thread(target=self._pool.stop, daemon=True)
        stopping.start()
        stopping.join(self._patience)
