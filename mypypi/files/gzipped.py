"""Unpacks files that upstream sends with ``Content-Encoding: gzip``, though that was not requested.

Some servers mean the file itself by it, such as an archive whose name ends with ``.gz``. Knows gzip (RFC 1952) and
drafts. Must never know requests. All functions block.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mypypi.digests import Digest
from mypypi.errors import BadUpstreamResponse, DigestMismatch
from mypypi.files.drafts import write_at
from mypypi.files.resuming import FetchCancelled
from mypypi.gunzip import GzipError, beginning, gunzip

if TYPE_CHECKING:
    from mypypi.files.drafts import Draft
    from mypypi.model import PackageFile

#: The ends of names of files that are in the gzip format themselves.
_GZIPPED = (".gz", ".tgz")
#: The largest file that is unpacked, in bytes.
_LARGEST = 4 * 1024**3
_BLOCK = 64 * 1024
_MAGIC = b"\x1f\x8b"


def decode(draft: Draft, file: PackageFile, stopped: Callable[[], bool]) -> Digest | None:
    """
    Decode a draft that upstream says is in the gzip encoding, and return the digest of its bytes.

    None if there is no digest to tell, and the bytes look like the file itself. Raises as `_inflate` does.
    """
    is_archive = file.url.partition("?")[0].lower().endswith(_GZIPPED)
    if file.digest is None and not _is_encoded(draft.content.fd, is_archive=is_archive):
        return None
    return _inflate(draft, file, stopped)


def _is_encoded(fd: int, *, is_archive: bool) -> bool:
    """
    Whether the bytes are a file in the gzip encoding, and not the file itself.

    With `is_archive`, the file itself begins as gzip does, and so must the decoded bytes. Raises OSError.
    """
    head = os.pread(fd, _BLOCK, 0)
    if not head.startswith(_MAGIC):
        return False
    decoded = beginning(head, len(_MAGIC))
    return decoded == _MAGIC if is_archive else decoded is not None


def _inflate(draft: Draft, file: PackageFile, stopped: Callable[[], bool]) -> Digest:
    """
    Replace the draft's gzip bytes by the decoded file, and return its digest.

    They are decoded twice: nothing is written before size and digest are known and there is room for the file. While
    it is written, the encoded bytes lie beside it. Raises DigestMismatch if the decoded bytes are not the listed file
    either, BadUpstreamResponse if they are damaged, FetchCancelled once `stopped` says so, StorageFull, and OSError.
    """
    content, encoded = draft.content, draft.content.length
    size, digest = _measured(_blocks(content.fd, stopped), file)
    largest = max(encoded, size)
    draft.share.ask(encoded + largest)
    with tempfile.TemporaryFile(dir=draft.path.parent) as copy:
        offset = 0
        for block in _blocks(content.fd, stopped):
            write_at(copy.fileno(), block, offset)
            offset += len(block)
            draft.share.note_used(encoded + offset)
        offset = 0  # overwrite the draft in place, since other processes have it open
        for data in gunzip(_blocks(copy.fileno(), stopped), size, "a file"):
            write_at(content.fd, data, offset)
            offset += len(data)
            draft.share.note_used(encoded + max(encoded, offset))
        os.ftruncate(content.fd, offset)
    draft.reserve(offset)
    return digest


def _measured(blocks: Iterator[bytes], file: PackageFile) -> tuple[int, Digest]:
    """Decode the bytes without keeping them, and return their size and digest. Raises as `_inflate` does."""
    hasher = (file.digest or Digest("sha256", "")).hasher()
    most = file.size if file.size and file.digest else _LARGEST
    size = 0
    try:
        for data in gunzip(blocks, most, "a file"):
            hasher.update(data)
            size += len(data)
    except GzipError as error:
        if file.digest is None:
            raise BadUpstreamResponse(f"upstream sent {error}") from None
        raise DigestMismatch(
            f"upstream's bytes do not match the index's digest as sent, and can't be decoded: it sent {error}"
        ) from None
    digest = Digest(hasher.name, hasher.hexdigest())
    if not file.accepts(digest):
        raise DigestMismatch("upstream's bytes match the index's digest neither as sent nor decoded")
    return size, digest


def _blocks(fd: int, stopped: Callable[[], bool]) -> Iterator[bytes]:
    offset = 0
    while not stopped():
        if not (block := os.pread(fd, _BLOCK, offset)):
            return
        yield block
        offset += len(block)
    raise FetchCancelled
