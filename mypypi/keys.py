"""Keys: what a file from an upstream URL is called, in storage and in links; and the URLs' parts that they are made of.

Knows URLs, and what file systems and the gate take for a name. Must never know files or pages.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

#: Longest name of a file or directory that the usual file systems take, in bytes.
_MAX_SEGMENT = 255
_MAX_KEY = 2048
_HOST = re.compile(r"(?:[0-9a-zA-Z_][0-9a-zA-Z._-]*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def key_of(url: str) -> str:
    """
    Where a file from this upstream URL lies in storage, and how it is named in links.

    ``https://host:8443/a/b%2Bc.whl?x=1`` becomes ``https/host:8443/a/b%2Bc.whl%3Fx=1``: derived from the URL alone,
    the same however the URL was percent-encoded, and safe as a relative file path.

    Raises ValueError where a URL has no such name: another scheme, credentials in it, an empty segment, ``..``,
    an encoded slash, a backslash, what can't be printed, or a segment that is too long for a file system.
    """
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"no key for {url!r}")
    host = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
    if parts.port is not None and parts.port != _DEFAULT_PORTS[parts.scheme]:
        host = f"{host}:{parts.port}"
    segments = [unquote(segment, errors="strict") for segment in parts.path.split("/")[1:]] or [""]
    if parts.query and segments[-1] not in (".", ".."):  # which are refused with a query as well
        segments[-1] += f"?{as_uri(parts.query)}"
    return key_from_segments([parts.scheme, host, *segments])


def key_from_segments(segments: list[str]) -> str:
    """The key with these decoded segments: scheme, host, and the path. Raises ValueError as `key_of` does."""
    if len(segments) < 3 or segments[0] not in _DEFAULT_PORTS:  # noqa: PLR2004 - scheme, host and at least one more
        raise ValueError("a key has a scheme, a host and a path")
    if not _HOST.fullmatch(segments[1]):
        raise ValueError(f"not a host: {segments[1]!r}")
    quoted = [segments[0], segments[1].lower()]
    for segment in segments[2:]:
        if not is_segment(segment):
            raise ValueError(f"not a segment of a file's path: {segment!r}")
        quoted.append(quote(segment, safe="~@+!$&'()*,;=:"))
        if len(quoted[-1]) > _MAX_SEGMENT:
            raise ValueError("a segment of a file's path is too long")
    key = "/".join(quoted)
    if len(key) > _MAX_KEY:
        raise ValueError("a file's path is too long")
    return key


def as_uri(text: str) -> str:
    """A URL, or a part of one, with all that RFC 3986 has no place for percent-encoded; what is encoded stays so."""
    return quote(text, safe="%:/?#[]@!$&'()*+,;=~")


def is_segment(text: str) -> bool:
    """Whether this, decoded, can be a segment of a path here: what the gate lets through, and a file may be called."""
    return text not in ("", ".", "..") and not re.search(r"[/\\]", text) and text.isprintable()
