"""The listing of a page: its package files by link, in a form that costs neither parsing nor an object per file.

Knows how files are packed. Must never know which page they are from.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from hashlib import blake2b

import msgspec
from attrs import field, frozen

from mypypi.model import PackageFile

#: Link, URL unless the link tells it, digests, size, the key unless it is the link, and whether it is the metadata in a
#: wheel: digests and size are those of the wheel then.
_DECODER = msgspec.msgpack.Decoder(tuple[str, str, str, int | None, str, bool])
#: What comes after a wheel's name in that of its metadata (PEP 658).
_METADATA = ".metadata"
#: How many files `Listing.named` looks at, so that a page with many of one name does not block the reactor.
_MOST_NAMED = 100


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
            file = _unpack(self.records[start : ends[index]])
            if file.link == link:
                return file
            index += 1
        return None

    def named(self, segment: str) -> list[PackageFile]:
        """Find the files whose links end with this segment. Links are searched, so this is slower than `get`."""
        ends, wanted, files = memoryview(self.ends).cast("I"), f"/{segment}".encode(), []
        at = self.records.find(wanted)
        for _ in range(_MOST_NAMED):
            if at < 0:
                break
            index = bisect_right(ends, at)
            file = _unpack(self.records[ends[index - 1] if index else 0 : ends[index]])
            if file.link.endswith(f"/{segment}"):
                files.append(file)
            at = self.records.find(wanted, ends[index])
        return files


def _hash(link: str) -> int:
    return int.from_bytes(blake2b(link.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _unpack(record: bytes) -> PackageFile:
    link, url, digests, size, key, is_in_wheel = _DECODER.decode(record)
    url, key = url or _url_in(link), key or link
    if not is_in_wheel:
        return PackageFile.of(link, url, digests, size, key)
    names = [name.removesuffix(_METADATA) for name in (link, url, key)]
    wheel = PackageFile.of(names[0], names[1], digests, size, names[2])
    return PackageFile(link, url, key=key, wheel=wheel)


def _pack(file: PackageFile) -> bytes:
    key = "" if file.key == file.link else file.key
    url = "" if file.url == _url_in(file.link) else file.url
    checked = file.wheel or file
    return msgspec.msgpack.encode((file.link, url, checked.digest_text, checked.size, key, file.wheel is not None))


def _url_in(link: str) -> str:
    """Return the URL that a link is made of where it begins with a scheme and has nothing quoted."""
    return link.replace("/", "://", 1)
