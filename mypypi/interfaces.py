"""The interfaces that have more than one implementation.

A coroutine method is declared as a plain method that returns an Awaitable, since callers only await its result. Knows
the values of `mypypi.model`. Must never import an implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Container, Mapping
from pathlib import Path

from zope.interface import Attribute, Interface

from mypypi.coordination import HeldLease, Pause
from mypypi.digests import Digest
from mypypi.errors import NotFound, StorageDown
from mypypi.model import (
    FileCheck,
    Link,
    PackageFile,
    Page,
    PageId,
    PageRequest,
    PageRules,
    Part,
    RenderedPage,
    SourceDocument,
    Span,
    StoredFile,
)


class IEcosystem(Interface):
    """
    Converts the pages, names and links of one kind of package index.

    All methods are pure: no I/O, no clock, no request.
    """

    name: str = Attribute("its value of MYPYPI_PACKAGE_TYPE")

    scoped: bool = Attribute("whether a package's name may contain a slash, after a scope that starts with @")

    def page_request(page: PageId) -> PageRequest:
        """
        Return the upstream request for this page.

        Raises BadRequest if a part of `page` would make it a request for another page; ValueError for an unknown kind.
        """

    def render(page: PageId, source: SourceDocument, rules: PageRules) -> RenderedPage:
        """
        Parse upstream's page and render every form of it, except those that are `made_from` another one.

        Links to files in the forms point to this server. The forms keep to the rules, except that a withheld link stays
        if the page would be incomplete without it. Slow for large pages: never call it on the reactor thread.

        Raises BadUpstreamResponse if the page can't be parsed.
        """

    def listing(page: PageId, forms: Mapping[str, bytes]) -> dict[str, PackageFile]:
        """
        Read the files that a page lists from its rendered forms.

        `forms` maps the name from `listing_form` to that form's identity bytes. The result maps each link (see
        `PackageFile.link`) to its file. Slow for large pages: never call it on the reactor thread.

        Raises BadUpstreamResponse if the form can't be read.
        """

    def listing_form(page: PageId, forms: Container[str]) -> str | None:
        """Name the form that `listing` reads, of a page with these forms; None if the page lists no files."""

    def made_from(name: str) -> tuple[str, Part] | None:
        """
        Return the form that a form with this name is made from when a client asks for it, and which part of it that is.

        None if it is made with the page.
        """

    def pages_for(link: str) -> tuple[PageId, ...]:
        """
        Return the pages that may list this link, most likely first.

        Empty if the link alone does not tell: only the catalog may know its page then (see `ICatalog.page_listing`).
        """

    def part(part: Part, body: bytes) -> bytes:
        """
        Cut a part out of a page's form, given its identity bytes.

        Slow for large pages: never call it on the reactor thread. Raises NotFound if the page has no such part, and
        BadUpstreamResponse if the form can't be read.
        """

    def parts(page: PageId, name: str, body: bytes) -> dict[Part, Span] | None:
        """
        Return all parts of a page's form with this name, and where each lies in these identity bytes.

        None if this form does not tell which parts there are. `part` makes those that lie at `UNKNOWN_SPAN`. Slow for
        large pages: never call it on the reactor thread.
        """

    def listed_on(page: PageId) -> tuple[PageId, Part] | None:
        """
        Return the page that lists everything of the kind of this page, and the part of it that stands for this page.

        If that page has parts, and not this one, upstream does not have this page. None if no page tells.
        """

    def example(address: str) -> str:
        """Return an example of a client command, for the log. `address` is the server's, with a trailing slash."""

    def key_for(link: str) -> str | None:
        """
        Derive a file's storage key from its link alone.

        None if the link does not determine a key. The file's page may state another key; then that one is right.
        """


class IStorage(Interface):
    """Stores complete, verified files by key. Must never know packages."""

    upload_window: float = Attribute("seconds that a committed file may need to reach other hosts")

    reaches_others: bool = Attribute("whether other hosts can read a committed file now, or after `upload_window`")

    def find(key: str, *, recheck: bool = False) -> Awaitable[StoredFile | None]:
        """
        Return the file stored under this key, or None.

        `recheck` means that the caller looked a moment ago without success. The storage may then skip slow look-ups
        that find older files only. Raises StorageDown.
        """

    def commit(key: str, draft: Path, digest: Digest) -> Awaitable[StoredFile]:
        """
        Store a finished draft under this key.

        `digest` is that of the draft's bytes. A file that was stored under the key before is replaced. The file at
        `draft` is moved away; processes that have it open can read on. Raises StorageDown or StorageFull.
        """

    def digest_of(stored: StoredFile, algorithm: str) -> Awaitable[Digest | None]:
        """
        Hash a stored file by this algorithm, one of `mypypi.digests.ALGORITHMS`.

        None if its bytes are not on this host's disk, or not there any more. Raises StorageDown.
        """

    def link(stored: StoredFile) -> Awaitable[Link]:
        """
        Return a URL from which clients get a stored file.

        Only for a file that is not on this host's disk (its `path` is None). Raises StorageDown, also while files can't
        be read from there, and NotFound if the file turns out to be missing: its record is deleted.
        """

    def note_read(stored: StoredFile, since: float, error: NotFound | StorageDown | None) -> Awaitable[bool]:
        """
        Report how a read of a stored file by its link began, and return whether the file may still be there.

        `since` is when the read began. `error` is None once a byte has come. After NotFound the file is missing; after
        StorageRefused it may be. The record of a missing file is deleted. Raises CatalogDown.
        """

    def delete(key: str) -> Awaitable[None]:
        """Delete the file stored under this key, if there is one. Raises StorageDown or CatalogDown."""

    def check() -> Awaitable[None]:
        """Raise StorageDown, with the reason, if files can't be stored now."""


