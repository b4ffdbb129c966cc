"""The two forms of an index's pages, and the negotiation between them.

Knows the Simple Repository API's JSON and HTML. Must never know which packages are listed, or a socket.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping

from packaging.utils import canonicalize_name

JSON = "application/vnd.pypi.simple.v1+json"
HTML = "application/vnd.pypi.simple.v1+html"
TEXT = "text/html"

Renderer = Callable[[Mapping[str, object]], str]


def negotiated(accept: str) -> str | None:
    """
    The content type that the client prefers, or None.

    Among types of equal preference, text/html wins. None means that the client accepts none of them.
    """
    wanted: dict[str, float] = {}
    for item in accept.split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        wanted[kind.replace(".latest+", ".v1+")] = float(quality)
    qualities = {offer: _quality_of(offer, wanted) for offer in (TEXT, HTML, JSON)}
    best = max(qualities, key=lambda offer: qualities[offer])
    return best if qualities[best] else None


def _quality_of(offer: str, wanted: Mapping[str, float]) -> float:
    for kind in (offer, offer.partition("/")[0] + "/*", "*/*"):
        if kind in wanted:
            return wanted[kind]
    return 0.0


def dump(document: object) -> bytes:
    """JSON in PyPI's style: compact, with sorted keys."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def project_html(page: Mapping[str, object]) -> str:
    """Render a project's page in HTML, from its JSON."""
    entries = page["files"]
    assert isinstance(entries, list)
    return _document(page, f"Links for {page['name']}", [_anchor(entry) for entry in entries])


def root_html(page: Mapping[str, object]) -> str:
    """Render the list of all projects in HTML, from its JSON."""
    projects = page["projects"]
    assert isinstance(projects, list)
    names = [each["name"] for each in projects]
    links = [f'<a href="/simple/{canonicalize_name(name)}/">{html.escape(name)}</a>' for name in names]
    return _document(page, "Simple index", links)


def _document(page: Mapping[str, object], title: str, links: list[str]) -> str:
    meta = page["meta"]
    assert isinstance(meta, dict)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            "<html>",
            "  <head>",
            f'    <meta name="pypi:repository-version" content="{meta["api-version"]}">',
            f"    <title>{html.escape(title)}</title>",
            "  </head>",
            "  <body>",
            f"    <h1>{html.escape(title)}</h1>",
            *(f"{link}<br />" for link in links),
            "</body>",
            "</html>",
            f"<!--SERIAL {meta['_last-serial']}-->",
        ]
    )


def _anchor(entry: Mapping[str, object]) -> str:
    """A file's link in the HTML page (PEP 503, 592, 658, 714, 740)."""
    hashes, metadata = entry["hashes"], entry.get("core-metadata")
    assert isinstance(hashes, dict)
    fragment = "".join(f"#{algorithm}={value}" for algorithm, value in list(hashes.items())[:1])
    attributes = {"href": f"{entry['url']}{fragment}"}
    if entry["requires-python"]:
        attributes["data-requires-python"] = str(entry["requires-python"])
    if isinstance(metadata, dict):
        value = "".join(f"{algorithm}={digest}" for algorithm, digest in metadata.items())
        attributes |= {"data-dist-info-metadata": value, "data-core-metadata": value}
    if entry.get("provenance"):
        attributes["data-provenance"] = str(entry["provenance"])
    if entry["yanked"] is not False:
        attributes["data-yanked"] = entry["yanked"] if isinstance(entry["yanked"], str) else ""
    text = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
    return f"<a {text}>{html.escape(str(entry['filename']))}</a>"
