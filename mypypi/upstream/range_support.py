"""Remembers which origins of files answer ranges, and finds it out by asking for the last byte of a file.

What is known is shared by all processes. Knows origins and the catalog. Must never know what a range is needed for.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from cachetools import TTLCache
from twisted.internet.defer import DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeout

from mypypi.byte_range import ByteRange
from mypypi.coalescing import Coalescer
from mypypi.errors import CatalogDown, MyPyPiError
from mypypi.file_keys import key_of, origin_in

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.responses import FileRange

#: Origins that are remembered. Pages name them, and nearly all name the same.
_MOST_ORIGINS = 1_000
#: Seconds until the catalog is asked again: for origins that answer ranges, for others, and after a failure.
_RANGED, _WITHOUT, _FAILED = 86_400.0, 600.0, 60.0
#: Seconds that a page waits for an answer. Then it advertises no more than upstream's page does, until its next change.
_PATIENCE = 3.0
_LAST_BYTE = ByteRange(None, 1)


class RangeSupport:
    """Which origins of files answer ranges, as far as that is known."""

    def __init__(self, upstream: Upstream, catalog: ICatalog, clock: Any) -> None:
        self._upstream = upstream
        self._catalog = catalog
        self._clock = clock
        self._ranged: TTLCache[str, bool] = TTLCache(_MOST_ORIGINS, _RANGED, clock.seconds)
        self._without: TTLCache[str, bool] = TTLCache(_MOST_ORIGINS, _WITHOUT, clock.seconds)
        self._failed: TTLCache[str, bool] = TTLCache(_MOST_ORIGINS, _FAILED, clock.seconds)
        self._running: Coalescer[None] = Coalescer()

    @property
    def ranged(self) -> frozenset[str]:
        """The origins that are known to answer ranges, as `origin_in` gives them."""
        return frozenset(self._ranged)

    def lacks_ranges(self, key: str) -> bool:
        """Whether the origin of the file with this key is known not to answer ranges."""
        return origin_in(key) in self._without

    def is_known(self, urls: Iterable[str]) -> bool:
        """Whether it is known of the origins of all these files whether they answer ranges."""
        return all(_origin(url) in self._ranged or _origin(url) in self._without for url in urls)

    async def find_out(self, urls: Iterable[str]) -> None:
        """Find out whether the origins of these files answer ranges, unless that takes more than some seconds."""
        new = {_origin(url): url for url in urls}
        for known in (self._ranged, self._without, self._failed):
            new = {origin: url for origin, url in new.items() if origin not in known}
        answers = [self._running.run(origin, partial(self._try, url)) for origin, url in new.items()]
        with suppress(DeferredTimeout):
            await DeferredList(answers, consumeErrors=True).addTimeout(_PATIENCE, self._clock)
        for origin, url in new.items():
            if not self.is_known([url]):
                self._failed[origin] = True

    async def ask(self, url: str, asked: ByteRange, client: str) -> FileRange | None:
        """
        Request a range of a file, as `Upstream.range` does, and remember whether the origin answers ranges.

        Raises as `Upstream.range` does.
        """
        found = await self._upstream.range(url, asked, client)
        await self._note(_origin(url), answers=found is not None)
        return found

    async def _try(self, url: str) -> None:
        origin = _origin(url)
        known = None
        with suppress(CatalogDown):
            known = await self._catalog.answers_ranges(origin)
        if known is not None:
            self._remember(origin, answers=known)
            return
        try:
            await self.ask(url, _LAST_BYTE, "")
        except MyPyPiError:
            self._failed[origin] = True

    async def _note(self, origin: str, *, answers: bool) -> None:
        if self._remember(origin, answers=answers):
            with suppress(CatalogDown):
                await self._catalog.put_answers_ranges(origin, answers)

    def _remember(self, origin: str, *, answers: bool) -> bool:
        """Remember whether an origin answers ranges. Returns whether that is new."""
        now, before = (self._ranged, self._without) if answers else (self._without, self._ranged)
        before.pop(origin, None)
        is_new = origin not in now
        if is_new or not answers:
            now[origin] = True
        return is_new


def _origin(url: str) -> str:
    return origin_in(key_of(url))
