"""Tests of the index of a form's parts, and of the compression that they are cut out of."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mypypi.model import UNKNOWN_SPAN, Part
from mypypi.rendering.forms import gzip
from mypypi.rendering.parts import BLOCK, PartIndex, compress_in_blocks

_RANDOM = random.Random(1)  # noqa: S311
#: Three blocks and a bit: one that can't be compressed, one that is nothing but zeros, and a mixture.
BODY = _RANDOM.randbytes(BLOCK) + bytes(BLOCK) + (_RANDOM.randbytes(50) + bytes(1000)) * 260
COMPRESSED, STARTS = compress_in_blocks(BODY)
WHOLE = gzip(BODY)


def test_blocks_are_one_gzip_file() -> None:
    """A form in blocks is an ordinary gzip file. One of a single block has the bytes that it has without blocks."""
    assert zlib.decompress(COMPRESSED, 31) == BODY
    assert len(STARTS) == 4
    for small in (b"", b"{}", BODY[:BLOCK]):
        assert compress_in_blocks(small) == (gzip(small), (10,))


@given(st.integers(0, len(BODY)), st.integers(1, 2 * BLOCK), st.sampled_from([-1, 0, 1]), st.sampled_from([0, 1, 2, 3]))
def test_a_part_is_cut_out_wherever_it_lies(offset: int, length: int, shift: int, block: int) -> None:
    """A part is cut out of its blocks, also across their borders, and of a form that was stored without blocks."""
    for start in (offset, max(0, block * BLOCK + shift)):
        expected = BODY[start : start + length]
        span = (start, len(expected))
        assert PartIndex(b"", STARTS).cut(COMPRESSED, span) == expected
        assert PartIndex(b"").cut(WHOLE, span) == expected
        assert PartIndex(b"", STARTS).work(span) < BLOCK + max(1, len(expected))


@given(
    st.dictionaries(st.builds(Part, st.sampled_from(["version", "dist-tags"]), st.text(max_size=5)), st.just((3, 4)))
)
def test_an_index_has_all_parts_and_no_other(parts: dict[Part, tuple[int, int]]) -> None:
    """A part is found where it lies, also after the index was stored. There is no other part."""
    index = PartIndex.decode(PartIndex.of(parts, STARTS).encode())
    assert index.starts == STARTS
    assert {part: index.find(part) for part in parts} == parts
    for other in (Part("version", "another"), Part("another"), Part("another", "a")):
        assert index.find(other) is None


@pytest.mark.parametrize("span", [(2**32, 5), (5, 2**32)])
def test_a_place_that_is_too_far_is_unknown(span: tuple[int, int]) -> None:
    """A part beyond four gigabytes exists, but can't be cut out."""
    assert PartIndex.of({Part("version", "1"): span}).find(Part("version", "1")) == UNKNOWN_SPAN
