"""Asks upstream whether a stored file is still the one that it has, where the file's page gives no digest.

Knows validators (RFC 9110, section 8.8) and lengths. Must never know where the file is stored, or what a client gets.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from mypypi.coalescing import Coalescer
from mypypi.errors import CatalogDown, MyPyPiError
from mypypi.model import FileCheck, PackageFile, StoredFile

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.responses import FileResponse

_NOT_MODIFIED = 304


class FileChecks:
    """Checks stored files without a digest, each once for every confirmation of its page."""

    def __init__(self, catalog: ICatalog, upstream: Upstream, clock: Any) -> None:
        self._catalog = catalog
        self._upstream = upstream
        self._clock = clock
        self._running: Coalescer[bool] = Coalescer()

    async def is_current(self, file: PackageFile, stored: StoredFile, since: float, client: str) -> bool:
        """
        Whether upstream still has these bytes.

        Upstream is asked if it has not confirmed them after `since`, when it confirmed the file's page (seconds since
        the epoch). Where it can't tell, the stored file is served.
        """
        try:
            check = await self._catalog.file_check(file.key)
        except CatalogDown:
            return True
        if check is not None and check.at >= since:
            return True
        asked: Deferred[bool] = self._running.run(file.key, lambda: self._ask(file, stored, check, client))
        return await asked

    async def _ask(self, file: PackageFile, stored: StoredFile, check: FileCheck | None, client: str) -> bool:
        before = check or FileCheck(0.0)
        validators = {"If-None-Match": before.etag, "If-Modified-Since": before.modified}
        headers = {name: value for name, value in validators.items() if value}
        after = FileCheck(self._clock.seconds(), before.etag, before.modified)
        try:
            response = await self._upstream.file(file.url, headers, client)
        except MyPyPiError:  # a stored file stays available
            await self._note(file, after)
            return True
        try:
            is_same = response.status == _NOT_MODIFIED or _is_same(response, stored, before)
        finally:
            response.close()
        if is_same:
            etag, modified = response.header("etag") or before.etag, response.header("last-modified") or before.modified
            await self._note(file, FileCheck(after.at, etag, modified))
        return is_same

    async def _note(self, file: PackageFile, check: FileCheck) -> None:
        with suppress(CatalogDown):
            await self._catalog.put_file_check(file.key, check)


def _is_same(response: FileResponse, stored: StoredFile, before: FileCheck) -> bool:
    """Whether a whole file that upstream sends is the stored one: by its validators, or else by its length."""
    etag, modified = response.header("etag"), response.header("last-modified")
    if etag and before.etag:
        return etag == before.etag
    if modified and before.modified:
        return modified == before.modified
    return not response.encoding and response.length == stored.size
