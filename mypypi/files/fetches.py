"""Fetches each file once for all clients of this process.

Knows which files are being fetched. Must never know how a file is fetched, or what clients get.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger

from mypypi.byte_range import ByteRange
from mypypi.coalescing import Coalescer
from mypypi.digests import Digest
from mypypi.errors import AlreadyStored, StillFetching, storage_error
from mypypi.files.fetch import Fetch
from mypypi.files.fetch_tools import FetchTools
from mypypi.model import PackageFile
from mypypi.observability import metrics
from mypypi.upstream.breaker import origin_of

if TYPE_CHECKING:
    from mypypi.files.content import Content
    from mypypi.files.drafts import Drafts

#: Share of the fetches at one origin that one client may have.
_CLIENT_SHARE = 0.75
#: Seconds for which a worker's job waits for its file. Then the job is tried again later: with few jobs at once, files
#: of a slow host would keep all others waiting.
_PATIENCE = 30.0
#: Fetches of a worker that run at once.
_MOST = 256


class Fetches:
    """The fetches that this process fills or follows: one for each file."""

    log = Logger()

    def __init__(self, tools: FetchTools, drafts: Drafts) -> None:
        self._tools = tools
        self._drafts = drafts
        #: By key and digest: if the index changes the bytes behind a URL, that is another file.
        self._running: dict[tuple[str, Digest | None], Fetch] = {}
        self._unkept: Coalescer[bytes] = Coalescer()
        #: Called with each file that was fetched and stored by this process.
        self.on_stored: Callable[[PackageFile], object] = lambda _: None

    def __len__(self) -> int:
        return len(self._running)

    async def check(self) -> None:
        """Raise StorageDown, with the reason, if drafts can't be written now."""
        try:
            await self._tools.threads.run(self._drafts.probe)
        except OSError as error:
            raise storage_error(error, "drafts can't be written") from error

    @property
    def is_short_of_room(self) -> bool:
        """Whether a file found no room, and none as large has found room since."""
        return self._drafts.room.is_short

    def join(self, file: PackageFile) -> Content | None:
        """Return the content of this file if it is being fetched, else None. The caller must close it."""
        fetch = self._running.get((file.key, file.digest))
        if fetch is None or fetch.is_stored:
            return None
        metrics.JOINS.labels("process").inc()
        return fetch.draft.content.open()

    def has(self, file: PackageFile, asked: ByteRange) -> bool:
        """Whether the bytes of this range are here already, of a file that is being fetched."""
        fetch = self._running.get((file.key, file.digest))
        if fetch is None or fetch.is_stored:
            return False
        content = fetch.draft.content
        if content.total is None:
            return False
        start, stop = asked.within(content.total)
        return start < stop <= content.readable

    def make_room(self, file: PackageFile, client: str, most: int) -> bool:
        """
        Return whether another fetch may start for this client.

        At most `most` fetches run that clients wait for. One client, or one origin, may not have more of them than are
        still free, so it gets half of all at most. One client gets three quarters of that half at one origin. As many
        fetches may go on for which no client waits. Beyond that, the ones with the fewest bytes are stopped, and begin
        again when a client asks for their files.
        """
        wanted = [fetch for fetch in self._running.values() if fetch.standby.is_wanted]
        if len(self._running) - len(wanted) > most:
            idle = [fetch for fetch in self._running.values() if not fetch.standby.is_wanted]
            for fetch in sorted(idle, key=lambda each: each.draft.content.length)[: len(idle) - most]:
                fetch.stop()
        origin = origin_of(file.url)
        of_client = sum(fetch.client == client for fetch in wanted)
        of_origin = sum(fetch.origin == origin for fetch in wanted)
        of_both = sum(fetch.client == client and fetch.origin == origin for fetch in wanted)
        return max(of_client, of_origin) < most - len(wanted) and of_both < most / 2 * _CLIENT_SHARE

    async def fetch_and_store(self, file: PackageFile) -> None:
        """
        Fetch a file and wait until it is stored, without a reader.

        Raises StillFetching after `_PATIENCE` seconds, while the fetch goes on; FetchedElsewhere, and the errors of
        `Transfer.run` and `IStorage.commit`.
        """
        if not self.make_room(file, "", _MOST):
            raise StillFetching("too many files are being fetched here")
        running = self._running.get((file.key, file.digest))
        fetch = running or self._open(file, "", anew=False)
        stored = fetch.standby.stored()
        if running is None:
            self._begin(fetch)
        with suppress(AlreadyStored):
            try:
                await stored.addTimeout(_PATIENCE, self._tools.clock)
            except DeferredTimeout:
                raise StillFetching(f"the file is still being fetched after {_PATIENCE:g} seconds") from None

    async def metadata(self, wheel: PackageFile) -> bytes:
        """Read the metadata of a wheel, and keep it nowhere. Those who ask at once share it. Raises as a fetch does."""
        wheels = self._tools.wheels
        assert wheels is not None
        return await self._unkept.run(wheel.key, lambda: wheels.read(wheel, "", self.fetch_and_store))

    def start(self, file: PackageFile, client: str = "", *, anew: bool = False) -> Content:
        """
        Start the fetch of a file for this client, and return its content.

        If another process on this host fetches the file, this process follows its draft. Call this only if `join` has
        returned None. The caller must close the content. The content ends with FetchedElsewhere if another host fetches
        the file, and with AlreadyStored if the file is stored by now. With `anew`, a stored file is fetched again.

        Raises StorageDown if no draft can be created.
        """
        fetch = self._open(file, client, anew=anew)
        content = fetch.draft.content.open()
        self._begin(fetch)
        return content

    async def stop(self) -> None:
        """
        Stop every fetch, so that other processes can continue it.

        Returns once nothing more is written to the drafts.
        """
        running = list(self._running.values())
        for fetch in running:
            fetch.stop()
        await DeferredList([fetch.ended for fetch in running])

    def _open(self, file: PackageFile, client: str, *, anew: bool) -> Fetch:
        """Open the draft of a fetch. Raises StorageDown."""
        try:
            draft = self._drafts.open(hashlib.sha256(f"{file.key}\n{file.digest}".encode()).hexdigest()[:40])
        except OSError as error:
            raise storage_error(error, "a draft could not be created") from error
        fetch = self._running[file.key, file.digest] = Fetch(
            file, draft, self._tools, client, self.fetch_and_store, anew=anew
        )
        return fetch

    def _begin(self, fetch: Fetch) -> None:
        """Run a fetch. It may end at once, with the failure that began its back-off."""
        Deferred.fromCoroutine(self._run(fetch)).addErrback(
            lambda failure: self.log.failure("a fetch failed unexpectedly", failure)
        )

    async def _run(self, fetch: Fetch) -> None:
        try:
            await fetch.run()
        finally:
            name = fetch.file.key, fetch.file.digest
            if self._running.get(name) is fetch:  # otherwise the file was stored, and is fetched again already
                del self._running[name]
            fetch.settle()
        if fetch.is_stored:
            self.on_stored(fetch.file)
