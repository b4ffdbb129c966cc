"""Renders upstream's pages into compressed forms.

Each page is rendered once, off the reactor thread. Small pages are rendered in a thread. Even there, a large page would
hold the interpreter lock for seconds, so it is rendered in a child process: ``python -m mypypi.pages.rendering`` reads
one page from stdin, writes its forms to stdout, and exits. Knows `IEcosystem.render`. Must never know upstream, the
catalog or clients.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from attrs import evolve, field, frozen

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import BadUpstreamResponse, MyPyPiError
from mypypi.model import BASE_PLACEHOLDER, Form, PageId, RenderedForm, SourceDocument

if TYPE_CHECKING:
    from mypypi.threads import Threads

#: Bytes of upstream's body from which starting a child process costs less than holding the interpreter lock.
_CHILD_THRESHOLD = 512 * 1024
#: Seconds after which a child process is killed.
_CHILD_TIMEOUT = 300
_GZIP_LEVEL = 6


@frozen
class CompressedPage:
    """A `RenderedPage` whose forms are compressed for storage."""

    forms: dict[str, Form]
    indexed_links: tuple[str, ...] = ()
    modified: str = ""


@frozen
class Renderer:
    """Renders the pages of one upstream. `package_type` is the ecosystem's name in `ECOSYSTEMS`."""

    package_type: str
    upstream_url: str
    threads: Threads

    async def render(self, page: PageId, source: SourceDocument, withheld: frozenset[str]) -> CompressedPage:
        """Render a page in a thread or a child process. Raises BadUpstreamResponse if it can't be parsed."""
        function = render if len(source.body) < _CHILD_THRESHOLD else render_in_child
        return await self.threads.run(function, self.package_type, self.upstream_url, page, source, withheld)


def render(
    package_type: str, upstream_url: str, page: PageId, source: SourceDocument, withheld: frozenset[str]
) -> CompressedPage:
    """Render a page in this thread. Raises BadUpstreamResponse if it can't be parsed."""
    rendered = ECOSYSTEMS[package_type](upstream_url).render(page, source, withheld)
    forms = {name: compress(rendered) for name, rendered in rendered.forms.items()}
    return CompressedPage(forms, rendered.indexed_links, rendered.modified)


def compress(rendered: RenderedForm) -> Form:
    """Compress a form. Its etag depends on the identity bytes alone, so it is the same on every host."""
    etag = hashlib.sha256(rendered.body).hexdigest()[:32]
    body = gzip(rendered.body)
    return Form(rendered.media_type, etag, len(rendered.body), body, rendered.based)


@frozen
class Part:
    """
    A part of a page with an address of its own.

    `cut` makes the part from the form's identity bytes. It may take long, and raises NotFound if the page has no such
    part.
    """

    name: str
    cut: Callable[[bytes], bytes] = field(eq=False)


def derive(form: Form, base: str, part: Part | None) -> Form:
    """Return a form, or its part, with `base` in its links. Blocks while it compresses."""
    body = zlib.decompress(form.body, 31)
    if part is not None:
        body = part.cut(body)
    if form.based:
        body = body.replace(BASE_PLACEHOLDER, base.encode())
    etag = hashlib.sha256(f"{form.etag} {base} {part.name if part else ''}".encode()).hexdigest()[:32]
    return evolve(form, etag=etag, size=len(body), body=gzip(body))


def gzip(data: bytes) -> bytes:
    """Compress to gzip (RFC 1952) without a timestamp. Equal data gives equal bytes."""
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
    return compressor.compress(data) + compressor.flush()


def render_in_child(
    package_type: str, upstream_url: str, page: PageId, source: SourceDocument, withheld: frozenset[str]
) -> CompressedPage:
    """Render a page in a child process. Blocks. Raises BadUpstreamResponse."""
    task = (package_type, upstream_url, page, source, withheld)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "mypypi.pages.rendering"],
            input=msgspec.msgpack.encode(task),
            capture_output=True,
            cwd=Path(__file__).parents[2],
            timeout=_CHILD_TIMEOUT,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise BadUpstreamResponse(f"the page {page} could not be rendered ({type(error).__name__})") from error
    problem, rendered = msgspec.msgpack.decode(child.stdout, type=tuple[str, CompressedPage])
    if problem:
        raise BadUpstreamResponse(problem)
    return rendered


def main() -> None:
    """Run as a child process: one page from stdin, its forms to stdout."""
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=tuple[str, str, PageId, SourceDocument, frozenset[str]])
    try:
        result = ("", render(*task))
    except MyPyPiError as error:
        result = (str(error), CompressedPage({}))
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))


if __name__ == "__main__":
    main()
