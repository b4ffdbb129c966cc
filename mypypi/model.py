"""The domain's values, all frozen: package files, pages, leases, pauses.

Knows the syntax of URLs. Must never know I/O, Twisted, or any one ecosystem's formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import Factory, field, frozen

from mypypi.digests import Digest
from mypypi.file_keys import key_of

#: Placeholder in rendered pages for this server's own address, which is known only when a request arrives. A host below
#: the top-level domain ``invalid`` can't exist (RFC 2606, section 2).
BASE_PLACEHOLDER = b"http://base.mypypi.invalid"


@frozen
class PackageFile:
    """
    A file that a page lists: a wheel, sdist, tarball or ``.metadata`` file.

    `link` names the file in this server's own pages (decoded, without the route's prefix). `url` is its absolute
    upstream URL, exactly as listed. `digest` and `size` (bytes) are None if the page gives none; `size` proves nothing.
    `key` is its place in the storage. `also` are other digests of the same algorithm, any of which the file may have
    (Subresource Integrity, section 3.5). Metadata that upstream does not have by itself is read out of its `wheel`.
    """

    link: str
    url: str
    digest: Digest | None = None
    size: int | None = None
    key: str = Factory(lambda file: key_of(file.url), takes_self=True)
    also: tuple[Digest, ...] = ()
    wheel: PackageFile | None = None

    @classmethod
    def of(cls, link: str, url: str, digests: str, size: int | None = None, key: str = "") -> PackageFile:
        """Return the file with these digests, as `digest_text` has them. Raises ValueError."""
        parsed = [Digest.parse(text) for text in digests.split()]
        return cls(link, url, parsed[0] if parsed else None, size, key or key_of(url), tuple(parsed[1:]))

    @property
    def digests(self) -> tuple[Digest, ...]:
        """All digests that the page gives."""
        return () if self.digest is None else (self.digest, *self.also)

    @property
    def digest_text(self) -> str:
        """All digests as one text, for `of`."""
        return " ".join(map(str, self.digests))

    @property
    def only_digest(self) -> Digest | None:
        """The digest that the file must have; None if the page gives none, or several."""
        return None if self.also else self.digest

    @property
    def is_metadata(self) -> bool:
        """Whether it is the metadata of a wheel (PEP 658), which clients read to resolve dependencies."""
        return self.link.endswith(".metadata")

    @property
    def keys(self) -> tuple[str, ...]:
        """Its key, and the one under which version 0.1 stored it, if that was another."""
        with suppress(ValueError):
            old = key_of(self.url)
            if old != self.key:
                return (self.key, old)
        return (self.key,)

    def accepts(self, digest: Digest) -> bool | None:
        """
        Whether a file with this digest is the listed one. Without a listed digest, it is.

        None if the digest is of another algorithm, so that only the file's bytes can tell.
        """
        if self.digest is None:
            return True
        return digest in self.digests if digest.algorithm == self.digest.algorithm else None


@frozen
class StoredFile:
    """A complete, verified file in storage. `path` is None if its bytes are not on this host's disk."""

    key: str
    size: int
    digest: Digest
    path: Path | None = None


@frozen
class FileCheck:
    """
    When upstream last confirmed a stored file whose page gives no digest: `at` (seconds since the epoch).

    `etag` and `modified` are upstream's validators, empty if it sent none.
    """

    at: float
    etag: str = ""
    modified: str = ""


@frozen
class Link:
    """The URL where a client gets a stored file. Clients may cache it for `max_age` seconds; None means for ever."""

    url: str = field(repr=False)
    max_age: int | None


@frozen
class PageId:
    """Identifies a page: the kind, as its ecosystem calls it, the project, and the version.

    ``str()`` is a short name, for logs, leases and back-offs.
    """

    kind: str
    project: str = ""
    version: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.project, self.version) if part)


@frozen
class PageRequest:
    """
    The request for a page: a percent-encoded path below upstream's URL, and the Accept header.

    Requests of one `kind` are held back together when upstream refuses them (see `mypypi.upstream.breaker`).
    """

    path: str
    accept: str
    kind: str = "page"


