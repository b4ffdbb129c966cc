"""One transfer from upstream into a draft, however many clients wait for it.

Upstream fills the draft at the disk's pace; readers (see `mypypi.web.reader`) copy from it at theirs, so a slow client
holds nobody up and one that leaves stops nothing. Knows upstream, drafts and the storage's `commit`. Must never know
ecosystems, routes, or clients.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from mypypi.bodies import hang_up
from mypypi.drafts import write_at
from mypypi.errors import (
    DigestMismatch,
    MyPyPiError,
    StorageFull,
    Truncated,
    UpstreamBroken,
    UpstreamDown,
    storage_error,
)
from mypypi.model import Digest, PackageFile

if TYPE_CHECKING:
    from hashlib import _Hash

    from mypypi.content import Content
    from mypypi.drafts import Draft, Drafts
    from mypypi.interfaces import IStorage
    from mypypi.threads import Threads
    from mypypi.upstream import Body, Upstream

#: Bytes that may wait for the disk before upstream is told to pause.
_BACKLOG = 1024 * 1024
#: How often a transfer goes on after an interruption: in a row without a new byte, and altogether.
_FRUITLESS = 3
_RESUMES = 50
_PAUSE = 0.2
_LARGEST_INFLATED = 4 * 1024**3
_BLOCK = 256 * 1024


class Interrupted(Truncated):
    """A body ended before its end. It may be resumed."""


class Fetch:
    """The one transfer that fills a draft with a package file."""

    log = Logger()

    def __init__(self, file: PackageFile, draft: Draft, upstream: Upstream, threads: Threads, clock: Any) -> None:
        self.file = file
        self.draft = draft
        self.waiting: list[Deferred[None]] = []
        self._content = draft.content
        self._upstream = upstream
        self._threads = threads
        self._clock = clock
        self._hasher = (file.digest or Digest("sha256", "")).hasher()
        self._validator = ""
        self._encoding = ""

    def settle(self, trouble: Exception | None) -> None:
        """Tell those who wait for the file to be kept that it is, or why not."""
        for each in self.waiting:
            if not each.called:
                each.callback(None) if trouble is None else each.errback(trouble)

    async def run(self) -> Digest:
        """
        Fill the draft and check it; the digest of what is in it now.

        Raises NotFound, UpstreamDown, UpstreamBroken (DigestMismatch, Truncated), StorageDown.
        """
        await self._transfer()
        digest = Digest(self._hasher.name, self._hasher.hexdigest())
        if self._encoding and self.file.digest is None:
            raise UpstreamBroken(
                "upstream sends a file in an encoding that nobody asked for, and no digest tells which"
            )
        if self.file.digest in (None, digest):
            return digest
        if self._encoding == "gzip":
            try:
                await self._threads.run(_inflate, self.draft, self.file)
            except OSError as error:
                raise storage_error(error, "a draft could not be written") from error
            self._content.length = os.fstat(self._content.fd).st_size
            return self.file.digest
        raise DigestMismatch(
            f"upstream's bytes are not what the index promised ({digest} instead of {self.file.digest})"
        )

    async def _transfer(self) -> None:
        fruitless = 0
        for _ in range(_RESUMES):
            length = self._content.length
            try:
                await self._attempt(length)
            except (Interrupted, UpstreamDown) as error:
                fruitless = fruitless + 1 if self._content.length == length else 0
                if not self._resumable() or fruitless > _FRUITLESS:
                    raise
                self.log.info("resuming {key} at {at}: {why}", key=self.file.key, at=self._content.length, why=error)
                await deferLater(self._clock, _PAUSE * 2**fruitless)
            else:
                return
        raise Truncated("upstream's body ended early too often")

    def _resumable(self) -> bool:
        """Only where a mix of two versions would be seen: by upstream's validator, or by the index's digest."""
        return self._content.length > 0 and not self._encoding and bool(self._validator or self.file.digest)

    async def _attempt(self, offset: int) -> None:
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._validator:
                headers["If-Range"] = self._validator
        body = await self._upstream.file(self.file.url, headers)
        try:
            skip = self._begin(body) if not offset else self._continue(body, offset)
            receiver = _Receiver(self.draft, self._hasher, skip, self._threads, self._clock, self._upstream.timeout)
            body.deliver(receiver)
            lossy = await receiver.done
            if lossy and not self._ends_here():
                raise Truncated("upstream gave no length to tell whether this is all")
            if self._content.total is not None and self._content.length < self._content.total:
                raise Interrupted("upstream's body was shorter than announced")
        finally:
            body.close()

    def _ends_here(self) -> bool:
        """Whether the end of a body whose end nothing marked can be believed, or will be checked."""
        return self.file.digest is not None or self._content.length == self._content.total

    def _begin(self, body: Body) -> int:
        if body.status != 200:  # noqa: PLR2004 - nobody asked for a part
            raise UpstreamBroken(f"upstream answered {body.status} to a request for a whole file")
        self._encoding = body.encoding
        if self._encoding:
            return 0  # what arrives may not be the file; nobody sees it before it is whole and checked
        total = self.file.size if body.length is None else body.length
        if self.file.digest is None and self.file.size not in (None, total):
            raise UpstreamBroken(f"upstream sends {total} bytes for a file that its page lists with {self.file.size}")
        if total is not None and total > self.draft.room():
            raise StorageFull(f"no room for a draft of {total} bytes")
        etag = body.header("etag")
        self._validator = etag if etag.startswith('"') else body.header("last-modified") if not etag else ""
        self._content.begin(total)
        return 0

    def _continue(self, body: Body, offset: int) -> int:
        """How many bytes to pass over, since they are in the draft already."""
        if body.status == 200:  # noqa: PLR2004 - upstream can't resume, or has other bytes now
            if self.file.digest is None or body.length not in (None, self._content.total):
                raise Truncated("upstream's body ended early and could not be resumed")
            return offset
        unit, _, rest = body.header("content-range").partition(" ")
        if unit != "bytes" or not rest.startswith(f"{offset}-"):
            raise Truncated("upstream resumed its body at another place")
        return 0


class _Receiver(Protocol):
    """Takes a body in: collects what arrives while a thread writes and hashes what arrived before.

    `done` fires with True when nothing told where the body should end; fails with Interrupted, UpstreamBroken or
    StorageDown.
    """

    def __init__(self, draft: Draft, hasher: _Hash, skip: int, threads: Threads, clock: Any, timeout: float) -> None:
        self.done: Deferred[bool] = Deferred()
        self._draft = draft
        self._content = draft.content
        self._hasher = hasher
        self._skip = skip
        self._threads = threads
        self._clock = clock
        self._timeout = timeout
        self._waiting: list[bytes] = []
        self._backlog = 0
        self._writing = False
        self._paused = False
        self._end: Failure | None = None
        self._error: Exception | None = None
        self._silence = clock.callLater(timeout, self._stalled)

    def dataReceived(self, data: bytes) -> None:
        if self._silence.active():
            self._silence.reset(self._timeout)
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
        if self._backlog > _BACKLOG and not self._paused and self.transport is not None:
            self._paused = True
            self._silence.cancel()  # it is our own silence now
            self.transport.pauseProducing()  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason
        self._settle()

    def _write(self) -> None:
        data = b"".join(self._waiting)
        self._waiting.clear()
        total = self._content.total
        if total is not None and self._content.length + len(data) > total:
            self._fail(UpstreamBroken(f"upstream sends more than the {total} bytes it announced"))
            return
        self._writing = True
        self._threads.run(self._store, data, self._content.length).addCallbacks(
            lambda _: self._written(len(data)), self._not_written
        )

    def _store(self, data: bytes, offset: int) -> None:
        self._draft.write(data, offset)
        self._hasher.update(data)

    def _written(self, count: int) -> None:
        self._writing = False
        self._backlog -= count
        self._content.grow(count)
        if self._waiting and self._error is None:
            self._write()
        if self._paused and self._backlog <= _BACKLOG and self.transport is not None:
            self._paused = False
            self._silence = self._clock.callLater(self._timeout, self._stalled)
            self.transport.resumeProducing()  # type: ignore[attr-defined]
        self._settle()

    def _not_written(self, failure: Failure) -> None:
        self._writing = False
        if isinstance(failure.value, OSError):
            self._fail(storage_error(failure.value, "a draft could not be written"))
        else:
            self._fail(UpstreamBroken("a draft could not be written"))
        self._settle()

    def _stalled(self) -> None:
        self._fail(Interrupted(f"upstream stopped in the middle of a file for {self._timeout:g} seconds"))

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        hang_up(self)

    def _settle(self) -> None:
        """Once upstream has ended and the disk is done: say how."""
        if self._end is None or self._writing or self.done.called:
            return
        if self._silence.active():
            self._silence.cancel()
        if self._error is not None:
            self.done.errback(self._error)
        elif self._end.check(ResponseDone, PotentialDataLoss):
            self.done.callback(self._end.check(PotentialDataLoss) is not None)
        else:
            self.done.errback(Interrupted("upstream closed the connection in the middle of a file"))


def _inflate(draft: Draft, file: PackageFile) -> None:
    """
    Put the file itself in the place of its gzip encoding, which nobody asked for. In a thread.

    Raises DigestMismatch when it is not the file either, and OSError.
    """
    assert file.digest is not None
    decoder = zlib.decompressobj(wbits=31)
    hasher = file.digest.hasher()
    limit = file.size or _LARGEST_INFLATED
    fd, name = tempfile.mkstemp(dir=draft.path.parent, suffix=draft.path.suffix)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        read = written = 0
        while written <= limit and (block := os.pread(draft.content.fd, _BLOCK, read)):
            read += len(block)
            while written <= limit and (data := decoder.decompress(block, _BLOCK)):
                hasher.update(data)
                write_at(fd, data, written)
                written += len(data)
                block = decoder.unconsumed_tail
        if hasher.hexdigest() != file.digest.hex:
            raise DigestMismatch("upstream's bytes are not what the index promised, as sent nor decoded")
        os.dup2(fd, draft.content.fd, inheritable=False)
        os.replace(name, draft.path)
    except zlib.error:
        Path(name).unlink()
        raise DigestMismatch(
            "upstream's bytes are not what the index promised, nor in the encoding they claim"
        ) from None
    except BaseException:
        Path(name).unlink()
        raise
    finally:
        os.close(fd)


class Fetches:
    """The fetches that run in this process: one for each file, whoever asks."""

    log = Logger()

    def __init__(self, upstream: Upstream, drafts: Drafts, storage: IStorage, threads: Threads, clock: Any) -> None:
        self._upstream = upstream
        self._drafts = drafts
        self._storage = storage
        self._threads = threads
        self._clock = clock
        #: By key and digest: where the index has put other bytes behind a URL, that is another file.
        self._running: dict[tuple[str, Digest | None], Fetch] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def check(self) -> None:
        """Raises StorageDown with a reason when no draft can be kept now."""
        try:
            await self._threads.run(self._drafts.probe)
        except OSError as error:
            raise storage_error(error, "drafts can't be written") from error

    def join(self, file: PackageFile) -> Content | None:
        """The content of this file while it is being fetched; to be closed by the caller."""
        fetch = self._running.get((file.key, file.digest))
        return fetch.draft.content.open() if fetch is not None else None

    async def take_in(self, file: PackageFile) -> None:
        """Fetch a file and keep it, for nobody in particular. Raises what `Fetch.run` and `IStorage.commit` do."""
        name = (file.key, file.digest)
        if name not in self._running:
            self.start(file).close()
        settled: Deferred[None] = Deferred(lambda _: None)
        self._running[name].waiting.append(settled)
        await settled

    def start(self, file: PackageFile) -> Content:
        """
        Begin to fetch a file that nobody fetches yet; its content, to be closed by the caller.

        Raises StorageDown or StorageFull where no draft can be kept.
        """
        try:
            if file.size is not None and file.size > self._drafts.room():
                raise StorageFull(f"no room for a draft of {file.size} bytes")
            draft = self._drafts.create()
        except OSError as error:
            raise storage_error(error, "a draft could not be made") from error
        fetch = self._running[file.key, file.digest] = Fetch(file, draft, self._upstream, self._threads, self._clock)
        content = draft.content.open()
        Deferred.fromCoroutine(self._run(fetch)).addErrback(
            lambda failure: self.log.failure("a fetch ended in disorder", failure)
        )
        return content

    async def _run(self, fetch: Fetch) -> None:
        content, key = fetch.draft.content, fetch.file.key
        trouble: MyPyPiError | None = None
        try:
            digest = await fetch.run()
            content.finish(digest)
            await self._storage.commit(key, fetch.draft.path, digest)
            self.log.info("stored {key}, {size} bytes", key=key, size=content.length)
        except MyPyPiError as error:
            trouble = error
            self.log.warn("{key} was not stored: {why}", key=key, why=error)
        except Exception:
            trouble = UpstreamBroken("the transfer from upstream failed")
            raise
        finally:
            if trouble is not None:
                content.fail(trouble)
            del self._running[key, fetch.file.digest]
            fetch.draft.drop()
            content.close()
            fetch.settle(trouble)
