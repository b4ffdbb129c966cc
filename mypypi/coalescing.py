"""
Deduplicates calls: callers that ask at the same time, or shortly after, share one run and its result.

Knows names, Deferreds and ages. Must never know what the work does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.errors import MyPyPiError

T = TypeVar("T")


class Coalescer(Generic[T]):
    """
    Runs work once per name at a time, for all concurrent callers.

    Each caller waits on its own Deferred. A caller that cancels it stops neither the work nor the other callers.
    """

    log = Logger()

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[Deferred[T]]] = {}

    def __contains__(self, name: Hashable) -> bool:
        return name in self._waiting

    def run(self, name: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> Deferred[T]:
        """Join the work of this name, or start it. Fires with the result or failure of the work."""
        mine: Deferred[T] = Deferred(lambda _: None)
        if name in self._waiting:
            self._waiting[name].append(mine)
            return mine
        self._waiting[name] = [mine]
        Deferred.fromCoroutine(work()).addBoth(self._done, name)
        return mine

    def _done(self, result: T | Failure, name: Hashable) -> None:
        waited = False
        for waiter in self._waiting.pop(name):
            if not waiter.called:  # cancelled earlier, or just now by the callback of a previous waiter
                waited = True
                waiter.callback(result)
        if not waited and isinstance(result, Failure) and not result.check(MyPyPiError):
            self.log.failure("work for {name} failed after every caller had cancelled", result, name=str(name))


class RecentResult(Generic[T]):
    """
    Runs work for callers that need its result soon rather than new.

    A result is used for `fresh` seconds. A later caller starts the work again, and gets the previous result if the new
    one is not there within `patience` seconds. The first caller waits for the first result. Times are those of `clock`.
    """

    def __init__(
        self, work: Callable[[], Coroutine[Any, Any, T]], clock: Any, *, fresh: float, patience: float
    ) -> None:
        self._work = work
        self._clock = clock
        self._fresh = fresh
        self._patience = patience
        self._runs: Coalescer[T] = Coalescer()
        self._last: tuple[float, T] | None = None

    async def get(self) -> T:
        """Return the result. Raises what the work raises."""
        last = self._last
        if last is not None and 0 <= self._clock.seconds() - last[0] < self._fresh:
            return last[1]
        if last is None:
            return await self.renew()
        try:
            return await self._runs.run("", self._run).addTimeout(self._patience, self._clock)
        except DeferredTimeout:
            return last[1]

    async def renew(self) -> T:
        """Run the work again, and return its result, however long it takes. Raises what the work raises."""
        return await self._runs.run("", self._run)

    async def _run(self) -> T:
        result = await self._work()
        self._last = (self._clock.seconds(), result)
        return result
