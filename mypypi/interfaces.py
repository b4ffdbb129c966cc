"""The interfaces that have more than one implementation. Must never import an implementation.

Coroutine methods are declared as plain methods that return an Awaitable, since that is all a caller relies on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from pathlib import Path

from zope.interface import Attribute, Interface

from mypypi.model import (
    ClaimedJob,
    DeadJob,
    Digest,
    HeldLease,
    Job,
    Link,
    PackageFile,
    Page,
    PageId,
    PageRequest,
    Pause,
    QueueState,
    RenderedPage,
    SourceDocument,
    StoredFile,
)


class IEcosystem(Interface):
    """Names, formats and links of one kind of package index. Pure: no I/O, no clock, no request."""

    name: str = Attribute("what MYPYPI_PACKAGE_TYPE calls it")

    scoped: bool = Attribute("whether a name may have a slash in it, after a scope that starts with @")

    def page_request(page: PageId) -> PageRequest:
        """How upstream is asked for this page."""

    def render(page: PageId, source: SourceDocument, withheld: frozenset[str]) -> RenderedPage:
        """
        Parse what upstream sent and render every form of it, with file links that point here.

        Links in `withheld` are no longer advertised, where that leaves the page whole. Takes long for large
        pages: never on the reactor thread.
        Raises BadUpstreamResponse when it can't be understood.
        """

    def listing(page: PageId, forms: Mapping[str, bytes]) -> dict[str, PackageFile]:
        """
        The files that a page lists, by link, read back from its own rendered forms (identity bytes).

        Takes long for large pages: never on the reactor thread.
        """

    def listing_form(page: PageId) -> str | None:
        """The name of the one form that `listing` reads; None for a page that lists no files."""

    def pages_for(link: str) -> tuple[PageId, ...]:
        """The pages that may list this link, likeliest first; empty for a link that no page could list."""

    def example(address: str) -> str:
        """What to type to use the server at this address (with a trailing slash), to be copied from the log."""

    def key_for(link: str) -> str | None:
        """Where the file behind a link lies in storage as far as the link alone tells."""


class IStorage(Interface):
    """Keeps whole, checked files. Knows keys, never packages."""

    passes_on: float = Attribute("seconds for which what is committed may be on its way to where other hosts find it")

    def find(key: str, *, again: bool = False) -> Awaitable[StoredFile | None]:
        """
        The file stored under this key. `again`: it was looked for a moment ago, and is only there if it came since.

        Raises StorageDown.
        """

    def commit(key: str, draft: Path, digest: Digest) -> Awaitable[StoredFile]:
        """
        Keep a finished draft, whose bytes have this digest, in place of what lay under the key before.

        Takes the file away from `draft`; whoever opened it before can go on reading. Raises StorageDown or StorageFull.
        """

    def link(stored: StoredFile) -> Awaitable[Link]:
        """Where a client gets a stored file whose bytes are not on this host's disk. Raises StorageDown."""

    def forget(key: str) -> Awaitable[None]:
        """What was thought to be stored elsewhere under this key is not. Raises StorageDown, CatalogDown."""

    def delete(key: str) -> Awaitable[None]:
        """Delete what is stored under this key; nothing happens where there is nothing."""

    def check() -> Awaitable[None]:
        """Raises StorageDown with a reason when files can't be kept now."""


class ICatalog(Interface):
    """What is known of upstream. Every method raises CatalogDown when it can't be asked."""

    def get_page(page: PageId) -> Awaitable[Page | None]:
        """The page with its forms."""

    def page_stamp(page: PageId) -> Awaitable[tuple[str, float] | None]:
        """The page's version and when upstream last confirmed it, without its forms."""

    def put_page(page: Page, indexed_links: tuple[str, ...]) -> Awaitable[None]:
        """Keep a page, and that these links, which do not tell it themselves, are listed by it."""

    def touch_page(page: PageId, version: str, checked_at: float) -> Awaitable[None]:
        """Upstream confirmed this version of the page; nothing happens where another one is kept by now."""

    def delete_page(page: PageId) -> Awaitable[None]:
        """Forget a page."""

    def page_listing(link: str) -> Awaitable[PageId | None]:
        """The page that lists this link, where `put_page` was told of it."""

    def withhold(page: PageId, link: str) -> Awaitable[None]:
        """Upstream advertises this link but does not have it: do not advertise it for a day."""

    def withheld(page: PageId) -> Awaitable[frozenset[str]]:
        """The links that are not advertised on this page for now."""

    def stored(key: str) -> Awaitable[StoredFile | None]:
        """What was noted of a file that is stored elsewhere than on a disk."""

    def put_stored(stored: StoredFile) -> Awaitable[None]:
        """Note that a file is stored, where others can see it."""

    def forget_stored(key: str) -> Awaitable[None]:
        """The file is not stored any more."""

    def stored_keys() -> AsyncIterator[str]:
        """The keys of all files that are noted as stored."""

    def link(key: str) -> Awaitable[tuple[str, float] | None]:
        """The link that clients get for a stored file now, and until when (seconds since the epoch) it holds."""

    def put_link(key: str, url: str, until: float) -> Awaitable[None]:
        """Let others hand out the same link."""

    def take_lease(name: str, owner: str, seconds: float, about: str = "") -> Awaitable[HeldLease | None]:
        """
        Hold this lease for so many seconds from now on, where nobody else does: None. Who holds it already renews it.

        Else who holds it; nothing is changed then.
        """

    def release_lease(name: str, owner: str) -> Awaitable[None]:
        """Let go of this lease; nothing happens where somebody else holds it."""

    def pause(name: str) -> Awaitable[Pause | None]:
        """Why this is not asked for, or was not until lately: known for some minutes after the pause's end."""

    def put_pause(name: str, pause: Pause) -> Awaitable[None]:
        """Let all know that this is not to be asked for."""

    def end_pause(name: str) -> Awaitable[None]:
        """It works again; nothing happens where there is no pause."""

    def check() -> Awaitable[None]:
        """Raises CatalogDown with a reason when nothing can be looked up now."""


class IQueue(Interface):
    """Where jobs wait for a worker. Every method raises CatalogDown when the queue can't be reached."""

    def put(job: Job) -> Awaitable[None]:
        """Queue a job; nothing happens where one of its kind and name is queued already."""

    def take(count: int) -> Awaitable[list[ClaimedJob]]:
        """Up to so many jobs, for this worker alone until its claim runs out; waits a little where there are none."""

    def renew(taken: ClaimedJob) -> Awaitable[None]:
        """Say that it is still being worked on."""

    def done(taken: ClaimedJob) -> Awaitable[None]:
        """It is done, for good."""

    def failed(taken: ClaimedJob, why: str) -> Awaitable[bool]:
        """It comes again after a pause; False when it failed too often and was set aside."""

    def hand_back(taken: ClaimedJob) -> Awaitable[None]:
        """Somebody else shall do it, at once; it did not fail."""

    def dead() -> Awaitable[list[DeadJob]]:
        """The jobs that were set aside, oldest first."""

    def revive(dead: DeadJob) -> Awaitable[bool]:
        """Queue a job anew that was set aside; False when it is not there any more."""

    def drop(dead: DeadJob) -> Awaitable[bool]:
        """Forget a job that was set aside; False when it is not there any more."""

    def state(*, everywhere: bool = False) -> Awaitable[QueueState]:
        """
        How much there is to do for workers that see this disk; or `everywhere`, for those of other disks as well.

        `everywhere` takes long where Redis holds much: it is for people who ask.
        """

    def check() -> Awaitable[None]:
        """Raises CatalogDown with a reason when nothing can be queued now."""
