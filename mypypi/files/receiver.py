"""Writes the body of an upstream response into a draft, and hashes it.

Knows drafts, and waits for the disk. Must never know which request was sent to upstream, nor why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from mypypi.errors import BadUpstreamResponse, Interrupted, TooSlow, storage_error
from mypypi.observability import metrics
from mypypi.upstream.bodies import abort_connection, read_more_at_once
from mypypi.upstream.causes import excess_of
from mypypi.upstream.pace import LONGEST_FILE, Pace

if TYPE_CHECKING:
    from hashlib import _Hash

    from mypypi.files.drafts import Draft
    from mypypi.model import PackageFile
    from mypypi.threads import Threads
    from mypypi.upstream.pace import PaceLimits

#: Bytes that may wait to be written before the connection to upstream is paused.
BACKLOG = 1024 * 1024
#: Bytes of a file from which on more of it is read at once, and a thread writes and hashes it. For a smaller one, that
#: takes 0.2 ms at most for each read, less than the change to another thread and back.
LARGE_FILE = 1024 * 1024
#: Bytes that a file may have beyond the size on its page, which may be wrong. A larger one is not the listed one.
MOST_BEYOND_LISTED = 1024 * 1024


def check_length(file: PackageFile, length: int | None) -> None:
    """Raise BadUpstreamResponse if a file of this many bytes is much larger than its page says."""
    if length is not None and file.size and length > file.size + MOST_BEYOND_LISTED:
        raise BadUpstreamResponse(f"upstream sends a file of {length} bytes or more, and its page says {file.size}")


class Receiver(Protocol):
    """
    The protocol that receives a body.

    Of a large file, it collects bytes while a thread writes and hashes the earlier ones. The first `skip` bytes of the
    body are ignored. It fails when the body exceeds the limits of its pace.

    `done` fires once the body has ended and is written: with True if upstream gave neither a length nor an end marker,
    so that the body may be incomplete, else with False. It fails with Interrupted, BadUpstreamResponse or StorageDown.
    """

    def __init__(
        self,
        draft: Draft,
        hasher: _Hash,
        skip: int,
        threads: Threads,
        clock: Any,
        pace: PaceLimits,
        file: PackageFile,
    ) -> None:
        self.done: Deferred[bool] = Deferred()
        self._draft = draft
        self._file = file
        self._content = draft.content
        self._hasher = hasher
        self._skip = skip
        self._threads = threads
        self._waiting: list[bytes] = []
        self._backlog = 0
        self._writing = False
        self._paused = False
        self._end: Failure | None = None
        self._error: Exception | None = None
        self._pace = Pace(clock, pace, "the file", LONGEST_FILE, self._too_slow)

    @property
    def _is_large(self) -> bool:
        return self._content.total is None or self._content.total > LARGE_FILE

    def connectionMade(self) -> None:
        if self._is_large:
            read_more_at_once(self)

    def dataReceived(self, data: bytes) -> None:
        self._pace.received(len(data))
        if self._skip:
            passed = min(self._skip, len(data))
            self._skip -= passed
            data = data[passed:]
        if not data or self._error is not None:
            return
        self._waiting.append(data)
        self._backlog += len(data)
        if not self._writing:
            self._write()
        if self._backlog > BACKLOG and not self._paused and self.transport is not None:
            self._paused = True
            self._pace.pause()
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason
        self._pace.stop()
        self._settle()

    def _write(self) -> None:
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        metrics.UPSTREAM_BYTES.labels("file").inc(len(data))
        total, end = self._content.total, self._content.length + len(data)
        try:
            if total is not None and end > total:
                raise BadUpstreamResponse(f"upstream sends more than the {total} bytes it announced")
            check_length(self._file, end)
        except BadUpstreamResponse as error:
            self.abort(error)
            return
        self._writing = True
        offset = self._content.length
        stored = self._threads.run(self._store, data, offset) if self._is_large else execute(self._store, data, offset)
        stored.addCallbacks(lambda _: self._written(len(data)), self._not_written)

    def _store(self, data: bytes, offset: int) -> None:
        self._draft.write(data, offset)
        self._hasher.update(data)

    def _written(self, count: int) -> None:
        self._writing = False
        self._backlog -= count
        self._content.grow(count)
        if self._waiting and self._error is None:
            self._write()
        if self._paused and self._backlog <= BACKLOG and self.transport is not None:
            self._paused = False
            self._pace.resume()
            self.transport.resumeProducing()  # type: ignore[attr-defined]
        self._settle()

    def _not_written(self, failure: Failure) -> None:
        self._writing = False
        error = failure.value
        assert isinstance(error, Exception)
        self.abort(storage_error(error, "a draft could not be written") if isinstance(error, OSError) else error)
        self._settle()

    def _too_slow(self, why: str) -> None:
        self.abort(TooSlow(why) if self._pace.is_poor else Interrupted(why))

    def abort(self, error: Exception) -> None:
        """Abort the connection. `done` fails with this error once the current write has ended."""
        self._error = self._error or error
        abort_connection(self)

    def _settle(self) -> None:
        """Fire `done`, once the connection has ended and all bytes are written."""
        if self._end is None or self._writing or self.done.called:
            return
        if self._error is not None:
            self.done.errback(self._error)
        elif self._end.check(ResponseDone, PotentialDataLoss):
            self.done.callback(self._end.check(PotentialDataLoss) is not None)
        else:
            closed = Interrupted("upstream closed the connection in the middle of a file")
            self.done.errback(excess_of(self._end) or closed)
