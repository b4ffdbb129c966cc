"""Takes bodies piece by piece: cuts, decodes gzip, and replaces a text, with little of the body in memory.

Knows bytes. Must never know what a body is, or who reads the pieces.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

#: Bytes of one piece, at most.
PIECE = 64 * 1024
#: The value of zlib's `wbits` for gzip (RFC 1952), and for a deflate stream without a header (RFC 1951).
GZIP, DEFLATE = 31, -15


def slices(body: bytes | memoryview, size: int = PIECE) -> Iterator[bytes]:
    """Yield the body in pieces of at most `size` bytes."""
    for start in range(0, len(body), size):
        yield bytes(body[start : start + size])


def inflated(body: bytes | memoryview, wbits: int = GZIP) -> Iterator[bytes]:
    """Yield the decoded body in pieces, never all of it at once."""
    decoder = zlib.decompressobj(wbits=wbits)
    for piece in slices(body):
        rest = piece
        while rest and (data := decoder.decompress(rest, PIECE)):
            yield data
            rest = decoder.unconsumed_tail


def replaced(pieces: Iterable[bytes], old: bytes, new: bytes) -> Iterator[bytes]:
    """Yield the body of these pieces as `bytes.replace` would return it, also where `old` is cut by their borders."""
    kept = b""  # no occurrence of `old` begins before it, and one may begin in it
    for piece in pieces:
        data, start, done = kept + piece, 0, []
        while (found := data.find(old, start)) >= 0:
            done += [data[start:found], new]
            start = found + len(old)
        end = max(start, len(data) - len(old) + 1)
        done.append(data[start:end])
        kept = data[end:]
        if whole := b"".join(done):
            yield whole
    if kept:
        yield kept
