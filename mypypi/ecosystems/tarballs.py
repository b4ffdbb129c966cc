"""Tarballs of a packument: the links to them on this server, their keys and their digests.

Terms are those of the npm registry's documentation ("Package Metadata") and of Subresource Integrity. Knows what a
version's ``dist`` says. Must never know the rest of the packument.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
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
#: Digests of one ``integrity`` that are read.
_MOST_DIGESTS = 20
_INTEGRITY = re.compile(r"(sha512|sha384|sha256|sha1)-([A-Za-z0-9+/]+={0,2})")


class Dist(msgspec.Struct, gc=False):
    """The fields of a version's ``dist`` that are read. All are upstream's, and may have any type."""

    tarball: Any = None
    integrity: Any = None
    shasum: Any = None


def add_tarball(
    name: str, version: str, dist: Dist, base: str, links: dict[str, str], files: dict[str, tuple[str, str, str, str]]
) -> bool:
    """
    Add a version's tarball to `links` and `files`. Returns false if it can't be served from here.

    `links` maps upstream's address to the new one, `files` a link to its file: link, URL, digests, key. The tarball is
    also listed under upstream's filename, since a lock file written against upstream may have that name.
    """
    unscoped = name.rpartition("/")[2]
    filename = f"{unscoped}-{version}.tgz"
    if not is_segment(filename) or len(dist.tarball) > _LONGEST_ADDRESS:
        return False
    digests = _digests(dist)
    try:
        url = urljoin(base, dist.tarball)
        key = stable_key_of(url, filename) if digests else key_of(url)
    except ValueError:
        return False
    row = url, " ".join(map(str, digests)), key
    link = f"{name}/-/{filename}"
    links[dist.tarball] = f"{BASE_PLACEHOLDER.decode()}/{quote(link, safe='@/+')}"
    files[link] = (link, *row)
    upstream_link = f"{name}/-/{unquote(urlsplit(url).path.rpartition('/')[2])}"
    files.setdefault(upstream_link, (upstream_link, *row))
    return True


def _digests(dist: Dist) -> list[Digest]:
    """
    Return the digests of the strongest algorithm of ``integrity``, else that of ``shasum``.

    Of several digests of one algorithm, any may match (Subresource Integrity, section 3.5).
    """
    found: list[Digest] = []
    if isinstance(dist.integrity, str):
        for match in islice(_INTEGRITY.finditer(dist.integrity), _MOST_DIGESTS):
            algorithm, encoded = match.groups()
            with suppress(binascii.Error):
                digest = Digest.strongest({algorithm: base64.b64decode(encoded, validate=True).hex()})
                if digest is not None and digest not in found:
                    found.append(digest)
    strongest = min((ALGORITHMS.index(digest.algorithm) for digest in found), default=None)
    if strongest is not None:
        return [digest for digest in found if digest.algorithm == ALGORITHMS[strongest]]
    digest = Digest.strongest({"sha1": dist.shasum})
    return [] if digest is None else [digest]


def with_links(body: bytes, links: Mapping[str, str]) -> bytes:
    """Replace the tarball addresses that `links` has a new one for. All other bytes stay."""

    def replaced(match: re.Match[bytes]) -> bytes:
        try:
            old = msgspec.json.decode(b'"' + match[2] + b'"', type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return match[0]
        new = links.get(old)
        return match[0] if new is None else match[1] + msgspec.json.encode(new)

    return _TARBALL.sub(replaced, body)
