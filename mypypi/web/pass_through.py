"""Passes a file from upstream through to one client without keeping it: what is left when no draft can be kept.

The last bytes are held back until the digest agrees, as with a draft. Knows upstream and requests. Must never know
storage or pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from mypypi.errors import BadUpstreamResponse
from mypypi.files.content import HELD_BACK
from mypypi.model import Digest, PackageFile
from mypypi.upstream.bodies import abort_connection
from mypypi.web.reader import Span, abort

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.http import Request

    from mypypi.proxy.answers import StoredElsewhere
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.responses import FileResponse


async def pass_through(request: Request, file: PackageFile, upstream: Upstream, clock: Any) -> None:
    """Answer with upstream's bytes. Raises what `Upstream.file` does, before anything was sent."""
    body = await upstream.file(file.url, {})
    try:
        if body.encoding:
            raise BadUpstreamResponse("upstream sends a file in an encoding that nobody asked for")
        request.setHeader(b"content-type", b"application/octet-stream")
        request.setHeader(b"cache-control", b"no-store")
        if body.length is not None:
            request.setHeader(b"content-length", b"%d" % body.length)
        await _Passing(request, Whole(file.digest), body, clock, upstream.timeout).done
    finally:
        body.close()


async def pass_on(
    request: Request, linked: StoredElsewhere, span: Span, bucket: Upstream, clock: Any, spoiled: Callable[[], object]
) -> None:
    """
    Answer with a span of what a link leads to; status and headers are set already. `spoiled` is called where all came,
    and is something else than was stored.

    Raises what `Upstream.file` does, before anything was sent.
    """
    stored = linked.stored
    stop = stored.size if span.stop is None else span.stop
    part = (span.start, stop) != (0, stored.size)
    body = await bucket.file(linked.link.url, {"Range": f"bytes={span.start}-{stop - 1}"} if part else {})
    try:
        skip = span.start if body.status == 200 else 0  # noqa: PLR2004 - a bucket may answer a Range with the whole
        passing = Part(skip, stop - span.start) if part else Whole(stored.digest)
        await _Passing(request, passing, body, clock, bucket.timeout, spoiled).done
    finally:
        body.close()


class Whole:
    """All of a file: its last bytes are held back until its digest agrees.

    Hashing is done here, on the reactor thread: a chunk is 64 KiB at most, which takes some 40 microseconds.
    """

    def __init__(self, digest: Digest | None) -> None:
        self._digest = digest
        self._hasher = (digest or Digest("sha256", "")).hasher()
        self._held = b""

    def take(self, data: bytes) -> bytes:
        """What of this may go out now."""
        self._hasher.update(data)
        data = self._held + data
        self._held = data[-HELD_BACK:]
        return data[:-HELD_BACK]

    def end(self, *, marked: bool) -> bytes | None:
        """The rest, None where it is not what was promised; `marked` where upstream said that this is the end."""
        agreed = self._digest is not None and self._hasher.hexdigest() == self._digest.hex
        return self._held if agreed or (self._digest is None and marked) else None


class Part:
    """Some bytes of a file that was checked when it was stored: `count` of them, after `skip`."""

    def __init__(self, skip: int, count: int) -> None:
        self._skip = skip
        self._left = count

    def take(self, data: bytes) -> bytes:
        """What of this may go out now."""
        passed = min(self._skip, len(data))
        self._skip -= passed
        data = data[passed : passed + self._left]
        self._left -= len(data)
        return data

    def end(self, *, marked: bool) -> bytes | None:
        """Nothing, None where bytes are missing."""
        return None if self._left else b""


@implementer(IPushProducer)
class _Passing(Protocol):
    """`done` fires when all was sent and agreed; where it did not, the client's connection is broken instead."""

    log = Logger()

    def __init__(
        self,
        request: Request,
        passed: Whole | Part,
        body: FileResponse,
        clock: Any,
        timeout: float,
        disagreed: Callable[[], object] = lambda: None,
    ) -> None:
        self._disagreed = disagreed
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._request = request
        self._passed = passed
        self._clock = clock
        self._silence = clock.callLater(timeout, self.stopProducing)
        self._timeout = timeout
        request.registerProducer(self, True)
        body.deliver(self)

    def dataReceived(self, data: bytes) -> None:
        if self._silence.active():
            self._silence.reset(self._timeout)
        data = self._passed.take(data)
        if data:
            self._request.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._silence.active():
            self._silence.cancel()
        if self.done.called:
            return
        rest = self._passed.end(marked=reason.check(ResponseDone) is not None)
        if reason.check(ResponseDone, PotentialDataLoss) and rest is not None:
            self._request.write(rest)
            self._request.unregisterProducer()
            self.done.callback(None)
            return
        if rest is None and reason.check(ResponseDone):
            self._disagreed()
        self.log.warn("{path} could not be passed through whole", path=self._request.path.decode("latin-1"))
        abort(self._request)

    def pauseProducing(self) -> None:
        if self._silence.active():
            self._silence.cancel()
        if self.transport is not None:
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def resumeProducing(self) -> None:
        if not self._silence.active():
            self._silence = self._clock.callLater(self._timeout, self.stopProducing)
        if self.transport is not None:
            self.transport.resumeProducing()  # type: ignore[attr-defined]

    def stopProducing(self) -> None:
        if self._silence.active():
            self._silence.cancel()
        abort_connection(self)