@frozen
class SourceDocument:
    """
    A page as upstream sent it: body, Content-Type, its URL after redirects.

    `encoding` is the body's Content-Encoding; empty for identity.
    """

    body: bytes = field(repr=False)
    content_type: str
    url: str
    encoding: str = ""


@frozen
class PageRules:
    """
    What a page may advertise now, beside what upstream's page does, and what not.

    It does not advertise links that are `withheld`. It advertises metadata that is read out of wheels: of those with an
    `offered` link, and of all with a `ranged` origin (see `origin_in`). With None for the latter, it does not.
    """

    withheld: frozenset[str] = frozenset()
    ranged: frozenset[str] | None = None
    offered: frozenset[str] = frozenset()


@frozen
class RenderedForm:
    """One form of a page, not compressed yet. With `based`, it contains `BASE_PLACEHOLDER`."""

    media_type: str
    body: bytes
    based: bool = False


#: A file that a page lists: link, URL, digests as `PackageFile.digest_text` has them, size, its key, and its metadata
#: (PEP 658): None if there is none, `IN_WHEEL` if it is read out of the wheel, else its digests.
ListedRow = tuple[str, str, str, int | None, str, str | None]
IN_WHEEL = "in wheel"


@frozen
class RenderedPage:
    """
    A page as its ecosystem rendered it: its forms, by name.

    `indexed_links` are links (see `PackageFile.link`) for which `IEcosystem.pages_for` can't derive this page; the
    catalog must index them. `modified` is the page's last change, an HTTP date; empty if unknown. With `is_doubtful`,
    the page lists nothing, and nothing says that it is a page of this kind. `notes` say what was left out of it.
    `extracts` are the origins of wheels whose metadata is advertised although upstream's page does not. `untried` are
    URLs of wheels for which it is not, one for each origin. `rows` are the files that the page lists, if they were at
    hand; otherwise, `IEcosystem.listing` reads them.
    """

    forms: Mapping[str, RenderedForm]
    indexed_links: tuple[str, ...] = ()
    modified: str = ""
    is_doubtful: bool = False
    notes: tuple[str, ...] = ()
    extracts: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()
    rows: Sequence[ListedRow] = ()


@frozen
class Part:
    """A part of a page that has an address of its own: its kind, and its name where a page has several of a kind."""

    kind: str
    name: str = ""


#: Where a part lies in a form's identity bytes: offset and length.
Span = tuple[int, int]
#: That of a part that exists, but can't be cut out.
UNKNOWN_SPAN: Span = (0, 0)


@frozen
class Refusal:
    """A status with which upstream refuses a page or a file for good, such as 404 or 403, and upstream's reason."""

    status: int
    reason: str = ""


@frozen
class Form:
    """
    One form of a page, compressed: `body` is gzip.

    `base` is this server's address in its links, or `BASE_PLACEHOLDER`; empty if there is none. `size` is the number of
    the identity bytes, and `etag` a hex digest of them, as they are with the placeholder.
    """

    media_type: str
    etag: str
    size: int
    body: bytes = field(repr=False)
    base: str = ""

    @property
    def based(self) -> bool:
        """Whether there is an address in its links."""
        return self.base != ""


@frozen
class Page:
    """
    A document from upstream that lists files, as the catalog stores it.

    `checked_at` (seconds since the epoch) is when upstream last confirmed it. `upstream_etag` and `upstream_modified`
    are upstream's validators, empty if it sent none. `source` is the digest of upstream's bytes; without validators, it
    shows whether the page has changed. `modified` is the last change, an HTTP date from upstream or the page; empty if
    unknown. With a `refusal`, there are no forms. `version` differs whenever the content does. With `extracts`, it was
    rendered under rules by which metadata is read out of wheels.
    """

    id: PageId
    checked_at: float
    forms: Mapping[str, Form] = field(factory=dict, repr=False)
    upstream_etag: str = ""
    upstream_modified: str = ""
    source: str = ""
    version: str = ""
    modified: str = ""
    refusal: Refusal | None = None
    extracts: bool = False

    @property
    def missing(self) -> bool:
        """Whether upstream has no such page, or refuses it."""
        return self.refusal is not None
