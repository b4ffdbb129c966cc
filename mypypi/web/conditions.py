"""Evaluates conditional and range requests (RFC 9110, sections 13 and 14).

Knows header values, as strings. Must never know what is served.

Werkzeug parses entity tags. A pattern checks them first, since Werkzeug also accepts malformed ones. Each pattern has
only one way to match a text, so that no header can make matching slow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from werkzeug.http import parse_etags

from mypypi.byte_range import ByteRange
from mypypi.errors import BadRequest, MyPyPiError

#: An entity-tag (RFC 9110, section 8.8.3), and a list of them.
_ETAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ETAGS = re.compile(rf"\s*(?:\*\s*|{_ETAG}\s*(?:,\s*(?:{_ETAG}\s*)?)*)")
#: A ranges-specifier (RFC 9110, section 14.1.1) for bytes. Werkzeug's parser can't be used: it refuses parts that
#: overlap or are out of order. Numbers have at most 99 digits, since int() refuses more than some thousand.
_RANGE = re.compile("([0-9]{0,99})-([0-9]{0,99})")
_PART = "(?:[0-9]{1,99}-[0-9]{0,99}|-[0-9]{1,99})"
#: The unit ``bytes``, but not a longer token that begins with it.
_BYTES = re.compile(r"\s*bytes(?![\w!#$%&'*+.^`|~-])", re.IGNORECASE)
_RANGES = re.compile(rf"\s*bytes\s*=[\s,]*{_PART}\s*(?:,\s*(?:{_PART}\s*)?)*", re.IGNORECASE)
#: Most parts in a Range header. A header with more is taken for a mistake and ignored: the answer is the whole file
#: (RFC 9110, section 14.2).
_MOST_RANGES = 32


class Unsatisfiable(MyPyPiError):
    """
    The requested range lies outside the file (RFC 9110, section 15.5.17).

    `total` is the length of the file in bytes.
    """

    status = 416

    def __init__(self, total: int) -> None:
        super().__init__(f"the requested range lies outside the file, which has {total} bytes")
        self.total = total


def etag_matches(if_none_match: str | None, etags: Sequence[str]) -> bool:
    """
    Return whether If-None-Match names one of these etags.

    The etags are opaque tags without quotes, and are compared weakly (RFC 9110, section 13.1.2). A header that is not a
    list of entity tags matches nothing: clients hand back what another server gave them.
    """
    if if_none_match is None or not _ETAGS.fullmatch(if_none_match):
        return False
    named = parse_etags(if_none_match)
    return any(named.contains_weak(etag) for etag in etags)


def ranges_of(header: str | None, total: int) -> list[tuple[int, int]] | None:
    """
    Return the requested parts of a file, or None for the whole file.

    Each part is (start, stop) in bytes, without the byte at stop; `total` is the length of the file in bytes. Raises
    BadRequest if a byte range is malformed, and Unsatisfiable if no part exists.
    """
    if header is None or not needs_total(header):
        return None  # an unknown unit is ignored (RFC 9110, section 14.2)
    if not _RANGES.fullmatch(header):
        raise BadRequest("Range is not a list of byte ranges, such as bytes=0-499 or bytes=-500")
    asked = _RANGE.findall(header)
    if len(asked) > _MOST_RANGES:
        return None
    parts = []
    for first, last in asked:
        if first and last and int(first) > int(last):
            raise BadRequest("Range has a part that ends before it starts")
        start = int(first) if first else max(0, total - int(last))
        stop = min(int(last) + 1, total) if first and last else total
        if start < stop:
            parts.append((start, stop))
    if not parts:
        raise Unsatisfiable(total)
    if sum(stop - start for start, stop in parts) > total:
        return None  # overlapping parts could make a huge response of a small file (RFC 9110, section 17.15)
    return parts


def needs_total(header: str | None) -> bool:
    """Return whether evaluating this Range header needs the file's length."""
    return header is not None and _BYTES.match(header) is not None


def one_range(header: str | None) -> ByteRange | None:
    """Return the range that a Range header asks for, if it is valid and asks for one only."""
    if header is None or not _RANGES.fullmatch(header) or len(asked := _RANGE.findall(header)) != 1:
        return None
    first, last = (int(number) if number else None for number in asked[0])
    if first is not None and last is not None and first > last:
        return None
    return ByteRange(first, last)


def range_applies(if_range: str | None, etag: str | None) -> bool:
    """
    Return whether a Range header is to be honoured.

    With If-Range, it is honoured only if that header is this etag, as a strong one (RFC 9110, section 13.1.5).
    """
    return if_range is None or (etag is not None and if_range.strip() == f'"{etag}"')
