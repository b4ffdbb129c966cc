"""Transfers one file from upstream into a draft, and checks its digest.

A transfer resumes a draft that an interruption or another process has left. Knows upstream and drafts. Must never know
which clients wait for the file, nor where it is stored.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.digests import Digest
from mypypi.errors import (
    BadUpstreamResponse,
    DigestMismatch,
    Interrupted,
    OutOfDescriptors,
    Truncated,
    UpstreamDown,
    storage_error,
)
from mypypi.files.drafts import State
from mypypi.files.endings import has_end
from mypypi.files.gzipped import decode
from mypypi.files.receiver import Receiver, check_length
from mypypi.files.resuming import Attempts, FetchCancelled, bytes_to_skip
from mypypi.model import PackageFile
from mypypi.observability import metrics

if TYPE_CHECKING:
    from mypypi.files.drafts import Draft
    from mypypi.files.standby import Standby
    from mypypi.threads import Threads
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.responses import FileResponse

#: Bytes to read from a file at once.
_BLOCK = 256 * 1024


class Transfer:
    """Fills a draft with a package file."""

    log = Logger()

    def __init__(
        self,
        file: PackageFile,
        draft: Draft,
        upstream: Upstream,
        threads: Threads,
        decoding: Threads,
        clock: Any,
        standby: Standby,
        client: str = "",
    ) -> None:
        """
        `client` names the client that waits, for a fair share of the requests to upstream.

        `standby` tells the transfer when to give way to them. Gzip bytes are decoded by the `decoding` threads.
        """
        self._file = file
        self._draft = draft
        self._content = draft.content
        self._upstream = upstream
        self._threads = threads
        self._decoding = decoding
        self._clock = clock
        self._client = client
        self._hasher = self._new_hasher()
        self._validator = ""
        self._encoding = ""
        #: Upstream's ETag and Last-Modified, empty if it sent none.
        self.validators = ("", "")
        #: Whether anything shows that the file is complete. Otherwise it must not be stored.
        self.is_certain = True
        self._is_open_ended = False
        self._stopped = False
        self._receiver: Receiver | None = None
        self._step: Deferred[Any] | None = None
        self._standby = standby
        standby.interrupt = self._interrupt

    async def run(self) -> Digest:
        """
        Fill the draft, check it, and return the digest of its bytes.

        Raises NotFound, UpstreamDown, BadUpstreamResponse (DigestMismatch, Truncated), StorageDown (StorageFull);
        FetchCancelled after `stop`.
        """
        try:
            await self._resume_draft()
            if not self._is_complete():
                await self._reserve(self._content.total or self._file.size)
                await self._transfer()
            return await self._check()
        except OSError as error:
            raise storage_error(error, "a draft could not be written") from error

    def stop(self) -> None:
        """
        Stop the transfer soon, so that the draft can be resumed.

        Once `run` has failed, nothing more is written to the draft.
        """
        self._stopped = True
        self._interrupt()

    def _interrupt(self) -> None:
        if self._receiver is not None:
            self._receiver.abort(Interrupted("the transfer was stopped"))
        elif self._step is not None:
            self._step.cancel()

    async def _resume_draft(self) -> None:
        """
        Keep the draft's bytes if they can be resumed, else empty the draft.

        They can be resumed if a mix of two versions would be detected. Raises Truncated if they can't, but readers may
        have got some of them.
        """
        content, state, seen = self._content, self._draft.state, self._content.begun
        self._validator = state.validator
        # Bytes of a process that died long ago may never have reached the disk. Only a digest can detect that.
        sure = self._file.digest is not None or (seen and bool(self._validator))
        if content.length and state.begun and sure:
            await self._threads.run(self._hash_draft)
            content.begin(state.total)
        elif seen:
            raise Truncated("upstream's body ended early and could not be resumed")
        elif content.length or state != State():
            self._validator = ""
            self._draft.empty()

    def _hash_draft(self) -> None:
        offset, end = 0, self._content.length
        while offset < end and (block := os.pread(self._content.fd, min(_BLOCK, end - offset), offset)):
            self._hasher.update(block)
            offset += len(block)

    def _is_complete(self) -> bool:
        length = self._content.length
        return length > 0 and (length == self._content.total or self._digest() in self._file.digests)

    async def _check(self) -> Digest:
        digest = await self._decoded()
        if self._is_open_ended:
            self.is_certain = await self._decoding.run(has_end, self._content.fd)
        return digest

    async def _decoded(self) -> Digest:
        """Compare the draft with the index's digest, decode it where needed, and return the digest of its bytes."""
        digest, file = self._digest(), self._file
        if file.accepts(digest) and not (self._encoding and file.digest is None):
            return digest
        if self._encoding != "gzip":
            if file.digest is not None:
                why = f"upstream's bytes do not match the index's digest ({digest} instead of {file.digest})"
                raise DigestMismatch(why)
            raise BadUpstreamResponse(
                "upstream sends a file in an encoding that was not requested, and there is no digest to check it"
            )
        decoded = await self._decoding.run(decode, self._draft, file, lambda: self._stopped)
        if decoded is None:
            return digest
        self._content.length = os.fstat(self._content.fd).st_size
        self._is_open_ended = False  # the encoding has an end marker
        return decoded

    def _new_hasher(self) -> Any:
        return (self._file.digest or Digest("sha256", "")).hasher()

    def _digest(self) -> Digest:
        return Digest(self._hasher.name, self._hasher.hexdigest())

    async def _transfer(self) -> None:
        attempts = Attempts()
        while True:
            length = self._content.length
            try:
                await self._attempt(length)
            except (Interrupted, UpstreamDown, OutOfDescriptors) as error:
                if self._stopped:
                    raise FetchCancelled from None
                if self._standby.gives_way:
                    await self._give_way()
                    continue
                at = self._content.length
                if not self._resumable():
                    raise
                pause = attempts.pause(error, brought=at > length)
                self.log.info("{key} is resumed at byte {at}: {why}", key=self._file.key, at=at, why=error)
                await self._wait_for(deferLater(self._clock, pause))
            else:
                return

    async def _give_way(self) -> None:
        """Rest, so that other requests get the place. What can't be resumed is begun anew, since it has no readers."""
        metrics.GAVE_WAY.inc()
        if not self._resumable():
            self._hasher, self._validator, self._encoding = self._new_hasher(), "", ""
            self._draft.empty()
        await self._wait_for(self._standby.rest())

    async def _wait_for(self, step: Deferred[Any]) -> Any:
        """Wait for a step of the transfer. `stop` cancels it, and this raises FetchCancelled."""
        self._step = step
        try:
            return await step
        except CancelledError:
            self._check_interrupted()
            raise
        finally:
            self._step = None

    def _check_interrupted(self) -> None:
        """Raise FetchCancelled after `stop`, and Interrupted if the transfer has to give way."""
        if self._stopped:
            raise FetchCancelled from None
        if self._standby.gives_way:
            raise Interrupted("other requests need the place of this transfer") from None

    def _resumable(self) -> bool:
        """
        Whether the draft can be resumed.

        Upstream's validator or the index's digest must be known, so that a mix of two versions would be detected.
        """
        return self._content.length > 0 and not self._encoding and bool(self._validator or self._file.digest)

    async def _attempt(self, offset: int) -> None:
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if self._validator:
                headers["If-Range"] = self._validator
        self._check_interrupted()
        demand = self._standby.demand
        kind = "metadata" if self._file.is_metadata else "file"
        asked = self._upstream.file(self._file.url, headers, self._client, self._make_late, demand, kind)
        body = await self._wait_for(Deferred.fromCoroutine(asked))
        self._content.set_late(False)
        try:
            if offset:
                total, has_digest = self._content.total, self._file.digest is not None
                skip = bytes_to_skip(body, offset, total, has_digest=has_digest)
            else:
                await self._reserve(body.length)
                skip = self._begin(body)
            await self._receive(body, skip)
            if self._content.total is not None and self._content.length < self._content.total:
                raise Interrupted("upstream's body was shorter than announced")
        finally:
            body.close()

    async def _reserve(self, size: int | None) -> None:
        """Take room for a draft of this size, unless that is done. Raises StorageFull, OSError, FetchCancelled."""
        if size is None or size == self._draft.share.size or self._draft.reserve_little(size):
            return
        await self._threads.run(self._draft.reserve, size)
        self._check_interrupted()

    def _make_late(self) -> None:
        """Let clients know that upstream has not answered in time, while the request goes on."""
        if not self._content.begun:
            with suppress(OSError):  # then only the clients of this process know
                self._draft.write_note(evolve(self._draft.state, late=True))
            self._content.set_late(True)

    async def _receive(self, body: FileResponse, skip: int) -> None:
        pace = self._upstream.pace
        receiver = Receiver(self._draft, self._hasher, skip, self._threads, self._clock, pace, self._file)
        self._receiver = receiver
        try:
            body.deliver(receiver)
            lossy = await receiver.done
        finally:
            self._receiver = None
        # Without an end marker, the index's digest or a length shows whether bytes are missing.
        is_known = self._file.digest is not None or self._content.length in (self._content.total, self._file.size)
        self._is_open_ended = lossy and not is_known

    def _begin(self, body: FileResponse) -> int:
        if body.status != 200:  # noqa: PLR2004 - no range was requested
            raise BadUpstreamResponse(f"upstream answered {body.status} to a request for a whole file")
        check_length(self._file, body.length)
        self.validators = (body.header("etag"), body.header("last-modified"))
        self._encoding = body.encoding
        if self._encoding:
            return 0  # these bytes may have to be decoded: readers get none before the file is complete and checked
        total = body.length  # a page may give a wrong size
        etag = body.header("etag")
        self._validator = etag if etag.startswith('"') else body.header("last-modified") if not etag else ""
        self._draft.write_note(State(begun=True, total=total, validator=self._validator))
        self._content.begin(total)
        return 0


def complete_state(draft: Draft, digest: Digest) -> State:
    """Return the state of a draft that is complete and has this digest."""
    return evolve(draft.state, begun=True, total=draft.content.length, digest=str(digest))
