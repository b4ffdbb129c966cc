"""What can go wrong, in the domain's words. Each error knows the HTTP status it is answered with.

Translated to a response in one place, `mypypi.web.errors`. Must never know Twisted or HTTP beyond a status number.
A message is shown to clients: it says what happened and what to do, and never holds a secret.
"""

from __future__ import annotations

import errno


class MyPyPiError(Exception):
    """Anything that this project raises on purpose. `retry_after` is in seconds."""

    status = 500
    retry_after: int | None = None


class BadRequest(MyPyPiError):
    """The client sent what can't be understood."""

    status = 400


class NotFound(MyPyPiError):
    """Upstream says that there is no such thing, or no page of upstream's lists it."""

    status = 404


class NotAcceptable(MyPyPiError):
    """The client takes none of the forms there are (RFC 9110, section 15.5.7)."""

    status = 406


class TemporarilyUnavailable(MyPyPiError):
    """It can't be had now: whoever asks is to come back in `retry_after` seconds."""

    status = 503

    def __init__(self, message: str, retry_after: int = 5) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UpstreamDown(TemporarilyUnavailable):
    """
    Upstream can't be reached, took too long, or answers that it can't serve now (5xx, 429).

    503 and not 502 or 504, since every client but one tries again after it.
    """


class UpstreamUnreachable(UpstreamDown):
    """Not one byte of an answer: what held for this request will hold for the next ones, whatever they are for."""


class UpstreamPaused(UpstreamDown):
    """Upstream fails, or wants to be left alone for a while: it was not asked."""


class UpstreamBusy(UpstreamDown):
    """More requests wait for upstream than will be answered soon: it was not asked."""


class BadUpstreamResponse(MyPyPiError):
    """Upstream answered with something that can't be what was asked for."""

    status = 502


class UpstreamRefused(BadUpstreamResponse):
    """Upstream wants other credentials than the configured ones (401, 403)."""


class DigestMismatch(BadUpstreamResponse):
    """The bytes are not those that the index promised. They are discarded."""


class Truncated(BadUpstreamResponse):
    """Upstream's body ended early and could not be resumed."""


class Interrupted(Truncated):
    """A body ended before its end. It may be resumed."""


class StillFetching(TemporarilyUnavailable):
    """The file is on its way; strict mode answers this instead of an unchecked byte."""


class FetchedElsewhere(TemporarilyUnavailable):
    """Another host holds the lease of the file's fetch, which should be done by then as far as is known."""


class AlreadyStored(TemporarilyUnavailable):
    """The file came into the storage just when it was to be fetched."""


class CatalogDown(TemporarilyUnavailable):
    """Redis can't be reached or answers with an error."""


class StorageDown(TemporarilyUnavailable):
    """The file storage can't be read or written."""


class StorageFull(StorageDown):
    """No room is left for a draft or a stored file."""


class JobsFailed(MyPyPiError):
    """Workers could not do what was left to them."""


def storage_error(error: OSError, what: str) -> StorageDown:
    """The error of this project for one of the operating system's: no room is told apart from all else."""
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageDown
    return kind(f"{what}: {error.strerror}")


def error_from(name: str, message: str, retry_after: int | None) -> MyPyPiError:
    """What another process has met, by the name of its class; upstream's most general one where that says nothing."""
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, MyPyPiError)):
        kind = BadUpstreamResponse
    if issubclass(kind, TemporarilyUnavailable) and retry_after is not None:
        return kind(message, retry_after)
    return kind(message)
