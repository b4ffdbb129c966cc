"""Decodes gzip bytes of upstream (RFC 1952) piece by piece, and stops where they cost more than they bring.

Knows gzip and sizes. Must never know what the bytes are, or where they are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from isal import isal_zlib

from mypypi.pieces import GZIP, slices

_Damaged: Any = isal_zlib.error  # its type stub says that this is no class
#: Decoded bytes for each encoded one, above which a block counts as swollen. Pages have 4 to 40, package files up to
#: 20, and deflate reaches 1032.
MOST_RATIO = 200
#: Bytes of swollen blocks that are accepted. Each file may have some, such as a long run of spaces.
MOST_SWOLLEN = 4 * 1024 * 1024
#: Members that a body may have, and the decoded bytes that allow one more. An empty member has 20 bytes, and costs some
#: microseconds.
MOST_MEMBERS, BYTES_PER_MEMBER = 100, 1024
#: Encoded bytes that allow one more member while a body arrives. Members of so few decoded bytes are mostly header.
ENCODED_PER_MEMBER = 128
#: How each member begins. In other bytes, it comes about once in 16 MiB.
MEMBER_BEGIN = b"\x1f\x8b\x08"
#: Bytes that the decoder gets at once: it copies what it leaves over.
_FED = 16 * 1024
#: The longest piece that is returned, in bytes.
_PIECE = 256 * 1024


class GzipError(Exception):
    """The bytes can't be decoded, or exceed a limit. The message says why, after "upstream sent"."""


class TooMuch(GzipError):
    """There are more decoded bytes than the caller takes."""


def gunzip(blocks: Iterable[bytes], most: int, what: str) -> Iterator[bytes]:
    """
    Yield the decoded bytes of all members, up to `most`. Raises GzipError; `what` names the bytes in its message.

    It also fails for swollen bytes, and for members that bring next to nothing. Its own memory is small, and its time
    grows with the bytes.
    """
    decoder = isal_zlib.decompressobj(wbits=GZIP)
    decoded = swollen = members = 0
    try:
        for fed in chain.from_iterable(slices(block, _FED) for block in blocks):
            rest, grown = fed, 0
            while rest:
                if decoder.eof:
                    decoder, members = isal_zlib.decompressobj(wbits=GZIP), members + 1
                    if members > MOST_MEMBERS + decoded // BYTES_PER_MEMBER:
                        raise GzipError(f"{what} of {members} gzip members with next to nothing in them")
                piece = decoder.decompress(rest, _PIECE)
                rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                decoded += len(piece)
                grown += len(piece)
                if decoded > most:
                    raise TooMuch(f"{what} of more than {most} bytes")
                if grown > MOST_RATIO * len(fed) and swollen + grown > MOST_SWOLLEN:
                    raise GzipError(f"{what} that grows more than {MOST_RATIO} times when it is decoded")
                if piece:
                    yield piece
            swollen += grown if grown > MOST_RATIO * len(fed) else 0
    except _Damaged:
        raise GzipError(f"{what} with damaged gzip encoding") from None
    if not decoder.eof:
        raise GzipError(f"{what} in gzip encoding that ends early")


def beginning(body: bytes, most: int) -> bytes | None:
    """Return the first decoded bytes of a body, up to `most`; None if they can't be decoded."""
    try:
        return isal_zlib.decompressobj(wbits=GZIP).decompress(body, most)
    except _Damaged:
        return None
