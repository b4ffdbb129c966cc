"""Limits how long the work for one request waits for Redis in all.

A request makes several round trips to Redis, one after another. Each has a time-out. Without a limit for all of them, a
slow Redis would delay an answer by several times that. Knows seconds and contexts: coroutines that a request starts
share its budget. Must never know commands, nor what the work is for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.errors import MyPyPiError, RedisTooSlow

T = TypeVar("T")
P = ParamSpec("P")
Write = Coroutine[Any, Any, None]

#: Seconds for which one request waits for Redis in all. Then it goes on as if Redis were down.
REQUEST_BUDGET = 2.0

_log = Logger()


class _HasClock(Protocol):
    """The owner of a method that writes."""

    _clock: Any


HasClock = TypeVar("HasClock", bound=_HasClock)


class _Budget:
    """The seconds that are left of a budget. Waits at the same time count once."""

    def __init__(self) -> None:
        self._left = REQUEST_BUDGET
        self._waits = 0
        self._since = 0.0

    def left(self, now: float) -> float:
        """Return the seconds that are left."""
        return max(0.0, self._left - (max(0.0, now - self._since) if self._waits else 0.0))

    def begin_wait(self, now: float) -> None:
        if not self._waits:
            self._since = now
        self._waits += 1

    def end_wait(self, now: float) -> None:
        left = self.left(now)
        self._waits -= 1
        if not self._waits:
            self._left = left

    def renew(self) -> None:
        self._left = REQUEST_BUDGET


_current: ContextVar[_Budget | None] = ContextVar("redis_budget", default=None)


@contextmanager
def redis_budget() -> Iterator[None]:
    """
    Give a new budget to the coroutines that start inside the block.

    Runs that several clients share, such as a page's refresh, keep the budget of the client that started them: when it
    is used up, they ask upstream without Redis, and all their clients get an answer earlier. What they write goes on.
    """
    token = _current.set(_Budget())
    try:
        yield
    finally:
        _current.reset(token)


def end_redis_budget() -> None:
    """Go on without a budget in this coroutine: from here on, no client waits for it."""
    _current.set(None)


def renew_redis_budget() -> None:
    """Begin the budget again: this work looks at Redis now and then, and waits for something else meanwhile."""
    budget = _current.get()
    if budget is not None:
        budget.renew()


async def within_budget(work: Coroutine[Any, Any, T], clock: Any) -> T:
    """
    Do work that waits for Redis, for as long as the budget lasts, if there is one.

    Work that has begun goes on after that, but its result is dropped. Raises RedisTooSlow.
    """
    budget = _current.get()
    if budget is None:
        return await work
    if not budget.left(clock.seconds()):
        work.close()
        raise _too_slow()
    try:
        return await _wait(work, budget, clock)
    except DeferredTimeout:
        raise _too_slow() from None


def goes_on(method: Callable[Concatenate[HasClock, P], Write]) -> Callable[Concatenate[HasClock, P], Write]:
    """
    Make a method that writes to Redis return when the budget is used up.

    What it does always begins, and goes on to its end. Nobody needs the outcome, and others need what it writes.
    """

    @wraps(method)
    async def write(self: HasClock, /, *args: P.args, **kwargs: P.kwargs) -> None:
        budget = _current.get()
        work = method(self, *args, **kwargs)
        if budget is None:
            await work
            return
        with suppress(DeferredTimeout):
            await _wait(work, budget, self._clock)

    return write


async def _wait(work: Coroutine[Any, Any, T], budget: _Budget, clock: Any) -> T:
    """Wait for work that has no budget itself. Raises DeferredTimeout; the work goes on."""
    waiting: Deferred[T] = Deferred(lambda _: None)

    def done(result: T | Failure) -> None:
        if not waiting.called:
            waiting.callback(result)
        elif isinstance(result, Failure) and not result.check(MyPyPiError):
            _log.failure("work with Redis failed after its request had gone on without it", result)

    token = _current.set(None)
    try:
        running = Deferred.fromCoroutine(work)
    finally:
        _current.reset(token)
    running.addBoth(done)
    budget.begin_wait(clock.seconds())
    try:
        return await waiting.addTimeout(budget.left(clock.seconds()), clock)
    finally:
        budget.end_wait(clock.seconds())


def _too_slow() -> RedisTooSlow:
    return RedisTooSlow(f"Redis is too slow: this request has waited {REQUEST_BUDGET:g} s for it in all")
