"""Reports a Redis that can be reached, but refuses commands or is slow: once in the log, and again when that is over.

Knows a probe and a clock. Must never know connections, nor which commands are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.errors import CatalogDown, RedisTooSlow

#: Seconds between two log lines about such trouble.
_WARN_EVERY = 60.0
#: Seconds between two probes for its end.
_PROBE_EVERY = 2.0


class Trouble:
    """
    The trouble of the Redis at `where`.

    `probe` sends a command that shows whether Redis works. It raises CatalogDown with the reason if it does not, and
    RedisTooSlow if the answer takes long.
    """

    log = Logger()

    def __init__(self, probe: Callable[[], Coroutine[Any, Any, None]], where: str, clock: Any) -> None:
        self._probe = probe
        self._where = where
        self._clock = clock
        self._started = False
        self._warned_at = float("-inf")
        self._next_probe: IDelayedCall | None = None
        self._is_probing = False

    def start(self) -> None:
        """Begin to report."""
        self._started = True

    def stop(self) -> None:
        """Report nothing more."""
        self._started = False
        if self._next_probe is not None and self._next_probe.active():
            self._next_probe.cancel()
        self._next_probe = None

    def report(self, what: str) -> None:
        """Log what is wrong, such as "refused a command: …". Then probe until commands succeed."""
        now = self._clock.seconds()
        if self._started and self._next_probe is None and now - self._warned_at >= _WARN_EVERY:
            self._warned_at = now
            self.log.warn("Redis at {where} {what}", where=self._where, what=what)
            self._next_probe = self._clock.callLater(_PROBE_EVERY, self._probe_again)

    def suspect(self) -> None:
        """Probe now, since a request has waited too long; report what the probe finds."""
        if self._started and self._next_probe is None and not self._is_probing:
            self._is_probing = True
            probing = Deferred.fromCoroutine(self._probe())
            probing.addErrback(self._confirm)
            probing.addErrback(self._log_unexpected)
            probing.addBoth(self._probed)

    def _confirm(self, failure: Failure) -> None:
        if failure.trap(RedisTooSlow, CatalogDown) is RedisTooSlow:  # other failures are reported where they happen
            self.report(f"makes requests wait, and they go on without it: {failure.value}")

    def _probed(self, _: object) -> None:
        self._is_probing = False

    def _probe_again(self) -> None:
        """Send the probe. Other commands that succeed prove nothing: Redis may answer reads while writes fail."""
        probing = Deferred.fromCoroutine(self._probe())
        probing.addCallbacks(self._probe_succeeded, self._probe_failed)
        probing.addErrback(self._log_unexpected)

    def _probe_succeeded(self, _: None) -> None:
        if self._started:
            self._next_probe = None
            self.log.info("Redis at {where} executes commands again", where=self._where)

    def _probe_failed(self, failure: Failure) -> None:
        failure.trap(CatalogDown)
        if self._started:
            self._next_probe = self._clock.callLater(_PROBE_EVERY, self._probe_again)

    def _log_unexpected(self, failure: Failure) -> None:
        self.log.failure("Redis could not be probed", failure)
