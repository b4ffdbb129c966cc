"""The words of the domain as frozen values: digests, package files, pages and their forms.

Knows what a URL and a digest look like. Must never know I/O, Twisted, or any one ecosystem's formats.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import Factory, field, frozen

from mypypi.keys import key_of

if TYPE_CHECKING:
    from hashlib import _Hash

#: Strongest first. Others that an index may name (crc32, md4, …) are no promise of anything and are passed over.
ALGORITHMS = ("sha512", "sha384", "sha256", "sha224", "sha1", "md5")
_DIGEST_LENGTHS = {name: hashlib.new(name, usedforsecurity=False).digest_size * 2 for name in ALGORITHMS}
_HEX = re.compile("[0-9a-f]+")

#: Stands in a rendered page wherever a link needs this server's own address, which only a request knows. A host below
#: the top-level domain ``invalid`` can't exist (RFC 2606, section 2).
BASE_PLACEHOLDER = b"http://base.mypypi.invalid"


@frozen
class Digest:
    """What an index says a file's bytes hash to: an algorithm of `ALGORITHMS` and lower-case hex."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}-{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read what ``str()`` wrote. Raises ValueError for anything else."""
        algorithm, _, value = text.partition("-")
        if algorithm not in ALGORITHMS or not _is_digest(algorithm, value):
            raise ValueError(f"not a digest: {text!r}")
        return cls(algorithm, value)

    @classmethod
    def strongest(cls, hashes: Mapping[str, object]) -> Digest | None:
        """The strongest usable digest of a mapping from algorithm to hex; None where there is none."""
        for algorithm in ALGORITHMS:
            value = hashes.get(algorithm)
            if isinstance(value, str) and _is_digest(algorithm, value.lower()):
                return cls(algorithm, value.lower())
        return None

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        return new_hasher(self.algorithm)


def new_hasher(algorithm: str) -> _Hash:
    """A fresh hash object; weak algorithms are checked as the index gave them, not chosen."""
    return hashlib.new(algorithm, usedforsecurity=False)


def _is_digest(algorithm: str, value: str) -> bool:
    return len(value) == _DIGEST_LENGTHS[algorithm] and _HEX.fullmatch(value) is not None


def fetch_lease(key: str) -> str:
    """The lease of the fetch of what is to be stored under this key. Its owner is a disk, by its id."""
    return f"fetch:{key}"


@frozen
class PackageFile:
    """
    A file that a page lists: a wheel, sdist, tarball or ``.metadata`` file.

    `link` is how this server's own pages name it (decoded, without the route's prefix); `url` is upstream's, absolute,
    exactly as listed; `digest` and `size` (bytes) are None where the page gives none; `key` is `key_of` of the URL.
    """

    link: str
    url: str
    digest: Digest | None = None
    size: int | None = None
    key: str = Factory(lambda file: key_of(file.url), takes_self=True)


@frozen
class StoredFile:
    """A whole, checked file in the storage. `path` is None where its bytes are not on this host's disk."""

    key: str
    size: int
    digest: Digest
    path: Path | None = None

    def matches(self, listed: PackageFile) -> bool:
        """False when the index has put other bytes behind the same URL since this was stored."""
        if listed.digest is not None and listed.digest.algorithm == self.digest.algorithm:
            return listed.digest == self.digest
        return listed.size is None or listed.size == self.size


@frozen
class Link:
    """Where a client finds a stored file. `lasts`: seconds for which it may be kept, None for ever."""

    url: str = field(repr=False)
    lasts: int | None


@frozen
class PageId:
    """Which page: a kind that the ecosystem names, and what it is about. ``str()`` of it is its name in the catalog."""

    kind: str
    project: str = ""
    version: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.project, self.version) if part)


@frozen
class PageRequest:
    """How upstream is asked for a page: a path below its URL (percent-encoded), and the Accept header."""

    path: str
    accept: str


@frozen
class SourceDocument:
    """A page as upstream sent it: decoded body, Content-Type, and the URL it finally came from."""

    body: bytes
    content_type: str
    url: str


@frozen
class RenderedForm:
    """One form of a page before it is compressed. With `based`, it holds `BASE_PLACEHOLDER`."""

    media_type: str
    body: bytes
    based: bool = False


@frozen
class RenderedPage:
    """
    A page as its ecosystem rendered it: the forms by name, and when it was changed last (an HTTP date; may be empty).

    `indexed_links` are the links (see `PackageFile.link`) that do not tell their page: the catalog has to index them.
    """

    forms: Mapping[str, RenderedForm]
    indexed_links: tuple[str, ...] = ()
    modified: str = ""


@frozen
class Form:
    """One form of a page as it is kept: gzip in `body`; `etag` is the hex digest of the identity bytes, `size` their
    number. With `based`, it holds `BASE_PLACEHOLDER`, to be replaced by the address that clients use."""

    media_type: str
    etag: str
    size: int
    body: bytes = field(repr=False)
    based: bool = False


@frozen
class Page:
    """
    A document from upstream that lists files, as the catalog keeps it. `checked_at` (seconds since the epoch) is when
    upstream last confirmed it. `upstream_etag` and `upstream_modified` are upstream's validators, empty where it sent
    none; `source` is the digest of upstream's bytes, by which an unchanged page is known without validators.
    `modified` (an HTTP date) is when it was changed last, as far as upstream or the page says.
    A page that is `missing` has no forms: upstream said 404. `version` differs whenever the content does.
    """

    id: PageId
    checked_at: float
    forms: Mapping[str, Form] = field(factory=dict, repr=False)
    upstream_etag: str = ""
    upstream_modified: str = ""
    source: str = ""
    version: str = ""
    modified: str = ""
    missing: bool = False


@frozen
class HeldLease:
    """A lease in the hands of somebody else: of whom, for how many more seconds, and what they say `about` it."""

    owner: str
    left: float
    about: str = ""


@frozen
class Pause:
    """
    Something of upstream's failed and is not asked for `until` then (seconds since the epoch); `why`, and for how many
    pauses in a row. What came was `broken`, or else nothing did.
    """

    until: float
    why: str
    failures: int = 1
    broken: bool = False


@frozen
class Job:
    """
    Something for a worker: its kind, and what `name` it is about, which is unique among the jobs of a kind.

    `about` is what the kind needs to know, in text. With `disk`, only a worker that sees the data directory with this
    id can do it. `tries` counts how often it has failed.
    """

    kind: str
    name: str
    about: Mapping[str, str] = field(factory=dict)
    disk: str = ""
    tries: int = 0


@frozen
class ClaimedJob:
    """A job in the hands of a worker, and where it was taken from."""

    job: Job
    stream: str
    id: str


@frozen
class DeadJob:
    """A job that was set aside: its id there, why, and when (seconds since the epoch)."""

    job: Job
    id: str
    why: str
    at: float


@frozen
class QueueState:
    """How many jobs wait or are worked on, wait for their next try, were set aside; seconds since the oldest came."""

    waiting: int
    later: int
    dead: int
    oldest: float = field(default=0.0, eq=False)  # it is another one whenever one looks
