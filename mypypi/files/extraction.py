"""Fills a draft with the metadata of a wheel, in place of a transfer from upstream.

Knows drafts, and `WheelMetadata`. Must never know where the bytes of the wheel are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred

from mypypi.digests import Digest
from mypypi.errors import storage_error
from mypypi.files.drafts import State
from mypypi.files.resuming import FetchCancelled
from mypypi.model import PackageFile

if TYPE_CHECKING:
    from mypypi.files.drafts import Draft
    from mypypi.files.wheel_metadata import FetchWhole, WheelMetadata
    from mypypi.threads import Threads


class Extraction:
    """Fills a draft with the metadata of a wheel. It has the interface of `Transfer`."""

    #: There are no validators of upstream's, and nothing is missing.
    validators = ("", "")
    is_certain = True

    def __init__(
        self,
        wheel: PackageFile,
        draft: Draft,
        wheels: WheelMetadata,
        threads: Threads,
        fetch_whole: FetchWhole,
        client: str,
    ) -> None:
        self._wheel = wheel
        self._draft = draft
        self._wheels = wheels
        self._threads = threads
        self._fetch_whole = fetch_whole
        self._client = client
        self._stopped = False
        self._step: Deferred[bytes] | None = None

    async def run(self) -> Digest:
        """
        Fill the draft, and return the digest of its bytes.

        Raises what `WheelMetadata.read` raises, StorageDown, and FetchCancelled after `stop`.
        """
        if self._stopped:
            raise FetchCancelled
        self._step = Deferred.fromCoroutine(self._wheels.read(self._wheel, self._client, self._fetch_whole))
        try:
            metadata = await self._step
        except CancelledError:
            raise FetchCancelled from None
        try:
            if self._draft.content.length or self._draft.state != State():
                self._draft.empty()
            await self._threads.run(self._draft.write, metadata, 0)
        except OSError as error:
            raise storage_error(error, "a draft could not be written") from error
        self._draft.content.grow(len(metadata))
        hasher = Digest("sha256", "").hasher()
        hasher.update(metadata)
        return Digest("sha256", hasher.hexdigest())

    def stop(self) -> None:
        """Stop soon. Once `run` has failed, nothing more is written to the draft."""
        self._stopped = True
        if self._step is not None and not self._step.called:
            self._step.cancel()
