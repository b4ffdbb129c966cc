"""Reads the metadata of a wheel (PEP 658): out of the stored wheel, or out of some ranges of upstream's.

Knows where the bytes of a wheel may be. Must never know their format (a function passed in reads it), or who asks.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mypypi.byte_range import ByteRange
from mypypi.errors import BadUpstreamResponse, MyPyPiError, NoMetadata, StorageDown, storage_error
from mypypi.model import PackageFile, StoredFile
from mypypi.upstream.responses import FileRange

if TYPE_CHECKING:
    from mypypi.interfaces import IStorage
    from mypypi.threads import Threads
    from mypypi.upstream.range_support import RangeSupport

#: Bytes of a wheel's end that are read first. In most wheels, these have the list of members and the metadata.
_END = 32 * 1024
#: Parts of one wheel that are read at most.
_MOST_PARTS = 6
#: Bytes of the largest wheel that is fetched for its metadata, where its origin does not answer ranges any more.
_LARGEST_WHOLE = 64 * 1024 * 1024

#: Reads the metadata out of parts of the wheel with this name and length, or returns the range that is needed, too.
Look = Callable[[str, int, Sequence[tuple[int, bytes]]], Awaitable[bytes | ByteRange]]
#: Fetches a wheel and waits until it is stored.
FetchWhole = Callable[[PackageFile], Awaitable[None]]
#: Reads a range of a stored file that is not on this host's disk.
ReadElsewhere = Callable[[StoredFile, ByteRange], Awaitable[FileRange | None]]


class WheelMetadata:
    """Reads the metadata of wheels. With `strict`, only out of wheels that are stored, and so were checked."""

    def __init__(
        self,
        ranges: RangeSupport,
        storage: IStorage,
        threads: Threads,
        look: Look,
        elsewhere: ReadElsewhere,
        *,
        strict: bool = False,
    ) -> None:
        self._ranges = ranges
        self._storage = storage
        self._threads = threads
        self._look = look
        self._elsewhere = elsewhere
        self.strict = strict

    async def read(self, wheel: PackageFile, client: str, fetch_whole: FetchWhole) -> bytes:
        """
        Return the metadata of this wheel.

        Raises NoMetadata, and what `Upstream.range` and `fetch_whole` raise.
        """
        found = await self.in_stored(wheel)
        if found is None and not self.strict:
            found = await self._in_ranges(wheel, client)
            stored = await self.in_stored(wheel)  # it may have come meanwhile, and its digest was checked
            found = found if stored is None else stored
        if found is None:
            if not self.strict and (wheel.size is None or wheel.size > _LARGEST_WHOLE):
                raise NoMetadata(f"upstream answers no ranges of {wheel.key} any more, so its metadata can't be read")
            await fetch_whole(wheel)
            found = await self.in_stored(wheel)
        if found is None:
            raise StorageDown("the wheel was fetched for its metadata, and can't be read: try again")
        return found

    async def in_stored(self, wheel: PackageFile) -> bytes | None:
        """
        Return the metadata in the stored wheel; None if it is not stored, can't be read, or is not the listed one.

        Raises NoMetadata, and StorageDown if a file on this host's disk can't be read.
        """
        stored: StoredFile | None = None
        with suppress(StorageDown):
            stored = await self._storage.find(wheel.key)
        if stored is None or wheel.accepts(stored.digest) is not True:
            return None
        return await self._read(wheel, partial(self._read_stored, stored))

    async def _read_stored(self, stored: StoredFile, asked: ByteRange) -> FileRange | None:
        """Return a range of a stored file; None if it can't be read, or not any more."""
        path, size = stored.path, stored.size
        if path is None:
            with suppress(MyPyPiError):
                return await self._elsewhere(stored, asked)
            return None
        start, stop = asked.within(size)
        try:
            return FileRange(start, size, await self._threads.run(_read, path, start, stop))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, "a stored wheel can't be read") from error

    async def _in_ranges(self, wheel: PackageFile, client: str) -> bytes | None:
        """Return the metadata in upstream's wheel; None if upstream answers no ranges."""
        if self._ranges.lacks_ranges(wheel.key):
            return None
        return await self._read(wheel, lambda asked: self._ranges.ask(wheel.url, asked, client))

    async def _read(self, wheel: PackageFile, read: Callable[[ByteRange], Awaitable[FileRange | None]]) -> bytes | None:
        """Read parts of a wheel until its metadata is among them. None if `read` returns none for a part."""
        name = wheel.link.rpartition("/")[2]
        parts: list[tuple[int, bytes]] = []
        before, asked = None, ByteRange(None, _END)
        for _ in range(_MOST_PARTS):
            part = await read(asked)
            if part is None:
                return None
            if before not in (None, part.total) or not part.content:
                raise BadUpstreamResponse(f"upstream has replaced {wheel.key} while its metadata was read: try again")
            before = part.total
            parts.append((part.start, part.content))
            found = await self._look(name, part.total, parts)
            if isinstance(found, bytes):
                return found
            asked = found
        raise NoMetadata(f"the metadata of {wheel.key} lies in too many parts of the wheel")


def _read(path: Path, start: int, stop: int) -> bytes:
    """Read a part of a file. Blocks; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, stop - start, start)
    finally:
        os.close(fd)
