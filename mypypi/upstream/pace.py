"""Limits how slowly the body of an answer may arrive: its silence, its rate, and its time in all.

Knows a clock and numbers of bytes. Must never know what arrives, or what follows when it is too slow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen

#: Seconds over which the rate of a body is measured.
RATE_SECONDS = 30.0
#: The lowest rate by default, in bytes per second. A file of 10 MB would take three hours.
LOWEST_RATE = 1000
#: Seconds for the body of a page, or of an answer that is passed on: the largest one, of 128 MiB, at 224 kB/s.
LONGEST_PAGE = 600.0
#: Seconds for the body of a file. One of 4 GB arrives at 93 kB/s; what is cut off is resumed a few times.
LONGEST_FILE = 43_200.0
#: Bytes per second of the time that a body has taken, below which it is not worth another request for the rest.
_WORTHWHILE = 10_000


@frozen
class PaceLimits:
    """Seconds without a byte, and bytes per second over `RATE_SECONDS`; with a rate of 0, only silence is limited."""

    silence: float
    rate: int = LOWEST_RATE


class Pace:
    """
    Watches one body from now until `stop`, and calls `too_slow` once if it exceeds its limits.

    The function gets the reason, for example "upstream sent less than 1000 bytes per second for 30 seconds". `what`
    names the body in it. The complete body may take `longest` seconds.
    """

    def __init__(
        self, clock: Any, limits: PaceLimits, what: str, longest: float, too_slow: Callable[[str], object]
    ) -> None:
        self.silence = limits.silence
        self._clock = clock
        self._rate = limits.rate
        self._longest = longest
        self._what = what
        self._too_slow = too_slow
        self._since = clock.seconds()  # when the body began, later by the time of all pauses
        self._paused_at = 0.0
        self._before = 0  # bytes before the current measurement
        self._received = 0
        #: Seconds that the current measurement goes on after a pause; None while it runs.
        self._left: float | None = None
        self._stopped = False
        #: When the last byte came. The timer is only moved when it fires: a fast body has thousands of pieces.
        self._last = self._since
        self._silence_timer = clock.callLater(self.silence, self._end_silent)
        self._rate_timer = clock.callLater(RATE_SECONDS, self._measure)
        self._whole_timer = clock.callLater(longest, self._end_late)

    def received(self, count: int) -> None:
        """Note bytes of the body."""
        self._received += count
        self._last = self._clock.seconds()

    def await_bytes(self, silence: float) -> None:
        """Await each further byte for so many seconds."""
        self.silence = silence
        if self._silence_timer.active():
            self._silence_timer.reset(silence)

    def pause(self) -> None:
        """Ignore silence and rate until `resume`: this process does not read. The time in all goes on."""
        if self._left is None and not self._stopped:
            self._paused_at = self._clock.seconds()
            self._left = max(0.0, self._rate_timer.getTime() - self._paused_at)
            self._silence_timer.cancel()
            self._rate_timer.cancel()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._left is not None and not self._stopped:
            self._last = self._clock.seconds()
            self._silence_timer = self._clock.callLater(self.silence, self._end_silent)
            self._rate_timer = self._clock.callLater(self._left, self._measure)
            self._left = None
            self._since += self._last - self._paused_at

    def stop(self) -> None:
        """Stop watching: the body has ended."""
        self._stopped = True
        for timer in (self._silence_timer, self._rate_timer, self._whole_timer):
            if timer.active():
                timer.cancel()

    @property
    def is_poor(self) -> bool:
        """Whether so little came for the time it took that the rest should not be requested often."""
        lasted: float = self._clock.seconds() - self._since
        return self._before + self._received < _WORTHWHILE * lasted

    def _measure(self) -> None:
        if self._received < self._rate * RATE_SECONDS:
            self._end(f"upstream sent less than {self._rate} bytes per second for {RATE_SECONDS:g} seconds")
            return
        self._before += self._received
        self._received = 0
        self._rate_timer = self._clock.callLater(RATE_SECONDS, self._measure)

    def _end_silent(self) -> None:
        left = self._last + self.silence - self._clock.seconds()
        if left > 0:
            self._silence_timer = self._clock.callLater(left, self._end_silent)
            return
        begun = self._before + self._received > 0
        stopped = f"upstream stopped in the middle of {self._what}" if begun else f"no byte of {self._what} came"
        self._end(f"{stopped} for {self.silence:g} seconds")

    def _end_late(self) -> None:
        self._end(f"upstream took more than {self._longest / 60:g} minutes for {self._what}")

    def _end(self, why: str) -> None:
        self.stop()
        self._too_slow(why)