class ICatalog(Interface):
    """
    The state that all processes share: pages, stored files and their URLs, leases and back-offs.

    Every method raises CatalogDown if the catalog can't be reached.
    """

    def get_page(page: PageId) -> Awaitable[Page | None]:
        """Return the page with its forms, or None if it is unknown."""

    def page_stamp(page: PageId) -> Awaitable[tuple[str, float] | None]:
        """
        Return the page's `version` and `checked_at`, or None if it is unknown.

        See `Page` for both. Unlike `get_page`, this reads no forms.
        """

    def put_page(page: Page, indexed_links: tuple[str, ...] | None) -> Awaitable[None]:
        """
        Store a page, and replace its previous version as a whole.

        `indexed_links` are the links that `page_listing` must find afterwards (see `RenderedPage`). Those of its
        previous version are forgotten: a link that no page lists is not fetched anyway. None leaves them as they are.
        """

    def touch_page(page: PageId, version: str, checked_at: float) -> Awaitable[None]:
        """
        Record that upstream has confirmed this version.

        `checked_at` is in seconds since the epoch. Does nothing if another version is stored by now.
        """

    def delete_page(page: PageId) -> Awaitable[None]:
        """Delete a page, if it is known."""

    def page_listing(link: str) -> Awaitable[PageId | None]:
        """Return the page that lists this link; None unless `put_page` has indexed the link."""

    def withhold(page: PageId, link: str) -> Awaitable[None]:
        """Withhold a link from a page for a day. For a link that upstream lists without having the file."""

    def withheld(page: PageId) -> Awaitable[frozenset[str]]:
        """Return the links that this page must not advertise now."""

    def offer(page: PageId, link: str) -> Awaitable[None]:
        """Note for a month that the metadata of this wheel, which the page lists without any, is stored."""

    def offered(page: PageId) -> Awaitable[frozenset[str]]:
        """Return the links of such wheels of a page."""

    def stored(key: str) -> Awaitable[StoredFile | None]:
        """Return the record of a file in remote storage, or None. The file's `path` is None."""

    def put_stored(stored: StoredFile) -> Awaitable[None]:
        """Record that a file is in remote storage."""

    def forget_stored(key: str) -> Awaitable[None]:
        """Delete the record of a file in remote storage, and its link."""

    def stored_keys() -> AsyncIterator[str]:
        """Iterate over the keys of all recorded files."""

    def file_check(key: str) -> Awaitable[FileCheck | None]:
        """Return when upstream last confirmed a stored file that has no digest in any page; None if unknown."""

    def put_file_check(key: str, check: FileCheck) -> Awaitable[None]:
        """Record that upstream has confirmed a stored file."""

    def key_of_link(link: str) -> Awaitable[str | None]:
        """Return the key of a file, as recorded by `put_key_of_link`; None if unknown."""

    def put_key_of_link(link: str, key: str) -> Awaitable[None]:
        """
        Record the key of a file whose link does not determine it (see `IEcosystem.key_for`).

        So the file is found when no page lists it any more.
        """

    def link(key: str) -> Awaitable[tuple[str, float] | None]:
        """
        Return a stored file's current URL for clients, or None.

        Comes with the time when the URL expires (seconds since the epoch).
        """

    def put_link(key: str, url: str, until: float) -> Awaitable[None]:
        """Share a stored file's URL with all processes. It expires at `until` (seconds since the epoch)."""

    def take_lease(name: str, owner: str, seconds: float, about: str = "") -> Awaitable[HeldLease | None]:
        """
        Take or renew a lease for this many seconds.

        Returns None if `owner` holds the lease now. If another owner holds it, nothing changes, and the result
        describes that owner's lease. `about` is a text for other processes; each renewal replaces it.
        """

    def release_lease(name: str, owner: str) -> Awaitable[None]:
        """Release this owner's lease. Does nothing if another owner holds it."""

    def answers_ranges(origin: str) -> Awaitable[bool | None]:
        """Return whether an origin (see `origin_in`) answers ranges of files; None if that is unknown."""

    def put_answers_ranges(origin: str, answers: bool) -> Awaitable[None]:  # noqa: FBT001 - it is the value
        """Record whether an origin answers ranges: for a week, or for an hour if it does not."""

    def pause(name: str) -> Awaitable[Pause | None]:
        """
        Return the last back-off of this name, or None.

        It may have ended: it is kept for some minutes after its end, so that the next one can be longer.
        """

    def put_pause(name: str, pause: Pause) -> Awaitable[None]:
        """Share a back-off with all processes, and replace any earlier one of this name."""

    def end_pause(name: str) -> Awaitable[None]:
        """End a back-off, if there is one."""

    def check() -> Awaitable[None]:
        """Raise CatalogDown, with the reason, if the catalog can't be used now."""
