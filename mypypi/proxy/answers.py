"""What the proxy answers to a request for a file; each is said in HTTP by `mypypi.web.files`."""

from __future__ import annotations

from attrs import frozen

from mypypi.files.content import Content
from mypypi.model import Digest, Link, PackageFile, StoredFile


@frozen
class LocalContent:
    """Bytes to serve from here. Its receiver closes the content. `hit`: they were stored before the request."""

    content: Content
    digest: Digest | None
    hit: bool


@frozen
class FileDescription:
    """What is known of a file without its bytes: enough for a HEAD."""

    digest: Digest | None
    size: int


@frozen
class StoredElsewhere:
    """The file is stored elsewhere: the client is sent there, or gets the bytes from there `through` this server."""

    stored: StoredFile
    link: Link
    through: bool


@frozen
class RedirectToUpstream:
    """The client gets the bytes from upstream itself, at this URL."""

    url: str


@frozen
class PassThrough:
    """No draft can be kept, and a client could not get the bytes itself: they go through without being kept."""

    file: PackageFile


FileAnswer = LocalContent | FileDescription | StoredElsewhere | RedirectToUpstream | PassThrough
