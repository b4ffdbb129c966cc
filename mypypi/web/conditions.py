"""Conditional and range requests (RFC 9110, sections 13 and 14). Strings in, values out.

Etags are parsed by Werkzeug, and checked first, since it accepts more than a client can mean. Each expression has one
way to match, so that no header can make it slow. Must never know what is served.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from werkzeug.http import parse_etags

from mypypi.errors import BadRequest, MyPyPiError

#: entity-tag of RFC 9110, section 8.8.3, and a list of them.
_ETAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ETAGS = re.compile(rf"\s*(?:\*\s*|{_ETAG}\s*(?:,\s*(?:{_ETAG}\s*)?)*)")
#: ranges-specifier of RFC 9110, section 14.1.1, for bytes: parts in any order, some of which may overlap, which
#: Werkzeug's parser refuses. int() takes no more than some thousand digits.
_RANGE = re.compile("([0-9]{0,99})-([0-9]{0,99})")
_PART = "(?:[0-9]{1,99}-[0-9]{0,99}|-[0-9]{1,99})"
#: The unit by itself, and not another token that begins like it.
_BYTES = re.compile(r"\s*bytes(?![\w!#$%&'*+.^`|~-])", re.IGNORECASE)
_RANGES = re.compile(rf"\s*bytes\s*=[\s,]*{_PART}\s*(?:,\s*(?:{_PART}\s*)?)*", re.IGNORECASE)
#: A request for more parts than this is somebody's mistake; it is answered with the whole (RFC 9110, section 14.2).
_MOST_RANGES = 32


class Unsatisfiable(MyPyPiError):
    """No part of the requested range exists in a file of `total` bytes (RFC 9110, section 15.5.17)."""

    status = 416

    def __init__(self, total: int) -> None:
        super().__init__(f"the file has {total} bytes, and none of those asked for")
        self.total = total


def etag_matches(if_none_match: str | None, etags: Sequence[str]) -> bool:
    """
    Whether If-None-Match names one of these opaque tags, compared weakly (RFC 9110, section 13.1.2).

    Raises BadRequest where the header is not a list of entity tags.
    """
    if if_none_match is None:
        return False
    if not _ETAGS.fullmatch(if_none_match):
        raise BadRequest("If-None-Match is not a list of quoted entity tags")
    named = parse_etags(if_none_match)
    return any(named.contains_weak(etag) for etag in etags)


def ranges_of(header: str | None, total: int) -> list[tuple[int, int]] | None:
    """
    The parts asked for, as (start, stop) in bytes, of a file of `total` bytes; None for the whole file.

    Raises BadRequest where a bytes range is malformed, Unsatisfiable where no part exists.
    """
    if header is None or not needs_total(header):
        return None  # a unit that we do not know is to be ignored (RFC 9110, section 14.2)
    if not _RANGES.fullmatch(header):
        raise BadRequest("Range is not a list of byte ranges, such as bytes=0-499 or bytes=-500")
    asked = _RANGE.findall(header)
    if len(asked) > _MOST_RANGES:
        return None
    parts = []
    for first, last in asked:
        if first and last and int(first) > int(last):
            raise BadRequest("Range has a part whose end comes before its start")
        start = int(first) if first else max(0, total - int(last))
        stop = min(int(last) + 1, total) if first and last else total
        if start < stop:
            parts.append((start, stop))
    if not parts:
        raise Unsatisfiable(total)
    if sum(stop - start for start, stop in parts) > total:
        return None  # parts that overlap could be asked for to make much out of little (RFC 9110, section 17.15)
    return parts


def needs_total(header: str | None) -> bool:
    """Whether a Range header means something only once the file's length is known."""
    return header is not None and _BYTES.match(header) is not None


def range_applies(if_range: str | None, etag: str | None) -> bool:
    """Whether a Range is to be honoured: with If-Range, only for this very strong etag (RFC 9110, section 13.1.5)."""
    return if_range is None or (etag is not None and if_range.strip() == f'"{etag}"')
