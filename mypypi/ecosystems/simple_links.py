"""Turns a file's upstream URL into a link to this server, and a link's path back into the URL.

Knows URLs, and where package files lie on this server. Must never know the formats of pages.
"""

from __future__ import annotations

import re
from collections.abc import Container
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

from mypypi.digests import Digest
from mypypi.ecosystems.simple_html_reader import hashes_in
from mypypi.file_keys import key_of, plain_key_of, stable_key_of, with_marks, without_marks
from mypypi.model import BASE_PLACEHOLDER

#: The relative URL from a project's page to the route of package files.
TO_FILES = "../../file/"
#: The same as an absolute URL, where a relative one is not allowed.
TO_FILES_HERE = f"{BASE_PLACEHOLDER.decode()}/file/"
_BARE_PERCENT = re.compile("%(?![0-9a-fA-F]{2})")
_SCHEME = re.compile("https?://", re.IGNORECASE)


def is_valid_file(file: object) -> bool:
    """Whether an entry of a page has a filename and a URL."""
    return isinstance(file, dict) and all(isinstance(file.get(key), str) and file[key] for key in ("url", "filename"))


def without_credentials(url: str) -> str:
    """Remove our credentials from a page's URL: its links are resolved against it, and clients see them."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def absolute_url(base: str, url: str) -> str | None:
    """Resolve a URL of a page, without its fragment. None if no client can parse it."""
    if plain_key_of(url) is not None:
        return url
    try:
        absolute = (url if _SCHEME.match(url) else urljoin(base, url)).partition("#")[0]
        urlsplit(absolute)  # pip would reject the whole page for a URL that it can't parse
    except ValueError:
        return None
    return absolute


def is_web_url(url: str) -> bool:
    """
    Whether an absolute URL is one of http or https. No page has others.

    A browser runs ``javascript:`` and ``data:``. With ``file:``, a client reads from its own disk or network drives.
    """
    return _SCHEME.match(url) is not None


def named_by_path(files: list[Any], base: str) -> frozenset[str]:
    """
    Return the URLs whose query does not tell which file it is, so that links are made without it (see `stable_key_of`).

    The path ends with the listed name, the page gives a digest, and no other file has the same path.
    """
    digests: dict[str, set[str]] = {}
    urls: dict[str, set[str]] = {}
    valid = [file for file in files if is_valid_file(file)]
    for file in valid if any("?" in file["url"] for file in valid) else ():
        url = absolute_url(base, file["url"])
        hashes = file.get("hashes") or file.get("digests")
        digest = digest_of(hashes) or digest_of(hashes_in(file["url"].partition("#")[2]))
        if url is not None:
            with suppress(ValueError):
                key = stable_key_of(url, file["filename"]) if digest else key_of(url)
                digests.setdefault(key, set()).add(str(digest or ""))
                if key != key_of(url):
                    urls.setdefault(key, set()).add(url)
    return frozenset(url for key, several in urls.items() if len(digests[key]) == 1 for url in several)


def link_and_path(url: str, named: Container[str] = ()) -> tuple[str, str] | None:
    """
    Return a file's link, and its path with upstream's percent-encoding. None if it can't be served here.

    For a URL in `named`, they are made without its query (see `named_by_path`).
    """
    if (plain := plain_key_of(url)) is not None:
        return plain, plain
    try:
        parts = urlsplit(url)
        if url in named:
            parts = parts._replace(query="")
            url = parts.geturl()
        if not parts.path:
            return None
        link = key_of(url)
    except ValueError:
        return None
    scheme, host, _ = link.split("/", 2)
    path = with_marks(_BARE_PERCENT.sub("%25", parts.path), parts.query)
    return link, f"{scheme}/{host}{path}" + (f"?{parts.query}" if parts.query else "")


def url_of(path: str) -> str:
    """Return the upstream URL of a path that `link_and_path` has made."""
    address, mark, query = path.partition("?")
    return without_marks(address).replace("/", "://", 1) + mark + query


def digest_of(hashes: object) -> Digest | None:
    """Return the strongest digest of a field that should have hashes by algorithm."""
    return Digest.strongest(hashes) if isinstance(hashes, dict) else None
