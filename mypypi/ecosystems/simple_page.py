"""Reads a page of the Simple Repository API, in JSON or HTML, into one document; rejects any other page.

Follows PEP 691, and PEP 503 for HTML. Knows how a sign-in form, another project's page and a real page differ. Must
never know the catalog, or what is done with a page.
"""

from __future__ import annotations

import json
import re
from codecs import lookup
from contextlib import suppress
from email.message import Message
from functools import partial
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import msgspec
from attrs import frozen
from packaging.utils import canonicalize_name

from mypypi.ecosystems.lenient_json import mended
from mypypi.ecosystems.pypi_names import normalise, projects_of
from mypypi.ecosystems.simple_html import Document
from mypypi.ecosystems.simple_html_reader import MOST_LINKS, HtmlPage, parse_html
from mypypi.errors import BadRequest
from mypypi.model import SourceDocument

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
_SIMPLE_HTML = "application/vnd.pypi.simple.v1+html"
#: Characters of a base URL. Each link takes time for each of them, and no longer URL has a key (`mypypi.file_keys`).
LONGEST_BASE = 2048
#: Links of a list in which to look for a project.
_FIRST_LINKS = 1000
#: Encodings of host names. Python's decoders take time that grows with the square of the text's length.
_NO_CHARSETS = frozenset({"idna", "punycode"})
_JSON_TYPE, _HTML_TYPE = re.compile(r"[/+]json$"), re.compile(r"[/+]html$")
#: The first character of a page, after white space and any byte order mark, in any Unicode encoding.
_FIRST = re.compile(rb"[^\0\s\xef\xbb\xbf\xff\xfe]")
#: Numbers that Python's parser accepts, and JSON lacks.
_NO_NUMBER = re.compile(rb"NaN|Infinity")
#: The start of an HTML tag, comment or declaration.
_TAG = re.compile(rb"<\0*[a-zA-Z/!?]")


@frozen
class SimplePage:
    """
    A page as PEP 691's document, with a list of files or projects.

    With `is_doubtful`, no link is one of such a page, and nothing else says that this is a Simple page.
    """

    document: Document
    is_doubtful: bool = False


def read_index(source: SourceDocument) -> SimplePage:
    """Read the list of all projects. In HTML, every anchor's text counts as a name. Raises errors of many kinds."""
    kind, charset = content_type(source)
    if kind == "json":
        return SimplePage(_json_document(source, charset, "projects"))
    html = _parse(source, charset)
    is_marked = html.is_marked or _SIMPLE_HTML in source.content_type
    if html.is_interactive and not is_marked:
        raise ValueError("it is a page for people, such as a form to sign in, and no list of projects")
    names = list(map(_project_name, html.anchors, html.names))
    leads_to_project = partial(_leads_to_project, source.url, urljoin(source.url, "."))
    is_convincing = is_marked or any(map(leads_to_project, html.anchors[:_FIRST_LINKS], names))
    _check_type(source, is_convincing=is_convincing)
    html.anchors.clear()  # with 700,000 projects, they take 200 MB
    projects = [{"name": name} for name in names if name]
    return SimplePage(_html_document(html, "projects", projects), not is_convincing)


def read_project(source: SourceDocument, project: str, base: str) -> SimplePage:
    """
    Read a project's page. `base` is the URL that links of an HTML page are relative to.

    Raises errors of many kinds, such as ValueError for another project's page and for a form to sign in.
    """
    kind, charset = content_type(source)
    if len(base) > LONGEST_BASE:
        raise ValueError("its URL is too long to resolve links against it")
    if kind == "json":
        document = _json_document(source, charset, "files")
        check_name(document.get("name"), project)
        return SimplePage(document)
    html = _parse(source, charset)
    if len(html.base) > LONGEST_BASE:
        raise ValueError("its base URL is too long to resolve links against it")
    files = html.files(base)
    # Any file does not do: a page to sign in may offer a program or a certificate.
    lists_project = any(project in projects_of(file["filename"]) for file in files)
    if not lists_project:
        check_name(html.project, project)
    is_convincing = lists_project or html.is_marked or _SIMPLE_HTML in source.content_type
    if html.is_interactive and not is_convincing:
        raise ValueError("it is a page for people, such as a form to sign in, and lists no file of the project")
    _check_type(source, is_convincing=is_convincing)
    return SimplePage(_html_document(html, "files", files), not is_convincing)


def _project_name(anchor: dict[str, str], text: str) -> str:
    """Return an anchor's text as a project's name; empty for a link to another place, such as the parent directory."""
    # The directory list of a plain file server has names with a trailing slash, and links that sort it.
    name = text.strip().rstrip("/")
    is_elsewhere = name in (".", "..") or len(name.split()) != 1 or anchor.get("href", "").startswith("?")
    return "" if is_elsewhere else name


