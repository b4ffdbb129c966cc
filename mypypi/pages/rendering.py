"""Turns what upstream sent into a page's forms, each rendered and compressed once, off the reactor thread.

Small pages are rendered in a thread. A large one would hold the interpreter for whole seconds even there, so that goes
to a child process: ``python -m mypypi.pages.rendering`` reads one page from stdin, writes its forms to stdout, and
ends. Knows `IEcosystem.render`. Must never know upstream, catalog, or clients.
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

#: From this size of upstream's body on (bytes), starting a child costs less than holding the interpreter.
_FOR_A_CHILD = 512 * 1024
_CHILD_SECONDS = 300
_LEVEL = 6


@frozen
class CompressedPage:
    """What `RenderedPage` says, its forms compressed as they are kept."""

    forms: dict[str, Form]
    indexed_links: tuple[str, ...] = ()
    modified: str = ""


@frozen
class Renderer:
    """Presses pages of one ecosystem, named as in `ECOSYSTEMS`, behind one upstream URL."""

    package_type: str
    upstream_url: str
    threads: Threads

    async def render(self, page: PageId, source: SourceDocument, withheld: frozenset[str]) -> CompressedPage:
        """The page's forms, and what else it says. Raises BadUpstreamResponse when it can't be understood."""
        function = render if len(source.body) < _FOR_A_CHILD else render_in_child
        return await self.threads.run(function, self.package_type, self.upstream_url, page, source, withheld)


def render(
    package_type: str, upstream_url: str, page: PageId, source: SourceDocument, withheld: frozenset[str]
) -> CompressedPage:
    """Render a page here and now."""
    rendered = ECOSYSTEMS[package_type](upstream_url).render(page, source, withheld)
    forms = {name: compress(rendered) for name, rendered in rendered.forms.items()}
    return CompressedPage(forms, rendered.indexed_links, rendered.modified)


def compress(rendered: RenderedForm) -> Form:
    """The form as it is kept. Its etag speaks of the identity bytes alone, so that it is the same on every host."""
    etag = hashlib.sha256(rendered.body).hexdigest()[:32]
    body = gzip(rendered.body)
    return Form(rendered.media_type, etag, len(rendered.body), body, rendered.based)


@frozen
class Part:
    """A part of a page that has an address of its own. `cut` makes the part from the form's identity bytes; it may
    take long, and raises NotFound where the page has no such part."""

    name: str
    cut: Callable[[bytes], bytes] = field(eq=False)


def derive(form: Form, base: str, part: Part | None) -> Form:
    """A form with `base` as the address in its links, or only a part of it. Blocks for as long as gzip takes."""
    body = zlib.decompress(form.body, 31)
    if part is not None:
        body = part.cut(body)
    if form.based:
        body = body.replace(BASE_PLACEHOLDER, base.encode())
    etag = hashlib.sha256(f"{form.etag} {base} {part.name if part else ''}".encode()).hexdigest()[:32]
    return evolve(form, etag=etag, size=len(body), body=gzip(body))


def gzip(data: bytes) -> bytes:
    """The gzip format (RFC 1952) without a time in it: the same bytes for the same data."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
    return compressor.compress(data) + compressor.flush()


def render_in_child(
    package_type: str, upstream_url: str, page: PageId, source: SourceDocument, withheld: frozenset[str]
) -> CompressedPage:
    """Render a page in a process of its own. Blocks; raises BadUpstreamResponse."""
    order = (package_type, upstream_url, page, source, withheld)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "mypypi.pages.rendering"],
            input=msgspec.msgpack.encode(order),
            capture_output=True,
            cwd=Path(__file__).parents[2],
            timeout=_CHILD_SECONDS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise BadUpstreamResponse(f"the page {page} could not be taken in ({type(error).__name__})") from error
    trouble, printed = msgspec.msgpack.decode(child.stdout, type=tuple[str, CompressedPage])
    if trouble:
        raise BadUpstreamResponse(trouble)
    return printed


def main() -> None:
    """The child: one page in, its forms out."""
    order = msgspec.msgpack.decode(
        sys.stdin.buffer.read(), type=tuple[str, str, PageId, SourceDocument, frozenset[str]]
    )
    try:
        result = ("", render(*order))
    except MyPyPiError as error:
        result = (str(error), CompressedPage({}))
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))


if __name__ == "__main__":
    main()
