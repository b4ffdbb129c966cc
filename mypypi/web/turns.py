"""Shares the reactor's time between requests that arrive at once: they begin in several turns of the reactor.

Knows callables and milliseconds. Must never know what a request asks for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

#: Seconds of each turn of the reactor in which requests begin. One request takes about one millisecond.
_SHARE = 0.004


class Turns:
    """
    Begins requests in the order in which they arrive, for a few milliseconds in each turn of the reactor.

    Fifty requests that arrive together would otherwise all begin in one turn, and nothing else would happen meanwhile.
    Each connection has one request that waits at most, so connections limit their number.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._waiting: deque[Callable[[], object]] = deque()
        self._left = _SHARE
        self._is_scheduled = False

    def begin(self, request: Callable[[], object]) -> None:
        """Call `request`, which must not raise, now or in a later turn."""
        if self._left > 0 and not self._waiting:
            self._call(request)
        else:
            self._waiting.append(request)
        self._schedule()

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

    def _call(self, request: Callable[[], object]) -> None:
        began = self._reactor.seconds()
        request()
        self._left -= self._reactor.seconds() - began
