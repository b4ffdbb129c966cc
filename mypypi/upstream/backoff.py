"""What is not asked for until then, since it failed: pauses that grow, known here and, through the catalog, to all.

Knows the catalog and a clock. Must never know what is paused: it has a name.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import frozen
from cachetools import LRUCache

from mypypi.errors import CatalogDown
from mypypi.model import Pause

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog

#: Seconds of the first pause, each further one being twice as long, and of the longest.
_FIRST, _LONGEST = 1.0, 60.0
#: Seconds between two looks into the catalog for one name.
_LOOK_AGAIN = 1.0
#: Names that are known here; for more of them the catalog is asked more often.
_MOST_KNOWN = 10_000


@frozen
class _Known:
    pause: Pause | None
    looked_at: float


class Backoff:
    """
    Pauses by name. One that is over is still told, for a few minutes: what failed may fail again, and then pauses for
    longer. Each pause is a little longer or shorter than others, so that not all that failed comes back at once.
    """

    def __init__(self, catalog: ICatalog, clock: Any) -> None:
        self._catalog = catalog
        self._clock = clock
        self._known: LRUCache[str, _Known] = LRUCache(_MOST_KNOWN)

    def known(self, name: str) -> Pause | None:
        """The last pause, over or not, as far as it is known in this process."""
        known = self._known.get(name)
        return known.pause if known is not None else None

    def left(self, name: str) -> float:
        """Seconds that are left of it, as far as it is known in this process; 0 where there is none."""
        pause = self.known(name)
        return max(0.0, pause.until - self._clock.seconds()) if pause is not None else 0.0

    async def look(self, name: str, *, anew: bool = False) -> Pause | None:
        """The last pause, over or not, as all know it; the catalog is asked once a second at most, or `anew`."""
        known, now = self._known.get(name), self._clock.seconds()
        if not anew and known is not None and now - known.looked_at < _LOOK_AGAIN:
            return known.pause
        looking = self._know(name, known.pause if known is not None else None)
        with suppress(CatalogDown):
            pause = await self._catalog.pause(name)
            if self._known.get(name) is looking:  # else it began or ended here meanwhile
                self._known[name] = _Known(pause, now)
        return self.known(name)

    async def begin(self, name: str, why: str, *, seconds: float | None = None, broken: bool = False) -> Pause:
        """It failed: a pause of so many `seconds`, or else one that is longer than the one before it."""
        before = self.known(name)
        failures = before.failures + 1 if before is not None else 1
        length = seconds
        if length is None:
            length = min(_LONGEST, _FIRST * 2 ** (failures - 1)) * random.uniform(0.75, 1.25)  # noqa: S311
        pause = Pause(self._clock.seconds() + length, why, failures, broken)
        self._know(name, pause)
        with suppress(CatalogDown):
            await self._catalog.put_pause(name, pause)
        return pause

    async def end(self, name: str) -> None:
        """It works again. The catalog is told where a pause was known here."""
        known = self._known.get(name)
        if known is not None and known.pause is not None:
            self._know(name, None)
            with suppress(CatalogDown):
                await self._catalog.end_pause(name)

    def _know(self, name: str, pause: Pause | None) -> _Known:
        known = self._known[name] = _Known(pause, self._clock.seconds())
        return known
