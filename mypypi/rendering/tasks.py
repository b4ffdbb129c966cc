"""The work of a render process: decompress, parse, render, compress, read listings and wheels. Pure functions of bytes.

Knows `IEcosystem` and gzip. Must never know processes, or where a page is kept.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable
from typing import Any

import msgspec
from attrs import Factory, evolve, frozen
from isal import isal_zlib

from mypypi.byte_range import ByteRange
from mypypi.ecosystems import ECOSYSTEMS
from mypypi.ecosystems.wheels import metadata_in
from mypypi.errors import BadUpstreamResponse, MyPyPiError, error_from
from mypypi.gunzip import GzipError, TooMuch, gunzip
from mypypi.interfaces import IEcosystem
from mypypi.model import Form, PageId, PageRules, Part, RenderedForm, SourceDocument
from mypypi.pieces import GZIP
from mypypi.rendering.forms import compress, derived, etag_of, gzip, with_base, with_placeholder
from mypypi.rendering.listing import Listing
from mypypi.rendering.parts import PartIndex, compress_in_blocks

#: Bytes of the largest page, after decompression. PyPI's list of all projects has 40 MB.
LARGEST_PAGE = 128 * 1024 * 1024
#: Bytes of work (see `work_in`) from which on a task is large, so that others would notice that they wait for it.
LARGE = 8 * 1024 * 1024
#: The same for a task that derives a form. Clients choose how many there are, so they wait for each other sooner.
LARGE_DERIVED = 1024 * 1024
#: The result of a task with more work than it says. It is to be done again as `restated`.
UNDERSTATED = b""
#: An encoded task begins with the bytes of its work, and with whether it derives a form.
_HEADER = struct.Struct("!Q?")
#: The name of the form that has the index of another form's parts (see `PartIndex`).
PARTS = "parts"
_INDEX_TYPE = "application/octet-stream"


@frozen
class CompressedPage:
    """
    A rendered page with its forms compressed. `source` is the digest of upstream's decompressed bytes.

    Without forms, the page has the digest that the caller knew, and is unchanged. `listing` has the files that the page
    lists. For the other fields see `RenderedPage`.
    """

    source: str
    forms: dict[str, Form] = Factory(dict)
    listing: Listing = Factory(Listing)
    indexed_links: tuple[str, ...] = ()
    modified: str = ""
    is_doubtful: bool = False
    notes: tuple[str, ...] = ()
    extracts: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()


@frozen
class RenderTask:
    """
    Render upstream's page, unless its digest is `known`. With `strict`, links that can't be served are left out.

    `base` is the address that most clients use. It is put into the links where that can be undone.
    """

    page: PageId
    source: SourceDocument
    rules: PageRules = Factory(PageRules)
    known: str = ""
    strict: bool = False
    base: str = ""


@frozen
class ListingTask:
    """Read the files that a page lists from its form with this name (see `IEcosystem.listing_form`)."""

    page: PageId
    name: str
    form: Form


@frozen
class PartsTask:
    """Make the index of the parts of a page's form with this name, for a page that was stored without one."""

    page: PageId
    name: str
    form: Form


@frozen
class DeriveTask:
    """
    Make a form with `base` as the address in its links, or of a `part` of it.

    Without a `base`, the links keep the form's.
    """

    form: Form
    base: str
    part: Part | None = None


@frozen
class WheelTask:
    """Read the metadata out of parts of the wheel with this name (see `metadata_in`)."""

    filename: str
    total: int
    parts: tuple[tuple[int, bytes], ...]


@frozen
class WheelAnswer:
    """The metadata, or else the range of the wheel that is needed to read it."""

    metadata: bytes | None = None
    wanted: ByteRange | None = None


Task = RenderTask | ListingTask | PartsTask | DeriveTask | WheelTask


class _Understated(Exception):
    """The page has more bytes after decompression than its task says, and more than a small one."""


def encode_task(package_type: str, upstream_url: str, task: Task) -> bytes:
    """Encode a task of this ecosystem and upstream for a render process."""
    encoded = msgspec.msgpack.encode((package_type, upstream_url, type(task).__name__, task))
    return _HEADER.pack(_work(task), isinstance(task, DeriveTask)) + encoded


def restated(encoded: bytes) -> bytes:
    """Return the encoded task with as much work as a page may have."""
    return _HEADER.pack(LARGEST_PAGE, is_derived(encoded)) + encoded[_HEADER.size :]


def work_in(encoded: bytes) -> int:
    """
    Return the bytes that a task has to read, after decompression.

    Upstream can understate them: a gzip file of several members has the size of the last one at its end. Then the
    result is `UNDERSTATED`, unless it is a small page anyway.
    """
    work: int = _HEADER.unpack_from(encoded)[0]
    return work


def is_derived(encoded: bytes) -> bool:
    """Return whether a task derives a form from one that is there already."""
    return bool(_HEADER.unpack_from(encoded)[1])


def is_large(encoded: bytes) -> bool:
    """Return whether a task has so much work that others would notice that they wait for it."""
    return work_in(encoded) >= (LARGE_DERIVED if is_derived(encoded) else LARGE)


