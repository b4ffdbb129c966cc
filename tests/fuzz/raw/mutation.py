"""Damages bytes at random. Knows bytes and tokens. Must never know what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

#: Bytes that parsers of HTTP treat specially.
TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\x00", b"\r\n\r\n", b"\r\n ", b"\r\n\t", b" ", b"\t", b":", b";", b",", b'"', b"="),
    *(b"\\", b"%", b"%00", b"%2f", b"%0d%0a", b"\xff", b"\xe2\x82\xac", b"\x85", b"\x0b", b"0", b"-1", b"1e9"),
    *(b"\x7f", b"+", b"99999999999999999999", b"0x10", b"chunked", b"gzip", b"identity", b"HTTP/1.1"),
    *(b"HTTP/1.0 200 OK\r\n\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"Connection: close\r\n", b"0\r\n\r\n", b"//", b".."),
)  # fmt: skip
_MOST_CHANGES = 4
_LONGEST_REPEAT = 70_000


def mutated(rng: Random, data: bytes, corpus: Sequence[bytes] = ()) -> bytes:
    """Return the bytes with some changes. `corpus` has other bytes, of which parts are put in."""
    for _ in range(rng.randint(1, _MOST_CHANGES)):
        at, size = rng.randint(0, len(data)), min(rng.choice((1, 1, 2, 5, 20, 300)), len(data))
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:at] + rng.choice(TOKENS) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + size :]
        elif kind == 2:
            data = data[:at] + data[at : at + size] * rng.choice((2, 3, 100)) + data[at + size :]
        elif kind == 3 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 4:
            data = data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
        elif kind == 5 and corpus:
            other = rng.choice(corpus)
            cut = rng.randint(0, len(other))
            data = data[:at] + other[cut : cut + rng.choice((5, 50, 500))] + data[at:]
        elif kind == 6 and rng.random() < 0.2:
            data = (
                data[:at] + rng.choice((b"a", b" ", b"\r\n", b"0", b"\xff", b"a:b\r\n")) * _LONGEST_REPEAT + data[at:]
            )
        elif kind == 7 and rng.random() < 0.3:
            data = data[:at]
    return data


def in_pieces(rng: Random, data: bytes) -> tuple[bytes, ...]:
    """Cut the bytes at random places: not at all, at some, or after each of the first bytes."""
    kind = rng.randrange(5)
    if kind < 2 or not data:
        return (data,)
    if kind == 2:
        lead = rng.randint(1, min(150, len(data)))
        return (*(data[at : at + 1] for at in range(lead)), data[lead:])
    cuts = sorted({0, len(data), *(rng.randint(0, len(data)) for _ in range(rng.randint(1, 8)))})
    return tuple(data[start:end] for start, end in pairwise(cuts))
