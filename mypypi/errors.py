"""The errors that this project raises. Each knows the HTTP status of its response.

`mypypi.web.errors` alone turns them into responses. Clients see the message: it says what happened and what to do, and
never contains a secret. Must never know Twisted, nor HTTP beyond a status number.
"""

from __future__ import annotations

import errno

from mypypi.descriptors import NONE_LEFT, is_shortage


class MyPyPiError(Exception):
    """
    The base of all errors raised on purpose.

    `retry_after` is in seconds, None if unknown. `is_logged`: the log has the error already.
    """

    status = 500
    retry_after: int | None = None
    is_logged = False


class BadRequest(MyPyPiError):
    """The client's request is malformed."""

    status = 400


class NotFound(MyPyPiError):
    """Upstream answered 404, or none of its pages lists the file."""

    status = 404


class NotAcceptable(MyPyPiError):
    """The client accepts none of the available forms (RFC 9110, section 15.5.7)."""

    status = 406


class TemporarilyUnavailable(MyPyPiError):
    """The request failed now, and may succeed after `retry_after` seconds."""

    status = 503

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class OutOfDescriptors(TemporarilyUnavailable):
    """This process can't open a file or a connection, since it has as many open as it may have. Nothing else failed."""


class UpstreamDown(TemporarilyUnavailable):
    """
    Upstream can't be reached, timed out, or answered 429 or 5xx.

    The status is 503 rather than 502 or 504, since all clients but one retry after a 503. `told`: the seconds of
    upstream's Retry-After, None if it sent none.
    """

    told: float | None = None


class UpstreamUnreachable(UpstreamDown):
    """Upstream can't be connected to, or sent no byte of a response."""


class UpstreamTimedOut(UpstreamUnreachable):
    """Upstream sent no byte of a response within the time-out."""


class RequestCancelled(UpstreamDown):
    """The request was cancelled before an answer, since its client has left."""


class UpstreamPaused(UpstreamDown):
    """No request was sent: its origin or its kind is held back after failures or a Retry-After."""


class UpstreamBusy(UpstreamDown):
    """
    No request was sent: the queue for upstream is full.

    For a background request, upstream had no spare capacity.
    """


class BadUpstreamResponse(MyPyPiError):
    """
    Upstream's response can't be used: it is not what was requested.

    `took`: the seconds that it took to find out, where that is hard work.
    """

    status = 502
    took = 0.0


class UpstreamRefused(MyPyPiError):
    """
    Upstream refuses this page or file, and says so with `upstream_status`.

    `status` is the one for clients. `mypypi.upstream.refusals` has the table of both.
    """

    def __init__(self, message: str, status: int = 403, upstream_status: int = 403) -> None:
        super().__init__(message)
        self.status = status
        self.upstream_status = upstream_status


class DigestMismatch(BadUpstreamResponse):
    """The bytes from upstream do not match the index's digest, and are discarded."""


class NoMetadata(BadUpstreamResponse):
    """The metadata of a wheel can't be read out of it: the wheel is damaged, or has none."""


class Truncated(BadUpstreamResponse):
    """Upstream's body ended early, and can't be resumed."""


class Interrupted(Truncated):
    """Upstream's body ended early, and may be resumed."""


class TooSlow(Interrupted):
    """Upstream's body came so slowly that it was ended. It may be resumed, but not often."""


class StillFetching(TemporarilyUnavailable):
    """
    The file is still being fetched.

    Strict mode answers with this error instead of sending bytes that are not checked yet.
    """


class FetchedElsewhere(TemporarilyUnavailable):
    """Another host holds the lease to fetch this file. `retry_after` estimates when that fetch ends."""


class AlreadyStored(TemporarilyUnavailable):
    """The file was stored just before its fetch began."""


class CatalogDown(TemporarilyUnavailable):
    """Redis can't be reached, or answered with an error."""


class RedisTooSlow(CatalogDown):
    """Redis answers, but takes so long that requests go on without it."""


class StorageDown(TemporarilyUnavailable):
    """The file storage can't be read or written."""


class StorageRefused(StorageDown):
    """
    S3 answered 403 for one object.

    Either the account may not list the bucket, and the object is missing; or access to it, or to all, is denied.
    """


class StorageFull(StorageDown):
    """There is no room for a draft or a stored file."""


class FileTooLarge(StorageFull):
    """The file is larger than all drafts may be together (MYPYPI_DRAFTS_MAX_BYTES)."""


class Degraded(MyPyPiError):
    """A part of the daemon is in trouble. For health reports: no client's request fails with this error."""


def storage_error(error: OSError, what: str) -> TemporarilyUnavailable:
    """
    Convert an OSError into StorageFull if the disk or quota is full, else StorageDown.

    Without a free file descriptor, nothing is wrong with the storage: that is OutOfDescriptors.
    """
    if is_shortage(error):
        return OutOfDescriptors(f"{what}: {NONE_LEFT}; try again")
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageDown
    return kind(f"{what}: {error.strerror}")


def error_from(name: str, message: str, retry_after: int | None = None, status: int = 502) -> MyPyPiError:
    """Rebuild an error of another process. An unknown class name gives BadUpstreamResponse."""
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, MyPyPiError)):
        kind = BadUpstreamResponse
    if issubclass(kind, TemporarilyUnavailable) and retry_after is not None:
        return kind(message, retry_after)
    if issubclass(kind, UpstreamRefused):
        return kind(message, status, status)
    return kind(message)


def upstream_error(status: int, message: str, retry_after: int = 5) -> MyPyPiError:
    """Return the error for a failure of upstream that clients are told of with this status."""
    if status == TemporarilyUnavailable.status:
        return UpstreamDown(message, retry_after)
    if status == BadUpstreamResponse.status:
        return BadUpstreamResponse(message)
    return NotFound(message) if status == NotFound.status else UpstreamRefused(message, status, status)
