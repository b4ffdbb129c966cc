"""Compares metadata that was read out of ranges of a wheel with the whole wheel, once that is stored.

The digest of the wheel was checked when it was stored, so what it has is right. Knows both files. Must never know where
they are stored, or what a client gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachetools import LRUCache
from twisted.logger import Logger

from mypypi.coalescing import Coalescer
from mypypi.errors import CatalogDown, MyPyPiError, NoMetadata
from mypypi.model import PackageFile, StoredFile

if TYPE_CHECKING:
    from mypypi.files.wheel_metadata import WheelMetadata
    from mypypi.interfaces import ICatalog

#: Pairs of metadata and wheel that are remembered as compared.
_MOST_COMPARED = 20_000


class WheelChecks:
    """Compares each pair of metadata and wheel once in this process. The catalog knows of which wheel metadata is."""

    log = Logger()

    def __init__(self, wheels: WheelMetadata, catalog: ICatalog) -> None:
        self._wheels = wheels
        self._catalog = catalog
        self._agreed: LRUCache[tuple[StoredFile, PackageFile], bool] = LRUCache(_MOST_COMPARED)
        self._running: Coalescer[bool | None] = Coalescer()

    async def agreement(self, metadata: StoredFile, wheel: PackageFile) -> bool | None:
        """
        Whether the wheel has this metadata.

        None while the whole wheel is not on this host's disk, unless the metadata was read out of another wheel. In
        strict operation, metadata that can't be compared counts as wrong.
        """
        pair = metadata, wheel
        if pair in self._agreed:
            return True
        return await self._running.run(pair, lambda: self._compare(metadata, wheel))

    async def _compare(self, metadata: StoredFile, wheel: PackageFile) -> bool | None:
        try:
            right = await self._wheels.in_stored(wheel)
        except NoMetadata:
            return False
        except MyPyPiError:  # it can't be read now
            right = None
        if right is None:
            return None if not self._wheels.strict and await self._may_be_of(metadata, wheel) else False
        hasher = metadata.digest.hasher()
        hasher.update(right)
        if hasher.hexdigest() != metadata.digest.hex:
            self.log.error("the metadata of {key} is not that in the wheel, replacing it", key=wheel.key)
            return False
        self._agreed[metadata, wheel] = True
        return True

    async def _may_be_of(self, metadata: StoredFile, wheel: PackageFile) -> bool:
        try:
            read = await self._catalog.file_check(metadata.key)
        except CatalogDown:
            return True
        return read is None or read.etag == wheel.digest_text
