"""Tests of conditional requests and ranges."""

from __future__ import annotations

import time

import pytest

from mypypi.errors import BadRequest
from mypypi.web.conditions import Unsatisfiable, etag_matches, needs_total, range_applies, ranges_of


class TestEtag:
    """If-None-Match (RFC 9110, section 13.1.2)."""

    @pytest.mark.parametrize("header", ['"a"', 'W/"a"', '"x", "a"', ' "x" ,W/"a" ', "*", '"x",, "a",', '"b"'])
    def test_listed_etag_matches(self, header: str) -> None:
        """An etag matches weakly, at any place in the list, for any of the forms."""
        assert etag_matches(header, ["a", "b"])

    @pytest.mark.parametrize("header", [None, '"x"', '"A"', '"a-gzip"', '""'])
    def test_other_etag_does_not_match(self, header: str | None) -> None:
        """A part of an etag, or an etag in another case, does not match."""
        assert not etag_matches(header, ["a", "b"])

    @pytest.mark.parametrize("header", ["", "a", '"a', 'w/"a"', '"a" "b"', "a, b", '"a\x7f"', '*, "a"', "\xff"])
    def test_malformed_list_of_etags_matches_nothing(self, header: str) -> None:
        """A header that is no list of etags matches nothing, even if it contains the etag."""
        assert not etag_matches(header, ["a"])


class TestRange:
    """Range (RFC 9110, section 14) of a file with 1000 bytes."""

    @pytest.mark.parametrize(
        ("header", "parts"),
        [
            (None, None), ("items=0-5", None), ("bytesfoo=0-5", None), ("", None),
            ("bytes=0-0", [(0, 1)]), ("bytes=0-499", [(0, 500)]), ("bytes=500-", [(500, 1000)]),
            ("bytes=-200", [(800, 1000)]), ("bytes=-5000", [(0, 1000)]), ("bytes=900-5000", [(900, 1000)]),
            ("Bytes=0-0", [(0, 1)]), (" bytes = 0-0 ", [(0, 1)]),
            ("bytes=0-9, 20-29,-10", [(0, 10), (20, 30), (990, 1000)]),
            ("bytes=0-9,2000-3000", [(0, 10)]), ("bytes=20-29,0-9", [(20, 30), (0, 10)]),
            ("bytes=" + "9" * 30 + "-,0-0", [(0, 1)]),
        ],
    )  # fmt: skip
    def test_ranges_are_cut_to_the_file(self, header: str | None, parts: list[tuple[int, int]] | None) -> None:
        """
        Ranges come in the requested order, cut to the file's length.

        A header without byte ranges gives None, the whole file.
        """
        assert ranges_of(header, 1000) == parts

    @pytest.mark.parametrize("header", ["bytes=1000-", "bytes=5000-6000", "bytes=-0", "bytes=1000-1000,2000-"])
    def test_ranges_beyond_the_end_are_unsatisfiable(self, header: str) -> None:
        """Ranges beyond the end are a 416 with the file's length."""
        with pytest.raises(Unsatisfiable) as error:
            ranges_of(header, 1000)
        assert (error.value.status, error.value.total) == (416, 1000)

    def test_ranges_of_an_empty_file_are_unsatisfiable(self) -> None:
        """No range of an empty file is satisfiable."""
        for header in ("bytes=0-", "bytes=0-0", "bytes=-1"):
            with pytest.raises(Unsatisfiable):
                ranges_of(header, 0)

    @pytest.mark.parametrize(
        "header",
        ["bytes", "bytes=", "bytes=-", "bytes=x", "bytes=0", "bytes=1-0", "bytes=0-x", "bytes=+1-2", "bytes=0x0-5",
         "bytes=0--5", "bytes=0-5;6-7", "bytes=\N{ARABIC-INDIC DIGIT ONE}-", "bytes=" + "9" * 5000 + "-"],
    )  # fmt: skip
    def test_malformed_range_is_refused(self, header: str) -> None:
        """A malformed Range is a bad request."""
        with pytest.raises(BadRequest):
            ranges_of(header, 1000)

    def test_too_many_ranges_get_the_whole_file(self) -> None:
        """
        Too many ranges, and overlapping ones, get the whole file.

        A small file must not become a huge response (RFC 9110, section 17.15).
        """
        assert ranges_of("bytes=" + ",".join(f"{n}-{n}" for n in range(33)), 1000) is None
        assert ranges_of("bytes=" + ",".join(f"{n}-{n}" for n in range(32)), 1000) is not None
        assert ranges_of("bytes=0-,0-", 1000) is None

    def test_no_header_takes_long_to_parse(self) -> None:
        """No header takes long to parse. A backtracking expression would take minutes."""
        began = time.perf_counter()
        for header in ("bytes=" + "0-0," * 4000 + "x", "bytes=" + " " * 8000 + "x", "bytes=" + "," * 8000 + "x"):
            with pytest.raises(BadRequest):
                ranges_of(header, 1000)
        for header in ('"a",' * 4000 + "x", '"a"' + " " * 8000 + "x", " " * 8000 + "x"):
            assert not etag_matches(header, ["b"])
        assert time.perf_counter() - began < 2

    def test_range_of_bytes_needs_the_length(self) -> None:
        """Only a Range in bytes needs the file's length."""
        assert [needs_total(header) for header in (None, "items=0-5", "bytes=0-", " BYTES=0-")] == [
            False, False, True, True,
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [(None, True), ('"a"', True), (' "a" ', True), ('W/"a"', False), ('"b"', False), ("a", False),
     ("Mon, 02 Nov 2026 10:00:00 GMT", False)],
)  # fmt: skip
def test_range_applies_to_the_same_version(if_range: str | None, applies: bool) -> None:  # noqa: FBT001 - a table
    """If-Range compares strongly (RFC 9110, section 13.1.5)."""
    assert range_applies(if_range, "a") == applies
    assert range_applies(if_range, None) == (if_range is None)
