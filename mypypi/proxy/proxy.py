"""Answers requests for pages and files.

A file is looked for in this order: in the storage, among the running fetches, on the cached pages, on the page that
upstream is asked for. Otherwise there is no such file. Knows pages, storage and fetches. Must never know Klein, HTTP
headers, Redis, or any one ecosystem.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mypypi.errors import (
    BadRequest,
    DigestMismatch,
    MyPyPiError,
    NoMetadata,
    NotFound,
    StillFetching,
    StorageDown,
    UpstreamRefused,
)
from mypypi.file_keys import key_from_segments
from mypypi.model import PackageFile, PageId
from mypypi.proxy.answers import FileAnswer, FileRequest, LocalContent

if TYPE_CHECKING:
    from mypypi.files.content import Content
    from mypypi.interfaces import IEcosystem
    from mypypi.pages.page_cache import CachedPage, PageCache
    from mypypi.proxy.cached_listings import CachedListings
    from mypypi.proxy.cold_files import ColdFiles
    from mypypi.proxy.offers import Offers
    from mypypi.proxy.stored_files import StoredFiles
    from mypypi.rendering.listing import Listing

T = TypeVar("T")


class Proxy:
    """Answers requests for the pages and files of one upstream."""

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        pages: PageCache,
        listings: CachedListings,
        stored: StoredFiles,
        cold: ColdFiles,
        offers: Offers | None = None,
    ) -> None:
        """With `offers`, pages offer the metadata of stored wheels."""
        self.pages = pages
        self.stored = stored
        self._ecosystem = ecosystem
        self._listings = listings
        self._cold = cold
        self._offers = offers

    async def page(self, page: PageId, client: str = "") -> CachedPage:
        """Return a page for this client; see `PageCache.get`."""
        return await self.pages.get(page, client)

    async def look_again(self, page: PageId, link: str, client: str = "") -> None:
        """
        Ask upstream for this page again if it is cached and does not list this link.

        For requests that name a version: their clients read the page next, and must find the version there. If upstream
        fails, the page stays as it was.
        """
        cached = await self.pages.cached(page)
        if cached is None or (not cached.missing and (await self.pages.listing(cached)).get(link) is not None):
            return
        with suppress(MyPyPiError):
            await self.pages.revalidated(page, client)

    async def file(self, link: str, request: FileRequest = FileRequest()) -> FileAnswer:  # noqa: B008 - it is frozen
        """
        Find the file behind a link of this server's pages.

        Raises NotFound, UpstreamRefused, StillFetching, UpstreamDown, BadUpstreamResponse, StorageDown.
        """
        listed = await self._listed_in_cache(link)
        try:
            stored = await self.stored.find(link, listed, request)
        except StorageDown as error:
            cold = self._from_upstream(link, listed, evolve(request, unreadable=error))
            return await _instead_of_stored(error, cold)
        if stored is None:
            return await self._from_upstream(link, listed, evolve(request, unreadable=None))
        if self._offers is not None and listed is not None:
            self._offers.note(listed)
        return stored

    async def _from_upstream(self, link: str, listed: PackageFile | None, request: FileRequest) -> FileAnswer:
        """
        Return a file that is not stored, or is `unreadable`. In the latter case its page goes on listing it.

        Raises as `file` does.
        """
        is_stored = request.unreadable is not None
        try:
            if listed is not None:
                return await self._cold_answer(listed, request, is_stored=is_stored)
            listed = await self._listed_upstream(link, request.client)
            return await self._answer(listed, request)
        except (NotFound, UpstreamRefused, DigestMismatch, NoMetadata) as error:
            if listed is None:
                raise
            anew = await self._listed_anew(listed, request.client)
            if anew is not None:
                return await self._answer(anew, request)
            if not isinstance(error, UpstreamRefused) and not is_stored:
                await self._withhold(listed)
            raise

    async def link_of(self, filename: str, client: str = "") -> str:
        """
        Return the link of the file with this name, which the page of its project lists.

        For requests that name a file by an address of another index. Raises NotFound if no page lists the name, or
        lists several files with it that may differ; otherwise as `file`.
        """
        try:
            segment = key_from_segments(["https", "host", filename]).rpartition("/")[2]
        except ValueError:
            raise NotFound("there is nothing at this address") from None

        def named(listing: Listing) -> list[PackageFile]:
            return listing.named(segment)

        pages = self._ecosystem.pages_for(segment)
        cached = [found[1] for page in pages if (found := await self._listings.look(page, named)) is not None]
        files = cached[0] if cached else await self._on_upstreams_pages(pages, client, named)
        if not files:
            raise NotFound("there is nothing at this address, and no page of upstream lists a file of this name")
        if len(files) > 1 and (files[0].digest is None or any(file.digests != files[0].digests for file in files)):
            raise NotFound("upstream lists several files of this name: request the one that is meant by its own link")
        return files[0].link

    async def _answer(self, listed: PackageFile, request: FileRequest) -> FileAnswer:
        try:
            stored = await self.stored.find(listed.link, listed, request)
        except StorageDown as error:
            return await _instead_of_stored(error, self._cold_answer(listed, request, is_stored=True))
        return stored or await self._cold_answer(listed, request)

    async def _cold_answer(self, listed: PackageFile, request: FileRequest, *, is_stored: bool = False) -> FileAnswer:
        """Decide what this client gets while the file is not stored, or can't be read although it `is_stored`."""
        client = request.client
        await self.stored.remember_key(listed)
        if (quick := await self._without_fetch(listed, request)) is not None:
            return quick
        has_changed = listed.digest is None and not is_stored and await self.stored.has(listed)

        async def stored(file: PackageFile) -> FileAnswer | None:
            with suppress(StorageDown):
                return await self.stored.find(file.link, file, FileRequest(client))
            return None

        answer = await self._cold.answer(listed, stored, client, anew=has_changed, unreadable=is_stored)
        if isinstance(answer, LocalContent) and not answer.content.ended and not is_stored:
            ended = answer.content.wait_until(lambda: answer.content.ended)
            ended.addCallback(lambda _: self._note_end(answer.content, listed))
        return answer

    async def _without_fetch(self, listed: PackageFile, request: FileRequest) -> FileAnswer | None:
        """Return the size or the range that is wanted, if upstream tells it without a fetch of the whole file."""
        if request.describe:
            return await self._cold.describe(listed, request.client)
        if request.range is not None:
            return await self._cold.range(listed, request.range, request.client)
        return None

    def _note_end(self, content: Content, listed: PackageFile) -> None:
        """Look at the file's page again if the bytes were not the listed ones. Clients have got some of them."""
        if isinstance(content.error, DigestMismatch):
            Deferred.fromCoroutine(self._check_listing(listed)).addErrback(
                lambda failure: self.log.failure("the page of {link} could not be checked", failure, link=listed.link)
            )

    async def _check_listing(self, listed: PackageFile) -> None:
        if await self._listed_anew(listed, "") is None:
            await self._withhold(listed)

    async def _listed_anew(self, listed: PackageFile, client: str) -> PackageFile | None:
        """Ask upstream for the file's page again. Returns the file if the page lists it otherwise now."""

        def changed(listing: Listing) -> PackageFile | None:
            file = listing.get(listed.link)
            return file if file != listed else None

        with suppress(MyPyPiError):
            return await self._on_upstreams_pages(await self._listings.pages_for(listed.link), client, changed)
        return None

    async def _listed_in_cache(self, link: str) -> PackageFile | None:
        """Find a link on the cached pages, however old they are."""
        found = await self._listings.find(link)
        return None if found is None else found[1]

    async def _listed_upstream(self, link: str, client: str) -> PackageFile:
        """
        Find a link on upstream's own pages.

        No cached page lists it. Only upstream itself is asked, never the host that the link names.
        """
        file = await self._on_upstreams_pages(
            self._ecosystem.pages_for(link), client, lambda listing: listing.get(link)
        )
        if file is None:
            raise NotFound("no page of upstream lists this file")
        return file

    async def _on_upstreams_pages(
        self, pages: Iterable[PageId], client: str, look: Callable[[Listing], T | None]
    ) -> T | None:
        """Return the first thing that `look` finds on these pages of upstream's. Raises the failure of a page."""
        failure: MyPyPiError | None = None
        for page in pages:
            try:
                current = await self.pages.revalidated(page, client)
            except NotFound:
                continue
            except MyPyPiError as error:
                failure = error
                continue
            found = look(await self.pages.listing(current))
            if found:
                return found
        if failure is not None:
            raise failure
        return None

    async def _withhold(self, file: PackageFile) -> None:
        """
        Withhold a file that upstream lists but does not have.

        The pages that may list it become unconfirmed, and are rendered again without it where that is possible.
        """
        for page in await self._listings.pages_for(file.link):
            await self.pages.withhold(page, file.link)


async def _instead_of_stored(unreadable: StorageDown, cold: Awaitable[FileAnswer]) -> FileAnswer:
    """
    Return what a client gets instead of a stored file that can't be read.

    Raises StillFetching, and StorageDown with both reasons: why it can't be read, and why upstream can't give it.
    """
    try:
        return await cold
    except (BadRequest, StillFetching):
        raise
    except MyPyPiError as error:
        if isinstance(error.__cause__, StorageDown):  # it says both already, of the file as its page lists it now
            raise
        raise StorageDown(f"{unreadable}; and upstream can't give it: {error}") from unreadable
