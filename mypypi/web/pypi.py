"""The routes of pypi mode: the Simple Repository API, the JSON API, and package files.

A request passes through validation (`RequestValidator`), its route (here), the proxy, and `PageResponses` or `Files`.
Knows routes and names. Must never decide what is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from mypypi.ecosystems.pypi import normalise
from mypypi.errors import NotFound
from mypypi.file_keys import as_uri, key_from_segments, with_query
from mypypi.model import PageId
from mypypi.web.endpoints import RoutingApp, endpoints_of
from mypypi.web.errors import answer
from mypypi.web.validation import segments_of

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.upstream.client import Upstream
    from mypypi.web.files import Files
    from mypypi.web.pages import PageResponses

#: Media types of the Simple API and the forms that they stand for. Clients without a preference get the first.
SIMPLE_TYPES = {
    "text/html": "html",
    "application/vnd.pypi.simple.v1+json": "json",
    "application/vnd.pypi.simple.v1+html": "html",
    "application/vnd.pypi.simple.latest+json": "json",
    "application/vnd.pypi.simple.latest+html": "html",
}
#: Characters that a path segment may contain unescaped, besides letters, digits and ``-._~`` (RFC 3986, section 3.3).
_IN_SEGMENTS = "!$&'()*+,;=:@"
JSON_TYPES = {"application/json": "json"}

_WELCOME = """\
This is MyPyPi, a cache for Python packages.

Simple API:  simple/          pip install --index-url <this address>simple/ PACKAGE
JSON API:    pypi/PROJECT/json
Health:      -/health/ready
"""


class PyPIRoutes:
    """Klein routes that answer with pages or files."""

    app = RoutingApp()

    def __init__(self, pages: PageResponses, files: Files, upstream: Upstream) -> None:
        self._pages = pages
        self._files = files

    @staticmethod
    def methods(_segments: list[str]) -> tuple[str, ...]:
        """Return the methods that are allowed for a path."""
        return ("GET", "HEAD")

    def has_route(self, segments: list[str]) -> bool:
        """Return whether a path is one of these routes. The one for files of other indexes takes any path."""
        return bool(endpoints_of(self.app, segments) - {"file_elsewhere"})

    @app.route("/")
    def welcome(self, request: Request) -> str:
        """Show a person with a browser what is served."""
        request.setHeader(b"content-type", b"text/plain; charset=utf-8")
        return _WELCOME

    @app.route("/simple")
    def to_root(self, request: Request) -> bytes:
        """Redirect to the address with a slash (PEP 503)."""
        return _redirect(request, "simple/")

    @app.route("/simple/")
    async def root(self, request: Request) -> bytes:
        """Serve the list of all projects (PEP 503, PEP 691)."""
        return await self._pages.serve(request, PageId("root"), SIMPLE_TYPES)

    @app.route("/simple/<project>", strict_slashes=True)
    def to_project(self, request: Request, project: str) -> bytes:
        """Redirect to the address with a slash (PEP 503)."""
        return _redirect(request, f"{normalise(project)}/")

    @app.route("/simple/<project>/")
    async def project(self, request: Request, project: str) -> bytes:
        """Serve a project's page, or redirect to the normalised name (PEP 503)."""
        name = normalise(project)
        if name != project:
            return _redirect(request, f"../{name}/")
        return await self._pages.serve(request, PageId("simple", name), SIMPLE_TYPES)

    @app.route("/pypi/<project>/json")
    async def json(self, request: Request, project: str) -> bytes:
        """Serve a project in the JSON API."""
        name = normalise(project)
        if name != project:
            return _redirect(request, f"../{name}/json")
        return await self._pages.serve(request, PageId("json", name), JSON_TYPES)

    @app.route("/pypi/<project>/<version>/json")
    async def version_json(self, request: Request, project: str, version: str) -> bytes:
        """Serve one release of a project in the JSON API."""
        name = normalise(project)
        if name != project:
            return _redirect(request, f"../../{name}/{quote(version, safe=_IN_SEGMENTS)}/json")
        return await self._pages.serve(request, PageId("json", name, version), JSON_TYPES)

    @app.route("/file/<path:path>")
    async def file(self, request: Request, path: str) -> bytes:
        """Serve a package file, named by scheme, host and path of its upstream URL."""
        segments = segments_of(request)[1:]
        query = request.uri.partition(b"?")[2].decode(errors="replace")
        if query:
            segments[-1] = with_query(segments[-1], as_uri(query))
        try:
            link = key_from_segments(segments)
        except ValueError:
            raise NotFound("no page of upstream lists this file") from None
        return await self._files.serve(request, link)

    @app.route("/<path:path>")
    async def file_elsewhere(self, request: Request, path: str) -> bytes:
        """
        Serve a package file at the address that another index gives it, since lock files name that.

        Such addresses differ, but each ends with the filename.
        """
        client = self._files.addresses.client(request)
        link = await self._files.proxy.link_of(segments_of(request)[-1], client)
        return await self._files.serve(request, link)


def _redirect(request: Request, target: str) -> bytes:
    """
    Redirect permanently to a relative address.

    A relative address is right for any host, scheme and path prefix of a proxy.
    """
    query = request.uri.partition(b"?")[2]
    body = answer(request, 301, f"moved permanently to {target}")
    location = target.encode() + (b"?" + query if query else b"")
    request.setHeader(b"location", location)
    request.setHeader(b"cache-control", b"public, max-age=3600")
    return body
