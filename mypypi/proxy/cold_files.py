"""Answers requests for files that are not stored yet.

The rules are the table "Cold files" of the specification. Knows fetches and the queue. Must never know HTTP, or how a
stored file is found: a function passed in does that.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.byte_range import ByteRange
from mypypi.errors import (
    AlreadyStored,
    CatalogDown,
    FetchedElsewhere,
    FileTooLarge,
    StillFetching,
    StorageDown,
    UpstreamTimedOut,
)
from mypypi.model import PackageFile
from mypypi.proxy.answers import (
    FileAnswer,
    FileDescription,
    LocalContent,
    PassThrough,
    RedirectToUpstream,
)
from mypypi.redis_budget import renew_redis_budget
from mypypi.upstream.responses import FileRange
from mypypi.worker.jobs import fetch_job

if TYPE_CHECKING:
    from mypypi.files.content import Content
    from mypypi.files.fetches import Fetches
    from mypypi.job import IQueue
    from mypypi.proxy.cold_ranges import ColdRanges
    from mypypi.upstream.client import Upstream
    from mypypi.upstream.guard import AddressGuard

#: The longest Retry-After, in seconds.
_MAX_RETRY_AFTER = 60
#: Seconds between two checks whether a file is stored by now.
_POLL_INTERVAL = 0.25

FindStored = Callable[[PackageFile], Awaitable[FileAnswer | None]]


@frozen
class ColdFilePolicy:
    """
    The settings for files that are not stored yet.

    `redirect`: MYPYPI_COLD_FILES is "redirect". `strict` and `strict_wait` (seconds): MYPYPI_UPSTREAM_STRICT and
    MYPYPI_STRICT_WAIT. `most_fetches`: how many fetches may run in this process for clients that wait. `disk`: the id
    of the disk on which a worker must store the file, empty if any will do.
    """

    redirect: bool = False
    strict: bool = False
    strict_wait: float = 10
    most_fetches: int = 256
    disk: str = ""


class ColdFiles:
    """Answers requests for files that are not stored yet."""

    log = Logger()

    def __init__(
        self,
        policy: ColdFilePolicy,
        fetches: Fetches,
        queue: IQueue,
        upstream: Upstream,
        clock: Any,
        ranges: ColdRanges,
        guard: AddressGuard | None = None,
    ) -> None:
        """With a `guard`, clients are not redirected to an address that this server would not connect to."""
        self._policy = policy
        self._guard = guard
        self._ranges = ranges
        self._fetches = fetches
        self._queue = queue
        self._upstream = upstream
        self._clock = clock
        self._storage_error = ""

    async def answer(
        self, file: PackageFile, stored: FindStored, client: str = "", *, anew: bool = False, unreadable: bool = False
    ) -> FileAnswer:
        """
        Decide what this client gets for this file now.

        `stored` finds the file if it is stored by now. With `anew`, upstream has replaced the stored file. With
        `unreadable`, it is stored, but can't be read now; a worker would find that it is stored. Raises StillFetching,
        and the error of a failed fetch.
        """
        strict = self._policy.strict
        redirected = self._policy.redirect and (strict or not self._upstream.needs_credentials(file.url)) and not anew
        redirected = redirected and file.wheel is None  # upstream does not have such metadata
        if redirected and unreadable and not strict:
            return await self._redirect(file)
        if redirected and not unreadable and await self._queue_fetch(file):
            return await (self._stored_by_worker(file, stored) if strict else self._redirect(file))
        return await self._fetch(file, stored, client, anew=anew or unreadable)

    async def describe(self, file: PackageFile, client: str) -> FileDescription | None:
        """Return what a HEAD is answered with; see `ColdRanges.describe`. None for what upstream does not have."""
        return await self._ranges.describe(file, client) if file.wheel is None else None

    async def range(self, file: PackageFile, asked: ByteRange, client: str) -> FileAnswer | None:
        """
        Return what a client gets that asks for this range. None if the whole file should be fetched.

        In strict mode, that is always so. Otherwise it is so if upstream should not be asked (see `ColdRanges.read`),
        or if a fetch here has these bytes already. Raises as `ColdRanges.read` does.
        """
        if self._policy.strict or file.wheel is not None or self._fetches.has(file, asked):
            return None
        if self._policy.redirect and asked.length is not None and not self._upstream.needs_credentials(file.url):
            return await self._redirect(file)
        return await self._ranges.read(file, asked, client)

    def _note_storage_failure(self, error: StorageDown) -> None:
        """Log that files can't be stored. This is logged once, until they can be stored again."""
        if isinstance(error, FileTooLarge):  # others can be stored; the fetch has logged this one
            return
        if not self._storage_error:
            self.log.error("files can't be stored, clients get them from upstream: {why}", why=error)
        self._storage_error = str(error)

    async def _queue_fetch(self, file: PackageFile) -> bool:
        """Queue a fetch for a worker. Returns False if the queue can't be reached; the file is then fetched here."""
        try:
            await self._queue.put(fetch_job(file, self._policy.disk))
        except CatalogDown:
            return False
        return True

    async def _fetch(self, file: PackageFile, stored: FindStored, client: str, *, anew: bool) -> FileAnswer:
        """
        Return the content of the one fetch of this file.

        If another host fetches the file, return what a client gets meanwhile.
        """
        until = self._clock.seconds() + self._policy.strict_wait
        while True:
            try:
                return await self._fetch_here(file, until, client, anew=anew)
            except (AlreadyStored, FetchedElsewhere) as error:  # noqa: PERF203 - an iteration takes 0.25 s
                found = await stored(file)
                if found is not None:
                    return found
                if isinstance(error, AlreadyStored):
                    anew = True  # the file is stored, but can't be read from the storage
                elif not self._policy.strict and (file.wheel is None or self._clock.seconds() >= until):
                    return await self._bypass(file)
                elif self._clock.seconds() >= until:
                    raise _still_fetching(error.retry_after or _MAX_RETRY_AFTER) from None
                else:
                    await deferLater(self._clock, _POLL_INTERVAL)
                    renew_redis_budget()

    async def _fetch_here(self, file: PackageFile, until: float, client: str, *, anew: bool) -> FileAnswer:
        """Join the fetch of this file on this host, or start it."""
        try:
            content = self._fetches.join(file) or self._start(file, client, anew=anew)
        except StorageDown as error:
            self._note_storage_failure(error)
            return await self._bypass(file)
        if content is None:
            return await self._bypass(file)
        try:
            if self._policy.strict:
                await self._wait_until_checked(content, until)
            else:
                await self._wait_until_readable(content)
            if content.error is not None:
                raise content.error
        except StorageDown as error:
            content.close()
            self._note_storage_failure(error)
            return await self._bypass(file)
        except BaseException:
            content.close()
            raise
        self._note_storage_recovery()
        return LocalContent(content, content.digest or file.only_digest, hit=False, immutable=file.digest is not None)

    def _start(self, file: PackageFile, client: str, *, anew: bool) -> Content | None:
        """Start a fetch and return its content. Returns None if too many run, or too many of this client or origin."""
        if not self._fetches.make_room(file, client, self._policy.most_fetches):
            return None
        return self._fetches.start(file, client, anew=anew)

    async def _bypass(self, file: PackageFile) -> FileAnswer:
        """
        Answer a client if this server does not fetch the file.

        The client is redirected to upstream, or gets the bytes passed through if upstream needs credentials. In strict
        mode it gets neither, since the bytes would not be checked. Metadata that upstream does not have is read out of
        the wheel once more, and not stored.
        """
        if self._policy.strict:
            raise StorageDown(
                "the file can't be fetched and checked now: the storage fails or too many fetches run; try again later"
            )
        if file.wheel is not None:
            metadata = await self._fetches.metadata(file.wheel)
            return FileRange(0, len(metadata), metadata)
        if self._upstream.needs_credentials(file.url):
            return PassThrough(file)
        return await self._redirect(file)

    async def _redirect(self, file: PackageFile) -> FileAnswer:
        """
        Redirect a client to upstream. Raises BadUpstreamResponse if the guard refuses the address.

        A page could else lead clients to services of their own network.
        """
        url = self._upstream.first_url(file.url)
        if self._guard is not None:
            await self._guard.check(url)
        return RedirectToUpstream(url)

    async def _wait_until_readable(self, content: Content) -> None:
        """
        Wait until there is something to answer with.

        Raises UpstreamTimedOut if upstream does not answer within its time-out. The request goes on, and the next
        client joins it.
        """
        seconds = self._upstream.timeout
        until = self._clock.seconds() + seconds
        await content.wait_until(lambda: content.ended or content.may_be_read or content.late)
        left = max(0.0, until - self._clock.seconds()) if content.late else None
        waiting = content.wait_until(lambda: content.ended or content.may_be_read)
        try:
            await (waiting if left is None else waiting.addTimeout(left, self._clock))
        except DeferredTimeout:
            raise UpstreamTimedOut(f"upstream has not answered within {seconds:g} seconds: try again") from None

    async def _wait_until_checked(self, content: Content, until: float) -> None:
        """Wait until the file is complete and checked (strict mode). Raises StillFetching after `until`."""
        began, length = self._clock.seconds(), content.length
        try:
            await content.wait_until(lambda: content.ended).addTimeout(max(0.0, until - began), self._clock)
        except DeferredTimeout:
            rate = (content.length - length) / max(1e-3, self._clock.seconds() - began)
            left = (content.total or 0) - content.length
            raise _still_fetching(math.ceil(left / rate) if rate > 0 and left > 0 else _MAX_RETRY_AFTER) from None

    async def _stored_by_worker(self, file: PackageFile, stored: FindStored) -> FileAnswer:
        """Wait until a worker has stored the file (strict mode). Raises StillFetching after `strict_wait`."""
        until = self._clock.seconds() + self._policy.strict_wait
        while (found := await stored(file)) is None:
            if self._clock.seconds() >= until:
                raise _still_fetching(math.ceil(self._policy.strict_wait))
            await deferLater(self._clock, _POLL_INTERVAL)
            renew_redis_budget()
        return found

    def _note_storage_recovery(self) -> None:
        if self._storage_error and not self._fetches.is_short_of_room:
            self._storage_error = ""
            self.log.info("files can be stored again")


def _still_fetching(seconds: int) -> StillFetching:
    """The error for a file that is not complete yet. The client retries after `seconds`, within bounds."""
    return StillFetching(
        "the file is still being fetched and checked: try again", max(1, min(seconds, _MAX_RETRY_AFTER))
    )
