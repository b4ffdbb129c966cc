"""Helpers for any child process: restart delays, output split into lines, and the signals of a terminal.

Knows seconds, bytes and signals. Must never know which process it helps: the embedded Redis or a server process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from attrs import define
from twisted.python.failure import Failure

#: Seconds between the end of a process and its restart: doubled each time, from the first to the longest.
FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
#: Seconds of a run after which the delay starts from the first again.
GOOD_RUN = 60.0
#: The signals that a terminal sends to the whole group of its processes: by Ctrl-C, and when it is closed.
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)


@define
class RestartDelay:
    """The delay before a process is restarted. It grows with each restart until a run was long."""

    _next: float = FIRST_DELAY

    def next(self) -> float:
        """Return the delay in seconds. The next one is twice as long, up to `LONGEST_DELAY`."""
        delay, self._next = self._next, min(self._next * 2, LONGEST_DELAY)
        return delay

    def ran(self, seconds: float) -> None:
        """Note the seconds of a run. After a good run, delays start from the first again."""
        if seconds >= GOOD_RUN:
            self._next = FIRST_DELAY


@define
class LineBuffer:
    """Splits bytes that arrive in pieces into lines, and calls `each` with every line."""

    each: Callable[[str], None]
    rest: bytes = b""

    def add(self, data: bytes) -> None:
        """Add bytes, and call `each` for the lines that are complete."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.each(line.decode("utf-8", "replace"))


def how_it_ended(reason: Failure) -> str:
    """Return the exit code or signal of a process, in words."""
    signal, code = getattr(reason.value, "signal", None), getattr(reason.value, "exitCode", None)
    return f"exit code {code}" if signal is None else f"signal {signal}"


@contextmanager
def terminal_signals_blocked() -> Iterator[None]:
    """
    Start a child process with the signals of a terminal blocked, until it calls `leave_group`.

    They are for the daemon alone, which then tells its children what to do. By default, they would end a child.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_group() -> None:
    """Take this process out of its terminal's group, ignore what was sent to the group so far, and unblock signals."""
    with suppress(PermissionError):  # it leads a group already
        os.setpgid(0, 0)
    for number in _OF_TERMINALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)
