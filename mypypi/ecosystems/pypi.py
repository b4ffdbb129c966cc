"""The PyPI ecosystem.

It has the Simple Repository API in JSON and HTML, and PyPI's own JSON. Knows names, the structure of pages, and how a
file's URL becomes a link to this server. Must never know a request, the catalog, or how a page is fetched and stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from zope.interface import implementer

from mypypi.ecosystems import simple_html
from mypypi.ecosystems.pypi_json import render_json
from mypypi.ecosystems.pypi_names import is_file_of, normalise, projects_of
from mypypi.ecosystems.pypi_releases import release, releases_in
from mypypi.ecosystems.simple_fields import mend_file, mend_page
from mypypi.ecosystems.simple_html import Document
from mypypi.ecosystems.simple_html_reader import CORE_METADATA, hashes_in
from mypypi.ecosystems.simple_links import (
    TO_FILES,
    absolute_url,
    is_valid_file,
    is_web_url,
    link_and_path,
    named_by_path,
    without_credentials,
)
from mypypi.ecosystems.simple_listing import listed_files, listed_rows, rows_of
from mypypi.ecosystems.simple_page import (
    LONGEST_BASE,
    SIMPLE_JSON,
    content_type,
    read_index,
    read_project,
)
from mypypi.ecosystems.simple_side_files import EXTRACTED, offer_metadata, turn_provenance, withdraw
from mypypi.ecosystems.usual_page import usual_page
from mypypi.errors import BadRequest, BadUpstreamResponse, NotFound
from mypypi.file_keys import key_from_segments, origin_in
from mypypi.interfaces import IEcosystem
from mypypi.model import (
    PackageFile,
    PageId,
    PageRequest,
    PageRules,
    Part,
    RenderedForm,
    RenderedPage,
    SourceDocument,
    Span,
)

__all__ = ["PyPI", "normalise"]

_HTML = "text/html; charset=utf-8"
_HTML_PART = Part("html")
#: Origins for which a page may ask whether they answer ranges. Nearly all pages have one.
_MOST_UNTRIED = 4
#: JSON is preferred, since it has fields that HTML can't express.
_ACCEPT = f"{SIMPLE_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@implementer(IEcosystem)
class PyPI:
    """
    The ecosystem of PyPI and of other indexes with the Simple Repository API.

    The kinds of pages: ``root``, the list of all projects; ``simple``, a project's page; and ``json``, PyPI's own JSON
    about a project or one version of it. Projects have normalised names. A link (see `PackageFile.link`) is `key_of`
    the upstream URL, or `stable_key_of` where the query does not tell which file it is. `upstream_url` is the index's
    URL without a trailing ``/simple``.
    """

    name = "pypi"
    scoped = False

    def __init__(self, upstream_url: str, *, strict: bool = False) -> None:
        """`strict`: files that can't be served from here are left out of pages."""
        self.upstream_url = upstream_url
        self._strict = strict

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

    def render(self, page: PageId, source: SourceDocument, rules: PageRules) -> RenderedPage:
        """See `IEcosystem.render`. `indexed_links`: files, and ``.metadata``, named after another project or none."""
        renderers: dict[str, Callable[[PageId, SourceDocument, PageRules], RenderedPage]]
        renderers = {
            "root": _render_index,
            "simple": partial(_render_project, strict=self._strict),
            "json": render_json,
        }
        renderer = renderers[page.kind]
        try:
            return renderer(page, source, rules)
        except MemoryError:
            raise
        except RecursionError:
            raise BadUpstreamResponse(f"upstream's page {page} can't be read: it is nested too deeply") from None
        except Exception as error:  # the parsers raise too many kinds of errors to list
            raise BadUpstreamResponse(f"upstream's page {page} can't be read: {str(error)[:200]}") from error

    def listing_form(self, page: PageId, forms: Container[str]) -> str | None:
        """See `IEcosystem.listing_form`. A page whose links do not tell upstream's URLs has a form for it."""
        if page.kind != "simple":
            return None
        return "files" if "files" in forms else "json"

    def listing(self, page: PageId, forms: Mapping[str, bytes]) -> dict[str, PackageFile]:
        """
        See `IEcosystem.listing`. Includes the ``.metadata`` files that the page advertises (PEP 658).

        A file whose link does not end with its filename is listed once more, below that link by its filename.
        """
        form = self.listing_form(page, forms)
        if form is None:
            return {}
        if form == "files":
            return listed_rows(forms[form])
        try:
            return listed_files(page, forms[form])
        except RecursionError:  # the child process that rendered it may have had a larger stack
            raise BadUpstreamResponse(f"upstream's page {page} can't be read: it is nested too deeply") from None

    def pages_for(self, link: str) -> tuple[PageId, ...]:
        """See `IEcosystem.pages_for`. Filenames with dashes may fit several projects (PEP 625 has ended that)."""
        return tuple(PageId("simple", project) for project in projects_of(link))

    def made_from(self, name: str) -> tuple[str, Part] | None:
        """See `IEcosystem.made_from`. Few clients ask for a project's page in HTML, and its JSON has all of it."""
        return ("json", _HTML_PART) if name == "html" else None

    def part(self, part: Part, body: bytes) -> bytes:
        """See `IEcosystem.part`. A project's page in JSON can be had in HTML."""
        if part != _HTML_PART:
            raise NotFound(f"a page has no such part: {part.kind}")
        try:
            return simple_html.write_project(msgspec.json.decode(body))
        except RecursionError:
            raise BadUpstreamResponse("upstream's page can't be written as HTML: it is nested too deeply") from None

    def parts(self, page: PageId, name: str, body: bytes) -> dict[Part, Span] | None:
        """See `IEcosystem.parts`. A project's JSON lists its releases, also those without files."""
        if page.kind != "json" or page.version or name != "json":
            return None
        return releases_in(body)

    def listed_on(self, page: PageId) -> tuple[PageId, Part] | None:
        """See `IEcosystem.listed_on`. A version has several spellings, which are all found (PEP 440)."""
        if page.kind != "json" or not page.version:
            return None
        return PageId("json", page.project), release(page.version)

    def example(self, address: str) -> str:
        """See `IEcosystem.example`."""
        return f"pip install --index-url {address}simple/ flask"

    def key_for(self, link: str) -> str | None:
        try:
            key = key_from_segments([unquote(segment, errors="strict") for segment in link.split("/")])
        except ValueError:
            return None
        return key if key == link else None


