"""What a client gets while a file is not stored yet: the table "Cold files" of the specification.

Knows fetches and the queue. Must never know HTTP, or how a file is found once it is stored: it is told by a function.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import TimeoutError as WaitedTooLong
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.errors import AlreadyStored, CatalogDown, FetchedElsewhere, StillFetching, StorageDown
from mypypi.model import PackageFile
from mypypi.proxy.answers import FileAnswer, LocalContent, PassThrough, RedirectToUpstream
from mypypi.worker.jobs import fetch_job

if TYPE_CHECKING:
    from mypypi.files.content import Content
    from mypypi.files.fetch import Fetches
    from mypypi.interfaces import IQueue
    from mypypi.upstream.client import Upstream

_LONGEST_WAIT = 60
#: Seconds between two looks whether a worker has stored a file by now.
_LOOK_AGAIN = 0.25

Stored = Callable[[PackageFile], Awaitable[FileAnswer | None]]


@frozen
class ColdFilePolicy:
    """MYPYPI_COLD_FILES, MYPYPI_UPSTREAM_STRICT and its wait; how many fetches may run here; and the id of the disk
    on which a worker must keep what it fetches, empty where any will do."""

    redirect: bool = False
    strict: bool = False
    strict_wait: float = 10
    most_fetches: int = 256
    disk: str = ""


class ColdFiles:
    """Answers for files that are not stored."""

    log = Logger()

    def __init__(self, policy: ColdFilePolicy, fetches: Fetches, queue: IQueue, upstream: Upstream, clock: Any) -> None:
        self._policy = policy
        self._fetches = fetches
        self._queue = queue
        self._upstream = upstream
        self._clock = clock
        self._trouble = ""

    async def answer(self, file: PackageFile, stored: Stored) -> FileAnswer:
        """
        What a client gets for this file now; `stored` looks whether it is stored by now.

        Raises StillFetching, and what ends a fetch.
        """
        strict = self._policy.strict
        by_worker = self._policy.redirect and (strict or not self._upstream.needs_credentials(file.url))
        if by_worker and await self._queued(file):
            return await self._stored_by_worker(file, stored) if strict else RedirectToUpstream(file.url)
        return await self._fetched(file, stored)

    def in_trouble(self, why: str) -> None:
        """Files can't be kept here: said once, until they can again."""
        if not self._trouble:
            self.log.error("files can't be kept here, clients get them from upstream: {why}", why=why)
        self._trouble = why

    async def _queued(self, file: PackageFile) -> bool:
        """Leave the file to a worker; False where the queue can't be reached, and it is fetched here."""
        try:
            await self._queue.put(fetch_job(file, self._policy.disk))
        except CatalogDown:
            return False
        return True

    async def _fetched(self, file: PackageFile, stored: Stored) -> FileAnswer:
        """The content of the one fetch of this file; where that is another host's, what a client gets without it."""
        until, anew = self._clock.seconds() + self._policy.strict_wait, False
        while True:
            try:
                return await self._fetched_here(file, until, anew=anew)
            except (AlreadyStored, FetchedElsewhere) as error:  # noqa: PERF203 - a turn takes a quarter of a second
                found = await stored(file)
                if found is not None:
                    return found
                if isinstance(error, AlreadyStored):
                    anew = True  # it is in the storage, and can't be had from there
                elif not self._policy.strict:
                    return self._without_us(file)
                elif self._clock.seconds() >= until:
                    raise _not_yet(error.retry_after or _LONGEST_WAIT) from None
                else:
                    await deferLater(self._clock, _LOOK_AGAIN)

    async def _fetched_here(self, file: PackageFile, until: float, *, anew: bool) -> FileAnswer:
        """The content of the fetch of this file, which is running on this host or begins."""
        try:
            content = self._fetches.join(file) or self._start(file, anew=anew)
        except StorageDown as error:
            self.in_trouble(str(error))
            return self._without_us(file)
        self._out_of_trouble()
        if content is None:
            return self._without_us(file)
        try:
            if self._policy.strict:
                await self._whole(content, until)
            else:
                await content.when(lambda: content.begun or content.ended)
            if content.error is not None:
                raise content.error
        except StorageDown as error:
            content.close()
            self.in_trouble(str(error))
            return self._without_us(file)
        except BaseException:
            content.close()
            raise
        return LocalContent(content, file.digest or content.digest, hit=False)

    def _start(self, file: PackageFile, *, anew: bool) -> Content | None:
        """The content of a new fetch; None when there are too many already."""
        if len(self._fetches) >= self._policy.most_fetches:
            return None
        return self._fetches.start(file, anew=anew)

    def _without_us(self, file: PackageFile) -> FileAnswer:
        """We can't take the file in: the client goes to upstream, or gets the bytes passed through if it may not."""
        if self._policy.strict:
            raise StorageDown("the file can't be taken in and checked now: try again later")
        if self._upstream.needs_credentials(file.url):
            return PassThrough(file)
        return RedirectToUpstream(file.url)

    async def _whole(self, content: Content, until: float) -> None:
        """Strict: wait for the file to be whole and checked, but not for long."""
        began, length = self._clock.seconds(), content.length
        try:
            await content.when(lambda: content.ended).addTimeout(max(0.0, until - began), self._clock)
        except WaitedTooLong:
            rate = (content.length - length) / max(1e-3, self._clock.seconds() - began)
            left = (content.total or 0) - content.length
            raise _not_yet(math.ceil(left / rate) if rate > 0 and left > 0 else _LONGEST_WAIT) from None

    async def _stored_by_worker(self, file: PackageFile, stored: Stored) -> FileAnswer:
        """Strict, and a worker fetches: look until it is stored, but not for long."""
        until = self._clock.seconds() + self._policy.strict_wait
        while (found := await stored(file)) is None:
            if self._clock.seconds() >= until:
                raise _not_yet(math.ceil(self._policy.strict_wait))
            await deferLater(self._clock, _LOOK_AGAIN)
        return found

    def _out_of_trouble(self) -> None:
        if self._trouble:
            self._trouble = ""
            self.log.info("files can be kept here again")


def _not_yet(seconds: int) -> StillFetching:
    """The client is to come back after so many seconds, within bounds."""
    return StillFetching("the file is still being fetched and checked: try again", max(1, min(seconds, _LONGEST_WAIT)))
