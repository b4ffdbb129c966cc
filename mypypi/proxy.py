"""What a request for a page or a file means: what is here, what must be fetched, and what a client gets meanwhile.

A file is looked for in this order: stored here, being fetched here, listed by a page that we know, listed by a page
that upstream is asked for; else there is no such file. Knows pages, storage and fetches. Must never know Klein, HTTP
headers, Redis, or any one ecosystem.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import TimeoutError as WaitedTooLong
from twisted.logger import Logger

from mypypi.content import Content
from mypypi.errors import CatalogDown, MyPyPiError, NotFound, NotYet, StorageDown, UpstreamDown, storage_error
from mypypi.model import Digest, PackageFile, PageId, StoredFile

if TYPE_CHECKING:
    from mypypi.fetch import Fetches
    from mypypi.interfaces import ICatalog, IEcosystem, IStorage
    from mypypi.pages import PageAnswer, Pages
    from mypypi.upstream import Upstream

_LONGEST_WAIT = 60


@frozen
class Served:
    """Bytes to serve from here. Its receiver closes the content. `hit`: they were stored before the request."""

    content: Content
    digest: Digest | None
    hit: bool


@frozen
class Described:
    """What is known of a file without its bytes: enough for a HEAD."""

    digest: Digest | None
    size: int


@frozen
class Elsewhere:
    """The client gets the bytes from upstream itself, at this URL."""

    url: str


@frozen
class PassedThrough:
    """No draft can be kept, and a client could not get the bytes itself: they go through without being kept."""

    file: PackageFile


FileAnswer = Served | Described | Elsewhere | PassedThrough


@frozen
class ColdFiles:
    """What a client gets while a file is not stored yet: MYPYPI_COLD_FILES, MYPYPI_UPSTREAM_STRICT and its wait."""

    redirect: bool = False
    strict: bool = False
    strict_wait: float = 10
    most_fetches: int = 256


class Proxy:
    """Answers for one upstream."""

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        pages: Pages,
        catalog: ICatalog,
        storage: IStorage,
        fetches: Fetches,
        upstream: Upstream,
        clock: Any,
        cold_files: ColdFiles,
    ) -> None:
        self.pages = pages
        self._ecosystem = ecosystem
        self._catalog = catalog
        self._storage = storage
        self._fetches = fetches
        self._upstream = upstream
        self._clock = clock
        self._cold_files = cold_files
        self._storage_trouble = ""
        self._unreadable = False

    async def page(self, page: PageId) -> PageAnswer:
        """As `Pages.get`."""
        return await self.pages.get(page)

    async def file(self, link: str, *, describe: bool = False) -> FileAnswer:
        """
        The file that our pages name by this link. With `describe`, what is known of it is enough.

        Raises NotFound, NotYet, UpstreamDown, UpstreamBroken, StorageDown.
        """
        listed = await self._listed_here(link)
        stored = await self._stored(link, listed)
        if stored is not None:
            return stored
        if listed is None:
            listed = await self._listed_upstream(link)
            stored = await self._stored(link, listed)
            if stored is not None:
                return stored
        if describe and listed.size is not None:
            return Described(listed.digest, listed.size)
        return await self._cold(listed)

    async def _stored(self, link: str, listed: PackageFile | None) -> Served | None:
        key = listed.key if listed is not None else self._ecosystem.key_for(link)
        if key is None:
            return None
        try:
            stored = await self._storage.find(key)
            if stored is None or (listed is not None and not stored.agrees_with(listed)):
                return None
            served = self._open(stored)
        except StorageDown as error:
            if not self._unreadable:
                self.log.error("stored files can't be read, they are fetched again: {why}", why=error)
            self._unreadable = True
            return None
        if served is not None and self._unreadable:
            self._unreadable = False
            self.log.info("stored files can be read again")
        return served

    def _open(self, stored: StoredFile) -> Served | None:
        if stored.path is None:
            return None
        try:
            content = Content.stored(stored.path, stored.size)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, "a stored file can't be read") from error
        return Served(content, stored.digest, hit=True)

    async def _listed_here(self, link: str) -> PackageFile | None:
        """What the pages that we hold say of a link, however old they are."""
        for page in self._ecosystem.pages_for(link):
            file = await self._listed_by_held(page, link)
            if file is not None:
                return file
        stray = await self._stray(link)
        return await self._listed_by_held(stray, link) if stray is not None else None

    async def _stray(self, link: str) -> PageId | None:
        try:
            return await self._catalog.stray(link)
        except CatalogDown:
            return None

    async def _listed_by_held(self, page: PageId, link: str) -> PackageFile | None:
        held = await self.pages.held(page)
        if held is None or held.missing:
            return None
        return (await self.pages.listing(held)).get(link)

    async def _listed_upstream(self, link: str) -> PackageFile:
        """What upstream's page says of a link which no page lists that we hold. Only upstream itself is ever asked."""
        trouble: MyPyPiError = NotFound("no page of upstream's lists this file")
        for page in self._ecosystem.pages_for(link):
            try:
                answer = await self.pages.get(page)
            except NotFound:
                continue
            except MyPyPiError as error:
                trouble = error
                continue
            file = (await self.pages.listing(answer.page)).get(link)
            if file is not None:
                return file
            if answer.ttl <= 0:  # upstream may list it by now, and can't be asked
                trouble = UpstreamDown("upstream can't be asked now whether it has this file")
        raise trouble

    async def _cold(self, file: PackageFile) -> FileAnswer:
        try:
            content = self._fetches.join(file) or self._start(file)
        except StorageDown as error:
            self._in_trouble(str(error))
            return self._without_us(file)
        self._out_of_trouble()
        if content is None:
            return self._without_us(file)
        cold = self._cold_files
        try:
            if cold.strict:
                await self._whole(content)
            elif cold.redirect and not self._upstream.needs_credentials(file.url):
                content.close()
                return Elsewhere(file.url)
            else:
                await content.when(lambda: content.begun or content.ended)
            if content.error is not None:
                raise content.error
        except BaseException as error:
            content.close()
            if isinstance(error, NotFound):
                await self._not_there(file)
            if isinstance(error, StorageDown):
                self._in_trouble(str(error))
                return self._without_us(file)
            raise
        return Served(content, file.digest or content.digest, hit=False)

    def _start(self, file: PackageFile) -> Content | None:
        """The content of a new fetch; None when there are too many already."""
        return self._fetches.start(file) if len(self._fetches) < self._cold_files.most_fetches else None

    def _without_us(self, file: PackageFile) -> FileAnswer:
        """We can't take the file in: the client goes to upstream, or gets the bytes passed through if it may not."""
        if self._cold_files.strict:
            raise StorageDown("the file can't be taken in and checked now: try again later")
        if self._upstream.needs_credentials(file.url):
            return PassedThrough(file)
        return Elsewhere(file.url)

    async def _whole(self, content: Content) -> None:
        """Strict: wait for the file to be whole and checked, but not for long."""
        began, length = self._clock.seconds(), content.length
        try:
            await content.when(lambda: content.ended).addTimeout(self._cold_files.strict_wait, self._clock)
        except WaitedTooLong:
            rate = (content.length - length) / max(1e-3, self._clock.seconds() - began)
            left = (content.total or 0) - content.length
            seconds = math.ceil(left / rate) if rate > 0 and left > 0 else _LONGEST_WAIT
            seconds = max(1, min(seconds, _LONGEST_WAIT))
            raise NotYet("the file is still being fetched and checked: try again", seconds) from None

    async def _not_there(self, file: PackageFile) -> None:
        """A page advertises what upstream does not have: it is taken in anew, without it where that can be."""
        stray = await self._stray(file.link)
        for page in (*self._ecosystem.pages_for(file.link), *([stray] if stray is not None else [])):
            await self.pages.withhold(page, file.link)

    def _in_trouble(self, why: str) -> None:
        if not self._storage_trouble:
            self.log.error("files can't be kept here, clients get them from upstream: {why}", why=why)
        self._storage_trouble = why

    def _out_of_trouble(self) -> None:
        if self._storage_trouble:
            self._storage_trouble = ""
            self.log.info("files can be kept here again")
