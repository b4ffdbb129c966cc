"""What the embedded Redis and the supervised server processes share: restart delays, and output split into lines.

Knows seconds and bytes. Must never know which process it is about.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define
from twisted.python.failure import Failure

#: Seconds between the end of a process and its restart: doubled each time, from the first to the longest.
FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
#: Seconds of a run after which the delay starts from the first again.
GOOD_RUN = 60.0


@define
class RestartDelay:
    """Seconds to wait before a process is started again; longer each time, until a run was long."""

    _next: float = FIRST_DELAY

    def next(self) -> float:
        """The delay before this restart. The next one is twice as long, up to half a minute."""
        delay, self._next = self._next, min(self._next * 2, LONGEST_DELAY)
        return delay

    def ran(self, seconds: float) -> None:
        """Note that the process worked for this long: after a good run, delays start from the first again."""
        if seconds >= GOOD_RUN:
            self._next = FIRST_DELAY


@define
class LineBuffer:
    """Splits bytes that arrive in pieces into lines, and calls `each` with every line."""

    each: Callable[[str], None]
    rest: bytes = b""

    def add(self, data: bytes) -> None:
        """Take more bytes."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.each(line.decode("utf-8", "replace"))


def how_it_ended(reason: Failure) -> str:
    """A process's exit code or signal, in words."""
    signal, code = getattr(reason.value, "signal", None), getattr(reason.value, "exitCode", None)
    return f"exit code {code}" if signal is None else f"signal {signal}"
