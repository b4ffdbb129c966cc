"""What a page advertises beside a file: its ``.metadata``, its ``.asc`` signature, and its provenance.

Follows PEP 658 and 714 for metadata, PEP 503 for signatures, PEP 740 for provenance. Knows the fields that advertise
them. Must never know why one can't be served, or how metadata is read out of a wheel.
"""

from __future__ import annotations

from mypypi.ecosystems.simple_html import Document, has_metadata
from mypypi.ecosystems.simple_html_reader import CORE_METADATA
from mypypi.ecosystems.simple_links import TO_FILES_HERE, absolute_url, is_web_url, link_and_path
from mypypi.file_keys import origin_in
from mypypi.model import PageRules

#: The fields that advertise a file with this suffix beside the package file.
_FIELDS = {".metadata": CORE_METADATA, ".asc": ("gpg-sig",)}
#: Adding ``.metadata`` to a link shorter than this can't make a segment too long for a file system (see `key_of`).
_LONG_LINK = 240
#: A field of ours, which marks a file whose metadata is read out of it. Names that begin with an underscore are
#: reserved for servers (PEP 691).
EXTRACTED = "_extracted"


def withdraw(file: Document, link: str, url: str, withheld: frozenset[str]) -> list[str]:
    """Remove the fields of what can't be served beside a file. Return the links of what can."""
    for suffix, names in _FIELDS.items():
        if not _can_serve_beside(link, url, withheld, suffix):
            for name in names:
                file.pop(name, None)
    suffixes = [".metadata"] if has_metadata(file.get("core-metadata")) else []
    suffixes += [".asc"] if file.get("gpg-sig") is True else []
    return [f"{link}{suffix}" for suffix in suffixes]


def offer_metadata(file: Document, link: str, url: str, rules: PageRules) -> bool:
    """
    Advertise the metadata of a wheel without any, if the rules say that it can be read out of the wheel.

    Returns whether it could be, as far as the page tells.
    """
    if rules.ranged is None or not file["filename"].lower().endswith(".whl") or has_metadata(file.get("core-metadata")):
        return False
    if not _can_serve_beside(link, url, rules.withheld, ".metadata"):
        return False
    if can_extract(link, rules):
        file["core-metadata"] = file[EXTRACTED] = True
    return True


def can_extract(link: str, rules: PageRules) -> bool:
    """Whether metadata can be read out of the wheel with this link, by these rules."""
    return rules.ranged is not None and (link in rules.offered or origin_in(link) in rules.ranged)


def turn_provenance(file: Document, base: str, withheld: frozenset[str]) -> str | None:
    """
    Let a file's provenance lead to this server, by an absolute URL (PEP 740).

    Returns its link; empty if there is none, or none any more. None if it can't be served here: then it stays, unless
    no page may have it.
    """
    if not file.get("provenance"):
        return ""
    url = absolute_url(base, file["provenance"])
    served = link_and_path(url) if url else None
    if served is None and (url is None or is_web_url(url)):
        return None
    if served is None or served[0] in withheld:
        file["provenance"] = None
        return ""
    file["provenance"] = TO_FILES_HERE + served[1]
    return served[0]


def _can_serve_beside(link: str, url: str, withheld: frozenset[str], suffix: str) -> bool:
    """
    Whether the file with this suffix can be served beside the one at `url`.

    It needs a key. With a query in `url`, clients disagree on its address.
    """
    if f"{link}{suffix}" in withheld or "?" in url or url.endswith("/"):
        return False
    return len(link) < _LONG_LINK or link_and_path(f"{url}{suffix}") is not None