def _work(task: Task) -> int:
    if isinstance(task, WheelTask):
        return sum(len(part) for _, part in task.parts)
    if not isinstance(task, RenderTask):
        return task.form.size
    body = task.source.body
    return max(len(body), int.from_bytes(body[-4:], "little") if task.source.encoding == "gzip" else 0)


def perform(encoded: bytes) -> bytes:
    """Do a task; return its encoded result, or the error that it raised; `UNDERSTATED` if it has more work."""
    package_type, upstream_url, name, raw = msgspec.msgpack.decode(
        memoryview(encoded)[_HEADER.size :], type=tuple[str, str, str, msgspec.Raw]
    )
    kind, _, do = _TASKS[name]
    try:
        task = msgspec.msgpack.decode(raw, type=kind)
        if isinstance(task, RenderTask):
            task = evolve(task, source=_decompressed(task.source, max(LARGE, work_in(encoded))))
        result = do(package_type, upstream_url, task)
        return msgspec.msgpack.encode((result, None))
    except _Understated:
        return UNDERSTATED
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
    """Render a page whose source is decompressed already."""
    source = task.source
    digest = hashlib.sha256(source.body).hexdigest()
    if digest == task.known:
        return CompressedPage(digest)
    ecosystem = ECOSYSTEMS[package_type](upstream_url, strict=task.strict)
    page = ecosystem.render(task.page, source, task.rules)
    forms = {}
    for name, form in page.forms.items():
        base, identity = with_base(form, task.base)
        parts = ecosystem.parts(task.page, name, identity)
        body, starts = (gzip(identity), ()) if parts is None else compress_in_blocks(identity)
        forms[name] = Form(form.media_type, etag_of(form), len(identity), body, base)
        if parts is not None:
            forms[PARTS] = compress(RenderedForm(_INDEX_TYPE, PartIndex.of(parts, starts).encode()))
    name_of_listing = ecosystem.listing_form(task.page, page.forms)
    listing = Listing.of_rows(page.rows)
    if not page.rows and name_of_listing is not None and name_of_listing in page.forms:
        listing = _listing(ecosystem, task.page, name_of_listing, page.forms[name_of_listing].body)
    return CompressedPage(
        digest,
        forms,
        listing,
        page.indexed_links,
        page.modified,
        page.is_doubtful,
        page.notes,
        page.extracts,
        page.untried,
    )


def _list(package_type: str, upstream_url: str, task: ListingTask) -> Listing:
    body = with_placeholder(task.form, isal_zlib.decompress(task.form.body, GZIP))
    return _listing(ECOSYSTEMS[package_type](upstream_url), task.page, task.name, body)


def _listing(ecosystem: IEcosystem, page: PageId, name: str, body: bytes) -> Listing:
    return Listing.of(ecosystem.listing(page, {name: body}).values())


def _index_parts(package_type: str, upstream_url: str, task: PartsTask) -> PartIndex:
    parts = ECOSYSTEMS[package_type](upstream_url).parts(
        task.page, task.name, isal_zlib.decompress(task.form.body, GZIP)
    )
    return PartIndex.of(parts or {})


def _derive(package_type: str, upstream_url: str, task: DeriveTask) -> Form:
    body = isal_zlib.decompress(task.form.body, GZIP)
    if task.part is not None:
        body = ECOSYSTEMS[package_type](upstream_url).part(task.part, body)
    return derived(task.form, body, task.base, task.part)


def _read_wheel(_package_type: str, _upstream_url: str, task: WheelTask) -> WheelAnswer:
    found = metadata_in(task.filename, task.total, task.parts)
    return WheelAnswer(metadata=found) if isinstance(found, bytes) else WheelAnswer(wanted=found)


#: Each kind of task with its result and the function that does it.
_TASKS: dict[str, tuple[Any, Any, Callable[[str, str, Any], object]]] = {
    "RenderTask": (RenderTask, CompressedPage, _render),
    "ListingTask": (ListingTask, Listing, _list),
    "PartsTask": (PartsTask, PartIndex, _index_parts),
    "DeriveTask": (DeriveTask, Form, _derive),
    "WheelTask": (WheelTask, WheelAnswer, _read_wheel),
}


def _decompressed(source: SourceDocument, most: int) -> SourceDocument:
    """
    Return upstream's document without its encoding.

    Raises BadUpstreamResponse if its bytes are damaged or too many, and _Understated if they are more than `most`.
    """
    if not source.encoding:
        return source
    if source.encoding != "gzip":
        raise BadUpstreamResponse(f"upstream sent a page in the encoding {source.encoding[:40]!r}, not requested")
    decoded = io.BytesIO()  # its value is not copied, as joined pieces would be
    try:
        for piece in gunzip([source.body], min(most, LARGEST_PAGE), "a page"):
            decoded.write(piece)
    except TooMuch as error:
        if most < LARGEST_PAGE:
            raise _Understated from None
        raise BadUpstreamResponse(f"upstream sent {error}") from None
    except GzipError as error:
        raise BadUpstreamResponse(f"upstream sent {error}") from None
    return evolve(source, body=decoded.getvalue(), encoding="")
