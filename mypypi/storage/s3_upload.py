"""A part of a file as it is read for an upload, which can be told to end.

Knows files and threads. Must never know where it is uploaded to.
"""

from __future__ import annotations

import hashlib
import os
from threading import Event
from typing import BinaryIO

from attrs import frozen

_BLOCK = 1 << 20


class Stopped(Exception):
    """The upload was told to stop; its parts are taken back."""


class Interrupt(BaseException):
    """Ends an upload from within: boto3 takes every Exception for a broken connection, and tries again."""


@frozen
class Section:
    """So many bytes of a file, from `start` on; itself like a file. Reading raises Interrupt once `stopped` is set."""

    file: BinaryIO
    start: int
    length: int
    stopped: Event

    def read(self, size: int | None = -1) -> bytes:
        """As of a file."""
        if self.stopped.is_set():
            raise Interrupt
        left = self.length - self.tell()
        return self.file.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.length}[whence]
        return self.file.seek(self.start + base + offset) - self.start

    def tell(self) -> int:
        """As of a file."""
        return self.file.tell() - self.start

    def sha256(self) -> bytes:
        """Of all of it; it is read from its start afterwards."""
        hasher = hashlib.sha256()
        self.seek(0)
        while block := self.read(_BLOCK):
            hasher.update(block)
        self.seek(0)
        return hasher.digest()
