"""Tests of bodies that are taken piece by piece."""

from __future__ import annotations

import os
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mypypi.model import BASE_PLACEHOLDER
from mypypi.pieces import inflated, replaced, slices
from mypypi.rendering.forms import gzip

PIECE = 64 * 1024

_NEW = [b"http://here.example", b"", b"http://base.mypypi.inva", BASE_PLACEHOLDER, BASE_PLACEHOLDER * 2, b"a", b"ba"]
#: Texts that a border may cut, and beginnings of them that are none.
_BITS = st.sampled_from([BASE_PLACEHOLDER, *(BASE_PLACEHOLDER[:end] for end in (1, 4, 12, 25)), b"lid", b"/x", b"a"])


def cut(body: bytes, borders: list[int]) -> list[bytes]:
    """Cut a body at these places, which may be anywhere and repeated."""
    places = [0, *sorted(place % (len(body) + 1) for place in borders), len(body)]
    return [body[start:end] for start, end in pairwise(places)]


@given(st.lists(_BITS, max_size=12).map(b"".join), st.lists(st.integers(0, 400), max_size=12), st.sampled_from(_NEW))
def test_an_address_that_is_cut_by_borders_is_replaced(body: bytes, borders: list[int], new: bytes) -> None:
    """The pieces may be cut anywhere. Their replacement adds up to that of the whole body."""
    assert b"".join(replaced(cut(body, borders), BASE_PLACEHOLDER, new)) == body.replace(BASE_PLACEHOLDER, new)


@given(st.text("ab", max_size=30), st.lists(st.integers(0, 30), max_size=8), st.text("ab", min_size=1, max_size=4))
def test_overlapping_texts_are_replaced_from_the_left(body: str, borders: list[int], old: str) -> None:
    """A text that overlaps itself is replaced as `bytes.replace` does."""
    found = b"".join(replaced(cut(body.encode(), borders), old.encode(), b"<ab>"))
    assert found.decode() == body.replace(old, "<ab>")


def test_slices_add_up_to_the_body() -> None:
    """The pieces of a body of any length add up to it."""
    for size in (0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7):
        body = os.urandom(size)
        pieces = list(slices(body))
        assert b"".join(pieces) == body
        assert all(0 < len(piece) <= PIECE for piece in pieces)


def test_inflated_body_is_the_compressed_one() -> None:
    """Decoding yields the compressed body, in pieces of limited size. This holds for every compression ratio."""
    bodies = [b"", b"a", bytes(PIECE), bytes(PIECE + 1), bytes(20_000_000), os.urandom(3 * PIECE), b"abc" * 1_000_001]
    bodies += [os.urandom(size) + bytes(5_000_000) for size in range(PIECE - 60, PIECE + 10, 7)]
    for body in bodies:
        pieces = list(inflated(gzip(body)))
        assert b"".join(pieces) == body
        assert all(len(piece) <= PIECE for piece in pieces)
