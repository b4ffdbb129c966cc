"""Answers requests for pages and files.

A file is looked for in this order: in the storage, among the running fetches, on the cached pages, on the page that
upstream is asked for. Otherwise there is no such file. Knows pages, storage and fetches. Must never know Klein, HTTP
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
    """Answers requests for the pages and files of one upstream."""

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        pages: PageCache,
        catalog: ICatalog,
        storage: IStorage,
        cold: ColdFiles,
        *,
        proxied: bool = False,
    ) -> None:
        """`proxied`: stream files from the bucket through this server. Otherwise clients are redirected to it."""
        self.pages = pages
        self._ecosystem = ecosystem
        self._catalog = catalog
        self._storage = storage
        self._cold = cold
        self._proxied = proxied
        self._unreadable = False

    async def page(self, page: PageId, client: str = "") -> CachedPage:
        """Return a page for this client; see `PageCache.get`."""
        return await self.pages.get(page, client)

    async def file(self, link: str, client: str = "", *, describe: bool = False) -> FileAnswer:
        """
        Find the file behind a link of this server's pages, for this client.

        With `describe`, the answer may be a FileDescription.
        Raises NotFound, UpstreamRefused, StillFetching, UpstreamDown, BadUpstreamResponse, StorageDown.
        """
        listed = await self._listed_in_cache(link)
        stored = await self._find_stored(link, listed)
        if stored is not None:
            return stored
        if listed is None:
            listed = await self._listed_upstream(link, client)
            stored = await self._find_stored(link, listed)
            if stored is not None:
                return stored
        if describe and listed.size is not None:
            return FileDescription(listed.digest, listed.size)
        try:
            return await self._cold.answer(listed, lambda file: self._find_stored(link, file), client)
        except NotFound:
            await self._withhold(listed)
            raise

    async def forget_missing(self, stored: StoredFile) -> None:
        """Forget a file that the storage has lost. It is fetched again when requested."""
        try:
            await self._storage.forget(stored.key)
        except (CatalogDown, StorageDown) as error:
            self.log.warn(
                "file {key} is missing in the storage, but could not be forgotten: {why}", key=stored.key, why=error
            )

    async def delete_corrupt(self, stored: StoredFile) -> None:
        """Delete a stored file whose bytes have changed. It is fetched again when requested."""
        self.log.error("file {key} in the storage is not what was stored, deleting it", key=stored.key)
        try:
            await self._storage.delete(stored.key)
        except (CatalogDown, StorageDown) as error:
            self.log.warn("file {key} could not be deleted from the storage: {why}", key=stored.key, why=error)

    async def _find_stored(self, link: str, listed: PackageFile | None) -> FileAnswer | None:
        key = listed.key if listed is not None else self._ecosystem.key_for(link)
        if key is None:
            return None
        try:
            for _ in range(2):  # a file may move from the disk to the bucket before it is opened
                stored = await self._storage.find(key)
                if stored is None or (listed is not None and not stored.matches(listed)):
                    return None
                if stored.path is None:
                    return StoredElsewhere(stored, await self._storage.link(stored), self._proxied)
                served = _open(stored)
                if served is not None:
                    self._note_readable()
                    return served
        except StorageDown as error:
            if not self._unreadable:
                self.log.error("stored files can't be read, fetching them again: {why}", why=error)
            self._unreadable = True
        return None

    def _note_readable(self) -> None:
        if self._unreadable:
            self._unreadable = False
            self.log.info("stored files can be read again")

    async def _listed_in_cache(self, link: str) -> PackageFile | None:
        """Find a link on the cached pages, however old they are."""
        for page in self._ecosystem.pages_for(link):
            file = await self._listed_on_cached_page(page, link)
            if file is not None:
                return file
        indexed = await self._indexed_page(link)
        return await self._listed_on_cached_page(indexed, link) if indexed is not None else None

    async def _indexed_page(self, link: str) -> PageId | None:
        try:
            return await self._catalog.page_listing(link)
        except CatalogDown:
            return None

    async def _listed_on_cached_page(self, page: PageId, link: str) -> PackageFile | None:
        cached = await self.pages.cached(page)
        if cached is None or cached.missing:
            return None
        return (await self.pages.listing(cached)).get(link)

    async def _listed_upstream(self, link: str, client: str) -> PackageFile:
        """
        Find a link on upstream's own pages.

        No cached page lists it. Only upstream itself is asked, never the host that the link names.
        """
        failure: MyPyPiError = NotFound("no page of upstream lists this file")
        for page in self._ecosystem.pages_for(link):
            try:
                answer = await self.pages.get(page, client)
            except NotFound:
                continue
            except MyPyPiError as error:
                failure = error
                continue
            file = (await self.pages.listing(answer.page)).get(link)
            if file is not None:
                return file
            if answer.ttl <= 0:  # the page is stale: upstream may list the file by now
                failure = UpstreamDown("upstream could not be asked whether it has this file: try again later")
        raise failure

    async def _withhold(self, file: PackageFile) -> None:
        """
        Withhold a file that upstream lists but does not have.

        The pages that may list it become unconfirmed, and are rendered again without it where that is possible.
        """
        indexed = await self._indexed_page(file.link)
        for page in (*self._ecosystem.pages_for(file.link), *([indexed] if indexed is not None else [])):
            await self.pages.withhold(page, file.link)


def _open(stored: StoredFile) -> LocalContent | None:
    """Open a file on this host's disk. Returns None if the file was removed meanwhile."""
    assert stored.path is not None
    try:
        content = Content.stored(stored.path, stored.size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, "a stored file can't be read") from error
    return LocalContent(content, stored.digest, hit=True)
