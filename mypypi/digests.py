"""Digests of files: an algorithm and its hash.

Knows which algorithms prove something. Must never know files or pages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from hashlib import _Hash

#: Strongest first. Other algorithms that an index may name (crc32, md4, …) prove nothing, and are ignored.
ALGORITHMS = ("sha512", "sha384", "sha256", "sha224", "sha1", "md5")
_DIGEST_LENGTHS = {name: hashlib.new(name, usedforsecurity=False).digest_size * 2 for name in ALGORITHMS}
_HEX = re.compile("[0-9a-f]+")


@frozen
class Digest:
    """A file's hash: an algorithm of `ALGORITHMS`, and lower-case hex."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}-{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse the output of ``str()``. Raises ValueError for other text."""
        algorithm, _, value = text.partition("-")
        if algorithm not in ALGORITHMS or not _is_digest(algorithm, value):
            raise ValueError(f"not a digest: {text!r}")
        return cls(algorithm, value)

    @classmethod
    def strongest(cls, hashes: Mapping[str, object]) -> Digest | None:
        """Return the strongest valid digest of these, given as hex of any case by algorithm; None without one."""
        for algorithm in ALGORITHMS:
            value = hashes.get(algorithm)
            if isinstance(value, str) and _is_digest(algorithm, value.lower()):
                return cls(algorithm, value.lower())
        return None

    def hasher(self) -> _Hash:
        """Return a new hash object of this digest's algorithm."""
        return new_hasher(self.algorithm)


def new_hasher(algorithm: str) -> _Hash:
    """Return a new hash object of this algorithm, which may be weak, since some indexes give no others."""
    return hashlib.new(algorithm, usedforsecurity=False)


def _is_digest(algorithm: str, value: str) -> bool:
    return len(value) == _DIGEST_LENGTHS[algorithm] and _HEX.fullmatch(value) is not None
