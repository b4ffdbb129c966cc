"""The listing of a page: its package files by link, in a form that costs neither parsing nor an object per file.

Knows how files are packed. Must never know which page they are from.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from hashlib import blake2b

import msgspec
from attrs import field, frozen

from mypypi.model import Digest, PackageFile

_DECODER = msgspec.msgpack.Decoder(tuple[str, str, str, int | None])


@frozen
class Listing:
    """
    Files by link. `hashes` are those of the links, sorted; `ends` say where in `records` each one's file ends.

    The arrays hold 8 and 4 bytes for each file, in this machine's byte order: listings are not stored.
    """

    hashes: bytes = field(default=b"", repr=False)
    ends: bytes = field(default=b"", repr=False)
    records: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, files: Iterable[PackageFile]) -> Listing:
        """Pack these files. Of several with one link, one is found."""
        rows = sorted((_hash(file.link), _pack(file)) for file in files)
        ends, end = array("I"), 0
        for _, record in rows:
            end += len(record)
            ends.append(end)
        hashes = array("Q", (key for key, _ in rows))
        return cls(hashes.tobytes(), ends.tobytes(), b"".join(record for _, record in rows))

    def __len__(self) -> int:
        return len(self.hashes) // 8

    @property
    def size(self) -> int:
        """Bytes of memory that the listing takes."""
        return len(self.hashes) + len(self.ends) + len(self.records)

    def get(self, link: str) -> PackageFile | None:
        """Find the file with this link."""
        hashes, ends = memoryview(self.hashes).cast("Q"), memoryview(self.ends).cast("I")
        key = _hash(link)
        index = bisect_left(hashes, key)
        while index < len(hashes) and hashes[index] == key:  # two links may have one hash
            start = ends[index - 1] if index else 0
            found, url, digest, size = _DECODER.decode(self.records[start : ends[index]])
            if found == link:
                return PackageFile(link, url, Digest.parse(digest) if digest else None, size)
            index += 1
        return None


def _hash(link: str) -> int:
    return int.from_bytes(blake2b(link.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _pack(file: PackageFile) -> bytes:
    return msgspec.msgpack.encode((file.link, file.url, str(file.digest) if file.digest else "", file.size))
