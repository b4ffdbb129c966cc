"""The work of a render process: decompress, parse, render, compress, and read listings. Pure functions of bytes.

Knows `IEcosystem` and gzip. Must never know processes, or where a page is kept.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
from attrs import Factory, evolve, frozen

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import BadUpstreamResponse, MyPyPiError, error_from
from mypypi.model import BASE_PLACEHOLDER, Form, PageId, Part, RenderedForm, SourceDocument
from mypypi.rendering.listing import Listing

#: Bytes of the largest page, after decompression. PyPI's list of all projects has 40 MB.
LARGEST_PAGE = 128 * 1024 * 1024
_LEVEL = 6
_BLOCK = 256 * 1024
#: An encoded task begins with the bytes of its work.
_WORK = struct.Struct("!Q")


@frozen
class CompressedPage:
    """
    A rendered page with its forms compressed. `source` is the digest of upstream's decompressed bytes.

    Without forms, the page has the digest that the caller knew, and is unchanged. For the other fields see
    `RenderedPage`.
    """

    source: str
    forms: dict[str, Form] = Factory(dict)
    indexed_links: tuple[str, ...] = ()
    modified: str = ""
    is_doubtful: bool = False
    notes: tuple[str, ...] = ()


@frozen
class RenderTask:
    """Render upstream's page, unless its digest is `known`. With `strict`, links that can't be served are left out."""

    page: PageId
    source: SourceDocument
    withheld: frozenset[str] = frozenset()
    known: str = ""
    strict: bool = False


@frozen
class ListingTask:
    """Read the files that a page lists from its form with this name (see `IEcosystem.listing_form`)."""

    page: PageId
    name: str
    form: Form


@frozen
class DeriveTask:
    """Make a form with `base` as the address in its links, or of a `part` of it."""

    form: Form
    base: str
    part: Part | None = None


Task = RenderTask | ListingTask | DeriveTask


def encode_task(package_type: str, upstream_url: str, task: Task) -> bytes:
    """Encode a task of this ecosystem and upstream for a render process."""
    encoded = msgspec.msgpack.encode((package_type, upstream_url, type(task).__name__, task))
    return _WORK.pack(_work(task)) + encoded


def work_in(encoded: bytes) -> int:
    """
    Return the bytes that a task has to read, after decompression.

    Upstream can understate them: a gzip file of several members has the size of the last one at its end.
    """
    work: int = _WORK.unpack_from(encoded)[0]
    return work


def _work(task: Task) -> int:
    if not isinstance(task, RenderTask):
        return task.form.size
    body = task.source.body
    return max(len(body), int.from_bytes(body[-4:], "little") if task.source.encoding == "gzip" else 0)


def perform(encoded: bytes) -> bytes:
    """Do a task; return its encoded result, or the error that it raised."""
    package_type, upstream_url, name, raw = msgspec.msgpack.decode(
        memoryview(encoded)[_WORK.size :], type=tuple[str, str, str, msgspec.Raw]
    )
    kind, _, do = _TASKS[name]
    try:
        result = do(package_type, upstream_url, msgspec.msgpack.decode(raw, type=kind))
        return msgspec.msgpack.encode((result, None))
    except MyPyPiError as error:
        return msgspec.msgpack.encode((None, (type(error).__name__, str(error))))
    except MemoryError:
        return msgspec.msgpack.encode((None, (BadUpstreamResponse.__name__, "upstream's page takes too much memory")))


def decode_result(task: Task, encoded: bytes) -> Any:
    """Decode the result of a task. Raises the error that the task ended with."""
    raw, error = msgspec.msgpack.decode(encoded, type=tuple[msgspec.Raw, tuple[str, str] | None])
    if error is not None:
        raise error_from(*error)
    return msgspec.msgpack.decode(raw, type=_TASKS[type(task).__name__][1])


def _render(package_type: str, upstream_url: str, task: RenderTask) -> CompressedPage:
    source = evolve(task.source, body=_decompressed(task.source), encoding="")
    digest = hashlib.sha256(source.body).hexdigest()
    if digest == task.known:
        return CompressedPage(digest)
    page = ECOSYSTEMS[package_type](upstream_url, strict=task.strict).render(task.page, source, task.withheld)
    forms = {name: compress(form) for name, form in page.forms.items()}
    return CompressedPage(digest, forms, page.indexed_links, page.modified, page.is_doubtful, page.notes)


def _list(package_type: str, upstream_url: str, task: ListingTask) -> Listing:
    form = {task.name: zlib.decompress(task.form.body, 31)}
    return Listing.of(ECOSYSTEMS[package_type](upstream_url).listing(task.page, form).values())


def _derive(package_type: str, upstream_url: str, task: DeriveTask) -> Form:
    form, base, part = task.form, task.base, task.part
    body = zlib.decompress(form.body, 31)
    if part is not None:
        body = ECOSYSTEMS[package_type](upstream_url).part(part, body)
    if form.based:
        body = body.replace(BASE_PLACEHOLDER, base.encode())
    etag = hashlib.sha256(f"{form.etag} {base} {part or ''}".encode()).hexdigest()[:32]
    return evolve(form, etag=etag, size=len(body), body=gzip(body))


#: Each kind of task with its result and the function that does it.
_TASKS: dict[str, tuple[Any, Any, Callable[[str, str, Any], object]]] = {
    "RenderTask": (RenderTask, CompressedPage, _render),
    "ListingTask": (ListingTask, Listing, _list),
    "DeriveTask": (DeriveTask, Form, _derive),
}


def compress(rendered: RenderedForm) -> Form:
    """
    Compress a form. Its etag is made from the identity bytes alone.

    So every host that renders the same page makes the same etag.
    """
    etag = hashlib.sha256(rendered.body).hexdigest()[:32]
    return Form(rendered.media_type, etag, len(rendered.body), gzip(rendered.body), rendered.based)


def gzip(data: bytes) -> bytes:
    """Compress data into the gzip format (RFC 1952), without a time: the same data gives the same bytes."""
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31)
    return compressor.compress(data) + compressor.flush()


def _decompressed(source: SourceDocument) -> bytes:
    """Return the identity bytes of upstream's body. Raises BadUpstreamResponse if they are damaged or too many."""
    if not source.encoding:
        return source.body
    if source.encoding != "gzip":
        raise BadUpstreamResponse(f"upstream sent a page in the encoding {source.encoding[:40]!r}, not requested")
    pieces: list[bytes] = []
    size, data = 0, source.body
    while data or not pieces:  # RFC 1952 allows several members, one after the other
        decoder = zlib.decompressobj(wbits=31)
        try:
            while data and not decoder.eof:
                piece = decoder.decompress(data, _BLOCK)
                data = decoder.unconsumed_tail
                size += len(piece)
                if size > LARGEST_PAGE:
                    raise BadUpstreamResponse(f"upstream sent a page of more than {LARGEST_PAGE} bytes")
                pieces.append(piece)
        except zlib.error:
            raise BadUpstreamResponse("upstream sent a page with damaged gzip encoding") from None
        if not decoder.eof:
            raise BadUpstreamResponse("upstream sent a page in gzip encoding that ends early")
        data = decoder.unused_data
    return b"".join(pieces)
