"""What is told of a request when it is over: its line in the log, and what is counted.

Knows requests and their headers. Must never know routes: who answers says of what kind a request is. A query, an
authority in an address, and headers but those named here may hold secrets, and are never told.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from mypypi.observability import metrics

if TYPE_CHECKING:
    from twisted.web.http import Request

Kind = Literal["page", "file", "other"]

#: An id of a client's or proxy's that is taken over.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:=+/@-]{1,128}")
#: Where npm's clients put a token into the path, as when they log out ("npm logout", "npm token revoke").
_TOKEN = re.compile(r"/+(?:-|%2[dD])/+(?:user/token|npm/v1/tokens/token)/")
_LONGEST_PATH = 1000
_LONGEST_METHOD = 32
#: As nginx calls it where a client left before it was answered.
_CLIENT_LEFT = 499


class RequestRecord(msgspec.Struct):
    """One request: `size` in bytes of body, `seconds` up to the last byte that was handed over, `broken` off or not."""

    client: str
    method: str
    path: str
    status: int
    size: int
    seconds: float
    cache: str
    kind: str
    request_id: str
    broken: bool = False

    def __str__(self) -> str:
        """As the log has it."""
        return (
            f"{self.client} {self.status} {self.cache} {self.kind} {self.seconds * 1000:.1f} ms {self.size} B"
            f" {self.method} {self.path} {self.request_id}{' broken' if self.broken else ''}"
        )

    def count(self) -> None:
        """For Prometheus. Of a method or path nothing is counted by: clients could make up any number of them."""
        metrics.REQUESTS.labels(self.kind, self.cache, str(self.status)).inc()
        metrics.REQUEST_SECONDS.labels(self.kind).observe(self.seconds)
        metrics.SENT_BYTES.labels(self.cache).inc(self.size)


def record_of(request: Request, seconds: float, *, broken: bool) -> RequestRecord:
    """What is told of a request."""
    return RequestRecord(
        getattr(request.getClientAddress(), "host", None) or "-",
        method_of(request.method),
        path_of(request.uri),
        request.code if request.startedWriting or not broken else _CLIENT_LEFT,
        request.sentLength,
        round(seconds, 6),
        cache_word(request.responseHeaders.getRawHeaders("cache-status")),
        getattr(request, "kind", "other"),
        id_of(request),
        broken,
    )


def set_kind(request: Request, kind: Kind) -> None:
    """Say of what kind this request is."""
    marked: Any = request
    marked.kind = kind


def id_of(request: Request) -> str:
    """What the request is called in the log."""
    return str(getattr(request, "request_id", "-"))


def choose_id(request: Request) -> str:
    """The id that a client or proxy gave it with X-Request-ID, where that is a short token, else a new one."""
    given = request.requestHeaders.getRawHeaders(b"x-request-id")
    if given and _REQUEST_ID.fullmatch(given[0]):
        return str(given[0].decode("ascii"))
    return secrets.token_hex(8)


def path_of(uri: bytes) -> str:
    """The path of a request's target: without its query, and nothing at all where it is an address with a host."""
    path = uri.partition(b"?")[0].decode("latin-1")
    if not path.startswith("/"):
        return "-"
    token = _TOKEN.match(path)
    if token:
        return f"{token.group()}…"
    if not (path.isascii() and path.isprintable()):
        path = "".join(each if "!" <= each <= "~" else f"%{ord(each):02X}" for each in path)
    return path if len(path) <= _LONGEST_PATH else f"{path[:_LONGEST_PATH]}…"


def method_of(method: bytes) -> str:
    """A method, in a form that can be printed."""
    text = method.decode("latin-1")
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= _LONGEST_METHOD else "-"


def cache_word(cache_status: Sequence[str] | None) -> str:
    """How the cache served it, from Cache-Status (RFC 9211): hit, stale, miss, bypass, or none."""
    if not cache_status:
        return "none"
    told = cache_status[0]
    if "; hit" in told:
        return "stale" if "detail=stale" in told else "hit"
    return "bypass" if "fwd=bypass" in told else "miss"
