"""Converts the Simple Repository API's HTML to JSON documents, and back.

Follows PEP 503 and PEP 691. Knows HTML, and the attribute of each field. Must never know where a link should point:
URLs are not changed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

from mousebender.simple import from_project_details_html, from_project_index_html
from packaging.utils import canonicalize_name

from mypypi.model import Digest

#: A page with the structure of PEP 691's JSON. Values are upstream's, and may have any type.
Document = dict[str, Any]

#: The valid name (PEP 714), the name of PEP 658, and the name that PyPI used in JSON by mistake.
CORE_METADATA = ("core-metadata", "dist-info-metadata", "data-dist-info-metadata")

_REAL_HASHES = {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake")}
_HASH = re.compile(rf"(?:^|&)((?:{'|'.join(sorted(_REAL_HASHES))})=[0-9a-f]+)(?=&|$)", re.IGNORECASE)
_HEX = re.compile("[0-9a-fA-F]+")
_SIZE = re.compile("[0-9]{1,18}")
_FIRST_ANCHOR = re.compile(r"<a[\s>]", re.IGNORECASE)
#: Field names that can be part of an attribute's name. They have no capitals, since HTML ignores case.
_ATTRIBUTE = re.compile(r"[a-z0-9][a-z0-9_.-]*")

#: The attributes that mousebender reads.
_READ = ("data-requires-python", "data-gpg-sig", "data-yanked", "data-core-metadata", "data-dist-info-metadata")
#: Fields that an attribute of the same name must not replace.
_FIXED = frozenset({"filename", "url", "hashes", *(name.removeprefix("data-") for name in _READ), *CORE_METADATA})
#: Fields with their own HTML syntax, or with none.
_NOT_PLAIN = frozenset({"filename", "url", "hashes", "size", "upload-time", "yanked", *CORE_METADATA})


class _Tags(HTMLParser):
    """Collects what mousebender ignores: the base, ``pypi:`` metas, and all attributes of anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.metas: dict[str, list[str]] = {}
        self.anchors: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.anchors.append(dict(attrs))
        elif tag == "meta":
            meta = dict(attrs)
            name, content = meta.get("name") or "", meta.get("content")
            if name.startswith("pypi:") and content is not None:
                self.metas.setdefault(name.removeprefix("pypi:"), []).append(content)
        elif tag == "base" and not self.base:
            self.base = (dict(attrs).get("href") or "").strip()


def read_index(text: str) -> Document:
    """Parse the list of all projects. Every anchor's text counts as a name."""
    first = _FIRST_ANCHOR.search(text)
    start = first.start() if first else len(text)
    tags = _read_tags(text[:start])
    document: Document = {**from_project_index_html(text[start:])}
    # The directory list of a plain file server has names with a trailing slash.
    document["projects"] = [{"name": project["name"].strip().rstrip("/")} for project in document["projects"]]
    _add_metas(document, tags.metas)
    return document


def read_project(text: str, project: str, url: str) -> Document:
    """
    Parse a project's page, which came from `url`.

    URLs of files are resolved only if the page has its own base. Anchors that can't be files are left out.
    ``dist-info-metadata`` becomes ``core-metadata`` only, since pip 22.3 to 23.1 fail on the old name in JSON (PEP 714,
    Motivation). ``data-`` attributes that no PEP defines become fields of text.
    """
    tags = _read_tags(text)
    named = [(anchor, tag) for anchor in tags.anchors if (tag := _start_tag(anchor))]
    # mousebender gets the anchors only: one odd fragment makes it fail on the page, and it warns of newer versions.
    document: Document = {**from_project_details_html("".join(tag for _, tag in named), project)}
    base = urljoin(url, tags.base) if tags.base else ""
    for (anchor, _), file in zip(named, document["files"], strict=True):
        if base:
            file["url"] = urljoin(base, file["url"])
        _normalise_metadata(file)
        _add_attributes(file, anchor)
    _add_metas(document, tags.metas)
    return document


def _read_tags(text: str) -> _Tags:
    tags = _Tags()
    tags.feed(text)
    tags.close()
    return tags


def _start_tag(anchor: dict[str, str | None]) -> str:
    """Return the anchor's tag as mousebender reads it. Empty if it does not link to a file."""
    href, _, fragment = (anchor.get("href") or "").strip().partition("#")
    try:
        filename = urlsplit(href).path.rpartition("/")[2]
    except ValueError:
        return ""
    if not filename:
        return ""
    digest = _HASH.search(fragment)
    kept = {name: anchor[name] or "" for name in _READ if name in anchor}
    return _tag("a", {"href": f"{href}#{digest[1]}" if digest else href, **kept})


def _normalise_metadata(file: Document) -> None:
    file.pop("dist-info-metadata", None)
    metadata = file.get("core-metadata")
    if not isinstance(metadata, dict):
        return
    if "false" in metadata:
        del file["core-metadata"]
        return
    real = {name: value for name, value in metadata.items() if name in _REAL_HASHES and _HEX.fullmatch(value)}
    file["core-metadata"] = real or True


