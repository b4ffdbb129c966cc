"""Shares the reactor's time between calls that come at once: they are made in several turns of the reactor.

Knows callables and milliseconds. Must never know what is called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

#: Seconds of each turn of the reactor for such calls. To begin a request takes about one millisecond.
_SHARE = 0.004


class Turns:
    """
    Makes calls in the order in which they come, for a few milliseconds in each turn of the reactor.

    Fifty requests that arrive together, or fifty answers of Redis, would otherwise all be handled in one turn, and
    nothing else would happen meanwhile. Those who make the calls limit their number.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: deque[Callable[[], object]] = deque()
        self._left = _SHARE
        self._is_scheduled = False

    def begin(self, call: Callable[[], object]) -> None:
        """Make this call, which must not raise, now or in a later turn."""
        if self._left > 0 and not self._waiting:
            self._call(call)
        else:
            self._waiting.append(call)
        self._schedule()

    def finish(self) -> None:
        """Make all calls that wait."""
        while self._waiting:
            self._waiting.popleft()()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._reactor.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._is_scheduled = False
        self._left = _SHARE
        while self._waiting and self._left > 0:
            self._call(self._waiting.popleft())
        if self._waiting:
            self._schedule()

    def _call(self, call: Callable[[], object]) -> None:
        began = self._reactor.seconds()
        call()
        self._left -= self._reactor.seconds() - began
