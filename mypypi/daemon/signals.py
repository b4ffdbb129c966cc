"""What SIGTERM, SIGINT, SIGHUP and SIGUSR1 do, the same for all daemons.

Knows signals, and when the reactor can act on them. Must never know which files are read again, or how a stop drains.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.daemon.lifecycle import CannotStart, stop
from mypypi.errors import MyPyPiError
from mypypi.observability.logs import ConfiguredLogger

#: SIGTERM and SIGINT stop a daemon, SIGHUP reads files again, and SIGUSR1 rotates the log file.
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
#: Signals that arrived before there was a reactor to act on them.
_early: list[int] = []


def hold_signals() -> None:
    """
    Keep all signals until `Signals` acts on them.

    Call this before a daemon's imports, which take most of the start: by default, each of the signals ends the process.
    """
    for number in HANDLED:
        signal.signal(number, _hold)


def _hold(number: int, _frame: object) -> None:
    _early.append(number)


class Signals:
    """
    Acts on the signals of a process, from the start of its services to its end.

    A stop drains, and a second signal does not shorten it. Each function in `reloads` reads files again. It raises
    CannotStart, OSError or a MyPyPiError with the reason if it goes on with what it read before. A child process has
    `reloads` None: only SIGTERM is for it, as its parent gets all other signals, also those of a terminal.
    """

    log = Logger()

    def __init__(self, reactor: Any, reloads: Sequence[Callable[[], object]] | None) -> None:
        self._reactor = reactor
        self._reloads = reloads
        self._stopping = False
        self._terminal = next((fd for fd in (0, 1, 2) if os.isatty(fd)), None)

    def install(self) -> None:
        """Replace the handlers of `hold_signals` and of the reactor, and act on the signals held so far."""
        for number in HANDLED:
            ignored = self._reloads is None and number != signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ignored else self.received)
        # The reactor installs these when it starts. Its own would log from the handler, and fail at a second signal.
        self._reactor.sigTerm = self._reactor.sigInt = self.received
        while _early:
            self.received(_early.pop(0))

    def received(self, number: int, _frame: object = None) -> None:
        """Act on a signal as soon as the reactor runs. A handler interrupts any code, and must do no more than this."""
        self._reactor.callFromThread(self._act, signal.Signals(number))

    def _act(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP and self._terminal is not None and not os.isatty(self._terminal):
            self._stop(number, "its terminal is gone")
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stop(number, "requests and jobs get time to end")
        elif self._stopping:
            self.log.info("{signal} is ignored, since this daemon stops", signal=number.name)
        elif number == signal.SIGHUP:
            self._run(number, [ConfiguredLogger.reopen, *(self._reloads or ())], "files were read again")
        else:
            self._run(number, [ConfiguredLogger.rotate], "the log file, if there is one, was rotated")

    def _stop(self, number: signal.Signals, why: str) -> None:
        if self._stopping:
            self.log.info("{signal} again: this daemon stops already; only SIGKILL is faster", signal=number.name)
            return
        self._stopping = True
        self.log.info("received {signal}, stopping: {why}", signal=number.name, why=why)
        self._reactor._exitSignal = number  # noqa: SLF001 - twistd ends itself with it, as with the reactor's handlers
        stop(self._reactor)

    def _run(self, number: signal.Signals, reloads: Sequence[Callable[[], object]], done: str) -> None:
        Deferred.fromCoroutine(self._reload(number, reloads, done)).addErrback(
            lambda failure: self.log.failure("{signal} could not be handled", failure, signal=number.name)
        )

    async def _reload(self, number: signal.Signals, reloads: Sequence[Callable[[], object]], done: str) -> None:
        """Call all functions, and log that all is `done` unless one failed. That does not stop the others."""
        failed = []
        for reload in reloads:
            await maybeDeferred(reload).addErrback(lambda failure: failed.append(self._reason(failure)))
        for why in failed:
            self.log.error("{signal}: {why}; what was read before stays in use", signal=number.name, why=why)
        if not failed:
            self.log.info("{signal}: {done}", signal=number.name, done=done)

    def _reason(self, failure: Failure) -> str:
        failure.trap(CannotStart, OSError, MyPyPiError)
        return str(failure.value)
