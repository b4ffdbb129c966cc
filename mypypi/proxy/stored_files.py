"""Finds stored files, and decides whether one is still the file that its page lists.

Knows keys, digests and the storage. Must never know upstream's pages, or what a client gets while a file is not stored.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cachetools import LRUCache
from twisted.logger import Logger

from mypypi.errors import CatalogDown, NotFound, StorageDown, storage_error
from mypypi.files.content import Content
from mypypi.model import PackageFile, StoredFile
from mypypi.proxy.answers import FileAnswer, FileDescription, FileRequest, LocalContent, StoredElsewhere

if TYPE_CHECKING:
    from mypypi.digests import Digest
    from mypypi.interfaces import ICatalog, IEcosystem, IStorage
    from mypypi.proxy.cached_listings import CachedListings
    from mypypi.proxy.file_checks import FileChecks
    from mypypi.proxy.wheel_checks import WheelChecks

#: Files whose hash by another algorithm is remembered.
_MOST_HASHED = 10_000


class StoredFiles:
    """The stored files of one index. `proxied`: clients get files from the bucket through this server."""

    log = Logger()

    def __init__(
        self,
        ecosystem: IEcosystem,
        catalog: ICatalog,
        storage: IStorage,
        checks: FileChecks,
        wheel_checks: WheelChecks,
        listings: CachedListings,
        *,
        proxied: bool = False,
    ) -> None:
        self._ecosystem = ecosystem
        self._catalog = catalog
        self._storage = storage
        self._checks = checks
        self._wheel_checks = wheel_checks
        self._listings = listings
        self._proxied = proxied
        self._is_unreadable = False
        self._hashed: LRUCache[tuple[StoredFile, str], Digest] = LRUCache(_MOST_HASHED)

    async def find(self, link: str, listed: PackageFile | None, request: FileRequest) -> FileAnswer | None:
        """
        Return the file with this link, if it is stored and, where a page lists it, is the listed one.

        Raises StorageDown if the file is stored, but can't be read now.
        """
        failure: StorageDown | None = None
        for key in listed.keys if listed is not None else await self._keys_of(link):
            try:
                found = await self._find_under(key, listed, request)
            except StorageDown as error:
                failure = error
                continue
            if found is not None:
                return found
        if failure is not None:
            raise failure
        return None

    async def has(self, listed: PackageFile) -> bool:
        """Whether any file is stored under the key of this one."""
        with suppress(StorageDown):
            return await self._storage.find(listed.key) is not None
        return False

    async def remember_key(self, listed: PackageFile) -> None:
        """Record the file's key if its link does not tell it, so that it is found when no page lists it any more."""
        if self._ecosystem.key_for(listed.link) != listed.key:
            with suppress(CatalogDown):
                await self._catalog.put_key_of_link(listed.link, listed.key)

    async def delete_corrupt(self, stored: StoredFile) -> None:
        """Delete a stored file whose bytes have changed. It is fetched again when requested."""
        self.log.error("file {key} in the storage is not what was stored, deleting it", key=stored.key)
        try:
            await self._storage.delete(stored.key)
        except (CatalogDown, StorageDown) as error:
            self.log.warn("file {key} could not be deleted from the storage: {why}", key=stored.key, why=error)

    async def _keys_of(self, link: str) -> list[str]:
        """Return the keys under which a file may be stored that no cached page lists."""
        recorded = None
        with suppress(CatalogDown):
            recorded = await self._catalog.key_of_link(link)
        return [key for key in (recorded, self._ecosystem.key_for(link)) if key is not None]

    async def _find_under(self, key: str, listed: PackageFile | None, request: FileRequest) -> FileAnswer | None:
        for _ in range(2):  # a file may move from the disk to the bucket before it is opened
            try:
                stored = await self._storage.find(key)
                is_final = None if stored is None else await self._is_final(stored, listed, request.client)
                if stored is None or is_final is None:
                    return None
                if stored.path is not None:
                    served = _open(stored, immutable=is_final)
                    if served is not None:
                        self._note_readable()
                        return served
                    continue
            except StorageDown as error:
                self._note_unreadable(error)
                raise
            return await self._elsewhere(stored, request, immutable=is_final)
        return None

    async def _elsewhere(self, stored: StoredFile, request: FileRequest, *, immutable: bool) -> FileAnswer | None:
        """
        Return the answer for a file in the bucket, None if it turns out to be missing there.

        A description needs only its record. Raises StorageDown if the bucket fails, which the storage logs.
        """
        if request.describe:
            return FileDescription(stored.digest, stored.size, immutable, hit=True)
        if request.unreadable is not None:
            raise request.unreadable
        try:
            return StoredElsewhere(stored, await self._storage.link(stored), self._proxied, immutable)
        except NotFound:
            return None

    async def _is_final(self, stored: StoredFile, listed: PackageFile | None, client: str) -> bool | None:
        """
        Whether the bytes of this stored file never change; None if it is not the listed one.

        That is told by the digest on the page. Without one, metadata that was read out of a wheel is compared with the
        wheel, and upstream is asked about any other file. Raises StorageDown.
        """
        if listed is None:
            return not stored.key.endswith(".metadata")  # it may have been read out of ranges that were not checked
        if listed.wheel is not None:
            agrees = await self._wheel_checks.agreement(stored, listed.wheel)
            return None if agrees is False else agrees is True
        if listed.digest is None:
            confirmed_at = await self._listings.confirmed_at(listed.link)
            return False if await self._checks.is_current(listed, stored, confirmed_at, client) else None
        return True if await self._has_digest(stored, listed, listed.digest) else None

    async def _has_digest(self, stored: StoredFile, listed: PackageFile, digest: Digest) -> bool:
        """Whether a file has a listed digest. One of another algorithm is hashed again, once in this process."""
        accepted = listed.accepts(stored.digest)
        if accepted is not None:
            return accepted
        hashed = stored, digest.algorithm
        found = self._hashed.get(hashed) or await self._storage.digest_of(*hashed)
        if found is None:
            return False
        self._hashed[hashed] = found
        return listed.accepts(found) is True

    def _note_unreadable(self, why: StorageDown) -> None:
        if not self._is_unreadable:
            self.log.error("stored files can't be read, fetching them again: {why}", why=why)
        self._is_unreadable = True

    def _note_readable(self) -> None:
        if self._is_unreadable:
            self._is_unreadable = False
            self.log.info("stored files can be read again")


def _open(stored: StoredFile, *, immutable: bool) -> LocalContent | None:
    """Open a file on this host's disk. Returns None if the file was removed meanwhile."""
    assert stored.path is not None
    try:
        content = Content.stored(stored.path, stored.size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, "a stored file can't be read") from error
    return LocalContent(content, stored.digest, hit=True, immutable=immutable)
