"""
Deduplicates concurrent calls: callers that ask for the same name share one run and its result.

Knows names and Deferreds. Must never know what the work does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
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
