"""Writes the documents of the Simple Repository API as HTML.

Follows PEP 503. Knows HTML, and the attribute of each field. Must never know where a link should point: URLs are not
changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from packaging.utils import canonicalize_name

from mypypi.digests import Digest
from mypypi.ecosystems.simple_html_reader import CORE_METADATA, HEX, REAL_HASHES

#: A page with the structure of PEP 691's JSON. Values are upstream's, and may have any type.
Document = dict[str, Any]

#: Field names that can be part of an attribute's name. They have no capitals, since HTML ignores case.
_ATTRIBUTE = re.compile(r"[a-z0-9][a-z0-9_.-]*")
#: Fields with their own HTML syntax, or with none.
_NOT_PLAIN = frozenset({"filename", "url", "hashes", "size", "upload-time", "yanked", *CORE_METADATA})


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
        if name in REAL_HASHES and isinstance(value, str) and HEX.fullmatch(value):
            return f"{name}={value}"
    return ""


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else None


def _tag(name: str, attributes: dict[str, str]) -> str:
    # HTML's parsers convert a carriage return, unless it is written as a reference.
    written = [f'{key}="{escape(value)}"'.replace("\r", "&#13;") for key, value in attributes.items()]
    return f"<{name} {' '.join(written)}>"
