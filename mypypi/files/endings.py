"""Finds the end of an archive, for a file whose length is not announced: it ends with the connection.

Knows the formats of package files: zip and gzip. Must never know where a file comes from. All functions block.
"""

from __future__ import annotations

import os
import zipfile
import zlib

from mypypi.errors import Truncated

_BLOCK = 256 * 1024
#: The most bytes that are unpacked to find the end of a gzip file.
_LARGEST = 4 * 1024**3


def has_end(fd: int) -> bool:
    """
    Whether a file is an archive that is complete; False if it is no archive, so that nothing can tell.

    Raises Truncated if it is an archive whose end is missing, and OSError.
    """
    head = os.pread(fd, 4, 0)
    if head.startswith(b"PK\x03\x04"):
        with os.fdopen(os.dup(fd), "rb") as file:
            is_complete = zipfile.is_zipfile(file)
    elif head.startswith(b"\x1f\x8b"):
        is_complete = _is_complete_gzip(fd)
    else:
        return False
    if not is_complete:
        raise Truncated("upstream gave no length, and the end of the archive is missing")
    return True


def _is_complete_gzip(fd: int) -> bool:
    """Unpack a gzip file and drop the content. What follows its first part is not read."""
    decoder, offset, size = zlib.decompressobj(wbits=31), 0, 0
    try:
        while size < _LARGEST and (block := os.pread(fd, _BLOCK, offset)):
            offset += len(block)
            while block and size < _LARGEST:
                size += len(decoder.decompress(block, _BLOCK))
                if decoder.eof:
                    return True
                block = decoder.unconsumed_tail
    except zlib.error:
        return False
    return False
