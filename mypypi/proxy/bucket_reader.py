"""Reads files from the bucket for clients that are not redirected there, and tells the storage how each read began.

Knows the HTTP client for links, and which errors are the bucket's. Must never know what a client gets instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.byte_range import ByteRange
from mypypi.errors import (
    CatalogDown,
    DigestMismatch,
    MyPyPiError,
    NotFound,
    OutOfDescriptors,
    RequestCancelled,
    StorageDown,
    StorageRefused,
    UpstreamBusy,
    UpstreamRefused,
)

if TYPE_CHECKING:
    from mypypi.interfaces import IStorage
    from mypypi.model import Link, StoredFile
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.responses import FileRange, FileResponse

#: Seconds without a byte after which a transfer that has begun is broken off. pip stops waiting after 15.
BODY_SILENCE = 10.0
#: Seconds that a read waits for its turn, beyond the time for an answer. Clients that read slowly may hold all places.
_TURN = 1.0
_FORBIDDEN = 403
#: Errors that say nothing about the bucket.
_OWN = (UpstreamBusy, OutOfDescriptors, DigestMismatch)


class BucketReader:
    """
    Requests stored files by their links, with `client`, and reports to `storage`.

    The time-out of `client` bounds the wait for the first byte.
    """

    log = Logger()

    def __init__(self, client: Upstream, storage: IStorage, clock: Any) -> None:
        self._client = client
        self._storage = storage
        self._clock = clock
        self.timeout = client.timeout
        self.pace = client.pace

    async def open(self, link: Link, headers: Mapping[str, str], client: str) -> FileResponse:
        """Request the file behind a link, for this client. Raises what `Upstream.file` raises."""
        asked = Deferred.fromCoroutine(self._client.file(link.url, headers, client))
        return await asked.addTimeout(self.timeout + _TURN, self._clock, _give_up)

    async def range(self, stored: StoredFile, asked: ByteRange) -> FileRange | None:
        """Read a range of a stored file. None if the bucket answers no ranges. Raises StorageDown and NotFound."""
        since = self._clock.seconds()
        link = await self._storage.link(stored)
        try:
            found = await self._client.range(link.url, asked)
        except MyPyPiError as error:
            raise await self.explain(stored, since, error) from None
        self.began(stored, since)
        return found

    def began(self, stored: StoredFile, since: float) -> None:
        """Report that the first byte of a file has come. The read began at the time `since`."""
        Deferred.fromCoroutine(self._note(stored, since, None)).addErrback(
            lambda failure: self.log.failure("a read from S3 could not be reported", failure)
        )

    async def explain(self, stored: StoredFile, since: float, error: MyPyPiError) -> MyPyPiError:
        """
        Report why no byte of a file has come, and return the error that says so of S3: StorageDown.

        The record of a file that turned out to be missing is deleted.
        """
        if isinstance(error, RequestCancelled):
            return error
        why = _why(error)
        if not isinstance(error, _OWN):
            told = NotFound(why) if isinstance(error, NotFound) else StorageDown(why)
            if isinstance(error, UpstreamRefused) and error.upstream_status == _FORBIDDEN:
                told = StorageRefused(why)
            if not await self._note(stored, since, told):
                return StorageDown("the stored file is missing in S3")
        return StorageDown(f"the stored file can't be read: {why}")

    async def _note(self, stored: StoredFile, since: float, error: NotFound | StorageDown | None) -> bool:
        with suppress(CatalogDown):  # a missing file is found missing again
            return await self._storage.note_read(stored, since, error)
        return True

    async def stop(self) -> None:
        """Close the connections that are kept open."""
        await self._client.stop()


def _why(error: MyPyPiError) -> str:
    """Say what failed. The client's own messages are of upstream; S3's may contain keys and signatures."""
    if isinstance(error, UpstreamRefused):
        return f"S3 answered {error.upstream_status}"
    return "S3 answered 404" if isinstance(error, NotFound) else str(error).replace("upstream", "S3")


def _give_up(value: FileResponse | Failure, _: float) -> FileResponse:
    if isinstance(value, Failure):
        raise UpstreamBusy("too many requests wait for upstream: try again later")
    return value
