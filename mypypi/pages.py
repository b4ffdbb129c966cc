"""A page's life: fresh, asked for anew, confirmed or replaced, or stale while upstream fails.

Knows the catalog, upstream and the press, and keeps what is hot in this process. Must never know routes, HTTP towards
clients, or what is in a page beyond the listing that its ecosystem reads from it.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi.errors import CatalogDown, MyPyPiError, NotFound, UpstreamDown, UpstreamSilent
from mypypi.hot import Hot, HotPages
from mypypi.model import PackageFile, Page, PageId
from mypypi.once import Once

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog, IEcosystem
    from mypypi.press import Press
    from mypypi.threads import Threads
    from mypypi.upstream import Upstream

#: Seconds between two looks into the catalog for a page that is hot here.
_LOOK_AGAIN = 1.0
#: Seconds after which a page that we hold is answered as it is, while upstream is still being asked: clients give up
#: reading after 15 s or more (pip, poetry), and one that waits is a build that waits.
STALE_AFTER = 3.0
#: Seconds for which every page that we hold is answered as it is after upstream was silent for one of them: an install
#: reads hundreds of pages, many of them one after another, and would wait for each.
_SILENCE = 2.0
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_HOT_BYTES = 128 * 1024 * 1024


@frozen
class PageAnswer:
    """A page to serve. `ttl`: seconds of freshness left, negative where it is stale. `why` upstream was asked for it
    (a fwd reason of RFC 9211, section 2.2), empty where upstream was not asked or has not answered."""

    page: Page
    ttl: float
    why: str = ""


@frozen
class _Pause:
    """Upstream failed for a page so often in a row, and is not asked again until then."""

    failures: int
    until: float


class Pages:
    """The pages of one ecosystem behind one upstream. Times are seconds."""

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        catalog: ICatalog,
        upstream: Upstream,
        press: Press,
        threads: Threads,
        clock: Any,
        *,
        cache_time: float,
        negative_cache_time: float,
    ) -> None:
        self._ecosystem = ecosystem
        self._catalog = catalog
        self._upstream = upstream
        self._press = press
        self._threads = threads
        self._clock = clock
        self._cache_time = cache_time
        self._negative_cache_time = negative_cache_time
        self._hot = HotPages(_HOT_BYTES)
        self._failing = ""
        self._refreshing: Once[Page] = Once()
        self._pauses: dict[PageId, _Pause] = {}
        self._silent_until = 0.0

    async def get(self, page: PageId) -> PageAnswer:
        """
        The page, asked of upstream where it is not fresh; as it was, however old, where upstream fails.

        Raises NotFound when upstream says so; UpstreamDown or UpstreamBroken when there is nothing to fall back on.
        """
        held = await self.held(page)
        if held is not None and self._ttl(held) > 0:
            return self._answer(held, "")
        if held is None or held.missing:
            fresh = await self._refresh(page, held)
            return self._answer(fresh, "miss")
        if self._clock.seconds() < self._next_try(page):
            return self._answer(held, "")
        try:
            fresh = await self._in_time(self._refresh(page, held), held)
        except NotFound:
            raise
        except MyPyPiError:
            return self._answer(held, "")
        return self._answer(fresh, "" if fresh is held else "stale")

    async def held(self, page: PageId) -> Page | None:
        """The page as it is known, fresh or not, without asking upstream."""
        hot = self._hot.get(page)
        now = self._clock.seconds()
        if hot is not None and now - hot.looked_at < _LOOK_AGAIN:
            return hot.page
        try:
            looked = await self._look(page, hot)
        except CatalogDown:
            hot = self._hot.get(page)
            return hot.page if hot is not None else None
        newer = self._hot.get(page)
        if newer is not None and newer is not hot:
            return newer.page  # taken in while we looked, of which the catalog's answer may know nothing yet
        return self._hot.put(looked, now).page if looked is not None else None

    async def listing(self, page: Page) -> dict[str, PackageFile]:
        """The files that this page lists, by link."""
        hot = self._hot.get(page.id)
        if hot is not None and hot.page.version == page.version and hot.listing is not None:
            return hot.listing
        name = self._ecosystem.listing_form(page.id)
        if name is None or name not in page.forms:
            return {}
        listing = await self._threads.run(self._read_listing, page, name)
        self._hot.put_listing(page, listing)
        return listing

    async def withhold(self, page: PageId, link: str) -> None:
        """Stop advertising a link that upstream lists and does not have: the page is taken in anew when next asked."""
        if link in await self._withheld(page):
            return
        try:
            await self._catalog.withhold(page, link)
        except CatalogDown:
            return
        held = await self.held(page)
        if held is not None:
            await self._keep(_doubted(held), ())

    async def check(self) -> None:
        """Raises UpstreamDown with the reason while the last page that upstream was asked for was not to be had."""
        if self._failing:
            raise UpstreamDown(self._failing)

    def _read_listing(self, page: Page, name: str) -> dict[str, PackageFile]:
        return self._ecosystem.listing(page.id, {name: zlib.decompress(page.forms[name].body, 31)})

    async def _look(self, page: PageId, hot: Hot | None) -> Page | None:
        """What the catalog says of the page now."""
        if hot is not None:
            stamp = await self._catalog.page_stamp(page)
            if stamp is None:
                return _doubted(hot.page)
            if stamp[0] == hot.page.version:
                return evolve(hot.page, checked_at=stamp[1])
        return await self._catalog.get_page(page)

    def _ttl(self, page: Page) -> float:
        lifetime = self._negative_cache_time if page.missing else self._cache_time
        left: float = page.checked_at + lifetime - self._clock.seconds()
        return left

    def _answer(self, page: Page, why: str) -> PageAnswer:
        if page.missing:
            raise NotFound(f"upstream has no {page.id}")
        return PageAnswer(page, self._ttl(page), why)

    async def _in_time(self, refresh: Deferred[Page], held: Page) -> Page:
        """The refreshed page, or the one that we hold where that takes long. The refresh goes on."""
        late = self._clock.callLater(STALE_AFTER, self._late, refresh, held)
        try:
            return await refresh
        finally:
            if late.active():
                late.cancel()

    def _late(self, refresh: Deferred[Page], held: Page) -> None:
        self._silent()
        refresh.callback(held)

    def _refresh(self, page: PageId, held: Page | None) -> Deferred[Page]:
        return self._refreshing.run(page, lambda: self._ask_upstream(page, held))

    async def _ask_upstream(self, page: PageId, held: Page | None) -> Page:
        try:
            fresh, strays = await self._new(page, held)
        except NotFound:
            fresh, strays = Page(page, self._clock.seconds(), missing=True, version="missing"), ()
        except MyPyPiError as error:
            self._failed(page, held, error)
            raise
        self._worked(page)
        # A page in doubt is kept anew even where it turns out to be the same: the catalog may have lost it.
        confirmed = held is not None and held.checked_at > 0 and held.version == fresh.version
        await self._keep(fresh, strays, confirmed=confirmed)
        return fresh

    async def _new(self, page: PageId, held: Page | None) -> tuple[Page, tuple[str, ...]]:
        """What upstream says now: the page that we hold, confirmed, or another one."""
        request = self._ecosystem.page_request(page)
        etag, modified = (held.upstream_etag, held.upstream_modified) if held is not None else ("", "")
        answer = await self._upstream.page(request.path, request.accept, etag, modified)
        now = self._clock.seconds()
        if answer.source is None:
            assert held is not None
            return evolve(held, checked_at=now), ()
        digest = await self._threads.run(_digest, answer.source.body)
        if held is not None and held.source == digest:
            return evolve(held, checked_at=now), ()
        withheld = await self._withheld(page)
        printed = await self._press.press(page, answer.source, withheld)
        version = f"{digest[:32]}-{int(now * 1000):x}" if withheld else digest[:32]
        fresh = Page(
            page,
            now,
            printed.forms,
            upstream_etag=answer.etag,
            upstream_modified=answer.modified,
            source=digest,
            version=version,
            modified=answer.modified or printed.modified,
        )
        return fresh, printed.strays

    async def _withheld(self, page: PageId) -> frozenset[str]:
        try:
            return await self._catalog.withheld(page)
        except CatalogDown:
            return frozenset()

    async def _keep(self, page: Page, strays: tuple[str, ...], *, confirmed: bool = False) -> None:
        """In this process and, where it answers, in the catalog."""
        self._hot.put(page, self._clock.seconds())
        try:
            if confirmed:
                await self._catalog.touch_page(page.id, page.version, page.checked_at)
            else:
                await self._catalog.put_page(page, strays)
        except CatalogDown:
            pass  # the catalog has said so itself, once

    def _failed(self, page: PageId, held: Page | None, error: MyPyPiError) -> None:
        """The next try for a page that we hold comes after a pause that grows, a little different for each page."""
        if not self._failing:
            self.log.warn("upstream fails, serving what is here: {page}: {why}", page=str(page), why=error)
        self._failing = str(error)
        if isinstance(error, UpstreamSilent):
            self._silent()
        if held is not None:
            before = self._pauses.get(page)
            failures = before.failures + 1 if before is not None else 1
            length = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1)) * random.uniform(0.75, 1.25)  # noqa: S311
            self._pauses[page] = _Pause(failures, self._clock.seconds() + length)

    def _silent(self) -> None:
        self._silent_until = self._clock.seconds() + _SILENCE

    def _next_try(self, page: PageId) -> float:
        """Until then, nobody asks upstream for a page that we hold."""
        pause = self._pauses.get(page)
        return max(self._silent_until, pause.until if pause is not None else 0.0)

    def _worked(self, page: PageId) -> None:
        self._pauses.pop(page, None)
        self._silent_until = 0.0
        if self._failing:
            self._failing = ""
            self.log.info("upstream answers again")


def _doubted(page: Page) -> Page:
    """The page as something to fall back on, to be taken in anew as soon as upstream answers. It has a version of its
    own, so that whoever holds the page doubts it too, and nobody takes it for what the catalog may have lost."""
    version = f"doubted-{page.version.removeprefix('doubted-')}"
    return evolve(page, checked_at=0.0, upstream_etag="", upstream_modified="", source="", version=version)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
