"""Turns an error into a response. No other module does.

The client gets a message that it can act on. The log gets the traceback of an unexpected error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from werkzeug.exceptions import HTTPException

from mypypi.errors import MyPyPiError
from mypypi.web.request_log import id_of, method_of, path_of

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.http import Request

log = Logger()

#: Why a request that would change something is refused.
READ_ONLY = "this server is a read-only cache: log in, publish and upload at the registry or index behind it"


def answer_failure(request: Request, failure: Failure) -> bytes:
    """Return the body for a failed request; set status and headers on the request."""
    error = failure.value
    if isinstance(error, CancelledError):
        return b""
    if isinstance(error, MyPyPiError):
        return answer(request, error.status, str(error), error.retry_after)
    if isinstance(error, HTTPException):
        return answer(request, error.code or 404, "there is nothing at this address: see / for what is served")
    log.failure(
        "request {request_id} failed: {method} {path}",
        failure,
        request_id=id_of(request),
        method=method_of(request.method),
        path=path_of(request.uri),
    )
    return answer(request, 500, "internal error: see the server's log for the X-Request-ID of this response")


def answer(request: Request, status: int, text: str, retry_after: int | None = None) -> bytes:
    """
    Return the body ``{"error": …}``; set status and headers on the request.

    npm's clients show that field. The answer is not to be cached.
    """
    body = msgspec.json.encode({"error": text}) + b"\n"
    request.setResponseCode(status)
    for name in (b"etag", b"vary", b"cache-status", b"content-encoding", b"accept-ranges", b"content-range"):
        request.responseHeaders.removeHeader(name)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(body))
    if retry_after is not None:
        request.setHeader(b"retry-after", b"%d" % retry_after)
    return body
