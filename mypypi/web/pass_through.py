"""Streams a file to one client without keeping it, from upstream or from the bucket.

It is used for upstream when no draft can be kept, and for the bucket when clients are not redirected there. As with a
draft, the last bytes are held back until the digest matches. Knows upstream and requests. Must never know storage or
pages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from mypypi.digests import Digest
from mypypi.errors import BadUpstreamResponse, DigestMismatch, MyPyPiError, UpstreamDown
from mypypi.files.content import HELD_BACK, HELD_WHOLE
from mypypi.model import PackageFile
from mypypi.proxy.bucket_reader import BODY_SILENCE
from mypypi.upstream.bodies import abort_connection
from mypypi.upstream.causes import excess_of
from mypypi.upstream.pace import LONGEST_FILE, Pace
from mypypi.web.content_reader import Span
from mypypi.web.errors import sending

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.proxy.answers import StoredElsewhere
    from mypypi.proxy.bucket_reader import BucketReader
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.pace import PaceLimits
    from mypypi.upstream.responses import FileResponse


async def pass_through(request: Request, file: PackageFile, upstream: Upstream, clock: Any, client: str) -> None:
    """
    Answer this client with the bytes of an upstream file.

    Raises what `Upstream.file` raises, BadUpstreamResponse and UpstreamDown before anything is sent, and ResponseBroken
    after that.
    """
    body = await upstream.file(file.url, {}, client, late=lambda: None)
    try:
        if body.encoding:
            raise BadUpstreamResponse("upstream sent the file in a Content-Encoding that was not requested")
        request.setHeader(b"content-type", b"application/octet-stream")
        request.setHeader(b"cache-control", b"no-store")
        if body.length is not None:
            request.setHeader(b"content-length", b"%d" % body.length)
        passing = CompleteFile(file.digest, body.length)
        await sending(request, _PassThrough(request, passing, body, clock, upstream.pace, upstream.timeout).done)
    finally:
        body.close()


async def pass_on(
    request: Request,
    linked: StoredElsewhere,
    span: Span,
    bucket: BucketReader,
    clock: Any,
    client: str,
    spoiled: Callable[[], object],
) -> None:
    """
    Answer this client with a span of the stored file behind a link.

    Status and headers are set already. `spoiled` is called if the file is complete but is not the one that was stored.
    Raises StorageDown before anything is sent, also if the bucket does not have the file; ResponseBroken after that.
    """
    stored, since = linked.stored, clock.seconds()
    stop = stored.size if span.stop is None else span.stop
    part = (span.start, stop) != (0, stored.size)
    headers = {"Range": f"bytes={span.start}-{stop - 1}"} if part else {}
    try:
        body = await bucket.open(linked.link, headers, client)
        try:
            skip = span.start if body.status == 200 else 0  # noqa: PLR2004 - a bucket may ignore Range
            passing = StoredPart(skip, stop - span.start) if part else CompleteFile(stored.digest, stored.size)
            began = partial(bucket.began, stored, since)
            passed = _PassThrough(request, passing, body, clock, bucket.pace, BODY_SILENCE, began, spoiled)
            await sending(request, passed.done)
        finally:
            body.close()
    except MyPyPiError as error:  # nothing is sent yet
        raise await bucket.explain(stored, since, error) from error


class CompleteFile:
    """
    A complete file: its last bytes are held back until its digest matches, and a small file as a whole.

    `length` is the announced one, None if unknown. Hashing runs on the reactor thread: a chunk has 64 KiB at most, and
    takes some 40 microseconds.
    """

    def __init__(self, digest: Digest | None, length: int | None) -> None:
        self._is_long = length is not None and length > HELD_WHOLE
        self._digest = digest
        self._hasher = (digest or Digest("sha256", "")).hasher()
        self._held = b""

    def take(self, data: bytes) -> bytes:
        """Return the bytes that may be sent now."""
        self._hasher.update(data)
        data = self._held + data
        self._is_long = self._is_long or len(data) > HELD_WHOLE
        if not self._is_long:
            self._held = data
            return b""
        self._held = data[-HELD_BACK:]
        return data[:-HELD_BACK]

    def end(self, *, marked: bool) -> bytes | None:
        """
        Return the bytes held back, or None if the file is not the expected one.

        `marked` is whether upstream marked the end of the body, or announced none: then it ends with its connection.
        It counts for a file without a known digest.
        """
        matches = self._digest is not None and self._hasher.hexdigest() == self._digest.hex
        return self._held if matches or (self._digest is None and marked) else None


class StoredPart:
    """
    A part of a stored file: `count` bytes after the first `skip`.

    Its digest is not checked here, since it was checked when the file was stored.
    """

    def __init__(self, skip: int, count: int) -> None:
        self._skip = skip
        self._left = count

    def take(self, data: bytes) -> bytes:
        """Return the bytes that may be sent now."""
        passed = min(self._skip, len(data))
        self._skip -= passed
        data = data[passed : passed + self._left]
        self._left -= len(data)
        return data

    def end(self, *, marked: bool) -> bytes | None:
        """Return no bytes, or None if some are missing."""
        return None if self._left else b""


@implementer(IPushProducer)
class _PassThrough(Protocol):
    """
    Copies the body to the client; `done` fires when the complete body was sent.

    It fails, and the transfer is stopped, if that breaks, if it is too slow, or if the digest does not match. The first
    byte is awaited as `pace` says, each further one for `silence` seconds. `began` is called with the first one.
    """

    def __init__(
        self,
        request: Request,
        passed: CompleteFile | StoredPart,
        body: FileResponse,
        clock: Any,
        pace: PaceLimits,
        silence: float,
        began: Callable[[], object] = lambda: None,
        mismatched: Callable[[], object] = lambda: None,
    ) -> None:
        self._later_timeout = silence
        self._began: Callable[[], object] | None = began
        self._mismatched = mismatched
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._request = request
        self._passed = passed
        self._pace = Pace(clock, pace, "the file", LONGEST_FILE, lambda why: self._fail(Failure(UpstreamDown(why))))
        request.registerProducer(self, True)
        body.deliver(self)

    def dataReceived(self, data: bytes) -> None:
        began, self._began = self._began, None
        if began is not None:
            self._pace.await_bytes(self._later_timeout)
            began()
        self._pace.received(len(data))
        if self.done.called:
            return
        try:
            data = self._passed.take(data)
            if data:
                self._request.write(data)
        except Exception:  # noqa: BLE001 - upstream's connection called, which can't answer the request
            self._fail(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._pace.stop()
        if self.done.called:
            return
        rest = self._passed.end(marked=reason.check(ResponseDone, PotentialDataLoss) is not None)
        if reason.check(ResponseDone, PotentialDataLoss) and rest is not None:
            self._request.write(rest)
            self._request.unregisterProducer()
            self.done.callback(None)
        elif rest is None and reason.check(ResponseDone):
            self._mismatched()
            self._fail(
                Failure(DigestMismatch("the file's bytes are not the ones that are listed, or some are missing"))
            )
        else:
            closed = UpstreamDown("the connection that the file came from was closed in the middle")
            self._fail(Failure(excess_of(reason) or closed))

    def _fail(self, failure: Failure) -> None:
        self.stopProducing()
        if not self.done.called:
            if self._request.channel is not None:
                self._request.unregisterProducer()
            self.done.errback(failure)

    def pauseProducing(self) -> None:
        self._pace.pause()
        if self.transport is not None:
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def resumeProducing(self) -> None:
        self._pace.resume()
        if self.transport is not None:
            self.transport.resumeProducing()  # type: ignore[attr-defined]

    def stopProducing(self) -> None:
        self._pace.stop()
        abort_connection(self)
