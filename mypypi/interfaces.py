"""The interfaces that have more than one implementation. Must never import an implementation.

Coroutine methods are declared as plain methods that return an Awaitable, since that is all a caller relies on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from pathlib import Path

from zope.interface import Attribute, Interface

from mypypi.model import Digest, PackageFile, Page, PageId, PageRequest, Pressed, Source, StoredFile


class IEcosystem(Interface):
    """Names, formats and links of one kind of package index. Pure: no I/O, no clock, no request."""

    name: str = Attribute("what MYPYPI_PACKAGE_TYPE calls it")

    scoped: bool = Attribute("whether a name may have a slash in it, after a scope that starts with @")

    def page_request(page: PageId) -> PageRequest:
        """How upstream is asked for this page."""

    def press(page: PageId, source: Source, withheld: frozenset[str]) -> Pressed:
        """
        Parse what upstream sent and render every form of it, with file links that point here.

        Links in `withheld` are no longer advertised, where that leaves the page whole. Takes long for large
        pages: never on the reactor thread.
        Raises UpstreamBroken when it can't be understood.
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

    def find(key: str) -> Awaitable[StoredFile | None]:
        """The file stored under this key. Raises StorageDown."""

    def commit(key: str, draft: Path, digest: Digest) -> Awaitable[StoredFile]:
        """
        Keep a finished draft, whose bytes have this digest, in place of what lay under the key before.

        Takes the file away from `draft`; whoever opened it before can go on reading. Raises StorageDown or StorageFull.
        """

    def delete(key: str) -> Awaitable[None]:
        """Forget what is stored under this key; nothing happens where there is nothing."""

    def check() -> Awaitable[None]:
        """Raises StorageDown with a reason when files can't be kept now."""


class ICatalog(Interface):
    """What is known of upstream. Every method raises CatalogDown when it can't be asked."""

    def get_page(page: PageId) -> Awaitable[Page | None]:
        """The page with its forms."""

    def page_stamp(page: PageId) -> Awaitable[tuple[str, float] | None]:
        """The page's version and when upstream last confirmed it, without its forms."""

    def put_page(page: Page, strays: tuple[str, ...]) -> Awaitable[None]:
        """Keep a page, and that these links, which do not tell it themselves, are listed by it."""

    def touch_page(page: PageId, version: str, checked_at: float) -> Awaitable[None]:
        """Upstream confirmed this version of the page; nothing happens where another one is kept by now."""

    def delete_page(page: PageId) -> Awaitable[None]:
        """Forget a page."""

    def stray(link: str) -> Awaitable[PageId | None]:
        """The page that lists this link, where `put_page` was told of it."""

    def withhold(page: PageId, link: str) -> Awaitable[None]:
        """Upstream advertises this link but does not have it: do not advertise it for a day."""

    def withheld(page: PageId) -> Awaitable[frozenset[str]]:
        """The links that are not advertised on this page for now."""

    def check() -> Awaitable[None]:
        """Raises CatalogDown with a reason when nothing can be looked up now."""
