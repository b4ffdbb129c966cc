"""Two clocks: the steady one of a process, and the time of day that hosts share through Redis.

The time of day may jump: it is set by hand or by NTP, and a machine may start with a wrong one. So timers and durations
use a steady clock. A moment that hosts share is converted when it is written and read, and is only believed if the
process that wrote it can have meant it. Knows clocks. Must never know what a moment is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

#: Seconds by which the clocks of two hosts may differ. A moment that lies further ahead than this allows was written
#: with a wrong clock.
MOST_SKEW = 10.0
#: Seconds by which the time of day must change against the steady clock to count as a jump.
_JUMP = 0.5
#: The difference of both clocks is a multiple of 1 / `_FRACTIONS` seconds. So no bit of a moment is lost when it is
#: converted, and the same moment is equal whenever it is read.
_FRACTIONS = 1024

_started_at = time.time() - time.monotonic()


def steady_seconds() -> float:
    """Return the steady time: the time of day at the start of this process, and the seconds since then."""
    return _started_at + time.monotonic()


def use_steady_clock(reactor: Any) -> None:
    """
    Let a reactor count its timers on the steady clock.

    Twisted's reactors use the time of day. If it is set back by a day, every timer is late by a day; if it is set
    ahead, every time-out of a running request is over at once. Call this before anything uses the reactor.
    """
    reactor.seconds = steady_seconds


def remaining(until: float, now: float, longest: float) -> float:
    """
    Return the seconds until a moment that can't have been meant to be more than `longest` seconds away.

    Returns 0 if the moment is over. A moment that is further away than `longest` and `MOST_SKEW` counts as over too:
    otherwise it would seem to be `longest` seconds away for as long as the clock was wrong, which may be a day.
    """
    left = until - now
    return max(0.0, min(left, longest)) if left <= longest + MOST_SKEW else 0.0


class SharedClock:
    """
    The time of day, and its conversion from and to the steady clock of this process.

    `clock` is the steady one. `wall` returns the seconds since the epoch; without it, `clock` does.
    """

    def __init__(self, clock: Any, wall: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self.seconds: Callable[[], float] = wall or clock.seconds
        self._ahead = 0.0

    def to_shared(self, moment: float) -> float:
        """Convert a moment of this process for other hosts. 0, which stands for an unknown moment, stays 0."""
        return moment + self._difference() if moment else 0.0

    def to_own(self, shared: float, longest: float = 0.0) -> float:
        """
        Convert a shared moment for this process. It can't have been meant to be more than `longest` seconds away.

        Returns 0 for an unknown moment, and for one that can't be right (see `remaining`).
        """
        moment = shared - self._difference()
        return moment if shared and moment - self._clock.seconds() <= longest + MOST_SKEW else 0.0

    def _difference(self) -> float:
        """Return by how many seconds the time of day is ahead of the steady clock."""
        ahead = self.seconds() - self._clock.seconds()
        if abs(ahead - self._ahead) > _JUMP:
            self._ahead = round(ahead * _FRACTIONS) / _FRACTIONS
        return self._ahead