def _leads_to_project(url: str, directory: str, anchor: dict[str, str], name: str) -> bool:
    """Whether an anchor leads to the page of the project with this name, below the list's own directory (PEP 503)."""
    try:
        address = urljoin(url, anchor.get("href", ""))
        segment = unquote(urlsplit(address.removeprefix(directory)).path.partition("/")[0])
        return address.startswith(directory) and canonicalize_name(segment) == normalise(name)
    except (BadRequest, ValueError):
        return False


def content_type(source: SourceDocument) -> tuple[str, str | None]:
    """Return ``json`` or ``html``, and any charset.

    The first character decides, since some servers name a wrong type. With another one than ``{`` and ``<``, the
    Content-Type does.
    """
    header = Message()
    header["Content-Type"] = source.content_type
    found = _FIRST.search(source.body)
    if found is None:
        raise ValueError("it is empty")
    charset = header.get_content_charset()
    if charset is not None and lookup(charset).name in _NO_CHARSETS:
        raise ValueError(f"it has the encoding {charset}, which is only for host names")
    if found[0] == b"{" or (found[0] != b"<" and _JSON_TYPE.search(header.get_content_type())):
        return "json", charset
    if found[0] == b"<" or (_HTML_TYPE.search(header.get_content_type()) and _TAG.search(source.body)):
        return "html", charset
    raise ValueError("it is neither JSON nor HTML")


def decode_json(source: SourceDocument, charset: str | None) -> Document:
    """
    Parse a JSON object as clients do: in UTF-8, UTF-16 or UTF-32, else in the encoding that its Content-Type names.

    Accepts what pip or uv accept (see `lenient_json`), and NaN and infinite numbers, which become null.
    """
    body = source.body
    try:
        return msgspec.json.decode(body, type=Document)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        problem = error
    encoding = json.detect_encoding(body)
    with suppress(UnicodeDecodeError):
        body.decode(encoding)
        charset = None
    text = mended(body, charset or encoding)
    if text != body or _NO_NUMBER.search(text):
        with suppress(ValueError):
            document = json.loads(text, parse_constant=lambda _: None)
            if isinstance(document, dict):
                return document
    raise problem


def check_name(name: object, project: str) -> None:
    """Raise ValueError if this is the name of another project. A name that is missing or malformed is accepted."""
    if not isinstance(name, str) or not name:
        return
    try:
        other = normalise(name)
    except BadRequest:
        return
    if other != project:
        raise ValueError(f"it is the page of another project, {other}")


def _json_document(source: SourceDocument, charset: str | None, key: str) -> Document:
    document = decode_json(source, charset)
    items = document.get(key)
    if not isinstance(items, list):
        raise TypeError(f"it has no list of {key}")
    if len(items) > MOST_LINKS:
        raise ValueError(f"it lists more than {MOST_LINKS} {key}")
    check_version(document)
    return document


def _check_type(source: SourceDocument, *, is_convincing: bool) -> None:
    """Raise ValueError for HTML with the type of JSON, unless it is convincing: an empty page must not come of it."""
    if not is_convincing and _JSON_TYPE.search(source.content_type.partition(";")[0].strip().lower()):
        raise ValueError("it is HTML with the Content-Type of JSON, and nothing says that it is such a page")


def _parse(source: SourceDocument, charset: str | None) -> HtmlPage:
    return parse_html(source.body.decode(charset or "utf-8-sig", errors="replace"))


def _html_document(html: HtmlPage, key: str, items: list[dict[str, Any]]) -> Document:
    """Return the document of an HTML page, with ``pypi:`` metas in their JSON fields (PEP 629, PEP 708, PEP 792)."""
    document: Document = {"meta": {"api-version": "1.0"}, key: items}
    meta = document["meta"]
    for name, contents in html.metas.items():
        if name == "repository-version":
            meta["api-version"] = contents[-1]
        elif name == "tracks":
            meta[name] = contents
        elif name == "alternate-locations":
            document[name] = contents
        elif name == "project-status":
            document.setdefault(name, {})["status"] = contents[-1]
        elif name == "project-status-reason":
            document.setdefault("project-status", {})["reason"] = contents[-1]
        else:
            meta[name] = contents[-1]
    check_version(document)
    # 1.1 requires versions and sizes, which HTML lacks (PEP 700).
    meta["api-version"] = "1.0"
    return document


def check_version(document: Document) -> None:
    """Raise ValueError for another major version than 1 (PEP 629). Any minor version is accepted."""
    meta = document.get("meta")
    meta = document["meta"] = meta if isinstance(meta, dict) else {}
    meta["api-version"] = version = str(meta.get("api-version") or "1.0")
    if version.strip().partition(".")[0] != "1":
        raise ValueError(f"it has version {version!r} of the Simple Repository API, and only 1.x is supported")
