"""Offers the metadata of stored wheels on the pages that list them without any.

Upstream's page has none, and ranges do not give it: the host of the files answers none, or operation is strict. So the
metadata is read out of a wheel once that is stored, and its page advertises it from then on. Knows fetches and pages.
Must never know how metadata is read, or what a client gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachetools import LRUCache
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi.errors import MyPyPiError, NoMetadata
from mypypi.model import PackageFile
from mypypi.rendering.listing import metadata_of

if TYPE_CHECKING:
    from mypypi.files.fetches import Fetches
    from mypypi.pages.page_cache import PageCache
    from mypypi.proxy.cached_listings import CachedListings

#: Wheels that this process remembers as offered, or as not to be offered.
_MOST_REMEMBERED = 20_000


class Offers:
    """Offers the metadata of each stored wheel once in this process, in the background."""

    log = Logger()

    def __init__(self, fetches: Fetches, pages: PageCache, listings: CachedListings) -> None:
        self._fetches = fetches
        self._pages = pages
        self._listings = listings
        self._seen: LRUCache[str, str] = LRUCache(_MOST_REMEMBERED)

    def note(self, wheel: PackageFile) -> None:
        """Offer the metadata of this file, if it is a wheel without any. It is stored, and was checked."""
        link, digests = wheel.link, wheel.digest_text
        if not link.endswith(".whl") or not digests or self._seen.get(link) == digests:
            return
        self._seen[link] = digests
        Deferred.fromCoroutine(self._offer(wheel)).addErrback(
            lambda failure: self.log.failure("the metadata of {link} could not be offered", failure, link=link)
        )

    async def _offer(self, wheel: PackageFile) -> None:
        try:
            await self._read_and_offer(wheel)
        except NoMetadata:
            pass
        except MyPyPiError:  # a fetch logs why; it is tried again when a client next gets the wheel
            self._seen.pop(wheel.link, None)

    async def _read_and_offer(self, wheel: PackageFile) -> None:
        metadata = metadata_of(wheel)
        found = await self._listings.find(wheel.link)
        if found is not None and found[1] == wheel and await self._listings.find(metadata.link) is None:
            await self._fetches.fetch_and_store(metadata)
            await self._pages.offer(found[0].id, wheel.link)
