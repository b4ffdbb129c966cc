"""The answers to a request for a file, as values.

`mypypi.web.files` turns each into an HTTP response.
"""

from __future__ import annotations

from attrs import frozen

from mypypi.digests import Digest
from mypypi.files.content import Content
from mypypi.model import Link, PackageFile, StoredFile


@frozen
class LocalContent:
    """
    Bytes to serve from this host.

    The receiver of this answer closes `content`. `hit`: the bytes were stored before the request. `immutable`: the page
    gives a digest, so the bytes behind the link never change.
    """

    content: Content
    digest: Digest | None
    hit: bool
    immutable: bool = True


@frozen
class FileDescription:
    """
    A file's digest and size, enough to answer a HEAD.

    `hit`: the file is stored. For `immutable` see `LocalContent`.
    """

    digest: Digest | None
    size: int
    immutable: bool = True
    hit: bool = False


@frozen
class StoredElsewhere:
    """
    A file whose bytes are not on this host's disk.

    The client is redirected to `link`. With `proxied`, it gets the bytes through this server instead. For `immutable`
    see `LocalContent`.
    """

    stored: StoredFile
    link: Link
    proxied: bool
    immutable: bool = True


@frozen
class RedirectToUpstream:
    """Redirect the client to upstream, at this URL."""

    url: str


@frozen
class PassThrough:
    """
    Stream the file from upstream without storing it.

    No draft can be kept, and the client lacks the credentials to fetch the file from upstream itself.
    """

    file: PackageFile


FileAnswer = LocalContent | FileDescription | StoredElsewhere | RedirectToUpstream | PassThrough