def _add_attributes(file: Document, anchor: dict[str, str | None]) -> None:
    for attribute, value in anchor.items():
        name = attribute.removeprefix("data-")
        if name == attribute or name in _FIXED:
            continue
        if name != "size":
            file[name] = value or ""
        elif _SIZE.fullmatch(value or ""):
            file[name] = int(value or "")


def _add_metas(document: Document, metas: dict[str, list[str]]) -> None:
    """Add ``pypi:`` metas where JSON has them (PEP 629, PEP 708, PEP 792)."""
    for name, contents in metas.items():
        if name == "repository-version":
            document["meta"]["api-version"] = contents[-1]
        elif name == "tracks":
            document["meta"][name] = contents
        elif name == "alternate-locations":
            document[name] = contents
        elif name == "project-status":
            document.setdefault(name, {})["status"] = contents[-1]
        elif name == "project-status-reason":
            document.setdefault("project-status", {})["reason"] = contents[-1]
        else:
            document["meta"][name] = contents[-1]


def write_index(document: Document) -> bytes:
    """Write the list of all projects, with upstream's names and normalised links (PEP 503)."""
    lines = _head(document, "Simple index")
    lines += [
        f'<a href="{escape(canonicalize_name(name))}/">{escape(name)}</a><br/>'
        for name in (project["name"] for project in document["projects"])
    ]
    return _join(lines)


def write_project(document: Document) -> bytes:
    """Write a project's page: all files, with every field that HTML can express."""
    title = f"Links for {document['name']}"
    lines = _head(document, title)
    lines.append(f"<h1>{escape(title)}</h1>")
    for file in document["files"]:
        digest = _strongest(file.get("hashes"))
        href = f"{file['url']}#{digest}" if digest else file["url"]
        anchor = _tag("a", {"href": href, **_attributes(file)})
        lines.append(f"{anchor}{escape(file['filename'])}</a><br/>")
    return _join(lines)


def _head(document: Document, title: str) -> list[str]:
    return [
        "<!DOCTYPE html>",
        "<html>",
        "<head>",
        *(_tag("meta", {"name": f"pypi:{name}", "content": content}) for name, content in _metas(document)),
        f"<title>{escape(title)}</title>",
        "</head>",
        "<body>",
    ]


def _join(lines: list[str]) -> bytes:
    return "\n".join([*lines, "</body>", "</html>", ""]).encode()


def _metas(document: Document) -> Iterator[tuple[str, str]]:
    meta = document["meta"]
    yield "repository-version", str(meta["api-version"])
    fields = {name: value for name, value in meta.items() if name != "api-version"}
    if "alternate-locations" in document:
        fields["alternate-locations"] = document["alternate-locations"]
    status = document.get("project-status")
    if isinstance(status, dict):
        fields["project-status"] = status.get("status")
        fields["project-status-reason"] = status.get("reason")
    for name, value in fields.items():
        for item in value if isinstance(value, list) else [value]:
            text = _text(item)
            if text is not None and _ATTRIBUTE.fullmatch(name):
                yield name, text


def _attributes(file: Document) -> dict[str, str]:
    """Return an anchor's attributes other than href (PEP 503, 592, 658, 714, 740 and later ones)."""
    attributes = {}
    for name, value in file.items():
        if name not in _NOT_PLAIN and (text := _text(value)) is not None and _ATTRIBUTE.fullmatch(name):
            attributes[f"data-{name}"] = text
    yanked = file.get("yanked")
    if yanked:
        attributes["data-yanked"] = yanked if isinstance(yanked, str) else ""
    metadata = file.get("core-metadata")
    if has_metadata(metadata):
        value = _strongest(metadata) or "true"
        attributes["data-core-metadata"] = attributes["data-dist-info-metadata"] = value
    return attributes


def has_metadata(metadata: object) -> bool:
    """Whether ``core-metadata`` announces a ``.metadata`` file, by true or by its hashes (PEP 714)."""
    return bool(metadata) or isinstance(metadata, dict)


def _strongest(hashes: object) -> str:
    """Return one hash as ``name=hex``: sha256, which every client knows, else the strongest, else empty."""
    if not isinstance(hashes, dict):
        return ""
    digest = Digest.strongest({"sha256": hashes.get("sha256")}) or Digest.strongest(hashes)
    if digest:
        return f"{digest.algorithm}={digest.hex}"
    for name, value in hashes.items():
        if name in _REAL_HASHES and isinstance(value, str) and _HEX.fullmatch(value):
            return f"{name}={value}"
    return ""


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else None


def _tag(name: str, attributes: dict[str, str]) -> str:
    written = [f'{key}="{escape(value)}"' for key, value in attributes.items()]
    return f"<{name} {' '.join(written)}>"
