"""Fetches one file into its draft, and stores it.

On one host, one process fills the draft and the others follow it. If that process dies, one of the others continues. A
lease decides which host fetches the file. Upstream fills the draft at the disk's pace, and `mypypi.web.content_reader`
copies from it at each client's own pace. So a slow client does not slow down others, and a client that disconnects does
not stop the fetch. Knows drafts, transfers, leases, back-offs and the storage's `commit`. Must never know ecosystems,
routes, or clients.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.coordination import fetch_lease
from mypypi.digests import Digest
from mypypi.errors import (
    AlreadyStored,
    BadUpstreamResponse,
    CatalogDown,
    FetchedElsewhere,
    MyPyPiError,
    NotFound,
    StillFetching,
    StorageDown,
    StorageFull,
    UpstreamBusy,
    UpstreamDown,
    UpstreamPaused,
    UpstreamRefused,
    error_from,
    storage_error,
)
from mypypi.files.extraction import Extraction
from mypypi.files.resuming import FetchCancelled
from mypypi.files.standby import Standby
from mypypi.files.transfer import Transfer, complete_state
from mypypi.model import FileCheck, PackageFile
from mypypi.observability import metrics
from mypypi.redis_budget import end_redis_budget
from mypypi.upstream.backoff import error_of
from mypypi.upstream.breaker import origin_of

if TYPE_CHECKING:
    from mypypi.files.drafts import Draft
    from mypypi.files.fetch_tools import FetchTools
    from mypypi.files.wheel_metadata import FetchWhole

#: Seconds between two looks at a draft that another process fills. They grow while nothing changes.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.01, 0.1
#: Seconds between two tries to lock such a draft, in case that process has died.
_TRY_LOCK = 0.25


class Fetch:
    """
    The fetch of one file. Metadata that has a `wheel` is read out of that, which `fetch_whole` fetches if need be.

    This process fills the draft, or follows the draft of another process. `client` names the client that waits. With
    `anew`, the file is fetched even if it is stored already.
    """

    log = Logger()

    def __init__(
        self,
        file: PackageFile,
        draft: Draft,
        tools: FetchTools,
        client: str,
        fetch_whole: FetchWhole,
        *,
        anew: bool,
    ) -> None:
        self.file = file
        self.anew = anew
        self.draft = draft
        self.client = client
        self.origin = origin_of(file.url)
        self.ended: Deferred[None] = Deferred()
        #: Whether the file is stored. Then it is read from the storage, although the fetch has not ended yet.
        self.is_stored = False
        self._tools = tools
        self.standby = Standby(draft, tools.clock)
        threads = tools.threads, tools.decoding or tools.threads
        self._transfer: Transfer | Extraction
        if file.wheel is not None and tools.wheels is not None:
            self._transfer = Extraction(file.wheel, draft, tools.wheels, tools.threads, fetch_whole, client)
        else:
            self._transfer = Transfer(file, draft, tools.upstream, *threads, tools.clock, self.standby, client)
        #: If the page gives another digest, that is another file.
        self._backoff_name = f"file:{file.key} {file.digest or ''}".rstrip()
        self._began = tools.clock.seconds()
        self._stopped = False
        self._trouble: MyPyPiError | None = None

    def stop(self) -> None:
        """Stop soon, so that another process can continue. `ended` fires once nothing more is written to the draft."""
        self._stopped = True
        self._transfer.stop()

    async def run(self) -> None:
        """Fill or follow the draft, and close it. Its content has the error, if there is one."""
        trouble: MyPyPiError | None = None
        self.standby.begin()
        try:
            if not self.draft.filling:
                await self._follow()
            if self.draft.filling:
                await self._check_backoff()
                await self._fill()
        except FetchCancelled:
            trouble = StillFetching("the file is not fetched yet, and its fetch was stopped here: try again", 1)
        except MyPyPiError as error:
            trouble = error
        except OSError as error:
            trouble = storage_error(error, "a draft could not be read")
        except Exception:
            trouble = BadUpstreamResponse("the transfer from upstream failed: see the server's log")
            raise
        finally:
            if trouble is not None:
                self.draft.content.fail(trouble)
            self.standby.end()
            self._trouble = trouble
            self.draft.close()

    def settle(self) -> None:
        """Fire `ended`, and what `Standby.stored` has returned, after `run`."""
        self.standby.settle(self._trouble)
        self.ended.callback(None)

    async def _follow(self) -> None:
        """
        Follow the draft until its file is stored, or until this process fills it.

        Raises AlreadyStored if the file was stored before this process saw the draft, the error in the draft's note,
        FetchCancelled after `stop`, and OSError.
        """
        draft, content = self.draft, self.draft.content
        metrics.JOINS.labels("host").inc()
        look_after, tried_at = _SHORTEST_LOOK, self._tools.clock.seconds()
        while not (draft.filling or draft.has_ended()):
            look_after = _SHORTEST_LOOK if draft.refresh() else min(1.5 * look_after, _LONGEST_LOOK)
            self._apply_note()
            self.standby.review()
            await deferLater(self._tools.clock, look_after)
            if self._stopped:
                raise FetchCancelled
            if self._tools.clock.seconds() - tried_at >= _TRY_LOCK:
                tried_at = self._tools.clock.seconds()
                draft.take_over()
        if draft.filling:
            self.standby.review()
            metrics.TAKE_OVERS.inc()
            self.log.info("fetch of {key} is taken over at byte {at}", key=self.file.key, at=content.length)
            return
        draft.refresh()
        self._apply_note()
        if not content.whole:  # the fetch ended before this process had opened the draft
            raise AlreadyStored("the file has just been fetched: try again")

    def _apply_note(self) -> None:
        """Finish the content if the draft's note has a digest. Raises the note's error, if it has one."""
        content, state = self.draft.content, self.draft.state
        if state.error is not None:
            raise error_from(*state.error)
        if content.begun and not state.begun:
            raise AlreadyStored("the fetch of the file was begun anew: try again")
        if state.digest and content.fd >= 0 and not content.whole:
            content.length = state.total or 0
            content.finish(Digest.parse(state.digest))

    async def _fill(self) -> None:
        """
        Transfer the file into the draft, and store it.

        The draft's note gets the result, for the processes that follow.

        Raises FetchedElsewhere, AlreadyStored, FetchCancelled, and the errors of `Transfer.run` and `IStorage.commit`.
        """
        draft, key, lease = self.draft, self.file.key, fetch_lease(self.file.key)
        metrics.FETCHES_RUNNING.inc()
        try:
            await self._take_lease(lease)
            digest = await self._transfer.run()
            end_redis_budget()  # no client waits for what follows
            await self._tools.backoff.end(self._backoff_name)
            draft.write_note(complete_state(draft, digest))
            draft.content.finish(digest)
            if not self._transfer.is_certain:
                self.log.info("{key} is not stored: nothing shows that it is complete", key=key)
                draft.drop()
                return
            if window := self._tools.storage.upload_window:  # before `commit`: the uploading worker releases the lease
                await self._tools.leases.keep_for(lease, window)
            await self._tools.storage.commit(key, draft.path, digest)
            metrics.FETCHES.labels("stored").inc()
            self.is_stored = True
            self.log.info("stored {key}, {size} bytes", key=key, size=draft.content.length)
            draft.drop()
            await self._note_check()
        except (FetchedElsewhere, AlreadyStored) as error:
            self._fail_draft(error)
            raise
        except MyPyPiError as error:
            metrics.FETCHES.labels("failed").inc()
            if draft.content.begun or type(error) is not StorageFull:  # lack of room is logged once for all files
                self.log.warn("{key} was not stored: {why}", key=key, why=error)
                error.is_logged = True
            self._fail_draft(error)
            await self._begin_backoff(error)
            await self._tools.leases.release(lease)
            raise
        except FetchCancelled:
            raise
        except Exception:
            self._fail_draft(BadUpstreamResponse("the transfer from upstream failed: see the server's log"))
            raise
        finally:
            metrics.FETCHES_RUNNING.dec()
            await self._tools.leases.release_if_held(lease)

    async def _note_check(self) -> None:
        """
        Remember upstream's validators of a file that has no digest, for the check whether it is still the same.

        In place of an ETag, metadata that was read out of a wheel has the digest of that wheel.
        """
        if self.file.digest is None:
            with suppress(CatalogDown):
                validators, wheel = self._transfer.validators, self.file.wheel
                check = FileCheck(self._tools.clock.seconds(), *(validators if wheel is None else (wheel.digest_text,)))
                await self._tools.catalog.put_file_check(self.file.key, check)

    async def _check_backoff(self) -> None:
        """Wait for the end of this file's back-off, if that is soon. Otherwise raise the failure that began it."""
        pause = await self._tools.backoff.wait_out(self._backoff_name)
        if pause is not None:
            error = error_of(pause, self._tools.clock.seconds())
            self._fail_draft(error)
            raise error

    async def _begin_backoff(self, error: MyPyPiError) -> None:
        """Remember a failure of upstream for this file, unless upstream was not asked."""
        if isinstance(error, (UpstreamPaused, UpstreamBusy)):
            return
        seconds = None
        if isinstance(error, UpstreamRefused):
            seconds = self._tools.negative_cache_time
        elif isinstance(error, UpstreamDown):
            seconds = error.told
        elif not isinstance(error, (NotFound, BadUpstreamResponse)):
            return  # the failure is our own
        await self._tools.backoff.begin(self._backoff_name, str(error), seconds=seconds, status=error.status)

    async def _take_lease(self, lease: str) -> None:
        """
        Take the file's lease; while Redis is down, go on without it.

        Also go on if a stored file is fetched again since the bucket fails: other hosts can't hand it over. Raises
        AlreadyStored if the file is stored by now, and FetchedElsewhere if another host holds the lease.
        """
        await self._check_not_stored()
        with suppress(CatalogDown):
            held = await self._tools.leases.take(lease, self._seconds_left)
            if held is not None and not (self.anew and not self._tools.storage.reaches_others):
                metrics.LEASE_WAITS.labels("file").inc()
                seconds = int(held.about) if held.about.isdigit() else math.ceil(held.left)
                raise FetchedElsewhere("another host is fetching the file: try again", seconds)
        if self._tools.storage.upload_window:  # the previous holder may have stored the file since the first check
            await self._check_not_stored()

    async def _check_not_stored(self) -> None:
        if not self.anew and await self._is_stored():
            raise AlreadyStored("the file has just been fetched: try again")

    async def _is_stored(self) -> bool:
        stored = None
        with suppress(StorageDown):
            stored = await self._tools.storage.find(self.file.key, recheck=True)
        return stored is not None and self.file.accepts(stored.digest) is True

    def _seconds_left(self) -> str:
        """Estimate the remaining time from the pace so far. In whole seconds; empty if there is no estimate."""
        content, passed = self.draft.content, self._tools.clock.seconds() - self._began
        if not content.total or not content.length or passed <= 0:
            return ""
        return str(math.ceil((content.total - content.length) * passed / content.length))

    def _fail_draft(self, error: MyPyPiError) -> None:
        """Write the error to the draft's note, and delete the draft. Processes that follow it read the note."""
        with suppress(OSError):  # on a full disk, they only see that the draft is gone
            self.draft.write_failure(error)
        self.draft.drop()
