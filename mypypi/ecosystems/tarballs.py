"""Tarballs of a packument: the links to them on this server, their keys and their digests.

Terms are those of the npm registry's documentation ("Package Metadata") and of Subresource Integrity. Knows what a
version's ``dist`` says. Must never know the rest of the packument.
"""

from __future__ import annotations

import base64
import binascii
import re
from contextlib import suppress
from itertools import islice
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import msgspec

from mypypi.digests import ALGORITHMS, Digest
from mypypi.file_keys import is_segment, key_of, stable_key_of
from mypypi.model import BASE_PLACEHOLDER

#: Characters of the longest address that can be served from here.
_LONGEST_ADDRESS = 8192
#: Matches a member named "tarball". Text within a JSON string never matches, since its first quote is escaped. Each
#: character may be escaped, by six others.
_TARBALL = re.compile(rb'((?<!\\)"tarball"\s*:\s*)"((?:[^"\\]|\\.){0,%d})"' % (6 * _LONGEST_ADDRESS))
#: How registries write that member.
_COMPACT, _SPACED = b'"tarball":"', b'"tarball": "'
#: Addresses, filenames and keys that are the same in JSON, in a URL and in a key, and are far from any limit.
_PLAIN_ADDRESS = re.compile(r"https?://[A-Za-z0-9._~+@:/-]{1,1000}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._~+-]{1,200}")
_LONGEST_PLAIN_KEY = 1024
#: Digests of one ``integrity`` that are read.
_MOST_DIGESTS = 20
_INTEGRITY = re.compile(r"(sha512|sha384|sha256|sha1)-([A-Za-z0-9+/]+={0,2})")
#: Nearly all are of this kind.
_ONE_SHA512 = re.compile(r"sha512-[A-Za-z0-9+/]{86}==")


class Dist(msgspec.Struct, gc=False):
    """The fields of a version's ``dist`` that are read. All are upstream's, and may have any type."""

    tarball: Any = None
    integrity: Any = None
    shasum: Any = None


class Tarballs:
    """
    The tarballs of one package's versions.

    `files` maps a link to its file: link, URL, digests, key. A tarball is also listed under upstream's filename, since
    a lock file written against upstream may have that name.
    """

    def __init__(self, name: str, base: str) -> None:
        """`base` is the address of the packument, for addresses of tarballs that are relative to it."""
        self.files: dict[str, tuple[str, str, str, str]] = {}
        self._name = name
        self._base = base
        self._new = f"{BASE_PLACEHOLDER.decode()}/{quote(name, safe='@/+')}/-/"
        #: Maps upstream's address to the new one.
        self._links: dict[str, str] = {}
        #: Upstream's directory of the tarballs, and its key, once one has the conventional name there.
        self._directory = self._key = ""
        self._added = 0
        #: How each version so far writes the member whose value begins with that directory; empty if they differ.
        self._member = _COMPACT

    def add(self, version: str, dist: Dist, raw: bytes) -> bool:
        """Add a version's tarball. Returns false if it can't be served from here. `raw` is the JSON of `dist`."""
        address, filename = dist.tarball, f"{self._name.rpartition('/')[2]}-{version}.tgz"
        if not is_segment(filename) or len(address) > _LONGEST_ADDRESS:
            return False
        self._added += 1
        digests = _digests(dist)
        if self._is_conventional(address, filename):
            link = f"{self._name}/-/{filename}"
            self._links[address] = self._new + filename
            self.files[link] = (link, address, digests, self._key + filename)
            if self._added == 1 and _SPACED in raw:
                self._member = _SPACED
            if b'%s%s"' % (self._member, address.encode()) not in raw:
                self._member = b""
            return True
        self._member = b""
        return self._add(address, filename, digests)

    def _is_conventional(self, address: str, filename: str) -> bool:
        """Whether a tarball has the conventional name, and is in the directory of the first one that has it."""
        if not self._directory and address.endswith(f"/{filename}") and _PLAIN_ADDRESS.fullmatch(address):
            with suppress(ValueError):
                key = key_of(address)
                if len(key) <= _LONGEST_PLAIN_KEY:
                    self._directory, self._key = address[: -len(filename)], key[: -len(filename)]
        directory = self._directory
        is_there = directory != "" and address.startswith(directory) and address[len(directory) :] == filename
        return is_there and _PLAIN_NAME.fullmatch(filename) is not None

    def _add(self, address: str, filename: str, digests: str) -> bool:
        try:
            url = urljoin(self._base, address)
            key = stable_key_of(url, filename) if digests else key_of(url)
        except ValueError:
            return False
        link = f"{self._name}/-/{filename}"
        self._links[address] = self._new + quote(filename, safe="@/+")
        self.files[link] = (link, url, digests, key)
        upstream_link = f"{self._name}/-/{unquote(urlsplit(url).path.rpartition('/')[2])}"
        self.files.setdefault(upstream_link, (upstream_link, url, digests, key))
        return True

    def with_links(self, body: bytes) -> bytes:
        """Replace the addresses of tarballs in JSON. All other bytes stay."""
        if self._member and self._directory:
            old = self._member + self._directory.encode()
            # Each version has one in its ``dist``, so there is none elsewhere.
            if body.count(old) == body.count(b'"tarball"') == self._added:
                return body.replace(old, self._member + self._new.encode())
        return _TARBALL.sub(self._replaced, body)

    def _replaced(self, match: re.Match[bytes]) -> bytes:
        try:
            old = msgspec.json.decode(b'"' + match[2] + b'"', type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return match[0]
        new = self._links.get(old)
        return match[0] if new is None else match[1] + msgspec.json.encode(new)


def _digests(dist: Dist) -> str:
    """
    Return the digests of the strongest algorithm of ``integrity``, else that of ``shasum``, as one text.

    Of several digests of one algorithm, any may match (Subresource Integrity, section 3.5).
    """
    found: list[Digest] = []
    if isinstance(dist.integrity, str):
        if _ONE_SHA512.fullmatch(dist.integrity):
            return f"sha512-{base64.b64decode(dist.integrity[7:]).hex()}"
        for match in islice(_INTEGRITY.finditer(dist.integrity), _MOST_DIGESTS):
            algorithm, encoded = match.groups()
            with suppress(binascii.Error):
                digest = Digest.strongest({algorithm: base64.b64decode(encoded, validate=True).hex()})
                if digest is not None and digest not in found:
                    found.append(digest)
    strongest = min((ALGORITHMS.index(digest.algorithm) for digest in found), default=None)
    if strongest is None:
        digest = Digest.strongest({"sha1": dist.shasum})
        found = [] if digest is None else [digest]
    return " ".join(str(each) for each in found if strongest is None or each.algorithm == ALGORITHMS[strongest])
