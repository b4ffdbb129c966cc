"""Turns the URLs of a usual page into links, all at once: as one text, which costs less than one by one.

Knows plain URLs (see `mypypi.file_keys`). Must never know what else a page has.
"""

from __future__ import annotations

import re
import string
from urllib.parse import urljoin

from mypypi.file_keys import plain_key_of

_PREFIX = re.compile("https?://[^/]+/")
#: The start of a link that is relative to the page.
_UP = re.compile(r"(?:\.\./)+")
#: Characters of a filename to which ``.metadata`` can be added, and of what comes before it in a link. No segment of
#: such a link is too long for a key (see `key_of`).
_LONGEST_NAME = _LONGEST_START = 240
#: Bytes of plain paths, which are separated by line feeds, and what no plain path has (see `plain_key_of`).
_PLAIN_BYTES = string.ascii_letters.encode() + string.digits.encode() + b"_.+~-/\n"
_ODD = (b"//", b"/.", b"/sha", b"/md5", b"/\n")


class UnusualError(Exception):
    """The page has another form."""


def expect(holds: bool) -> None:  # noqa: FBT001 - it is the value
    """Raise UnusualError unless this holds."""
    if not holds:
        raise UnusualError


def prefixes(url: str, base: str) -> tuple[str, str]:
    """Return the start of a URL that those of all files should have, as it is written, and as it is absolute."""
    up = _UP.match(url)
    return (prefix := prefix_of(url), prefix) if up is None else (up[0], urljoin(base, up[0]))


def path_in(url: str) -> str:
    """Return the path of a link to this server, or the start of one, from a URL that has no other path."""
    return url.replace("://", "/", 1)


def links_of(urls: list[str], written: str, prefix: str) -> tuple[list[str], list[str]]:
    """
    Return the absolute URLs of all files, and their links. All begin as the first one does (see `prefixes`).

    The URLs are plain ones (see `plain_key_of`), but for plus signs, which may be encoded: links have them as they are.
    Raises UnusualError for any others.
    """
    expect(min(urls).startswith(written) and max(urls).startswith(written))
    rest = [url[len(written) :] for url in urls]
    urls = urls if written == prefix else [prefix + each for each in rest]
    if "%2B" in (text := "\n".join(rest)):
        rest = text.replace("%2B", "+").split("\n")
    paths = ("/" + "\n/".join(rest) + "\n").encode()
    expect(paths.count(b"\n") == len(urls))
    expect(not paths.translate(None, _PLAIN_BYTES) and not any(odd in paths for odd in _ODD))
    expect("%" not in prefix_of(prefix))
    start = path_in(prefix).replace("%2B", "+")
    links = [start + each for each in rest]
    expect(plain_key_of(urls[0].replace("%2B", "+")) == links[0] and len(set(links)) == len(links))
    lengths = [(each.rfind("/") + 1, len(each)) for each in rest]
    expect(len(start) + max(at for at, _ in lengths) < _LONGEST_START)
    expect(max(length - at for at, length in lengths) < _LONGEST_NAME)
    return urls, links


def prefix_of(url: str) -> str:
    """Return the scheme and the host of a URL, with a slash at the end. Raises UnusualError if it has none."""
    found = _PREFIX.match(url)
    if found is None:
        raise UnusualError
    return found[0]
