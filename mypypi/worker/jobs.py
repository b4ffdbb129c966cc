"""What a worker does with each kind of job. Each can be done twice without harm.

Knows storage, drafts and fetches. Must never know HTTP, Redis, or who queued a job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from mypypi.errors import NotFound, StorageDown
from mypypi.model import Digest, Job, PackageFile
from mypypi.storage.bucket import UPLOAD, BucketStorage

if TYPE_CHECKING:
    from mypypi.files.drafts import Drafts
    from mypypi.files.fetch import Fetches
    from mypypi.interfaces import IStorage

FETCH = "fetch"
SWEEP = "sweep"

Handler = Callable[[Job], Awaitable[None]]


def fetch_job(file: PackageFile, disk: str) -> Job:
    """The job to take a file in; with `disk`, by a worker that sees it."""
    about = {"link": file.link, "url": file.url}
    if file.digest is not None:
        about["digest"] = str(file.digest)
    if file.size is not None:
        about["size"] = str(file.size)
    return Job(FETCH, file.key, about, disk)


def file_of(job: Job) -> PackageFile:
    """The file that a fetch job is about."""
    digest, size = job.about.get("digest"), job.about.get("size")
    return PackageFile(
        job.about["link"],
        job.about["url"],
        Digest.parse(digest) if digest else None,
        int(size) if size else None,
    )


class Jobs:
    """The kinds of jobs, by name, and what is done with each."""

    def __init__(self, storage: IStorage, fetches: Fetches, drafts: Drafts) -> None:
        self._storage = storage
        self._fetches = fetches
        self._drafts = drafts
        self.handlers: dict[str, Handler] = {UPLOAD: self._upload, FETCH: self._fetch, SWEEP: self._sweep}

    def interrupt(self) -> None:
        """End what takes long, so that somebody else can do it."""
        if isinstance(self._storage, BucketStorage):
            self._storage.stopped.set()

    async def _upload(self, job: Job) -> None:
        if isinstance(self._storage, BucketStorage):
            await self._storage.upload(job.name)

    async def _fetch(self, job: Job) -> None:
        file = file_of(job)
        stored = await self._storage.find(file.key)
        if stored is None or not stored.matches(file):
            with suppress(NotFound):  # which the log says; it may be asked for again, and need not be tried till then
                await self._fetches.fetch_and_store(file)

    async def _sweep(self, job: Job) -> None:
        try:
            self._drafts.sweep()
        except OSError as error:
            raise StorageDown(f"the drafts can't be swept: {error.strerror}") from error
        if isinstance(self._storage, BucketStorage):
            await self._storage.sweep()
            if job.about.get("records"):
                await self._storage.sweep_records()
