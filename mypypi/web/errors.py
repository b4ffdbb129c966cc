"""Turns an error into a response, or into a broken transfer if a response has begun. No other module does.

The client gets a message that it can act on. The log gets the traceback of an unexpected error, and one line for each
response that was broken off.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException

from mypypi.descriptors import NONE_LEFT, is_shortage
from mypypi.errors import MyPyPiError, OutOfDescriptors, TemporarilyUnavailable
from mypypi.web.request_log import id_of, method_of, path_of

if TYPE_CHECKING:
    from twisted.web.http import Request

log = Logger()

#: Why a request that would change something is refused.
READ_ONLY = "this server is a read-only cache: log in, publish and upload at the registry or index behind it"
#: Why a request for an address without a route fails.
NOTHING_HERE = "there is nothing at this address: see / for what is served"
#: Headers that describe the page or file that a route began to answer with.
_DESCRIBING = (
    b"etag", b"last-modified", b"vary", b"cache-status", b"content-encoding", b"accept-ranges", b"content-range"
)  # fmt: skip


class ResponseBroken(Exception):
    """
    A response can't be completed, and its head has been sent. The cause is the error behind it.

    It is no MyPyPiError, since no route may catch it to answer otherwise.
    """


async def sending(request: Request, sent: Awaitable[None]) -> None:
    """Wait until a body is sent. Raises ResponseBroken for an error once the head is out, else the error itself."""
    try:
        await sent
    except Exception as error:
        if request.startedWriting and not isinstance(error, CancelledError):
            raise ResponseBroken from error
        raise


def respond_to(request: Request, failure: Failure) -> bytes | Deferred[None]:
    """
    Return the body for a request that failed, or abort its connection if the response has begun.

    Bytes of an error would be taken for the rest of the response that has begun. A client that has left gets nothing.
    """
    if getattr(request, "channel", None) is None:
        if not failure.check(MyPyPiError, ResponseBroken, CancelledError):
            _log_unexpected(request, failure)
        return b""
    return break_off(request, failure) if request.startedWriting else answer_failure(request, failure)


def break_off(request: Request, failure: Failure) -> Deferred[None]:
    """Abort the connection of a response that has begun, and log why. Fires once the connection is closed."""
    error = failure.value
    if isinstance(error, ResponseBroken) and error.__cause__ is not None:
        error = error.__cause__
    if not isinstance(error, (MyPyPiError, OSError, CancelledError)):
        _log_unexpected(request, Failure(error))
    elif not getattr(error, "is_logged", False):
        why = error.strerror if isinstance(error, OSError) else error
        log.warn(
            "response {request_id} was broken off: {method} {path}: {why}",
            request_id=id_of(request),
            method=method_of(request.method),
            path=path_of(request.uri),
            why=why or type(error).__name__,
        )
        if isinstance(error, MyPyPiError):  # the readers of one draft share its error
            error.is_logged = True
    ended = request.notifyFinish()
    ended.addErrback(lambda _: None)
    abort(request)
    return ended


def abort(request: Request) -> None:
    """Abort the connection, which shows the client that its response is incomplete."""
    transport = getattr(request.channel, "transport", None)
    if transport is not None:
        transport.abortConnection()


def answer_failure(request: Request, failure: Failure) -> bytes:
    """Return the body for a failed request; set status and headers on the request."""
    error = failure.value
    if isinstance(error, OSError) and is_shortage(error):
        error = OutOfDescriptors(f"{NONE_LEFT}: try again")
    if isinstance(error, CancelledError):  # and the client has not left
        error = TemporarilyUnavailable("the request was cancelled: try again", 1)
    if isinstance(error, MyPyPiError):
        return answer(request, error.status, str(error), error.retry_after)
    if isinstance(error, HTTPException):
        return answer(request, error.code or 404, NOTHING_HERE)
    _log_unexpected(request, failure)
    return answer(request, 500, "internal error: see the server's log for the X-Request-ID of this response")


def answer(request: Request, status: int, text: str, retry_after: int | None = None) -> bytes:
    """
    Return the body ``{"error": …}``; set status and headers on the request.

    npm's clients show that field. The answer is not to be cached.
    """
    body = msgspec.json.encode({"error": text}) + b"\n"
    request.setResponseCode(status)
    for name in _DESCRIBING:
        request.responseHeaders.removeHeader(name)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(body))
    if retry_after is not None:
        request.setHeader(b"retry-after", b"%d" % retry_after)
    return b"" if request.method == b"HEAD" else body  # Twisted warns of a body, and its warning can't name some paths


def _log_unexpected(request: Request, failure: Failure) -> None:
    log.failure(
        "request {request_id} failed: {method} {path}",
        failure,
        request_id=id_of(request),
        method=method_of(request.method),
        path=path_of(request.uri),
    )
