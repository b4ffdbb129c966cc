"""Upstream's responses as values: for pages, files and passed-on requests.

Knows statuses, headers and lengths. Must never know why upstream was asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from attrs import define, field, frozen
from twisted.internet.protocol import Protocol
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from mypypi.byte_range import ByteRange
from mypypi.dates import parse_date
from mypypi.errors import UpstreamDown
from mypypi.model import SourceDocument
from mypypi.upstream.agent import RAW_ENCODING
from mypypi.upstream.bodies import RefusedBody

#: The longest Retry-After that is respected, in seconds.
_LONGEST_RETRY_AFTER = 60
#: Seconds to wait if upstream sends no readable Retry-After.
_DEFAULT_RETRY_AFTER = 5
#: The value of a Content-Range. Numbers have at most 18 digits, as no file is larger.
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18})", re.IGNORECASE)


@frozen
class PageResponse:
    """
    Upstream's response to a request for a page.

    `source` is None if the page is not modified. `etag` and `modified` are its validators as sent. The receiver calls
    `release` once it does not hold the source any more.
    """

    source: SourceDocument | None
    etag: str
    modified: str
    release: Callable[[], object] = field(default=lambda: None, eq=False, repr=False)


@frozen
class FileRange:
    """
    A range of a file: the bytes from `start` on, of a file of `total` bytes. Outside the file, there are none.

    Upstream's are not checked, since a digest needs the whole file.
    """

    start: int
    total: int
    content: bytes = field(repr=False)


@frozen
class PassedResponse:
    """
    Upstream's response to a request that was passed on.

    The body keeps its encoding. Header names are in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


@define
class FileResponse:
    """
    Upstream's response to a file request, before its body.

    `close` ends it and frees its slot among the running requests.
    """

    status: int
    headers: Headers
    url: str
    _response: IResponse
    _closed: Callable[[], None]
    _open: bool = field(default=True, init=False)
    _delivered: bool = field(default=False, init=False)

    @property
    def length(self) -> int | None:
        """The Content-Length in bytes, if upstream sent one. Twisted removes it from the headers."""
        length = self._response.length
        return length if isinstance(length, int) else None

    @property
    def encoding(self) -> str:
        """The Content-Encoding of the body; empty for identity."""
        value = self.header(RAW_ENCODING).lower()
        return {"identity": "", "x-gzip": "gzip"}.get(value, value)  # RFC 9110, section 8.4.1.3

    def header(self, name: str) -> str:
        """Return a header's first value; empty if there is none."""
        return first_value(self.headers, name)

    def deliver(self, receiver: Protocol) -> None:
        """Deliver the body's bytes to this protocol, undecoded."""
        self._delivered = True
        self._response.deliverBody(receiver)

    def close(self) -> None:
        """Report that the body is complete or no longer needed. May be called more than once."""
        if self._open:
            self._open = False
            if not self._delivered:
                self.deliver(RefusedBody())  # without a receiver for the body, the connection would stay open for ever
            self._closed()


def range_in(response: FileResponse, asked: ByteRange, most: int) -> tuple[int, int, int] | None:
    """
    Return start, stop and total of the range in this response, which starts and stops at the total outside the file.

    None if it is not the range that was asked for, or has more than `most` bytes (RFC 9110, section 14.4).
    """
    found = _CONTENT_RANGE.fullmatch(response.header("content-range"))
    if found is None or response.encoding or response.status == 200:  # noqa: PLR2004 - the whole file
        return None
    total = int(found[3])
    if response.status == 416:  # noqa: PLR2004 - outside
        return total, total, total
    start, stop = asked.within(total)
    if found[1] is None or (int(found[1]), int(found[2]) + 1) != (start, stop) or not start < stop <= start + most:
        return None
    return start, stop, total


def first_value(headers: Headers, name: str) -> str:
    """Return a header's first value; empty if there is none. Accepts any bytes (RFC 9110, section 5.5)."""
    return (headers.getRawHeaders(name.encode()) or [b""])[0].decode("latin-1").strip()


def first_values(headers: Headers) -> dict[str, str]:
    """Return each header's first value, by its name in lower case."""
    return {name.decode("latin-1").lower(): values[0].decode("latin-1") for name, values in headers.getAllRawHeaders()}


def is_final(status: int) -> bool:
    """Whether this is a valid status of a final response (RFC 9110, section 15). Upstream may send any number."""
    return 200 <= status <= 599  # noqa: PLR2004 - the lowest and the highest one


def outcome_of(status: int) -> str:
    """Return the label for a response with this status in the metrics."""
    return f"{status // 100}xx" if is_final(status) else "invalid"


def down_error(response: IResponse, now: float) -> UpstreamDown:
    """Return the error for an answer of a server that fails."""
    error = UpstreamDown(f"upstream answered {response.code}", retry_after(response.headers, now))
    error.told = told_wait(response.headers, now)
    return error


def told_wait(headers: Headers, now: float) -> int | None:
    """Return the seconds of a Retry-After header, as `retry_after` does; None if upstream sent none."""
    return retry_after(headers, now) if first_value(headers, "retry-after") else None


def retry_after(headers: Headers, now: float) -> int:
    """
    Return the seconds of a Retry-After header, from 1 to 60.

    Both of its forms are read (RFC 9110, section 10.2.3): a number of seconds and a date. A date is counted from the
    Date of the answer, which is upstream's clock, or else from `now`.
    """
    value = first_value(headers, "retry-after")
    date, sent = parse_date(value), parse_date(first_value(headers, "date"))
    if value.isascii() and value.isdigit():
        seconds = int(value[:18])  # int() refuses texts of some thousand digits
    elif date is not None:
        seconds = int(date.timestamp() - (now if sent is None else sent.timestamp()))
    else:
        seconds = _DEFAULT_RETRY_AFTER
    return max(1, min(seconds, _LONGEST_RETRY_AFTER))
