"""The listing of a page: its package files by link, in a form that costs neither parsing nor an object per file.

Knows how files are packed. Must never know which page they are from.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate

import msgspec
from attrs import field, frozen

from mypypi.model import IN_WHEEL, ListedRow, PackageFile

#: Link, URL unless the link tells it, digests, size, the key unless it is the link, and the metadata as in `ListedRow`.
_DECODER = msgspec.msgpack.Decoder(tuple[str, str, str, int | None, str, str | None])
_ENCODER = msgspec.msgpack.Encoder()
#: What comes after a wheel's name in that of its metadata (PEP 658).
_METADATA = ".metadata"
#: How many files `Listing.named` looks at, so that a page with many of one name does not block the reactor.
_MOST_NAMED = 100


@frozen
class Listing:
    """
    Files by link. `records` are sorted by their links; `ends` say where each one ends.

    The latter has 4 bytes for each file, in this machine's byte order: listings are not stored.
    """

    ends: bytes = field(default=b"", repr=False)
    records: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, files: Iterable[PackageFile]) -> Listing:
        """Pack these files. Of several with one link, one is found."""
        by_link = {file.link: file for file in sorted(files, key=_packed)}
        records = {}
        for file in by_link.values():
            if not _is_metadata_of(file, by_link.get(file.link.removesuffix(_METADATA))):
                beside = by_link.get(file.link + _METADATA)
                records[file.link] = _pack(file, _metadata_text(beside) if _is_metadata_of(beside, file) else None)
        return cls._of(records)

    @classmethod
    def of_rows(cls, rows: Iterable[ListedRow]) -> Listing:
        """Pack the files of these rows."""
        return cls._of({row[0]: _pack_row(*row) for row in rows})

    @classmethod
    def _of(cls, records: dict[str, bytes]) -> Listing:
        packed = [records[link] for link in sorted(records)]
        return cls(array("I", accumulate(map(len, packed))).tobytes(), b"".join(packed))

    def __len__(self) -> int:
        """Return the number of files, without the metadata beside them."""
        return len(self.ends) // 4

    @property
    def size(self) -> int:
        """Bytes of memory that the listing takes."""
        return len(self.ends) + len(self.records)

    def get(self, link: str) -> PackageFile | None:
        """Find the file with this link, or the metadata of a wheel."""
        found = self._find(link)
        if found is None and link.endswith(_METADATA):
            wheel = self._find(link.removesuffix(_METADATA))
            return None if wheel is None else _beside(*wheel)
        return None if found is None else found[0]

    def _find(self, link: str) -> tuple[PackageFile, str | None] | None:
        """Return the file that has a record of its own, and its metadata as in `ListedRow`."""
        ends = memoryview(self.ends).cast("I")

        def record(index: int) -> bytes:
            return self.records[ends[index - 1] if index else 0 : ends[index]]

        index = bisect_left(range(len(ends)), link, key=lambda index: _DECODER.decode(record(index))[0])
        found = _unpack(record(index)) if index < len(ends) else None
        return found if found is not None and found[0].link == link else None

    def named(self, segment: str) -> list[PackageFile]:
        """Find the files whose links end with this segment. Links are searched, so this is slower than `get`."""
        files = [file for file, _ in self._named(segment)]
        if segment.endswith(_METADATA):
            wheels = self._named(segment.removesuffix(_METADATA))
            files += [beside for wheel in wheels if (beside := _beside(*wheel)) is not None]
        return files

    def _named(self, segment: str) -> list[tuple[PackageFile, str | None]]:
        ends, wanted, found = memoryview(self.ends).cast("I"), f"/{segment}".encode(), []
        at = self.records.find(wanted)
        for _ in range(_MOST_NAMED):
            if at < 0:
                break
            index = bisect_right(ends, at)
            file, metadata = _unpack(self.records[ends[index - 1] if index else 0 : ends[index]])
            if file.link.endswith(f"/{segment}"):
                found.append((file, metadata))
            at = self.records.find(wanted, ends[index])
        return found


def _unpack(record: bytes) -> tuple[PackageFile, str | None]:
    link, url, digests, size, key, metadata = _DECODER.decode(record)
    return PackageFile.of(link, url or _url_in(link), digests, size, key or link), metadata


def _pack(file: PackageFile, metadata: str | None) -> bytes:
    return _pack_row(file.link, file.url, file.digest_text, file.size, file.key, metadata)


def _pack_row(link: str, url: str, digests: str, size: int | None, key: str, metadata: str | None) -> bytes:
    told = "" if url == _url_in(link) else url
    return _ENCODER.encode((link, told, digests, size, "" if key == link else key, metadata))


def _packed(file: PackageFile) -> bytes:
    return _pack(file, None)


def _is_metadata_of(metadata: PackageFile | None, file: PackageFile | None) -> bool:
    """Whether one file is the metadata beside the other, so that its digests alone tell all of it."""
    return metadata is not None and file is not None and metadata == _beside(file, _metadata_text(metadata))


def _metadata_text(metadata: PackageFile | None) -> str:
    return "" if metadata is None else IN_WHEEL if metadata.wheel is not None else metadata.digest_text


def _beside(file: PackageFile, metadata: str | None) -> PackageFile | None:
    """Return the metadata beside a file."""
    if metadata is None:
        return None
    beside = metadata_of(file)
    return beside if metadata == IN_WHEEL else PackageFile.of(beside.link, beside.url, metadata, key=beside.key)


def metadata_of(wheel: PackageFile) -> PackageFile:
    """Return the metadata that is read out of this wheel."""
    return PackageFile(wheel.link + _METADATA, wheel.url + _METADATA, key=wheel.key + _METADATA, wheel=wheel)


def _url_in(link: str) -> str:
    """Return the URL that a link is made of where it begins with a scheme and has nothing quoted."""
    return link.replace("/", "://", 1)
