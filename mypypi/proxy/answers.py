"""A request for a file, and the answers to it, as values.

`mypypi.web.files` makes the first of an HTTP request, and turns each of the others into an HTTP response.
"""

from __future__ import annotations

from attrs import frozen

from mypypi.byte_range import ByteRange
from mypypi.digests import Digest
from mypypi.errors import StorageDown
from mypypi.files.content import Content
from mypypi.model import Link, PackageFile, StoredFile
from mypypi.upstream.responses import FileRange


@frozen
class FileRequest:
    """
    What a client wants of a file: all of it, or only its `range`.

    With `describe`, a FileDescription is enough. `unreadable` says why the stored file could not be read from the
    bucket just now, if that was tried.
    """

    client: str = ""
    describe: bool = False
    range: ByteRange | None = None
    unreadable: StorageDown | None = None


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


#: A FileRange may be a whole file without a digest: metadata that could not be stored.
FileAnswer = LocalContent | FileDescription | FileRange | StoredElsewhere | RedirectToUpstream | PassThrough
