"""The bytes of one file on their way from upstream into a draft, until they are all there and checked.

Goes on with what an interruption, or another process, left in the draft. Knows upstream and drafts. Must never know who
waits for the file, or where it is kept.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.errors import (
    BadUpstreamResponse,
    DigestMismatch,
    Interrupted,
    MyPyPiError,
    StorageFull,
    Truncated,
    UpstreamDown,
    UpstreamPaused,
    storage_error,
)
from mypypi.files.drafts import State, write_at
from mypypi.files.receiver import Receiver
from mypypi.model import Digest, PackageFile

if TYPE_CHECKING:
    from mypypi.files.drafts import Draft
    from mypypi.threads import Threads
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.responses import FileResponse

#: How often a transfer goes on after an interruption: in a row without a new byte, and altogether.
FRUITLESS = 3
_RESUMES = 50
_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_LARGEST_INFLATED = 4 * 1024**3
_BLOCK = 256 * 1024


class FetchCancelled(Exception):
    """The transfer was told to stop; what is in the draft can be gone on with."""


class Transfer:
    """Fills a draft with a package file."""

    log = Logger()

    def __init__(self, file: PackageFile, draft: Draft, upstream: Upstream, threads: Threads, clock: Any) -> None:
        self._file = file
        self._draft = draft
        self._content = draft.content
        self._upstream = upstream
        self._threads = threads
        self._clock = clock
        self._hasher = self._new_hasher()
        self._validator = ""
        self._encoding = ""
        self._stopped = False
        self._receiver: Receiver | None = None
        self._step: Deferred[Any] | None = None

    async def run(self) -> Digest:
        """
        Fill the draft and check it; the digest of what is in it now.

        Raises NotFound, UpstreamDown, BadUpstreamResponse (DigestMismatch, Truncated), StorageDown;
        FetchCancelled after `stop`.
        """
        try:
            await self._take_up()
            if not self._is_all_there():
                await self._transfer()
            return await self._check()
        except OSError as error:
            raise storage_error(error, "a draft could not be written") from error

    def stop(self) -> None:
        """End it soon, in a way in which it can be gone on with: once `run` has failed, nothing is written any more."""
        self._stopped = True
        if self._receiver is not None:
            self._receiver.give_up(Interrupted("the transfer was told to stop"))
        elif self._step is not None:
            self._step.cancel()

    async def _take_up(self) -> None:
        """Go on with what is in the draft, where a mix of two versions would be seen; else begin anew."""
        content, state, seen = self._content, self._draft.state, self._content.begun
        self._validator = state.validator
        # What a process left behind that is long gone may never have reached the disk: only a digest tells.
        sure = self._file.digest is not None or (seen and bool(self._validator))
        if content.length and state.begun and sure:
            await self._threads.run(self._hash_what_is_there)
            content.begin(state.total)
        elif seen:
            raise Truncated("upstream's body ended early and could not be resumed")
        elif content.length or state != State():
            self._validator = ""
            self._draft.empty()

    def _hash_what_is_there(self) -> None:
        offset, end = 0, self._content.length
        while offset < end and (block := os.pread(self._content.fd, min(_BLOCK, end - offset), offset)):
            self._hasher.update(block)
            offset += len(block)

    def _is_all_there(self) -> bool:
        length = self._content.length
        return length > 0 and (length == self._content.total or self._digest() == self._file.digest)

    async def _check(self) -> Digest:
        digest, promised = self._digest(), self._file.digest
        if self._encoding and promised is None:
            raise BadUpstreamResponse(
                "upstream sends a file in an encoding that nobody asked for, and no digest tells which"
            )
        if promised in (None, digest):
            return digest
        if self._encoding == "gzip":
            await self._threads.run(_inflate, self._draft, self._file)
            self._content.length = os.fstat(self._content.fd).st_size
            return promised
        raise DigestMismatch(f"upstream's bytes are not what the index promised ({digest} instead of {promised})")

    def _new_hasher(self) -> Any:
        return (self._file.digest or Digest("sha256", "")).hasher()

    def _digest(self) -> Digest:
        return Digest(self._hasher.name, self._hasher.hexdigest())

    async def _transfer(self) -> None:
        fruitless = 0
        for _ in range(_RESUMES):
            length = self._content.length
            try:
                await self._attempt(length)
            except (Interrupted, UpstreamDown) as error:
                if self._stopped:
                    raise FetchCancelled from None
                fruitless = fruitless + 1 if self._content.length == length else 0
                if not self._resumable() or fruitless > FRUITLESS:
                    raise
                self.log.info("resuming {key} at {at}: {why}", key=self._file.key, at=self._content.length, why=error)
                await self._in_step(deferLater(self._clock, _pause(error, fruitless)))
            else:
                return
        raise Truncated("upstream's body ended early too often")

    async def _in_step(self, step: Deferred[Any]) -> Any:
        """Wait for this, or for `stop`."""
        self._step = step
        try:
            return await step
        except CancelledError:
            if self._stopped:
                raise FetchCancelled from None
            raise
        finally:
            self._step = None

    def _resumable(self) -> bool:
        """Only where a mix of two versions would be seen: by upstream's validator, or by the index's digest."""
        return self._content.length > 0 and not self._encoding and bool(self._validator or self._file.digest)

    async def _attempt(self, offset: int) -> None:
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._validator:
                headers["If-Range"] = self._validator
        if self._stopped:
            raise FetchCancelled
        body = await self._in_step(Deferred.fromCoroutine(self._upstream.file(self._file.url, headers)))
        try:
            skip = self._begin(body) if not offset else self._continue(body, offset)
            await self._receive(body, skip)
            if self._content.total is not None and self._content.length < self._content.total:
                raise Interrupted("upstream's body was shorter than announced")
        finally:
            body.close()

    async def _receive(self, body: FileResponse, skip: int) -> None:
        receiver = Receiver(self._draft, self._hasher, skip, self._threads, self._clock, self._upstream.timeout)
        self._receiver = receiver
        try:
            body.deliver(receiver)
            lossy = await receiver.done
        finally:
            self._receiver = None
        if lossy and not self._ends_here():
            raise Truncated("upstream gave no length to tell whether this is all")

    def _ends_here(self) -> bool:
        """Whether the end of a body whose end nothing marked can be believed, or will be checked."""
        return self._file.digest is not None or self._content.length == self._content.total

    def _begin(self, body: FileResponse) -> int:
        if body.status != 200:  # noqa: PLR2004 - nobody asked for a part
            raise BadUpstreamResponse(f"upstream answered {body.status} to a request for a whole file")
        self._encoding = body.encoding
        if self._encoding:
            return 0  # what arrives may not be the file; nobody sees it before it is whole and checked
        file = self._file
        total = file.size if body.length is None else body.length
        if file.digest is None and file.size not in (None, total):
            raise BadUpstreamResponse(f"upstream sends {total} bytes for a file that its page lists with {file.size}")
        if total is not None and total > self._draft.room():
            raise StorageFull(f"no room for a draft of {total} bytes")
        etag = body.header("etag")
        self._validator = etag if etag.startswith('"') else body.header("last-modified") if not etag else ""
        self._draft.tell(State(begun=True, total=total, validator=self._validator))
        self._content.begin(total)
        return 0

    def _continue(self, body: FileResponse, offset: int) -> int:
        """How many bytes to pass over, since they are in the draft already."""
        if body.status == 200:  # noqa: PLR2004 - upstream can't resume, or has other bytes now
            if self._file.digest is None or body.length not in (None, self._content.total):
                raise Truncated("upstream's body ended early and could not be resumed")
            return offset
        unit, _, rest = body.header("content-range").partition(" ")
        if unit != "bytes" or not rest.startswith(f"{offset}-"):
            raise Truncated("upstream resumed its body at another place")
        return 0


def _pause(error: MyPyPiError, fruitless: int) -> float:
    """Seconds until the next try; where upstream is left alone for a while, it comes after that."""
    told = error.retry_after or 0 if isinstance(error, UpstreamPaused) else 0
    return max(_PAUSE * 2.0**fruitless, min(told, _LONGEST_PAUSE))


def whole(draft: Draft, digest: Digest) -> State:
    """The state of a draft that is all there, and has this digest."""
    return evolve(draft.state, begun=True, total=draft.content.length, digest=str(digest))


def _inflate(draft: Draft, file: PackageFile) -> None:
    """
    Put the file itself in the place of its gzip encoding, which nobody asked for. In a thread.

    Raises DigestMismatch when it is not the file either, and OSError.
    """
    assert file.digest is not None
    decoder = zlib.decompressobj(wbits=31)
    hasher = file.digest.hasher()
    limit = file.size or _LARGEST_INFLATED
    with tempfile.TemporaryFile(dir=draft.path.parent) as inflated:
        read = written = 0
        try:
            while written <= limit and (block := os.pread(draft.content.fd, _BLOCK, read)):
                read += len(block)
                while written <= limit and (data := decoder.decompress(block, _BLOCK)):
                    hasher.update(data)
                    write_at(inflated.fileno(), data, written)
                    written += len(data)
                    block = decoder.unconsumed_tail
        except zlib.error:
            raise DigestMismatch(
                "upstream's bytes are not what the index promised, nor in the encoding they claim"
            ) from None
        if hasher.hexdigest() != file.digest.hex:
            raise DigestMismatch("upstream's bytes are not what the index promised, as sent nor decoded")
        offset = 0  # into the draft itself, which others have opened
        while block := os.pread(inflated.fileno(), _BLOCK, offset):
            write_at(draft.content.fd, block, offset)
            offset += len(block)
        os.ftruncate(draft.content.fd, written)
