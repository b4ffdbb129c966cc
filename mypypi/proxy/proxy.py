"""What a request for a page or a file means: what is here, what must be fetched, and what a client gets meanwhile.

A file is looked for in this order: stored here, being fetched here, listed by a page that we know, listed by a page
that upstream is asked for; else there is no such file. Knows pages, storage and fetches. Must never know Klein, HTTP
headers, Redis, or any one ecosystem.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.logger import Logger

from mypypi.errors import CatalogDown, MyPyPiError, NotFound, StorageDown, UpstreamDown, storage_error
from mypypi.files.content import Content
from mypypi.model import PackageFile, PageId, StoredFile
from mypypi.proxy.answers import FileAnswer, FileDescription, LocalContent, StoredElsewhere

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog, IEcosystem, IStorage
    from mypypi.pages.page_cache import CachedPage, PageCache
    from mypypi.proxy.cold_files import ColdFiles


class Proxy:
    """Answers for one upstream."""

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        pages: PageCache,
        catalog: ICatalog,
        storage: IStorage,
        cold: ColdFiles,
        *,
        through: bool = False,
    ) -> None:
        """`through`: files that are stored elsewhere go through this server, and clients are not sent there."""
        self.pages = pages
        self._ecosystem = ecosystem
        self._catalog = catalog
        self._storage = storage
        self._cold = cold
        self._through = through
        self._unreadable = False

    async def page(self, page: PageId) -> CachedPage:
        """As `PageCache.get`."""
        return await self.pages.get(page)

    async def file(self, link: str, *, describe: bool = False) -> FileAnswer:
        """
        The file that our pages name by this link. With `describe`, what is known of it is enough.

        Raises NotFound, StillFetching, UpstreamDown, BadUpstreamResponse, StorageDown.
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
            return FileDescription(listed.digest, listed.size)
        try:
            return await self._cold.answer(listed, lambda file: self._stored(link, file))
        except NotFound:
            await self._not_there(listed)
            raise

    async def lost(self, stored: StoredFile) -> None:
        """What the storage links to is not there: it is to be fetched again."""
        try:
            await self._storage.forget(stored.key)
        except (CatalogDown, StorageDown) as error:
            self.log.warn("{key} is gone from the storage, and can't be forgotten: {why}", key=stored.key, why=error)

    async def spoiled(self, stored: StoredFile) -> None:
        """What the storage links to has other bytes than were put there: it is deleted, and then fetched again."""
        self.log.error("{key} has other bytes in the storage than were put there, deleting it", key=stored.key)
        try:
            await self._storage.delete(stored.key)
        except (CatalogDown, StorageDown) as error:
            self.log.warn("{key} could not be deleted: {why}", key=stored.key, why=error)

    async def _stored(self, link: str, listed: PackageFile | None) -> FileAnswer | None:
        key = listed.key if listed is not None else self._ecosystem.key_for(link)
        if key is None:
            return None
        try:
            for _ in range(2):  # a file may leave the disk for the bucket between the look and the opening
                stored = await self._storage.find(key)
                if stored is None or (listed is not None and not stored.matches(listed)):
                    return None
                if stored.path is None:
                    return StoredElsewhere(stored, await self._storage.link(stored), self._through)
                served = _open(stored)
                if served is not None:
                    self._readable()
                    return served
        except StorageDown as error:
            if not self._unreadable:
                self.log.error("stored files can't be read, they are fetched again: {why}", why=error)
            self._unreadable = True
        return None

    def _readable(self) -> None:
        if self._unreadable:
            self._unreadable = False
            self.log.info("stored files can be read again")

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
            return await self._catalog.page_listing(link)
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

    async def _not_there(self, file: PackageFile) -> None:
        """A page advertises what upstream does not have: it is taken in anew, without it where that can be."""
        stray = await self._stray(file.link)
        for page in (*self._ecosystem.pages_for(file.link), *([stray] if stray is not None else [])):
            await self.pages.withhold(page, file.link)


def _open(stored: StoredFile) -> LocalContent | None:
    """The content of a file on this host's disk; None when it has just gone."""
    assert stored.path is not None
    try:
        content = Content.stored(stored.path, stored.size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, "a stored file can't be read") from error
    return LocalContent(content, stored.digest, hit=True)
