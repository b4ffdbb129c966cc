"""Back-off after failures: growing pauses, shared through the catalog.

Knows the catalog and a clock. Must never know what a pause is for, beyond its name.
"""

from __future__ import annotations

import math
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import frozen
from cachetools import LRUCache
from twisted.internet.task import deferLater

from mypypi.coordination import Pause
from mypypi.errors import CatalogDown, MyPyPiError, upstream_error

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog

#: Seconds of the first pause and of the longest one. Each pause is twice as long as the one before.
_FIRST, _LONGEST = 1.0, 60.0
#: Pauses that are twice as long as the one before. The power of thousands of failures would be no float any more.
_DOUBLINGS = 10
#: Seconds of a pause that a request waits for, where nothing else can be served. Clients that try again at once would
#: meet the same pause.
PATIENCE = 2.0
#: Seconds between two reads of the catalog for one name.
_CATALOG_INTERVAL = 1.0
#: Names that are remembered in this process; with more of them, the catalog is read more often.
_MAX_KNOWN = 10_000


@frozen
class _KnownPause:
    pause: Pause | None
    read_at: float


class Backoff:
    """
    Pauses by name.

    A pause that is over is remembered for a few minutes, since the next failure begins a longer one. Each pause is a
    little longer or shorter at random, so that requests that failed together are not retried together.
    """

    def __init__(self, catalog: ICatalog, clock: Any) -> None:
        self._catalog = catalog
        self._clock = clock
        self._known: LRUCache[str, _KnownPause] = LRUCache(_MAX_KNOWN)

    def last_known(self, name: str) -> Pause | None:
        """Return the last pause known to this process, over or not."""
        known = self._known.get(name)
        return known.pause if known is not None else None

    def remaining(self, name: str) -> float:
        """Return the seconds left of a pause, 0 if none. Only what this process knows counts."""
        pause = self.last_known(name)
        return max(0.0, pause.until - self._clock.seconds()) if pause is not None else 0.0

    async def read(self, name: str, *, anew: bool = False) -> Pause | None:
        """
        Return the last pause known to any process, over or not.

        The catalog is read at most once a second for each name, or always with `anew`.
        """
        known, now = self._known.get(name), self._clock.seconds()
        if not anew and known is not None and now - known.read_at < _CATALOG_INTERVAL:
            return known.pause
        placeholder = self._remember(name, known.pause if known is not None else None)
        with suppress(CatalogDown):
            pause = await self._catalog.pause(name)
            if self._known.get(name) is placeholder:  # else this process began or ended a pause meanwhile
                self._known[name] = _KnownPause(pause, now)
        return self.last_known(name)

    async def wait_out(self, name: str, *, patient: bool = True) -> Pause | None:
        """
        Wait for the end of a pause, if it is at most `PATIENCE` seconds away.

        Returns the pause if it is longer, or if the caller is not `patient`.
        """
        pause = await self.read(name)
        remaining = self.remaining(name)
        if pause is None or not remaining:
            return None
        if not patient or remaining > PATIENCE:
            return pause
        await deferLater(self._clock, remaining)
        return None

    async def begin(
        self, name: str, why: str, *, seconds: float | None = None, at_least: float = 0.0, status: int = 503
    ) -> Pause:
        """
        Begin a pause after a failure, of which clients are told with this `status`.

        It lasts `seconds`, or else twice as long as the pause before, and `at_least` so long, up to a minute.
        """
        before = self.last_known(name)
        failures = before.failures + 1 if before is not None else 1
        length = seconds
        if length is None:
            length = min(_LONGEST, max(at_least, _FIRST * 2 ** min(failures - 1, _DOUBLINGS)))
            length *= random.uniform(0.75, 1.25)  # noqa: S311
        pause = Pause(self._clock.seconds() + length, why, failures, status)
        self._remember(name, pause)
        with suppress(CatalogDown):
            await self._catalog.put_pause(name, pause)
        return pause

    async def end(self, name: str) -> None:
        """End a pause, if this process knows one. The catalog is only written then."""
        known = self._known.get(name)
        if known is not None and known.pause is not None:
            self._remember(name, None)
            with suppress(CatalogDown):
                await self._catalog.end_pause(name)

    def _remember(self, name: str, pause: Pause | None) -> _KnownPause:
        known = self._known[name] = _KnownPause(pause, self._clock.seconds())
        return known


def error_of(pause: Pause, now: float) -> MyPyPiError:
    """Return the failure that began a pause, with the seconds until the pause ends."""
    return upstream_error(pause.status, pause.why, max(1, math.ceil(pause.until - now)))
