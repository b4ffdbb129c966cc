"""Keeps large bodies that are sent often in files in memory, from which the kernel copies them to sockets.

Knows bodies and descriptors. Must never know what a body is, or to whom it is sent.
"""

from __future__ import annotations

import os

from cachetools import LRUCache

from mypypi import descriptors
from mypypi.files.content import Content

#: Bytes of all files together, and bytes for which the smallest one counts: so there are 32 at most.
MOST_BYTES = 32 * 1024 * 1024
_LEAST = 1024 * 1024
#: Bytes of the largest file. It is written at once, which takes three milliseconds.
LARGEST = 8 * 1024 * 1024


class _MemoryFile(Content):
    """A body in a file, which is closed when nobody refers to it any more."""

    def __init__(self, fd: int, body: bytes) -> None:
        super().__init__(fd, length=len(body), total=len(body), whole=True)
        self.body = body

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class MemoryFiles:
    """The files of the bodies that were wanted lately. Each is a copy, so their number and size are bounded."""

    def __init__(self) -> None:
        #: By the body's identity, which stays the same since the file refers to the body.
        self._files: LRUCache[int, _MemoryFile] = LRUCache(MOST_BYTES, lambda file: max(_LEAST, file.length))

    def content(self, body: bytes) -> Content | None:
        """
        Return a body as a whole content.

        None where there are no files in memory (they are Linux's), no room for it, or few descriptors left.
        """
        found = self._files.get(id(body))
        if found is None and (found := _made(body)) is not None:
            self._files[id(body)] = found
        return found


def _made(body: bytes) -> _MemoryFile | None:
    if not hasattr(os, "memfd_create") or len(body) > LARGEST:
        return None
    try:
        file = _MemoryFile(os.memfd_create("mypypi-body"), body)
        if descriptors.scarcity(file.fd) > 0 or os.write(file.fd, body) != len(body):
            return None
    except OSError:  # no descriptor or no memory is left
        return None
    return file
