"""What upstream answered, as values: a page, a file whose body is still to come, a response that is passed on.

Knows statuses, headers and lengths. Must never know why upstream was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import define, field, frozen
from twisted.internet.protocol import Protocol
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from mypypi.dates import parse_date
from mypypi.model import SourceDocument
from mypypi.upstream.agent import RAW_ENCODING
from mypypi.upstream.bodies import RefusedBody

_LONGEST_RETRY_AFTER = 60
#: Seconds to wait where upstream gives no Retry-After that can be read.
_DEFAULT_RETRY_AFTER = 5


@frozen
class PageResponse:
    """Upstream's response to a request for a page: its `source`, None when not modified; its validators, as sent."""

    source: SourceDocument | None
    etag: str
    modified: str


@frozen
class PassedResponse:
    """Upstream's response to a request that was passed on, body decoded; headers by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@define
class FileResponse:
    """
    The response to a request for a file, before its body.

    `close` ends it and gives its place among the running requests back.
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
        """The Content-Length in bytes, where upstream sent one. Twisted takes it out of the headers."""
        length = self._response.length
        return length if isinstance(length, int) else None

    @property
    def encoding(self) -> str:
        """The Content-Encoding of the body; empty for identity."""
        value = self.header(RAW_ENCODING).lower()
        return "" if value == "identity" else value

    def header(self, name: str) -> str:
        """A header's first value; empty where there is none."""
        return first_value(self.headers, name)

    def deliver(self, receiver: Protocol) -> None:
        """Deliver the body's bytes to this protocol, undecoded."""
        self._delivered = True
        self._response.deliverBody(receiver)

    def close(self) -> None:
        """Say that the body has come, or that no more of it is wanted. May be called more than once."""
        if self._open:
            self._open = False
            if not self._delivered:
                self.deliver(RefusedBody())  # a connection without a receiver for the body would stay open for ever
            self._closed()


def first_value(headers: Headers, name: str) -> str:
    """A header's first value; empty where there is none. Any bytes are read (RFC 9110, section 5.5)."""
    return (headers.getRawHeaders(name.encode()) or [b""])[0].decode("latin-1").strip()


def first_values(headers: Headers) -> dict[str, str]:
    """Each header's first value, by its name in lower case."""
    return {name.decode("latin-1").lower(): values[0].decode("latin-1") for name, values in headers.getAllRawHeaders()}


def retry_after(headers: Headers, now: float) -> int:
    """Seconds from a Retry-After header in either of its forms (RFC 9110, section 10.2.3), from 1 to 60."""
    value = first_value(headers, "retry-after")
    date = parse_date(value)
    if value.isascii() and value.isdigit():
        seconds = int(value[:18])  # int() refuses texts of some thousand digits
    else:
        seconds = _DEFAULT_RETRY_AFTER if date is None else int(date.timestamp() - now)
    return max(1, min(seconds, _LONGEST_RETRY_AFTER))
