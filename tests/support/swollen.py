"""Gzip bodies that are small on the wire and large when they are decoded."""

from __future__ import annotations

import zlib

from mypypi.gunzip import MOST_RATIO

MIB = 1024 * 1024
#: Bytes after which a compressor forgets what it has seen, so that it compresses only a hundred to one.
BARELY = 2048


def swollen(size: int, start: bytes = b"", end: bytes = b"", *, unit: int = MIB) -> bytes:
    """
    Compress `size` bytes of spaces between `start` and `end`, a thousand to one.

    `size` is rounded up to whole units. All of them but one are a copy, so that this takes little time. Small units
    compress less: see `BARELY`.
    """
    count, unit_of_spaces = -(-size // unit), b" " * unit
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = compressor.compress(start) + compressor.flush(zlib.Z_FULL_FLUSH)
    spaces = compressor.compress(unit_of_spaces) + compressor.flush(zlib.Z_FULL_FLUSH)
    last = compressor.compress(end) + compressor.flush()
    crc = zlib.crc32(start)
    for _ in range(count):
        crc = zlib.crc32(unit_of_spaces, crc)
    crc = zlib.crc32(end, crc)
    length = (len(start) + count * unit + len(end)) % 2**32
    header = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    return header + first + spaces * count + last + crc.to_bytes(4, "little") + length.to_bytes(4, "little")


def barely_swollen(body: bytes) -> bytes:
    """Compress a body that repeats itself, but so that it does not grow more than it may when it is decoded."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = []
    for start in range(0, len(body), BARELY):
        pieces.append(compressor.compress(body[start : start + BARELY]))
        pieces.append(compressor.flush(zlib.Z_FULL_FLUSH))
    zipped = b"".join(pieces) + compressor.flush()
    assert len(body) < MOST_RATIO * len(zipped)
    return zipped
