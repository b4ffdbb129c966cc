"""Decides whether files may be read from the bucket. While it fails, only a trial now and then may.

Knows a clock, and the reasons for failures as text. Must never know S3, keys, or what clients get instead.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

#: Seconds without reads after a failure, and the most between two trials. After a short failure, clients should not
#: fetch from upstream for long; during a long one, few should wait for a trial.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
#: Seconds without a failure after which the next one begins with the first pause again. A bucket that answers every
#: other request opens and closes the breaker seldom.
CALM_SECONDS = 30.0
#: Seconds for which an answer of the bucket shows that files can be read from it. So long a client may be sent to a
#: bucket that has just begun to fail.
CONFIRMED_SECONDS = 5.0


class BucketBreaker:
    """
    The breaker for reads from the bucket, in one process. It is closed, or open with a reason.

    A failed read opens it, and a successful one closes it. Uploads count as neither: a bucket may refuse to be written
    and still be read, and the reverse. While it is open, one read is admitted as a trial after each pause. Pauses
    double, up to `LONGEST_PAUSE` seconds.
    """

    log = Logger()

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._why = ""
        self._pause = FIRST_PAUSE
        self._tried_at = float("-inf")
        self._answered_at = float("-inf")

    @property
    def why(self) -> str:
        """The reason of the last failure while the breaker is open, else empty."""
        return self._why

    @property
    def is_confirmed(self) -> bool:
        """Whether the bucket has answered a read within the last few seconds, and no read has failed since."""
        return not self._why and _is_within(CONFIRMED_SECONDS, self._answered_at, self._clock.seconds())

    def admit(self) -> bool:
        """Whether the bucket may be read now. While the breaker is open, the caller's read is then the trial."""
        if not self._why:
            return True
        now = self._clock.seconds()
        if _is_within(self._pause, self._tried_at, now):
            return False
        self._tried_at = now
        self._lengthen_pause()
        return True

    def succeeded(self) -> bool:
        """Report that the bucket answered a read. Returns whether that closed the breaker."""
        self._answered_at = self._clock.seconds()
        if not self._why:
            return False
        self._why = ""
        self.log.info("files in S3 can be read again")
        return True

    def failed(self, why: str, since: float) -> None:
        """Report that a read failed that began at the time `since`. A read that succeeded meanwhile counts for more."""
        now = self._clock.seconds()
        if since < self._answered_at <= now:
            return
        if not self._why:
            if _is_within(CALM_SECONDS, self._tried_at, now):
                self._lengthen_pause()
            else:
                self._pause = FIRST_PAUSE
            self.log.error("files in S3 can't be read, they are fetched from upstream again: {why}", why=why)
        self._why = why
        self._tried_at = now

    def _lengthen_pause(self) -> None:
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def _is_within(seconds: float, then: float, now: float) -> bool:
    """Whether `then` is at most this long ago. A time in the future is none: the clock was put back."""
    return then <= now < then + seconds
