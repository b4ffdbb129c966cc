"""Reads the metadata of a wheel out of a few parts of it (PEP 427, PEP 658).

Knows the zip format by Python's `zipfile`, and the names in a wheel. Must never know where the bytes come from.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from packaging.utils import canonicalize_name

from mypypi.byte_range import ByteRange
from mypypi.errors import NoMetadata

#: Bytes of the largest metadata, and of the largest part that is asked for at once, such as the list of all members.
_LARGEST_METADATA = 4 * 1024 * 1024
_LARGEST_PART = 8 * 1024 * 1024
#: Bytes of the header in front of a member, without its name; and of what may come after that name, generously.
_HEADER, _EXTRA = 30, 1024
#: Ways of compression whose decoders can be told how many bytes to give at most.
_COMPRESSIONS = (ZIP_STORED, ZIP_DEFLATED)
_METADATA = re.compile(r"([^/]+)\.dist-info/METADATA")


class _Missing(Exception):
    """These bytes of the wheel are not there."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__(start, stop)
        self.start, self.stop = start, stop


class _Parts(io.RawIOBase):
    """A file of `total` bytes of which only some parts are there. Reading others raises _Missing."""

    def __init__(self, total: int, parts: Iterable[tuple[int, bytes]]) -> None:
        self._total = total
        self._parts = sorted(parts)
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._total}[whence]
        if at < 0:
            raise OSError("there is nothing before the start of the file")
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        stop = self._total if size < 0 else min(self._at + size, self._total)
        read = [b""]
        while self._at < stop:
            here = (data[self._at - at : stop - at] for at, data in self._parts if at <= self._at < at + len(data))
            part = next(here, None)
            if part is None:
                raise _Missing(self._at, min([stop, *(at for at, _ in self._parts if at > self._at)]))
            read.append(part)
            self._at += len(part)
        return b"".join(read)


def metadata_in(filename: str, total: int, parts: Sequence[tuple[int, bytes]]) -> bytes | ByteRange:
    """
    Return the metadata of the wheel with this name, or the range of it that is needed beside these parts.

    Each part has its offset in the wheel, which has `total` bytes. The wheel's end must be among them. Raises
    NoMetadata.
    """
    entry: ZipInfo | None = None
    try:
        with ZipFile(_Parts(total, parts)) as wheel:
            entry = _entry(wheel.infolist(), filename)
            if max(entry.file_size, entry.compress_size) > _LARGEST_METADATA:
                raise NoMetadata(f"the metadata of {filename} has more than {_LARGEST_METADATA} bytes")
            if entry.compress_type not in _COMPRESSIONS:
                raise NoMetadata(f"the metadata of {filename} is compressed in a way that few clients can read")
            with wheel.open(entry) as member:
                return member.read(entry.file_size + 1)  # without a number, it would decode any number of bytes at once
    except _Missing as missing:
        stop = missing.stop
        if entry is not None:
            before = _HEADER + len(entry.orig_filename.encode()) + _EXTRA
            stop = max(stop, entry.header_offset + before + entry.compress_size)
        if stop - missing.start > _LARGEST_PART:
            raise NoMetadata(f"the wheel {filename} has too many members to read its metadata") from None
        return ByteRange(missing.start, min(stop, total) - 1)
    except (NoMetadata, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - for a damaged file, zipfile raises errors of too many kinds to list
        raise NoMetadata(f"the metadata of {filename} can't be read out of the wheel: {str(error)[:200]}") from None


def _entry(entries: Sequence[ZipInfo], filename: str) -> ZipInfo:
    """
    Return the member with the metadata: that of the wheel's own project and version, else the only one there is.

    Wheels may have vendored distributions in them. Raises NoMetadata.
    """
    found = {match[1]: entry for entry in entries if (match := _METADATA.fullmatch(entry.filename))}
    wanted = _comparable("-".join(filename.split("-")[:2]))
    for name, entry in found.items():
        if _comparable(name) == wanted:
            return entry
    if len(found) != 1:
        raise NoMetadata(f"the wheel {filename} has no metadata of its own")
    return next(iter(found.values()))


def _comparable(name_and_version: str) -> tuple[str, str]:
    name, _, version = name_and_version.partition("-")
    return canonicalize_name(name), version.replace("_", "-").lower()
