"""Parses the HTML of Simple pages (PEP 503): anchors, metas, titles, and signs that it is another kind of page.

lxml calls `_Target` with each tag, so no tree is built: time and memory grow linearly, for hostile pages as well. Knows
HTML. Must never know where a link should point: URLs are resolved against the page's own base, and not changed.
"""

from __future__ import annotations

import hashlib
import re
from html import unescape
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from attrs import define, field
from lxml import etree

#: Anchors of one page, or projects of the list of all: PyPI has 700,000 projects.
MOST_LINKS = 1_000_000
#: The valid name (PEP 714), the name of PEP 658, and the name that PyPI used in JSON by mistake.
CORE_METADATA = ("core-metadata", "dist-info-metadata", "data-dist-info-metadata")
REAL_HASHES = {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake")}
HEX = re.compile("[0-9a-fA-F]+")

_PIECE = 64 * 1024
_LONGEST_TITLE = 400
_HASH = re.compile(rf"(?:^|&)({'|'.join(sorted(REAL_HASHES))})=([0-9a-f]+)(?=&|$)", re.IGNORECASE)
_SIZE = re.compile("[0-9]{1,18}")
#: The usual titles. devpi puts the name of its index before them.
_SIMPLE_TITLE = re.compile(r"(?:[^:]*:)?\s*(?:links for|simple index|simple list)\b", re.IGNORECASE)
_PROJECT_TITLE = re.compile(r"(?:[^:]*:)?\s*links for\s+(\S+)\s*", re.IGNORECASE)
#: Tags of pages for people, such as a form to sign in. Few Simple pages have one of them.
_INTERACTIVE = frozenset({"form", "input", "button", "script", "iframe"})
#: Fields that an attribute of the same name must not replace.
_FIXED = frozenset({"filename", "url", "hashes", "requires-python", "gpg-sig", "yanked", "size", *CORE_METADATA})


@define
class HtmlPage:
    """
    The parts of a page in HTML.

    `anchors` are the attributes of each anchor, `names` their texts. With `is_interactive`, the page has a form, a
    button, a script, or a redirect by a meta element.
    """

    base: str = ""
    metas: dict[str, list[str]] = field(factory=dict)
    anchors: list[dict[str, str]] = field(factory=list)
    names: list[str] = field(factory=list)
    titles: list[str] = field(factory=list)
    is_interactive: bool = False

    @property
    def is_marked(self) -> bool:
        """Whether the page says that it is a Simple page: by a meta tag (PEP 629), or by one of the usual titles."""
        return "repository-version" in self.metas or any(map(_SIMPLE_TITLE.match, self.titles))

    @property
    def project(self) -> str:
        """The project in the title "Links for …"; empty if there is none."""
        found = filter(None, map(_PROJECT_TITLE.fullmatch, self.titles))
        return next((match[1] for match in found), "")

    def files(self, url: str) -> list[dict[str, Any]]:
        """
        Return the files that the anchors link to, as PEP 691's JSON has them.

        `url` is the page's own. URLs are resolved only if the page has its own base. ``dist-info-metadata`` becomes
        ``core-metadata`` only, since pip 22.3 to 23.1 fail on the old name in JSON (PEP 714, Motivation). ``data-``
        attributes that no PEP defines become fields of text.
        """
        base = urljoin(url, self.base) if self.base else ""
        return [file for anchor in self.anchors if (file := _file(anchor, base)) is not None]


def hashes_in(fragment: str) -> dict[str, str]:
    """Return all hashes in a URL's fragment, in lower case. Of several of one algorithm, the first one counts."""
    hashes: dict[str, str] = {}
    for name, value in _HASH.findall(fragment):
        hashes.setdefault(name.lower(), value.lower())
    return hashes


def parse_html(text: str) -> HtmlPage:
    """Parse a page. Raises ValueError if it has more than `MOST_LINKS` anchors, and MemoryError."""
    target = _Target()
    parser = etree.HTMLParser(target=target, huge_tree=True)
    for start in range(0, len(text), _PIECE):
        parser.feed(text[start : start + _PIECE])
        if target.count > MOST_LINKS:  # libxml2 would lose an exception of the target
            raise ValueError(f"it has more than {MOST_LINKS} links")
    if text:
        parser.close()
    if any(entry.type == etree.ErrorTypes.ERR_NO_MEMORY for entry in parser.feed_error_log):
        raise MemoryError  # libxml2 only notes it, and leaves out the rest of the page
    return target.page


class _Target:
    """Collects the parts of a page as lxml's parser meets them."""

    def __init__(self) -> None:
        self.page = HtmlPage()
        self.count = 0
        self._text: list[str] | None = None
        self._is_title = False

    def start(self, tag: str, attributes: Any) -> None:
        if tag == "a":
            self.count += 1
            if self.count <= MOST_LINKS:
                self._end_text()
                self.page.anchors.append(dict(attributes))
                self._text, self._is_title = [], False
        elif tag in ("title", "h1"):
            self._end_text()
            self._text, self._is_title = [], True
        elif tag == "meta":
            name, content = attributes.get("name") or "", attributes.get("content")
            if name.startswith("pypi:") and content is not None:
                self.page.metas.setdefault(name.removeprefix("pypi:"), []).append(content)
            if (attributes.get("http-equiv") or "").lower() == "refresh":
                self.page.is_interactive = True
        elif tag == "base" and not self.page.base:
            self.page.base = (attributes.get("href") or "").strip()
        elif tag in _INTERACTIVE:
            self.page.is_interactive = True

    def end(self, tag: str) -> None:
        if tag in ("a", "title", "h1"):
            self._end_text()

    def data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def close(self) -> None:
        self._end_text()

    def _end_text(self) -> None:
        if self._text is None:
            return
        text = "".join(self._text)
        self._text = None
        if not self._is_title:
            self.page.names.append(text)
        elif len(self.page.titles) < 2:  # noqa: PLR2004 - the title and the heading
            self.page.titles.append(text[:_LONGEST_TITLE])


def _file(anchor: dict[str, str], base: str) -> dict[str, Any] | None:
    """Return the anchor's file; None if it links to no file."""
    address, _, fragment = anchor.get("href", "").strip().partition("#")
    try:
        filename = unquote(urlsplit(address).path.rpartition("/")[2])
        url = urljoin(base, address) if base else address
    except ValueError:
        return None
    if not filename:
        return None
    file: dict[str, Any] = {"filename": filename, "url": url, "hashes": hashes_in(fragment)}
    if anchor.get("data-requires-python"):
        file["requires-python"] = unescape(anchor["data-requires-python"])
    if "data-gpg-sig" in anchor:
        file["gpg-sig"] = anchor["data-gpg-sig"] == "true"
    if "data-yanked" in anchor:
        file["yanked"] = anchor["data-yanked"] or True
    if _SIZE.fullmatch(anchor.get("data-size", "")):
        file["size"] = int(anchor["data-size"])
    metadata = _core_metadata(anchor)
    if metadata is not None:
        file["core-metadata"] = metadata
    for attribute, value in anchor.items():
        name = attribute.removeprefix("data-")
        if name != attribute and name not in _FIXED:
            file[name] = value
    return file


def _core_metadata(anchor: dict[str, str]) -> bool | dict[str, str] | None:
    """Return true or hashes, as PEP 714 has it in JSON; None if the anchor advertises no metadata."""
    name = next((f"data-{name}" for name in CORE_METADATA[:2] if f"data-{name}" in anchor), None)
    if name is None or anchor[name] == "false":
        return None
    return hashes_in(anchor[name]) or True
