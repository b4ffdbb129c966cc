"""A page is asked of upstream: by one process of the fleet at a time, and not again for a while after it failed.

Knows upstream, the press, leases and pauses. Must never know who asks for a page, or how long it counts as fresh
beyond being told.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.coalescing import Coalescer
from mypypi.errors import (
    BadUpstreamResponse,
    CatalogDown,
    MyPyPiError,
    NotFound,
    UpstreamBusy,
    UpstreamDown,
    UpstreamPaused,
    UpstreamUnreachable,
)
from mypypi.model import Page, PageId, Pause
from mypypi.observability import metrics

if TYPE_CHECKING:
    from mypypi.interfaces import IEcosystem
    from mypypi.pages.page_store import PageStore
    from mypypi.pages.rendering import Renderer
    from mypypi.redis.leases import Leases
    from mypypi.threads import Threads
    from mypypi.upstream.backoff import Backoff
    from mypypi.upstream.client import Upstream

#: Seconds for which the lease of a page holds: so long clients wait where the process that asks upstream is killed, and
#: they give up reading after 15 s (pip, poetry).
PAGE_LEASE = 4.5
#: Seconds between two looks at what another process has come to, and for how long it is waited for.
_LOOK = 0.1
_LONGEST_WAIT = 120.0
#: Seconds for which every page that we hold is answered as it is after upstream was silent for one of them: an install
#: reads hundreds of pages, many of them one after another, and would wait for each.
_SILENCE = 2.0


@frozen
class PageSource:
    """What a page is taken in from, and with."""

    ecosystem: IEcosystem
    upstream: Upstream
    renderer: Renderer
    threads: Threads


class Revalidator:
    """
    Pages that are taken in anew, to the `store`. `fresh` says whether a page that somebody took in is so still.

    Whoever holds a page's lease asks upstream; other processes wait for what it comes to, a page or a failure, and go
    on with it where the lease is free and it came to nothing.
    """

    log = Logger()

    def __init__(
        self,
        source: PageSource,
        store: PageStore,
        leases: Leases,
        backoff: Backoff,
        clock: Any,
        fresh: Callable[[Page], bool],
    ) -> None:
        self._source = source
        self._store = store
        self._leases = leases
        self._backoff = backoff
        self._clock = clock
        self._fresh = fresh
        self._running: Coalescer[Page] = Coalescer()
        self._failing = ""
        self._failed_at = 0.0
        self._silent_until = 0.0

    def __contains__(self, page: PageId) -> bool:
        return page in self._running

    def revalidate(self, page: PageId, held: Page | None, *, background: bool = False) -> Deferred[Page]:
        """
        The page as upstream has it now, once for all who ask meanwhile; `held` is what is known of it. One that is
        `background` is not asked for while upstream is busy.

        Fails with UpstreamDown or BadUpstreamResponse. A page that upstream does not have is a page that is missing.
        """
        return self._running.run(page, lambda: self._in_turn(page, held, background=background))

    def is_put_off(self, page: PageId) -> bool:
        """Whether upstream is better not asked now for a page that we hold, as far as it is known in this process."""
        silent = self._clock.seconds() < self._silent_until
        return silent or self._backoff.left(_name(page)) > 0 or self._source.upstream.paused

    def notice(self, held: Page) -> None:
        """Upstream answers again where another process has had a page of it since it failed here."""
        if self._failing and held.checked_at > self._failed_at:
            self._answers()

    def silent(self) -> None:
        """Upstream lets somebody wait for long."""
        self._silent_until = self._clock.seconds() + _SILENCE

    async def check(self) -> None:
        """Raises UpstreamDown with the reason while upstream is not asked, or the last page was not to be had."""
        await self._source.upstream.check()
        if self._failing:
            raise UpstreamDown(self._failing)

    async def _in_turn(self, page: PageId, held: Page | None, *, background: bool) -> Page:
        lease = _name(page)
        try:
            try:
                found = await self._found(page, held, lease)
            except CatalogDown:
                found = None  # each for itself
            if found is not None:
                self._answers()
                return found
            return await self._ask(page, held, background=background)
        finally:
            await self._leases.let_go(lease)

    async def _found(self, page: PageId, held: Page | None, lease: str) -> Page | None:
        """What another process took in, or is just taking in; None where it is for us to ask. Raises CatalogDown."""
        if await self._leases.take(lease) is not None:
            metrics.LEASE_WAITS.labels("page").inc()
            return await self._others(page, held, lease)
        looked = await self._store.look(page)
        if self._is_news(looked, held):
            return looked
        if held is not None and not held.missing:
            pause = await self._backoff.look(lease)
            if pause is not None and self._backoff.left(lease):
                raise self._failure(pause)
        return None

    async def _others(self, page: PageId, held: Page | None, lease: str) -> Page | None:
        """What the process that asks upstream comes to; None where it comes to nothing, and it is our turn."""
        seen, paused = await self._store.look(page), await self._backoff.look(lease, anew=True)
        until = self._clock.seconds() + _LONGEST_WAIT
        while True:
            ours = await self._leases.take(lease) is None
            looked = await self._store.look(page)
            if self._is_news(looked, held) or (looked is not None and looked.checked_at and _differ(looked, seen)):
                return looked
            pause = await self._backoff.look(lease, anew=True)
            if pause is not None and pause != paused:
                raise self._failure(pause)
            if ours or self._clock.seconds() >= until:
                return None
            await deferLater(self._clock, _LOOK)

    def _is_news(self, looked: Page | None, held: Page | None) -> bool:
        """Whether somebody has taken in the page since, and it is still fresh."""
        return looked is not None and self._fresh(looked) and (held is None or looked.checked_at > held.checked_at)

    def _failure(self, pause: Pause) -> MyPyPiError:
        """What another process met."""
        if pause.broken:
            return BadUpstreamResponse(pause.why)
        return UpstreamDown(pause.why, max(1, math.ceil(pause.until - self._clock.seconds())))

    async def _ask(self, page: PageId, held: Page | None, *, background: bool) -> Page:
        try:
            fresh, indexed_links = await self._new(page, held, background=background)
        except NotFound:
            fresh, indexed_links = Page(page, self._clock.seconds(), missing=True, version="missing"), ()
        except (UpstreamPaused, UpstreamBusy):
            raise  # it was not asked
        except MyPyPiError as error:
            await self._failed(page, error)
            raise
        self._answers()
        await self._backoff.end(_name(page))
        # A page in doubt is kept anew even where it turns out to be the same: the catalog may have lost it.
        confirmed = held is not None and held.checked_at > 0 and held.version == fresh.version
        await self._store.keep(fresh, indexed_links, confirmed=confirmed)
        return fresh

    async def _new(self, page: PageId, held: Page | None, *, background: bool) -> tuple[Page, tuple[str, ...]]:
        """What upstream says now: the page that we hold, confirmed, or another one."""
        source = self._source
        request = source.ecosystem.page_request(page)
        etag, modified = (held.upstream_etag, held.upstream_modified) if held is not None else ("", "")
        answer = await source.upstream.page(request.path, request.accept, etag, modified, background=background)
        now = self._clock.seconds()
        if answer.source is None:
            assert held is not None
            return evolve(held, checked_at=now), ()
        digest = await source.threads.run(_digest, answer.source.body)
        if held is not None and held.source == digest:
            return evolve(held, checked_at=now), ()
        withheld = await self._store.withheld(page)
        printed = await source.renderer.render(page, answer.source, withheld)
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
        return fresh, printed.indexed_links

    async def _failed(self, page: PageId, error: MyPyPiError) -> None:
        """All are told, and leave a page that they hold as it is for a while."""
        if not self._failing:
            self.log.warn("upstream fails, serving what is here: {page}: {why}", page=str(page), why=error)
        self._failing, self._failed_at = str(error), self._clock.seconds()
        if isinstance(error, UpstreamUnreachable):
            self.silent()
        await self._backoff.begin(_name(page), str(error), broken=isinstance(error, BadUpstreamResponse))

    def _answers(self) -> None:
        self._silent_until = 0.0
        if self._failing:
            self._failing = ""
            self.log.info("upstream answers again")


def _name(page: PageId) -> str:
    """Of the lease under which a page is asked for, and of the pause after that failed."""
    return f"page:{page}"


def _differ(looked: Page, seen: Page | None) -> bool:
    return seen is None or (looked.version, looked.checked_at) != (seen.version, seen.checked_at)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
