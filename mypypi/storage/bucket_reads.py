"""Asks the bucket for objects, behind a breaker, and tells a missing object from a bucket that fails.

Knows the bucket, and how long clients wait for it. Must never know the catalog, the queue, or what clients get instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from twisted.internet.defer import TimeoutError as WaitedTooLong

from mypypi.coalescing import Coalescer
from mypypi.errors import NotFound, StorageDown, StorageRefused
from mypypi.storage.bucket_breaker import BucketBreaker

if TYPE_CHECKING:
    from mypypi.model import StoredFile
    from mypypi.storage.s3 import S3Bucket
    from mypypi.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that a client or a health check waits for the bucket's answer. After that, a file is fetched from upstream,
#: and pip stops waiting after 15 seconds in all.
ANSWER_TIMEOUT = 3


class BucketReads:
    """
    The reads of one process from `bucket`, with one breaker. While it is open, there are none, except for a trial.

    With `proxied`, clients read through this server, and `note` reports whether that worked. Otherwise they are sent to
    the bucket, which is asked first unless it has just answered. `recovered` is called when a failure has ended.
    """

    def __init__(
        self, bucket: S3Bucket, threads: Threads, clock: Any, recovered: Callable[[], object], *, proxied: bool
    ) -> None:
        self._bucket = bucket
        self._recovered = recovered
        self._threads = threads
        self._clock = clock
        self._proxied = proxied
        self._breaker = BucketBreaker(clock)
        #: One question for all clients: the key that was asked for, and whether it is there.
        self._questions: Coalescer[tuple[str, bool]] = Coalescer()
        #: The last object that could be read tells a missing object from a bucket that refuses everything. The last one
        #: that could not be read tells whether the failure is over.
        self._readable = self._unreadable = ""

    @property
    def are_failing(self) -> bool:
        """Whether the bucket can't be read now."""
        return bool(self._breaker.why)

    async def try_again(self) -> None:
        """
        Ask for an object again if the bucket fails and a trial is due. Call this regularly.

        The breaker closes although no client reads a file, and mostly without one that waits for a trial.
        """
        if self._breaker.why and self._breaker.admit():
            await self._ask_again()

    async def look_up(self, key: str) -> StoredFile | None:
        """
        Look for an object of which no record says that it is there. None while the bucket fails.

        One that is refused (403) counts as missing: S3 answers so for every missing object to an account that may not
        list the bucket.
        """
        if not self._breaker.admit():
            return None
        since = self._clock.seconds()
        try:
            found = await self._with_timeout(self._bucket.head, key)
        except StorageRefused:
            return None
        except StorageDown as error:
            self._failed(key, str(error), since)
            return None
        self._answered(key if found is not None else "")
        return found

    async def is_readable(self, key: str) -> bool:
        """
        Whether a client may read this object now. False if it is missing.

        Concurrent callers share one question: its answer shows that the bucket works, for all of them. Raises
        StorageDown while it fails.
        """
        if self._breaker.is_confirmed:
            return True
        if not self._breaker.admit():
            raise _unreadable(self._breaker.why)
        if self._proxied:  # the read itself shows it
            return True
        asked, is_there = await self._questions.run("", lambda: self._ask(key))
        return is_there or asked != key

    async def link(self, key: str) -> str:
        """Return a URL from which any client gets the object. Raises StorageDown."""
        since = self._clock.seconds()
        try:
            return await self._with_timeout(self._bucket.link, key)
        except StorageDown as error:  # there are no credentials, for instance
            self._failed(key, str(error), since)
            raise _unreadable(str(error)) from error

    async def note(self, key: str, since: float, error: NotFound | StorageDown | None) -> bool:
        """
        Report how a read through this server began, and return whether the object may still be there.

        See `IStorage.note_read`.
        """
        if error is None:
            self._answered(key)
            return True
        if isinstance(error, NotFound):
            self._answered("")
            return False
        if isinstance(error, StorageRefused) and await self._is_refused_alone(key):
            return False
        self._failed(key, str(error), since)
        return True

    async def check(self) -> None:
        """Raise StorageDown, with the reason, if the bucket does not answer or objects can't be read now."""
        await self._with_timeout(self._bucket.check)
        if self._breaker.why:
            await self._ask_again()
        if self._breaker.why:
            raise StorageDown(f"stored files can't be read, clients get them from upstream: {self._breaker.why}")

    async def _ask_again(self) -> None:
        with suppress(StorageDown):
            await self._ask(self._unreadable)

    async def _ask(self, key: str) -> tuple[str, bool]:
        """Ask whether a recorded object is there, and return its key with the answer. Raises StorageDown."""
        since = self._clock.seconds()
        try:
            is_there = await self._with_timeout(self._bucket.has, key)
        except StorageDown as error:
            if isinstance(error, StorageRefused) and await self._is_refused_alone(key):
                return key, False
            self._failed(key, str(error), since)
            raise _unreadable(str(error)) from error
        self._answered(key if is_there else "")
        return key, is_there

    async def _is_refused_alone(self, key: str) -> bool:
        """
        Whether the bucket refuses this object (403), but not the one that was read last.

        Then this one is missing or forbidden. Otherwise the bucket may refuse all of them, for instance because a key
        has expired, and no record may be deleted.
        """
        other = self._readable
        if other in ("", key):
            return False
        with suppress(StorageDown):
            if await self._with_timeout(self._bucket.has, other):
                self._answered(other)
                return True
        return False

    def _answered(self, key: str) -> None:
        """Tell the breaker that the bucket has answered. `key` is the object that it has, empty if it has none."""
        self._readable = key or self._readable
        if self._breaker.succeeded():
            self._recovered()

    def _failed(self, key: str, why: str, since: float) -> None:
        self._unreadable = key
        self._breaker.failed(why, since)

    async def _with_timeout(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Run a function of the bucket in a thread, for `ANSWER_TIMEOUT` seconds at most.

        After that, the thread continues until S3's own time limits.
        """
        try:
            return await self._threads.run(function, *args, **kwargs).addTimeout(ANSWER_TIMEOUT, self._clock)
        except WaitedTooLong:
            raise StorageDown(f"S3 did not answer within {ANSWER_TIMEOUT} s") from None


def _unreadable(why: str) -> StorageDown:
    return StorageDown(f"the stored file can't be read: {why}")