def _render_index(_page: PageId, source: SourceDocument, _rules: PageRules) -> RenderedPage:
    simple = read_index(source)
    listed = simple.document["projects"]
    simple.document["projects"] = [project for project in listed if _is_valid_project(project)]
    left_out = len(listed) - len(simple.document["projects"])
    notes = (f"{left_out} projects without a valid name were left out",) if left_out else ()
    forms = {
        "json": RenderedForm(SIMPLE_JSON, msgspec.json.encode(simple.document)),
        "html": RenderedForm(_HTML, simple_html.write_index(simple.document)),
    }
    return RenderedPage(forms, is_doubtful=simple.is_doubtful, notes=notes)


def _is_valid_project(project: object) -> bool:
    try:
        return isinstance(project, dict) and isinstance(project.get("name"), str) and bool(normalise(project["name"]))
    except BadRequest:
        return False


def _render_project(page: PageId, source: SourceDocument, rules: PageRules, *, strict: bool) -> RenderedPage:
    if len(source.url) <= LONGEST_BASE and content_type(source)[0] == "json":
        usual = usual_page(page.project, rules, source.body, without_credentials(source.url))
        if usual is not None:
            return usual
    return _render_mended(page, source, rules, strict=strict)


def _render_mended(page: PageId, source: SourceDocument, rules: PageRules, *, strict: bool) -> RenderedPage:
    """Render a project's page of any form."""
    base = without_credentials(source.url)
    simple = read_project(source, page.project, base)
    document = simple.document
    if not isinstance(document.get("name"), str):
        document["name"] = page.project
    mend_page(document)
    files, indexed_links = [], []
    odd: Counter[str] = Counter()  # entries that are left out or stay upstream's, by the words of their note
    urls: dict[str, str] = {}
    # By origin, a wheel whose metadata is advertised although upstream's page does not, and one without any.
    extracts: dict[str, str] = {}
    untried: dict[str, str] = {}
    named = named_by_path(document["files"], base)
    for file, url in _usable(document["files"], base, odd):
        served = link_and_path(url, named)
        if served is None:
            odd[_unserved("files", strict=strict)] += 1
            if strict:
                continue
        files.append(file)
        mend_file(file)
        file.pop(EXTRACTED, None)
        file["hashes"] = hashes_in(file["url"].partition("#")[2]) | file["hashes"]
        _add_core_metadata(file)
        links = _provenance(file, base, rules, odd, strict=strict)
        if served is None:
            file["url"] = url
        else:
            link, path = served
            file["url"] = TO_FILES + path
            if url in named:
                urls[link] = url
            links += [link, *withdraw(file, link, url, rules.withheld)]
            if offer_metadata(file, link, url, rules):
                (extracts if EXTRACTED in file else untried).setdefault(origin_in(link), url)
                links += [f"{link}.metadata"] if EXTRACTED in file else []
        indexed_links += [each for each in links if not is_file_of(each, page.project)]
    document["files"] = files
    based = any(file.get("provenance") for file in files)
    forms = {"json": RenderedForm(SIMPLE_JSON, msgspec.json.encode(document), based)}
    if urls:
        files_here = listed_files(page, forms["json"].body).values()
        forms["files"] = RenderedForm("application/json", msgspec.json.encode(rows_of(files_here, urls)))
    notes = tuple(f"{count} {what}" for what, count in odd.items())
    return RenderedPage(
        forms,
        tuple(indexed_links),
        is_doubtful=simple.is_doubtful,
        notes=notes,
        extracts=tuple(sorted(extracts)),
        untried=tuple(untried.values())[:_MOST_UNTRIED],
    )


def _provenance(file: Document, base: str, rules: PageRules, odd: Counter[str], *, strict: bool) -> list[str]:
    """Let a file's provenance lead to this server, and return its link, if it has one that can be served."""
    provenance = turn_provenance(file, base, rules.withheld)
    if provenance is None:
        odd[_unserved("links to provenance", strict=strict)] += 1
        if strict:
            file["provenance"] = None
    return [provenance] if provenance else []


def _usable(files: list[Any], base: str, odd: Counter[str]) -> Iterator[tuple[Document, str]]:
    """Return the files that clients can install from, each with its absolute URL; count the others."""
    for file in files:
        url = absolute_url(base, file["url"]) if is_valid_file(file) else None
        if url is None:
            odd["files without a usable url and filename were left out"] += 1
        elif not is_web_url(url):
            odd["links that are no package files were left out"] += 1
        else:
            yield file, url


def _unserved(what: str, *, strict: bool) -> str:
    if strict:
        return f"{what} that can't be served from here were left out"
    return f"{what} can't be served from here and keep upstream's address"


def _add_core_metadata(file: Document) -> None:
    """Copy an old name to ``core-metadata``. Not the reverse, since old pips fail on the old name (PEP 714)."""
    if "core-metadata" not in file:
        for name in CORE_METADATA:
            if name in file:
                file["core-metadata"] = file[name]
                break
