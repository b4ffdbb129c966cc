"""Records finished requests: a line in the log, and metrics.

Knows requests and their headers. Must never know routes: the route sets the kind of a request. A query, the host part
of an address, and any header that is not named here may hold secrets, and are never recorded.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from mypypi.observability import metrics

if TYPE_CHECKING:
    from twisted.web.http import Request

Kind = Literal["page", "file", "other"]

#: Request ids that are accepted from a client or proxy.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:=+/@-]{1,128}")
#: Paths in which npm's clients send a token, as to log out (npm's documentation, "npm logout", "npm token revoke").
_TOKEN = re.compile(r"/(?:-|%2[dD])/+(?:user/token|npm/v1/tokens/token)/")
_LONGEST_PATH = 1000
_LONGEST_METHOD = 32
#: The status that nginx logs when a client disconnects before it is answered.
_CLIENT_LEFT = 499


class RequestRecord(msgspec.Struct):
    """
    One finished request.

    `size` is the length of the sent body in bytes, `seconds` the time until its last byte was handed over. `broken` is
    whether the connection broke before that.
    """

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
        """The line in a text log."""
        return (
            f"{self.client} {self.status} {self.cache} {self.kind} {self.seconds * 1000:.1f} ms {self.size} B"
            f" {self.method} {self.path} {self.request_id}{' broken' if self.broken else ''}"
        )

    def count(self) -> None:
        """
        Count the request in the metrics.

        Method and path are no labels, since clients could make up any number of them.
        """
        requests, seconds, sent = _counters(self.kind, self.cache, self.status)
        requests.inc()
        seconds.observe(self.seconds)
        sent.inc(self.size)


@cache
def _counters(kind: str, cache: str, status: int) -> tuple[Any, Any, Any]:
    """Return the metrics of such requests. To look them up takes longer than to count; there are few."""
    return (
        metrics.REQUESTS.labels(kind, cache, str(status)),
        metrics.REQUEST_SECONDS.labels(kind),
        metrics.SENT_BYTES.labels(cache),
    )


def record_of(request: Request, seconds: float, *, broken: bool) -> RequestRecord:
    """Return the record of a request that took so many seconds."""
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
    """Set the kind that is recorded for this request."""
    marked: Any = request
    marked.kind = kind


def id_of(request: Request) -> str:
    """Return the id of the request in the log."""
    return str(getattr(request, "request_id", "-"))


def choose_id(request: Request) -> str:
    """Return the request's X-Request-ID if it is a short token, else a new id."""
    given = request.requestHeaders.getRawHeaders(b"x-request-id")
    if given and _REQUEST_ID.fullmatch(given[0]):
        return str(given[0].decode("ascii"))
    return new_id()


def new_id() -> str:
    """Return an id for a request that has none."""
    return secrets.token_hex(8)


def path_of(uri: bytes) -> str:
    """
    Return the path of a request target, printable and without its query.

    A target that is a full address gives "-". A path is cut before a token, or where it is too long.
    """
    path = uri.partition(b"?")[0].decode("latin-1")
    if not path.startswith("/"):
        return "-"
    token = _TOKEN.search(path)  # not at its start below a proxy's prefix
    if token:
        path = path[: token.end()]
    if not (path.isascii() and path.isprintable()):
        path = "".join(each if "!" <= each <= "~" else f"%{ord(each):02X}" for each in path)
    return path if len(path) <= _LONGEST_PATH and not token else f"{path[:_LONGEST_PATH]}…"


def method_of(method: bytes) -> str:
    """Return the method, or "-" if it is too long or not printable."""
    text = method.decode("latin-1")
    return text if text.isascii() and text.isprintable() and 0 < len(text) <= _LONGEST_METHOD else "-"


def cache_word(cache_status: Sequence[str] | None) -> str:
    """Reduce a Cache-Status (RFC 9211) to hit, stale, miss, bypass or none."""
    if not cache_status:
        return "none"
    status = cache_status[0]
    if "; hit" in status:
        return "stale" if "detail=stale" in status else "hit"
    return "bypass" if "fwd=bypass" in status else "miss"
