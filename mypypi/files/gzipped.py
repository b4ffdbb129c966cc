"""Unpacks files that upstream sends with ``Content-Encoding: gzip``, though that was not requested.

Some servers mean the file itself by it, such as an archive whose name ends with ``.gz``. Knows gzip (RFC 1952) and
drafts. Must never know requests. All functions block.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from typing import TYPE_CHECKING

from mypypi.digests import Digest
from mypypi.errors import BadUpstreamResponse, DigestMismatch
from mypypi.files.drafts import write_at

if TYPE_CHECKING:
    from mypypi.files.drafts import Draft
    from mypypi.model import PackageFile

#: The ends of names of files that are in the gzip format themselves.
GZIPPED = (".gz", ".tgz")
#: The largest file that is unpacked, in bytes.
_LARGEST = 4 * 1024**3
_BLOCK = 256 * 1024
_MAGIC = b"\x1f\x8b"


def is_encoded(fd: int, *, is_archive: bool) -> bool:
    """
    Whether the bytes are a file in the gzip encoding, and not the file itself.

    With `is_archive`, the file itself begins as gzip does, and so must the decoded bytes. Raises OSError.
    """
    head = os.pread(fd, _BLOCK, 0)
    if not head.startswith(_MAGIC):
        return False
    try:
        decoded = zlib.decompressobj(wbits=31).decompress(head, len(_MAGIC))
    except zlib.error:
        return False
    return decoded == _MAGIC if is_archive else True


def inflate(draft: Draft, file: PackageFile) -> Digest:
    """
    Replace the draft's gzip bytes by the decoded file, and return its digest.

    Meanwhile there are two copies on the disk. Raises DigestMismatch if the decoded bytes are not the listed file
    either, BadUpstreamResponse if they are damaged, StorageFull, and OSError.
    """
    decoder = zlib.decompressobj(wbits=31)
    hasher = (file.digest or Digest("sha256", "")).hasher()
    limit = file.size if file.size and file.digest else _LARGEST
    encoded = draft.content.length
    with tempfile.TemporaryFile(dir=draft.path.parent) as inflated:
        read = written = 0
        try:
            while written <= limit and (block := os.pread(draft.content.fd, _BLOCK, read)):
                read += len(block)
                while written <= limit and (data := decoder.decompress(block, _BLOCK)):
                    hasher.update(data)
                    draft.share.ask_for_writing(encoded + written + len(data))
                    write_at(inflated.fileno(), data, written)
                    written += len(data)
                    draft.share.note_used(encoded + written)
                    block = decoder.unconsumed_tail
        except zlib.error:
            raise DigestMismatch(
                "upstream's bytes do not match the index's digest, and are not in the encoding they claim"
            ) from None
        digest = Digest(hasher.name, hasher.hexdigest())
        if not file.accepts(digest):
            raise DigestMismatch("upstream's bytes match the index's digest neither as sent nor decoded")
        if not decoder.eof or decoder.unused_data:
            raise BadUpstreamResponse("upstream sends a file in gzip encoding that is damaged or too large")
        draft.share.ask_for_writing(2 * written)
        offset = 0  # overwrite the draft in place, since other processes have it open
        while block := os.pread(inflated.fileno(), _BLOCK, offset):
            write_at(draft.content.fd, block, offset)
            offset += len(block)
        os.ftruncate(draft.content.fd, written)
    draft.reserve(written)
    return digest
