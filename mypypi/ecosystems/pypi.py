"""The PyPI ecosystem.

It has the Simple Repository API in JSON and HTML, and PyPI's own JSON. Knows names, the structure of pages, and how a
file's URL becomes a link to this server. Must never know a request, the catalog, or how a page is fetched and stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import msgspec
from zope.interface import implementer

from mypypi.ecosystems import simple_html
from mypypi.ecosystems.pypi_names import normalise, projects_of
from mypypi.ecosystems.simple_fields import mend_file, mend_page
from mypypi.ecosystems.simple_html import Document, has_metadata
from mypypi.ecosystems.simple_html_reader import CORE_METADATA
from mypypi.ecosystems.simple_page import check_name, content_type, decode_json, read_index, read_project
from mypypi.errors import BadRequest, BadUpstreamResponse, NotFound
from mypypi.file_keys import key_from_segments, key_of
from mypypi.interfaces import IEcosystem
from mypypi.model import (
    BASE_PLACEHOLDER,
    Digest,
    PackageFile,
    PageId,
    PageRequest,
    Part,
    RenderedForm,
    RenderedPage,
    SourceDocument,
)

__all__ = ["PyPI", "normalise"]

_JSON = "application/vnd.pypi.simple.v1+json"
_HTML = "text/html; charset=utf-8"
#: JSON is preferred, since it has fields that HTML can't express.
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

#: The relative URL from a project's page to the route of package files.
_TO_FILES = "../../file/"
#: Adding ``.metadata`` to a link shorter than this can't make a segment too long for a file system (see `key_of`).
_LONG_LINK = 240
_BARE_PERCENT = re.compile("%(?![0-9a-fA-F]{2})")
_SCHEME = re.compile("https?://", re.IGNORECASE)


class _ListedFile(msgspec.Struct, rename="kebab", gc=False):
    """The fields of a file that `PyPI.listing` needs. All but `url` are upstream's, and may have any type."""

    url: str
    hashes: Any = None
    size: Any = None
    core_metadata: Any = None


class _Listing(msgspec.Struct):
    files: list[_ListedFile]


_LISTING = msgspec.json.Decoder(_Listing)


@implementer(IEcosystem)
class PyPI:
    """
    The ecosystem of PyPI and of other indexes with the Simple Repository API.

    The kinds of pages: ``root``, the list of all projects; ``simple``, a project's page; and ``json``, PyPI's own JSON
    about a project or one version of it. Projects have normalised names. A link (see `PackageFile.link`) is `key_of`
    the upstream URL. `upstream_url` is the index's URL without a trailing ``/simple``.
    """

    name = "pypi"
    scoped = False

    def __init__(self, upstream_url: str) -> None:
        self.upstream_url = upstream_url

    def page_request(self, page: PageId) -> PageRequest:
        """See `IEcosystem.page_request`. A version of ``.`` or ``..`` raises BadRequest."""
        if page.kind == "root":
            return PageRequest("/simple/", _ACCEPT)
        project = quote(page.project, safe="")
        if page.kind == "simple":
            return PageRequest(f"/simple/{project}/", _ACCEPT)
        if page.kind != "json":
            raise ValueError(f"no such kind of page: {page.kind!r}")
        if page.version in (".", ".."):
            raise BadRequest(f"not a version: {page.version!r}")
        path = "/".join(["/pypi", project, *([quote(page.version, safe="")] if page.version else []), "json"])
        return PageRequest(path, "application/json")

    def render(self, page: PageId, source: SourceDocument, withheld: frozenset[str]) -> RenderedPage:
        """See `IEcosystem.render`. `indexed_links`: files, and ``.metadata``, named after another project or none."""
        renderers: dict[str, Callable[[PageId, SourceDocument, frozenset[str]], RenderedPage]]
        renderers = {"root": _render_index, "simple": _render_project, "json": _render_json}
        renderer = renderers[page.kind]
        try:
            return renderer(page, source, withheld)
        except MemoryError:
            raise
        except RecursionError:
            raise BadUpstreamResponse(f"upstream's page {page} can't be read: it is nested too deeply") from None
        except Exception as error:  # the parsers raise too many kinds of errors to list
            raise BadUpstreamResponse(f"upstream's page {page} can't be read: {str(error)[:200]}") from error

    def listing_form(self, page: PageId) -> str | None:
        return "json" if page.kind == "simple" else None

    def listing(self, page: PageId, forms: Mapping[str, bytes]) -> dict[str, PackageFile]:
        """See `IEcosystem.listing`. Includes the ``.metadata`` files that the page advertises (PEP 658)."""
        form = self.listing_form(page)
        if form is None:
            return {}
        try:
            files = _LISTING.decode(forms[form]).files
        except RecursionError:  # the child process that rendered it may have had a larger stack
            raise BadUpstreamResponse(f"upstream's page {page} can't be read: it is nested too deeply") from None
        return {file.link: file for file in _package_files(files)}

    def pages_for(self, link: str) -> tuple[PageId, ...]:
        """See `IEcosystem.pages_for`. Filenames with dashes may fit several projects (PEP 625 has ended that)."""
        return tuple(PageId("simple", project) for project in projects_of(link))

    def part(self, part: Part, body: bytes) -> bytes:
        """See `IEcosystem.part`. Pages of Python indexes have no parts."""
        raise NotFound(f"a page has no such part: {part.kind}")

    def example(self, address: str) -> str:
        """See `IEcosystem.example`."""
        return f"pip install --index-url {address}simple/ flask"

    def key_for(self, link: str) -> str | None:
        try:
            key = key_from_segments([unquote(segment, errors="strict") for segment in link.split("/")])
        except ValueError:
            return None
        return key if key == link else None


