"""The metric ``mypypi_breaker_open``: set while requests to an origin are held back.

Knows the metric and a clock. Must never know why a pause began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.interfaces import IDelayedCall

from mypypi.observability import metrics

if TYPE_CHECKING:
    from mypypi.coordination import Pause

#: The label of all hosts but upstream's own. Pages decide which hosts they list, so names would be labels without end.
OTHER = "other"


class PauseGauge:
    """The metric for each kind of request, to `origin`, which is upstream's own, and to all others together."""

    def __init__(self, clock: Any, origin: str) -> None:
        self._clock = clock
        self._origin = origin
        self._timers: dict[tuple[str, str], IDelayedCall] = {}

    def open(self) -> list[tuple[str, str]]:
        """Return the origins and kinds for which the metric is set."""
        return list(self._timers)

    def set(self, origin: str, kind: str, pause: Pause) -> None:
        """
        Set the metric until the pause ends.

        A timer clears it, since this process may send no request that would see the end of the pause.
        """
        left = pause.until - self._clock.seconds()
        if left > 0:
            self.clear(origin, kind)
            self._timers[origin, kind] = self._clock.callLater(left, self.clear, origin, kind)
            self._update(origin, kind)

    def clear(self, origin: str, kind: str) -> None:
        """Clear the metric, if it is set."""
        timer = self._timers.pop((origin, kind), None)
        if timer is not None:
            if timer.active():
                timer.cancel()
            self._update(origin, kind)

    def _update(self, origin: str, kind: str) -> None:
        """Set the metric to 1 while any origin with the same label is held back."""
        label = self._label(origin)
        is_open = any(each == kind and self._label(other) == label for other, each in self._timers)
        metrics.BREAKER_OPEN.labels(label, kind).set(int(is_open))

    def _label(self, origin: str) -> str:
        return (urlsplit(origin).hostname or "") if origin == self._origin else OTHER
