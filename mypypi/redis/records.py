"""The records that the catalog keeps in Redis: how pages, stored files and leases are written, and read again.

Knows JSON. Must never know Redis, or when a record is written.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar
from urllib.parse import quote

import msgspec
from attrs import frozen

from mypypi.model import BASE_PLACEHOLDER, Form, Page, PageId, Refusal

T = TypeVar("T")

_NOT_FOUND = 404


@frozen
class Stamp:
    """What is read of a page to see whether the one in memory is still the last one."""

    version: str
    checked_at: float


@frozen
class _FormMeta:
    name: str
    media_type: str
    etag: str
    size: int
    based: bool
    base: str = ""  # records of earlier versions have the placeholder


@frozen
class _Meta:
    """The record of a page, without its stamp and its forms' bytes."""

    upstream_etag: str
    upstream_modified: str
    modified: str
    source: str
    missing: bool
    forms: tuple[_FormMeta, ...]
    refusal: tuple[int, str] | None = None
    extracts: bool = False


@frozen
class Stored:
    """The record of a file in remote storage."""

    size: int
    digest: str


@frozen
class Lease:
    """The record of a lease. Its expiry is that of its Redis key, which was set to `ms` milliseconds."""

    owner: str
    about: str
    ms: int = 0  # leases of earlier versions do not have it


@frozen
class PauseRecord:
    """The record of a `Pause`. `seconds` is its length when it was written."""

    until: float
    why: str
    failures: int = 1
    status: int = 503
    seconds: float = 75.0  # pauses of earlier versions, where upstream told no other length


def decoded(reply: bytes | None, record: type[T]) -> T | None:
    """Return the record in an answer of Redis. None if there is none, or if it can't be read."""
    with suppress(msgspec.MsgspecError):
        return None if reply is None else msgspec.json.decode(reply, type=record)
    return None


def page_name(page: PageId) -> str:
    """Return a page's name for keys and values. Its parts are percent-encoded, so that it can be parsed again."""
    return "/".join(quote(part, safe="@+!~") for part in (page.kind, page.project, page.version)).rstrip("/")


def encode_page(page: Page) -> list[str | bytes]:
    """Return the fields of a page's hash, and their values."""
    forms = tuple(_FormMeta(name, f.media_type, f.etag, f.size, f.based, f.base) for name, f in page.forms.items())
    refusal = None if page.refusal is None else (page.refusal.status, page.refusal.reason)
    meta = _Meta(
        page.upstream_etag,
        page.upstream_modified,
        page.modified,
        page.source,
        page.missing,
        forms,
        refusal,
        page.extracts,
    )
    stamp = Stamp(page.version, page.checked_at)
    fields: list[str | bytes] = ["stamp", msgspec.json.encode(stamp), "meta", msgspec.json.encode(meta)]
    for name, form in page.forms.items():
        fields += [f"form:{name}", form.body]
    return fields


def decode_page(page: PageId, fields: dict[bytes, bytes]) -> Page:
    """Parse the fields that `encode_page` writes. Raises KeyError or MsgspecError if they are malformed."""
    stamp = msgspec.json.decode(fields[b"stamp"], type=Stamp)
    meta = msgspec.json.decode(fields[b"meta"], type=_Meta)
    return Page(
        id=page,
        checked_at=stamp.checked_at,
        forms={
            each.name: Form(each.media_type, each.etag, each.size, fields[f"form:{each.name}".encode()], _base(each))
            for each in meta.forms
        },
        upstream_etag=meta.upstream_etag,
        upstream_modified=meta.upstream_modified,
        modified=meta.modified,
        source=meta.source,
        version=stamp.version,
        refusal=_refusal(meta),
        extracts=meta.extracts,
    )


def _base(form: _FormMeta) -> str:
    return form.base or (BASE_PLACEHOLDER.decode() if form.based else "")


def _refusal(meta: _Meta) -> Refusal | None:
    """Return the page's refusal. Records of earlier versions know missing pages only."""
    if meta.refusal is not None:
        return Refusal(*meta.refusal)
    return Refusal(_NOT_FOUND) if meta.missing else None
