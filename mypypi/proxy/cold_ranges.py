"""Answers requests for the size or a range of a file that is not stored, without fetching the whole file.

Upstream is asked for the same range. Clients that resolve dependencies read a few kilobytes of many wheels this way.
Knows ranges, and which origins answer them. Must never know HTTP towards clients, or how a whole file is fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachetools import LRUCache

from mypypi.byte_range import ByteRange
from mypypi.coalescing import Coalescer
from mypypi.errors import BadUpstreamResponse
from mypypi.model import PackageFile
from mypypi.proxy.answers import FileDescription
from mypypi.upstream.client import LARGEST_RANGE

if TYPE_CHECKING:
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.range_support import RangeSupport
    from mypypi.upstream.responses import FileRange

#: Files of which it is remembered how many bytes were requested in ranges.
_MOST_FILES = 10_000
#: A whole file is fetched once its ranges have more than this share of it.
_MOST_OF_IT = 0.5
#: The first byte, which tells the size of a file that upstream does not tell in answer to a HEAD.
_FIRST_BYTE = ByteRange(0, 0)


class ColdRanges:
    """Reads ranges and sizes of files at upstream. Those who ask for the same at the same time share one request."""

    def __init__(self, upstream: Upstream, support: RangeSupport) -> None:
        self._upstream = upstream
        self._support = support
        self._ranges: Coalescer[FileRange | None] = Coalescer()
        self._sizes: Coalescer[int | None] = Coalescer()
        #: By key: the bytes of ranges that upstream has sent, and the size of the file.
        self._sent: LRUCache[str, tuple[int, int]] = LRUCache(_MOST_FILES)

    async def describe(self, file: PackageFile, client: str) -> FileDescription | None:
        """
        Ask upstream for the size of a file. None if only a fetch can tell it.

        The size that its page claims may be wrong. Raises NotFound, UpstreamRefused, UpstreamDown.
        """
        size = await self._sizes.run(file.key, lambda: self._size_of(file, client))
        return None if size is None else FileDescription(file.only_digest, size, immutable=file.digest is not None)

    async def read(self, file: PackageFile, asked: ByteRange, client: str) -> FileRange | None:
        """
        Return a range of a file. None if the whole file should be fetched.

        That is so if the range is a large part of the file, or if upstream does not answer ranges. Raises NotFound,
        UpstreamRefused, UpstreamDown, BadUpstreamResponse.
        """
        length = asked.length
        if length is None or length > LARGEST_RANGE or self._support.lacks_ranges(file.key):
            return None
        sent, total = self._sent.get(file.key, (0, file.size))
        if total is not None and sent + length > total * _MOST_OF_IT:
            return None
        return await self._ranges.run((file.key, asked), lambda: self._ask(file, asked, client))

    async def _ask(self, file: PackageFile, asked: ByteRange, client: str) -> FileRange | None:
        found = await self._support.ask(file.url, asked, client)
        if found is not None:
            sent, _ = self._sent.get(file.key, (0, 0))
            self._sent[file.key] = sent + len(found.content), found.total
        return found

    async def _size_of(self, file: PackageFile, client: str) -> int | None:
        try:
            size = await self._upstream.size_of(file.url, client)
        except BadUpstreamResponse:  # it does not answer HEAD
            size = None
        if size is None and not self._support.lacks_ranges(file.key):
            first = await self._ask(file, _FIRST_BYTE, client)
            size = None if first is None else first.total
        return size
