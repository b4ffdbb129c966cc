"""One run of some work at a time for each name, however many ask for it. Knows nothing of the work."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.errors import MyPyPiError

T = TypeVar("T")


class Coalescer(Generic[T]):
    """Joins those who ask for the same work while it runs. Each waits on a Deferred of its own, so that one who leaves
    takes nothing away from the others, nor from the work."""

    log = Logger()

    def __init__(self) -> None:
        self._waiting: dict[Hashable, list[Deferred[T]]] = {}

    def __contains__(self, name: Hashable) -> bool:
        return name in self._waiting

    def run(self, name: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> Deferred[T]:
        """What the work of this name comes to: that which is running, else this."""
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
            if not waiter.called:  # it may have left, even because of what an earlier one did just now
                waited = True
                waiter.callback(result)
        if not waited and isinstance(result, Failure) and not result.check(MyPyPiError):
            self.log.failure("work for {name} failed when nobody waited for it", result, name=str(name))
