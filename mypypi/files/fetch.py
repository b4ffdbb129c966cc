"""One fetch for each file, however many clients wait for it, in however many processes and on however many hosts.

On one host, one process fills the draft and the others follow it; where that process is gone, one of them goes on with
it. Among hosts, a lease says whose fetch it is. Upstream fills the draft at the disk's pace; readers (see
`mypypi.web.reader`) copy from it at theirs, so a slow client holds nobody up and one that leaves stops nothing. Knows
drafts, transfers, leases and the storage's `commit`. Must never know ecosystems, routes, or clients.
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
from mypypi.files.transfer import FetchCancelled, Transfer, whole
from mypypi.model import Digest, PackageFile, fetch_lease
from mypypi.observability import metrics

if TYPE_CHECKING:
    from mypypi.files.content import Content
    from mypypi.files.drafts import Draft, Drafts
    from mypypi.interfaces import IStorage
    from mypypi.redis.leases import Leases
    from mypypi.threads import Threads
    from mypypi.upstream.client import Upstream

#: Seconds between two looks at a draft that another process fills: more as long as nothing changes.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.01, 0.1
#: Seconds between two looks whether anybody still fills it.
_TRY_LOCK = 0.25


class Fetch:
    """A file that is being fetched: by this process, or by another one whose draft it follows."""

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
        """How long it will take, at the pace so far, in whole seconds; empty while nobody knows."""
        content, passed = self.draft.content, self._clock.seconds() - self._began
        if not content.total or not content.length or passed <= 0:
            return ""
        return str(math.ceil((content.total - content.length) * passed / content.length))

    def settle(self, trouble: Exception | None) -> None:
        """Tell those who wait for the file to be kept that it is, or why not."""
        for each in self.waiting:
            if not each.called:
                each.callback(None) if trouble is None else each.errback(trouble)


class Fetches:
    """The fetches that this process takes part in: one for each file, whoever asks."""

    log = Logger()

    def __init__(
        self, upstream: Upstream, drafts: Drafts, storage: IStorage, threads: Threads, clock: Any, leases: Leases
    ) -> None:
        """`leases`: those of the disk on which the drafts lie."""
        self._upstream = upstream
        self._drafts = drafts
        self._storage = storage
        self._threads = threads
        self._clock = clock
        self._leases = leases
        self._stopping = False
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
        if fetch is None:
            return None
        metrics.JOINS.labels("process").inc()
        return fetch.draft.content.open()

    async def fetch_and_store(self, file: PackageFile) -> None:
        """
        Fetch a file and keep it, for nobody in particular.

        Raises what `Transfer.run` and `IStorage.commit` do, and FetchedElsewhere.
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
        Begin to fetch a file that this process does not fetch yet, or to follow who does; its content, to be closed by
        the caller. It ends with FetchedElsewhere where another host fetches the file, and with AlreadyStored where
        the file is stored by now, unless it is to be fetched `anew` all the same.

        Raises StorageDown or StorageFull where no draft can be kept.
        """
        try:
            draft = self._drafts.open(hashlib.sha256(f"{file.key}\n{file.digest}".encode()).hexdigest()[:40])
            if draft.filling and file.size is not None and file.size > self._drafts.room():
                draft.drop()
                draft.close()
                raise StorageFull(f"no room for a draft of {file.size} bytes")
        except OSError as error:
            raise storage_error(error, "a draft could not be made") from error
        transfer = Transfer(file, draft, self._upstream, self._threads, self._clock)
        fetch = self._running[file.key, file.digest] = Fetch(file, draft, transfer, self._clock, anew=anew)
        content = draft.content.open()
        Deferred.fromCoroutine(self._run(fetch)).addErrback(
            lambda failure: self.log.failure("a fetch ended in disorder", failure)
        )
        return content

    async def stop(self) -> None:
        """Let go of every fetch, so that others can go on with it. Fires once nothing is written any more."""
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
            trouble = StillFetching("this server is being stopped: try again", 1)
        except MyPyPiError as error:
            trouble = error
        except OSError as error:
            trouble = storage_error(error, "a draft could not be read")
        except Exception:
            trouble = BadUpstreamResponse("the transfer from upstream failed")
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
        Follow the draft until whoever fills it has put it where it belongs, or until it is ours to fill.

        Raises what has gone wrong there, and OSError.
        """
        draft, content = fetch.draft, fetch.draft.content
        metrics.JOINS.labels("host").inc()
        look_after, tried_at = _SHORTEST_LOOK, self._clock.seconds()
        while not (draft.filling or draft.has_ended()):
            look_after = _SHORTEST_LOOK if draft.look() else min(1.5 * look_after, _LONGEST_LOOK)
            self._take_note(draft)
            await deferLater(self._clock, look_after)
            if self._stopping:
                raise FetchCancelled
            if self._clock.seconds() - tried_at >= _TRY_LOCK:
                tried_at = self._clock.seconds()
                draft.take_over()
        if draft.filling:
            metrics.TAKE_OVERS.inc()
            self.log.info("taking over the fetch of {key} at {at}", key=fetch.file.key, at=content.length)
            return
        draft.look()
        self._take_note(draft)
        if not content.whole:  # it was over before we saw any of it
            raise AlreadyStored("the file has just been fetched: try again")

    @staticmethod
    def _take_note(draft: Draft) -> None:
        """Let readers have what the draft's note says."""
        content, state = draft.content, draft.state
        if state.error is not None:
            raise error_from(*state.error)
        if state.digest and content.fd >= 0 and not content.whole:
            content.length = state.total or 0
            content.finish(Digest.parse(state.digest))

    async def _fill(self, fetch: Fetch) -> None:
        """
        Have the one transfer, and keep what it brings. Those who follow the draft are told how it went.

        Raises what `Transfer.run` and `IStorage.commit` do, FetchedElsewhere, AlreadyStored and FetchCancelled.
        """
        draft, key, lease = fetch.draft, fetch.file.key, fetch_lease(fetch.file.key)
        metrics.FETCHES_RUNNING.inc()
        try:
            await self._claim(fetch, lease)
            digest = await fetch.transfer.run()
            draft.tell(whole(draft, digest))
            draft.content.finish(digest)
            if self._storage.passes_on:  # before it begins to: who ends that releases the lease
                await self._leases.leave(lease, self._storage.passes_on)
            await self._storage.commit(key, draft.path, digest)
            metrics.FETCHES.labels("stored").inc()
            self.log.info("stored {key}, {size} bytes", key=key, size=draft.content.length)
            draft.drop()
        except (FetchedElsewhere, AlreadyStored) as error:
            self._give_up(fetch, error)
            raise
        except MyPyPiError as error:
            metrics.FETCHES.labels("failed").inc()
            self.log.warn("{key} was not stored: {why}", key=key, why=error)
            self._give_up(fetch, error)
            await self._leases.release(lease)
            raise
        except FetchCancelled:
            raise
        except Exception:
            self._give_up(fetch, BadUpstreamResponse("the transfer from upstream failed"))
            raise
        finally:
            metrics.FETCHES_RUNNING.dec()
            await self._leases.let_go(lease)

    async def _claim(self, fetch: Fetch, lease: str) -> None:
        """See that the file is still to be fetched, and take its lease, where Redis can be asked."""
        await self._look_again(fetch)
        with suppress(CatalogDown):
            held = await self._leases.take(lease, fetch.seconds_left)
            if held is not None:
                metrics.LEASE_WAITS.labels("file").inc()
                seconds = int(held.about) if held.about.isdigit() else math.ceil(held.left)
                raise FetchedElsewhere("another host is fetching the file: try again", seconds)
        if self._storage.passes_on:  # what another host has done since, it did before it let go of the lease
            await self._look_again(fetch)

    async def _look_again(self, fetch: Fetch) -> None:
        if not fetch.anew and await self._is_stored(fetch.file):
            raise AlreadyStored("the file has just been fetched: try again")

    async def _is_stored(self, file: PackageFile) -> bool:
        try:
            stored = await self._storage.find(file.key, again=True)
        except StorageDown:
            return False
        return stored is not None and stored.matches(file)

    def _give_up(self, fetch: Fetch, error: MyPyPiError) -> None:
        """The draft is worth nothing: let others know, and take it away."""
        with suppress(OSError):  # a full disk: they see that it is gone
            fetch.draft.tell_failed(error)
        fetch.draft.drop()