def _render_index(_page: PageId, source: SourceDocument, _withheld: frozenset[str]) -> RenderedPage:
    simple = read_index(source)
    listed = simple.document["projects"]
    simple.document["projects"] = [project for project in listed if _is_valid_project(project)]
    notes = _left_out(len(listed) - len(simple.document["projects"]), "projects without a valid name")
    forms = _forms(simple.document, simple_html.write_index)
    return RenderedPage(forms, is_doubtful=simple.is_doubtful, notes=notes)


def _is_valid_project(project: object) -> bool:
    try:
        return isinstance(project, dict) and isinstance(project.get("name"), str) and bool(normalise(project["name"]))
    except BadRequest:
        return False


def _render_project(page: PageId, source: SourceDocument, withheld: frozenset[str]) -> RenderedPage:
    base = _without_credentials(source.url)
    simple = read_project(source, page.project, base)
    document = simple.document
    if not isinstance(document.get("name"), str):
        document["name"] = page.project
    mend_page(document)
    files, indexed_links = [], []
    for file in document["files"]:
        if not _is_valid_file(file) or (url := _absolute(base, file["url"])) is None:
            continue
        files.append(file)
        mend_file(file)
        _add_core_metadata(file)
        served = _link_and_path(url)
        if served is None:
            file["url"] = url
            continue
        link, path = served
        file["url"] = _TO_FILES + path
        metadata_link = f"{link}.metadata"
        if metadata_link in withheld or not _can_have_metadata(link, url):
            for name in CORE_METADATA:
                file.pop(name, None)
        if page.project not in projects_of(link):
            indexed_links += [link, metadata_link] if has_metadata(file.get("core-metadata")) else [link]
    notes = _left_out(len(document["files"]) - len(files), "files without a usable url and filename")
    document["files"] = files
    forms = _forms(document, simple_html.write_project)
    return RenderedPage(forms, tuple(indexed_links), is_doubtful=simple.is_doubtful, notes=notes)


def _left_out(count: int, what: str) -> tuple[str, ...]:
    return (f"{count} {what} were left out",) if count else ()


def _render_json(page: PageId, source: SourceDocument, _withheld: frozenset[str]) -> RenderedPage:
    document = decode_json(source, content_type(source)[1])
    if not isinstance(document.get("info"), dict):
        raise TypeError("it has no object 'info'")
    check_name(document["info"].get("name"), page.project)
    base = _without_credentials(source.url)
    releases = document.get("releases")
    lists = [document.get("urls"), *(releases.values() if isinstance(releases, dict) else ())]
    for file in chain.from_iterable(files for files in lists if isinstance(files, list)):
        if _is_valid_file(file) and (url := _absolute(base, file["url"])) is not None:
            served = _link_and_path(url)
            file["url"] = f"{BASE_PLACEHOLDER.decode()}/file/{served[1]}" if served else url
    return RenderedPage({"json": RenderedForm("application/json", msgspec.json.encode(document), based=True)})


def _forms(document: Document, write_html: Callable[[Document], bytes]) -> dict[str, RenderedForm]:
    return {
        "json": RenderedForm(_JSON, msgspec.json.encode(document)),
        "html": RenderedForm(_HTML, write_html(document)),
    }


def _is_valid_file(file: object) -> bool:
    return isinstance(file, dict) and all(isinstance(file.get(key), str) and file[key] for key in ("url", "filename"))


def _add_core_metadata(file: Document) -> None:
    """Copy an old name to ``core-metadata``. Not the reverse, since old pips fail on the old name (PEP 714)."""
    if "core-metadata" not in file:
        for name in CORE_METADATA:
            if name in file:
                file["core-metadata"] = file[name]
                break


def _without_credentials(url: str) -> str:
    """Remove our credentials from a page's URL: its links are resolved against it, and clients see them."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _absolute(base: str, url: str) -> str | None:
    try:
        absolute = (url if _SCHEME.match(url) else urljoin(base, url)).partition("#")[0]
        urlsplit(absolute)  # pip would reject the whole page for a URL that it can't parse
    except ValueError:
        return None
    return absolute


def _link_and_path(url: str) -> tuple[str, str] | None:
    """Return a file's link, and its path with upstream's percent-encoding. None if it can't be served here."""
    try:
        parts = urlsplit(url)
        if not parts.path:
            return None
        link = key_of(url)
    except ValueError:
        return None
    scheme, host, _ = link.split("/", 2)
    return link, f"{scheme}/{host}{_BARE_PERCENT.sub('%25', parts.path)}" + (f"?{parts.query}" if parts.query else "")


def _can_have_metadata(link: str, url: str) -> bool:
    """Whether ``.metadata`` can be served. It needs a key; with a query in `url`, clients disagree on its address."""
    return "?" not in url and (len(link) < _LONG_LINK or _link_and_path(f"{url}.metadata") is not None)


def _package_files(files: list[_ListedFile]) -> Iterator[PackageFile]:
    for file in files:
        if not file.url.startswith(_TO_FILES):
            continue
        url = file.url.removeprefix(_TO_FILES).replace("/", "://", 1)
        link = key_of(url)
        size = file.size if type(file.size) is int and file.size >= 0 else None
        yield PackageFile(link, url, _digest(file.hashes), size, key=link)
        if has_metadata(file.core_metadata):
            metadata = f"{link}.metadata"
            yield PackageFile(metadata, f"{url}.metadata", _digest(file.core_metadata), key=metadata)


def _digest(hashes: object) -> Digest | None:
    return Digest.strongest(hashes) if isinstance(hashes, dict) else None
