"""Fetches each file once for all clients, processes and hosts, and stores it.

On one host, one process fills the draft and the others follow it. If that process dies, one of the others continues. A
lease decides which host fetches the file. Upstream fills the draft at the disk's pace, and readers (see
`mypypi.web.reader`) copy from it at their own pace. So a slow client does not slow down others, and a client that
disconnects does not stop the fetch. Knows drafts, transfers, leases and the storage's `commit`. Must never know
ecosystems, routes, or clients.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.errors import (
    AlreadyStored,
    BadUpstreamResponse,
    CatalogDown,
    FetchedElsewhere,
    MyPyPiError,
    StillFetching,
    StorageDown,
    StorageFull,
    error_from,
    storage_error,
)
from mypypi.files.transfer import FetchCancelled, Transfer, complete_state
from mypypi.model import Digest, PackageFile, fetch_lease
from mypypi.observability import metrics

if TYPE_CHECKING:
    from mypypi.files.content import Content
    from mypypi.files.drafts import Draft, Drafts
    from mypypi.interfaces import IStorage
    from mypypi.redis.leases import Leases
    from mypypi.threads import Threads
    from mypypi.upstream.client import Upstream

#: Seconds between two looks at a draft that another process fills. They grow while nothing changes.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.01, 0.1
#: Seconds between two tries to lock such a draft, in case that process has died.
_TRY_LOCK = 0.25


class Fetch:
    """
    The fetch of one file that runs now.

    This process fills the draft, or follows the draft of another process. `anew` means that the file is fetched even if
    it is stored already.
    """

    def __init__(self, file: PackageFile, draft: Draft, transfer: Transfer, clock: Any, *, anew: bool) -> None:
        self.file = file
        self.anew = anew
        self.draft = draft
        self.transfer = transfer
        self.waiting: list[Deferred[None]] = []
        self.ended: Deferred[None] = Deferred()
        self._clock = clock
        self._began = clock.seconds()

    def seconds_left(self) -> str:
        """Estimate the remaining time from the pace so far. In whole seconds; empty if there is no estimate."""
        content, passed = self.draft.content, self._clock.seconds() - self._began
        if not content.total or not content.length or passed <= 0:
            return ""
        return str(math.ceil((content.total - content.length) * passed / content.length))

    def settle(self, trouble: Exception | None) -> None:
        """Fire the Deferreds in `waiting`. They fail with `trouble` if the file was not stored."""
        for each in self.waiting:
            if not each.called:
                each.callback(None) if trouble is None else each.errback(trouble)


class Fetches:
    """The fetches that this process fills or follows: one for each file."""

    log = Logger()

    def __init__(
        self, upstream: Upstream, drafts: Drafts, storage: IStorage, threads: Threads, clock: Any, leases: Leases
    ) -> None:
        """The owner of `leases` must be the disk that has the drafts."""
        self._upstream = upstream
        self._drafts = drafts
        self._storage = storage
        self._threads = threads
        self._clock = clock
        self._leases = leases
        self._stopping = False
        #: By key and digest: if the index changes the bytes behind a URL, that is another file.
        self._running: dict[tuple[str, Digest | None], Fetch] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def check(self) -> None:
        """Raise StorageDown, with the reason, if drafts can't be written now."""
        try:
            await self._threads.run(self._drafts.probe)
        except OSError as error:
            raise storage_error(error, "drafts can't be written") from error

    def join(self, file: PackageFile) -> Content | None:
        """Return the content of this file if it is being fetched, else None. The caller must close it."""
        fetch = self._running.get((file.key, file.digest))
        if fetch is None:
            return None
        metrics.JOINS.labels("process").inc()
        return fetch.draft.content.open()

    async def fetch_and_store(self, file: PackageFile) -> None:
        """
        Fetch a file and wait until it is stored, without a reader.

        Raises FetchedElsewhere, and the errors of `Transfer.run` and `IStorage.commit`.
        """
        name = (file.key, file.digest)
        if name not in self._running:
            self.start(file).close()
        settled: Deferred[None] = Deferred(lambda _: None)
        self._running[name].waiting.append(settled)
        with suppress(AlreadyStored):
            await settled

    def start(self, file: PackageFile, *, anew: bool = False) -> Content:
        """
        Start the fetch of a file, and return its content.

        If another process on this host fetches the file, this process follows its draft. Call this only if `join` has
        returned None. The caller must close the content. The content ends with FetchedElsewhere if another host fetches
        the file, and with AlreadyStored if the file is stored by now. With `anew`, a stored file is fetched again.

        Raises StorageDown or StorageFull if no draft can be written.
        """
        try:
            draft = self._drafts.open(hashlib.sha256(f"{file.key}\n{file.digest}".encode()).hexdigest()[:40])
            if draft.filling and file.size is not None and file.size > self._drafts.room():
                draft.drop()
                draft.close()
                raise StorageFull(f"no room for a draft of {file.size} bytes")
        except OSError as error:
            raise storage_error(error, "a draft could not be created") from error
        transfer = Transfer(file, draft, self._upstream, self._threads, self._clock)
        fetch = self._running[file.key, file.digest] = Fetch(file, draft, transfer, self._clock, anew=anew)
        content = draft.content.open()
        Deferred.fromCoroutine(self._run(fetch)).addErrback(
            lambda failure: self.log.failure("a fetch failed unexpectedly", failure)
        )
        return content

    async def stop(self) -> None:
        """
        Stop every fetch, so that other processes can continue it.

        Returns once nothing more is written to the drafts.
        """
        self._stopping = True
        running = list(self._running.values())
        for fetch in running:
            fetch.transfer.stop()
        await DeferredList([fetch.ended for fetch in running])

    async def _run(self, fetch: Fetch) -> None:
        trouble: MyPyPiError | None = None
        try:
            if not fetch.draft.filling:
                await self._follow(fetch)
            if fetch.draft.filling:
                await self._fill(fetch)
        except FetchCancelled:
            trouble = StillFetching("the file is not fetched yet, and this server is stopping: try again", 1)
        except MyPyPiError as error:
            trouble = error
        except OSError as error:
            trouble = storage_error(error, "a draft could not be read")
        except Exception:
            trouble = BadUpstreamResponse("the transfer from upstream failed: see the server's log")
            raise
        finally:
            if trouble is not None:
                fetch.draft.content.fail(trouble)
            del self._running[fetch.file.key, fetch.file.digest]
            fetch.draft.close()
            fetch.settle(trouble)
            fetch.ended.callback(None)

    async def _follow(self, fetch: Fetch) -> None:
        """
        Follow the draft until its file is stored, or until this process fills it.

        Raises AlreadyStored if the file was stored before this process saw the draft, the error in the draft's note,
        FetchCancelled after `stop`, and OSError.
        """
        draft, content = fetch.draft, fetch.draft.content
        metrics.JOINS.labels("host").inc()
        look_after, tried_at = _SHORTEST_LOOK, self._clock.seconds()
        while not (draft.filling or draft.has_ended()):
            look_after = _SHORTEST_LOOK if draft.refresh() else min(1.5 * look_after, _LONGEST_LOOK)
            self._apply_note(draft)
            await deferLater(self._clock, look_after)
            if self._stopping:
                raise FetchCancelled
            if self._clock.seconds() - tried_at >= _TRY_LOCK:
                tried_at = self._clock.seconds()
                draft.take_over()
        if draft.filling:
            metrics.TAKE_OVERS.inc()
            self.log.info("fetch of {key} is taken over at byte {at}", key=fetch.file.key, at=content.length)
            return
        draft.refresh()
        self._apply_note(draft)
        if not content.whole:  # the fetch ended before this process had opened the draft
            raise AlreadyStored("the file has just been fetched: try again")

    @staticmethod
    def _apply_note(draft: Draft) -> None:
        """Finish the content if the draft's note has a digest. Raises the note's error, if it has one."""
        content, state = draft.content, draft.state
        if state.error is not None:
            raise error_from(*state.error)
        if state.digest and content.fd >= 0 and not content.whole:
            content.length = state.total or 0
            content.finish(Digest.parse(state.digest))

    async def _fill(self, fetch: Fetch) -> None:
        """
        Transfer the file into the draft, and store it.

        The draft's note gets the result, for the processes that follow.

        Raises FetchedElsewhere, AlreadyStored, FetchCancelled, and the errors of `Transfer.run` and `IStorage.commit`.
        """
        draft, key, lease = fetch.draft, fetch.file.key, fetch_lease(fetch.file.key)
        metrics.FETCHES_RUNNING.inc()
        try:
            await self._take_lease(fetch, lease)
            digest = await fetch.transfer.run()
            draft.write_note(complete_state(draft, digest))
            draft.content.finish(digest)
            if self._storage.upload_window:  # before `commit`: the worker that uploads the file releases the lease
                await self._leases.keep_for(lease, self._storage.upload_window)
            await self._storage.commit(key, draft.path, digest)
            metrics.FETCHES.labels("stored").inc()
            self.log.info("stored {key}, {size} bytes", key=key, size=draft.content.length)
            draft.drop()
        except (FetchedElsewhere, AlreadyStored) as error:
            self._fail_draft(fetch, error)
            raise
        except MyPyPiError as error:
            metrics.FETCHES.labels("failed").inc()
            self.log.warn("{key} was not stored: {why}", key=key, why=error)
            self._fail_draft(fetch, error)
            await self._leases.release(lease)
            raise
        except FetchCancelled:
            raise
        except Exception:
            self._fail_draft(fetch, BadUpstreamResponse("the transfer from upstream failed: see the server's log"))
            raise
        finally:
            metrics.FETCHES_RUNNING.dec()
            await self._leases.release_if_held(lease)

    async def _take_lease(self, fetch: Fetch, lease: str) -> None:
        """
        Take the file's lease; while Redis is down, go on without it.

        Raises AlreadyStored if the file is stored by now, and FetchedElsewhere if another host holds the lease.
        """
        await self._check_not_stored(fetch)
        with suppress(CatalogDown):
            held = await self._leases.take(lease, fetch.seconds_left)
            if held is not None:
                metrics.LEASE_WAITS.labels("file").inc()
                seconds = int(held.about) if held.about.isdigit() else math.ceil(held.left)
                raise FetchedElsewhere("another host is fetching the file: try again", seconds)
        if self._storage.upload_window:  # the lease's previous holder may have stored the file since the first check
            await self._check_not_stored(fetch)

    async def _check_not_stored(self, fetch: Fetch) -> None:
        if not fetch.anew and await self._is_stored(fetch.file):
            raise AlreadyStored("the file has just been fetched: try again")

    async def _is_stored(self, file: PackageFile) -> bool:
        try:
            stored = await self._storage.find(file.key, recheck=True)
        except StorageDown:
            return False
        return stored is not None and stored.matches(file)

    def _fail_draft(self, fetch: Fetch, error: MyPyPiError) -> None:
        """Write the error to the draft's note, and delete the draft. Processes that follow it read the note."""
        with suppress(OSError):  # on a full disk, they only see that the draft is gone
            fetch.draft.write_failure(error)
        fetch.draft.drop()
