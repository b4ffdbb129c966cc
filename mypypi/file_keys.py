"""Derives keys from upstream URLs. A key names a file in storage and in links.

Knows URLs, and which names file systems and `mypypi.web.validation` accept. Must never know files or pages.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote, urlsplit

from mypypi.digests import Digest

#: Longest name of a file or directory that common file systems accept, in bytes.
_MAX_SEGMENT = 255
_MAX_KEY = 2048
_HOST = re.compile(r"(?:[0-9a-zA-Z_][0-9a-zA-Z._-]*|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
#: Characters that keys have unquoted, besides letters, digits, and ``_.-``.
_UNQUOTED = "~@+!$&'()*,;=:"
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: A URL that is its own key but for "://", as nearly all are: no default port, query, percent sign or capital in the
#: host, no segment that is empty, a dot or two, or the name of a stored file. It is also the path of a link.
_PLAIN = re.compile(
    r"(https?)://([a-z0-9][a-z0-9.-]{0,200}(?::[1-9][0-9]{3}|:[1-5][0-9]{4})?(?:/(?!\.|sha|md5)[A-Za-z0-9_.+~-]{1,250}){1,50})"
)
#: Stands for an empty segment in keys and links: clients and proxies may take ``//`` for ``/``, and no directory has an
#: empty name. A private character, so no other segment is accepted with it (see `is_segment`). In URLs: ``%EE%80%80``.
EMPTY_SEGMENT = "\ue000"
_EMPTY_IN_URLS = quote(EMPTY_SEGMENT)


def key_of(url: str) -> str:
    """
    Return the key of this upstream URL.

    ``https://host:8443/a/b%2Bc.whl?x=1`` becomes ``https/host:8443/a/b+c.whl%3Fx=1``. The key depends on the URL
    alone. It is the same for every percent-encoding of the URL, and safe as a relative file path. In place of a query
    that is too long for a file's name, or has a slash, stands its SHA-256, after ``#``, which no query contains.

    An empty segment becomes `EMPTY_SEGMENT`: ``https://host/a//b.whl`` has the key ``https/host/a/%EE%80%80/b.whl``.

    Raises ValueError if the URL has no key: a scheme other than http and https, credentials, no path, ``.``, ``..``, an
    encoded slash, a backslash, a character that can't be printed, a segment of more than 255 bytes, a segment like the
    name of a stored file (``sha256-9fd….101817``), or more than 2048 bytes altogether.
    """
    if (plain := plain_key_of(url)) is not None:
        return plain
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"no key for {url!r}")
    host = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
    if parts.port is not None and parts.port != _DEFAULT_PORTS[parts.scheme]:
        host = f"{host}:{parts.port}"
    segments = [unquote(segment, errors="strict") for segment in parts.path.split("/")[1:]] or [""]
    if EMPTY_SEGMENT in segments:
        raise ValueError(f"no key for {url!r}")
    if parts.query and segments[-1] not in (".", ".."):  # rejected below, with a query too
        segments[-1] = with_query(segments[-1], as_uri(parts.query))
    if any(segments):
        segments = [segment or EMPTY_SEGMENT for segment in segments]
    return key_from_segments([parts.scheme, host, *segments])


def plain_key_of(url: str) -> str | None:
    """Return the key of a URL that differs from it in "://" alone; None for any other URL."""
    found = _PLAIN.fullmatch(url)
    return None if found is None or len(url) > _MAX_KEY else f"{found[1]}/{found[2]}"


def stable_key_of(url: str, filename: str) -> str:
    """
    Return the key of a file that a page lists with this name and with a digest.

    If the path ends with the name, the query does not tell which file it is, and is left out: it may be a signature
    that is another one in each page. Raises ValueError as `key_of` does.
    """
    if (plain := plain_key_of(url)) is not None:
        return plain
    parts = urlsplit(url)
    if parts.query and unquote(parts.path.rpartition("/")[2]) == filename:
        return key_of(parts._replace(query="").geturl())
    return key_of(url)


def origin_in(link: str) -> str:
    """Return the scheme and the host of a key, or of a link that has such a form, as they stand in it."""
    return "/".join(link.split("/", 2)[:2])


def with_query(segment: str, query: str) -> str:
    """Return the last segment of a key: that of the path, and the query, or its digest if need be."""
    whole = f"{segment}?{query}"
    if is_segment(whole) and len(quote(whole, safe=_UNQUOTED)) <= _MAX_SEGMENT:
        return whole
    return f"{segment}?#{hashlib.sha256(query.encode()).hexdigest()}"


def key_from_segments(segments: list[str]) -> str:
    """Build the key of these decoded segments: scheme, host, path. Raises ValueError as `key_of` does."""
    if len(segments) < 3 or segments[0] not in _DEFAULT_PORTS:  # noqa: PLR2004 - scheme, host and at least one more
        raise ValueError("a key needs a scheme (http or https), a host and a path")
    if not _HOST.fullmatch(segments[1]):
        raise ValueError(f"not a host: {segments[1]!r}")
    quoted = [segments[0], segments[1].lower()]
    for segment in segments[2:]:
        if (not is_segment(segment) and segment != EMPTY_SEGMENT) or _is_stored_name(segment):
            raise ValueError(f"not a segment of a file's path: {segment!r}")
        quoted.append(quote(segment, safe=_UNQUOTED))
        if len(quoted[-1]) > _MAX_SEGMENT:
            raise ValueError("a segment of a file's path is too long")
    key = "/".join(quoted)
    if len(key) > _MAX_KEY:
        raise ValueError("a file's path is too long")
    return key


def with_marks(path: str, query: str = "") -> str:
    """
    Return a URL's path with a mark, the encoded `EMPTY_SEGMENT`, in place of each empty segment.

    The last one needs no mark before a query, which becomes part of it (see `key_of`).
    """
    *segments, last = path.split("/")[1:]
    return "/".join(
        ["", *(segment or _EMPTY_IN_URLS for segment in segments), last or ("" if query else _EMPTY_IN_URLS)]
    )


def without_marks(path: str) -> str:
    """Return a URL's path with its empty segments, given that of `with_marks`."""
    if _EMPTY_IN_URLS not in path:
        return path
    return "/".join("" if segment == _EMPTY_IN_URLS else segment for segment in path.split("/"))


def as_uri(text: str) -> str:
    """Percent-encode all characters that RFC 3986 does not allow in a URL. Existing encodings stay."""
    return quote(text, safe="%:/?#[]@!$&'()*+,;=~")


def is_segment(text: str) -> bool:
    """Whether this decoded text can be a segment of a path.

    Such a segment passes `mypypi.web.validation`, and is safe as a file name.
    """
    # Clients and proxies that know parameters of segments (RFC 3986, section 3.3) take ``..;x`` for ``..``.
    is_name = text != "" and text.partition(";")[0] not in (".", "..")
    return is_name and not re.search(r"[/\\]", text) and text.isprintable()


def _is_stored_name(segment: str) -> bool:
    """
    Whether the storage could give a file this name, in the directory of its key (see `mypypi.storage.disk`).

    A longer key with such a segment would be in the way of that file.
    """
    digest, _, size = segment.partition(".")
    try:
        Digest.parse(digest)
    except ValueError:
        return False
    return size.isdecimal()
