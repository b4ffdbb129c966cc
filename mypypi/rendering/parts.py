"""The parts of a page's form: an index that is made with the page, and a compression that a part can be cut out of.

So a part that does not exist costs a look into the index, and one that exists does not cost the decoding of the whole
page. Knows gzip and where parts lie. Must never know what a part means.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Mapping
from hashlib import blake2b
from itertools import chain

import msgspec
from attrs import frozen
from isal import isal_zlib

from mypypi.model import UNKNOWN_SPAN, Part, Span
from mypypi.pieces import DEFLATE, GZIP, inflated

#: The level of isal's compression. Pages get larger than with zlib's level 6, and take a tenth of its time.
LEVEL = 2
#: Bytes of a form between two points where decoding can begin. Each point makes the compressed form some bytes larger.
BLOCK = 256 * 1024
#: The bytes of gzip's header as zlib writes it (RFC 1952, section 2.3).
_HEADER = 10
#: A row of the index: hash, offset, length. Rows are sorted by their hashes.
_ROW = struct.Struct("!12sII")
_HASH = 12
#: Offsets and lengths of larger forms do not fit into a row.
_LARGEST = 2**32 - 1


@frozen
class PartIndex:
    """Where the parts of a form lie. `starts` are the offsets in its compressed body where each `BLOCK` begins."""

    rows: bytes
    starts: tuple[int, ...] = (_HEADER,)

    @classmethod
    def of(cls, parts: Mapping[Part, Span], starts: tuple[int, ...] = (_HEADER,)) -> PartIndex:
        """Make the index of these parts."""
        rows = (
            _ROW.pack(_hash(part), *(span if max(span) <= _LARGEST else UNKNOWN_SPAN)) for part, span in parts.items()
        )
        return cls(b"".join(sorted(rows)), starts)

    @property
    def size(self) -> int:
        """Bytes of memory that the index takes."""
        return len(self.rows) + 8 * len(self.starts)

    def find(self, part: Part) -> Span | None:
        """Return where a part lies in the identity bytes; None if there is no such part."""
        wanted = _hash(part)
        rows = range(0, len(self.rows), _ROW.size)
        found = bisect_left(rows, wanted, key=lambda at: self.rows[at : at + _HASH])
        if found == len(rows):
            return None
        key, offset, length = _ROW.unpack_from(self.rows, rows[found])
        return (offset, length) if key == wanted else None

    def work(self, span: Span) -> int:
        """Return the bytes to decode for a part: less than a block besides the part, if the form has `starts`."""
        return sum(span) - BLOCK * self._block_of(span)

    def cut(self, body: bytes, span: Span) -> bytes:
        """Cut a part out of the compressed body."""
        block, end, pieces = self._block_of(span), self.work(span), []
        start = end - span[1]
        for piece in inflated(memoryview(body)[self.starts[block] :], DEFLATE):
            pieces.append(piece[max(0, start) : max(0, end)])
            start, end = start - len(piece), end - len(piece)
            if end <= 0:
                break
        return b"".join(pieces)

    def _block_of(self, span: Span) -> int:
        return min(span[0] // BLOCK, len(self.starts) - 1)

    def encode(self) -> bytes:
        """Return the index as it is stored with its page."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, encoded: bytes) -> PartIndex:
        """Return a stored index. Raises MsgspecError."""
        return msgspec.msgpack.decode(encoded, type=cls)


def compress_in_blocks(data: bytes) -> tuple[bytes, tuple[int, ...]]:
    """Compress data with gzip, so that decoding can begin at each `BLOCK`. Returns the offsets of these as well."""
    compressor = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, GZIP)
    pieces, starts, size = [], [_HEADER], 0
    for start in range(0, len(data), BLOCK):
        if start:
            pieces.append(compressor.flush(isal_zlib.Z_FULL_FLUSH))
            size += len(pieces[-1])
            starts.append(size)
        pieces.append(compressor.compress(memoryview(data)[start : start + BLOCK]))
        size += len(pieces[-1])
    return b"".join(chain(pieces, (compressor.flush(),))), tuple(starts)


def _hash(part: Part) -> bytes:
    return blake2b(f"{part.kind} {part.name}".encode(errors="surrogatepass"), digest_size=_HASH).digest()
