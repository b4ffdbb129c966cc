"""Passes a file from upstream through to one client without keeping it: what is left when no draft can be kept.

The last bytes are held back until the digest agrees, as with a draft. Knows upstream and requests. Must never know
storage or pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from mypypi.bodies import hang_up
from mypypi.content import HELD_BACK
from mypypi.errors import UpstreamBroken
from mypypi.model import Digest, PackageFile
from mypypi.web.reader import abort

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.http import Request

    from mypypi.upstream import Body, Upstream


async def pass_through(request: Request, file: PackageFile, upstream: Upstream, clock: Any) -> None:
    """Answer with upstream's bytes. Raises what `Upstream.file` does, before anything was sent."""
    body = await upstream.file(file.url, {})
    try:
        if body.encoding:
            raise UpstreamBroken("upstream sends a file in an encoding that nobody asked for")
        request.setHeader(b"content-type", b"application/octet-stream")
        request.setHeader(b"cache-control", b"no-store")
        if body.length is not None:
            request.setHeader(b"content-length", b"%d" % body.length)
        await _Passing(request, file, body, clock, upstream.timeout).done
    finally:
        body.close()


@implementer(IPushProducer)
class _Passing(Protocol):
    """`done` fires when all was sent and agreed; where it did not, the client's connection is broken instead.

    Hashing is done here, on the reactor thread: a chunk is 64 KiB at most, which takes some 40 microseconds.
    """

    log = Logger()

    def __init__(self, request: Request, file: PackageFile, body: Body, clock: Any, timeout: float) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._request = request
        self._file = file
        self._hasher = (file.digest or Digest("sha256", "")).hasher()
        self._held = b""
        self._clock = clock
        self._silence = clock.callLater(timeout, self.stopProducing)
        self._timeout = timeout
        request.registerProducer(self, True)
        body.deliver(self)

    def dataReceived(self, data: bytes) -> None:
        if self._silence.active():
            self._silence.reset(self._timeout)
        self._hasher.update(data)
        data = self._held + data
        self._held = data[-HELD_BACK:]
        if len(data) > HELD_BACK:
            self._request.write(data[:-HELD_BACK])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._silence.active():
            self._silence.cancel()
        if self.done.called:
            return
        agreed = self._file.digest is not None and self._hasher.hexdigest() == self._file.digest.hex
        unchecked = self._file.digest is None and reason.check(ResponseDone)
        if reason.check(ResponseDone, PotentialDataLoss) and (agreed or unchecked):
            self._request.write(self._held)
            self._request.unregisterProducer()
            self.done.callback(None)
            return
        self.log.warn("{key} could not be passed through whole", key=self._file.key)
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
        hang_up(self)
