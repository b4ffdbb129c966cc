"""The routes of npm mode: packuments and parts of them, tarballs, and the registry's endpoints.

A request passes through validation (`RequestValidator`), its route (here), the proxy, and `PageResponses` or `Files`.
Requests that can't be cached are forwarded to upstream. Knows routes and names. Must never decide what is served.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from typing import TYPE_CHECKING

from werkzeug.http import parse_accept_header, parse_options_header

from mypypi.ecosystems.npm import ABBREVIATED, FULL, check_name, is_name
from mypypi.ecosystems.npm_addresses import tarball_link, tarball_links
from mypypi.errors import BadUpstreamResponse, MyPyPiError, NotFound, UpstreamDown
from mypypi.gunzip import beginning
from mypypi.model import PageId, Part
from mypypi.upstream.responses import is_final
from mypypi.web.endpoints import RoutingApp, endpoints_of
from mypypi.web.errors import READ_ONLY, answer
from mypypi.web.negotiation import accepts_gzip
from mypypi.web.pages import check_version
from mypypi.web.validation import segments_of

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.upstream.client import Upstream
    from mypypi.upstream.responses import PassedResponse
    from mypypi.web.files import Files
    from mypypi.web.pages import PageResponses

#: Request headers that are forwarded to upstream.
_FORWARDED = ("accept", "content-type", "content-encoding", "user-agent", "npm-command")
_JSON = re.compile(r"application/(?:[a-z0-9.-]+\+)?json|text/json")
#: Bytes in which JSON must start, also after decoding.
_SNIFFED = 4096


class NPMRoutes:
    """Klein routes that answer with pages, files, or a forwarded response of upstream."""

    app = RoutingApp()

    def __init__(self, pages: PageResponses, files: Files, upstream: Upstream) -> None:
        self._pages = pages
        self._files = files
        self._upstream = upstream

    @staticmethod
    def methods(segments: list[str]) -> tuple[str, ...]:
        """
        Return the methods that are allowed for a path.

        An audit is a POST that changes nothing, and a login has its own answer. All else is read with GET or HEAD.
        """
        if segments[:4] == ["-", "npm", "v1", "security"] or segments == ["-", "v1", "login"]:
            return ("POST",)
        return ("GET", "HEAD")

    def has_route(self, segments: list[str]) -> bool:
        """Return whether a path is one of these routes: an endpoint, or a package, a version or a tarball."""
        path = segments[:-1] if segments[-1:] == [""] else segments
        if not path or path[0] == "-":
            return bool(endpoints_of(self.app, segments) - {"package"})
        parts = 2 if path[0].startswith("@") else 1
        is_package = is_name("/".join(path[:parts])) and len(path) <= parts + 1 and path[parts:] != ["-"]
        return is_package or bool(tarball_links(path))

    @app.route("/-/ping")
    def ping(self, request: Request) -> bytes:
        """Answer ``npm ping`` without asking upstream."""
        request.setHeader(b"content-type", b"application/json")
        return b"{}"

    @app.route("/-/whoami")
    @app.route("/-/npm/v1/user")
    @app.route("/-/npm/v1/tokens")
    @app.route("/-/user/<path:more>")
    @app.route("/-/org/<path:more>")
    @app.route("/-/team/<path:more>")
    @app.route("/-/package/<path:more>/access")
    @app.route("/-/package/<path:more>/collaborators")
    @app.route("/-/package/<path:more>/visibility")
    def whoami(self, request: Request, more: str = "") -> bytes:
        """Refuse requests about users and their rights: there is no login."""
        return answer(request, 401, f"{READ_ONLY}, since this one has no users")

    @app.route("/-/v1/login", methods=["POST"])
    def login(self, request: Request) -> bytes:
        """
        Refuse a login with 501.

        After 500 or any 4xx, npm goes on to ask for a user name and a password (npm-profile, ``loginWeb``).
        """
        return answer(request, 501, READ_ONLY)

    @app.route("/-/npm/v1/keys")
    async def keys(self, request: Request) -> bytes:
        """Serve the keys for checking signatures (npm's documentation, "Package Signatures")."""
        return await self._pages.serve(request, PageId("keys"), {FULL: "full"})

    @app.route("/-/npm/v1/attestations/<path:spec>")
    async def attestations(self, request: Request, spec: str) -> bytes:
        """
        Serve the attestations of ``name@version``.

        pnpm asks for those of a version in a lock file, and fails if the packument that it reads next lacks it.
        """
        name, _, version = spec.rpartition("@")
        if not name or not version:
            raise NotFound("attestations belong to one version of a package: end the address with name@version")
        check_name(name)
        check_version(version)
        client = self._files.addresses.client(request)
        await self._files.proxy.look_again(PageId("packument", name), tarball_link(name, version), client)
        page = PageId("attestations", f"{name}@{version}")
        return await self._pages.serve(request, page, {FULL: "full"}, repeatable=False)

    @app.route("/-/v1/search")
    @app.route("/-/npm/v1/security/advisories/bulk", methods=["POST"])
    @app.route("/-/npm/v1/security/audits", methods=["POST"])
    @app.route("/-/npm/v1/security/audits/quick", methods=["POST"])
    async def passed_on(self, request: Request) -> bytes:
        """
        Forward a search or an audit to upstream.

        Nothing is cached: each answer is for one query, and an old answer misleads. An answer that is not JSON is not
        passed on: a browser might run it with this server's origin. Of an error, the status remains.
        """
        headers = {name: value for name in _FORWARDED if (value := request.getHeader(name)) is not None}
        assert request.content is not None
        method, target = request.method.decode(), request.uri.decode("latin-1")
        kind = "search" if target.startswith("/-/v1/search") else "audit"
        passed = await self._upstream.pass_on(
            kind,
            method,
            target,
            headers,
            request.content.read(),
            gzip=accepts_gzip(request.getHeader("accept-encoding")),
            client=self._files.addresses.client(request),
        )
        if not is_final(passed.status):
            raise BadUpstreamResponse(f"upstream answered with an invalid status, {passed.status}")
        content_type, returned = _json_type(passed), ["retry-after"]
        if content_type:
            request.setResponseCode(passed.status)
            request.setHeader("content-type", content_type)
            body = passed.body
            returned.append("content-encoding")
        elif passed.status >= 400:  # noqa: PLR2004 - the lowest status of an error
            body = answer(request, passed.status, f"upstream answered {passed.status}, and not with JSON")
        else:
            raise BadUpstreamResponse("upstream answered, but not with JSON")
        for name in returned:
            value = passed.headers.get(name, "")
            if _is_plain(value):
                request.setHeader(name, value)
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"cache-status", b"MyPyPi; fwd=bypass")
        request.setHeader(b"content-length", b"%d" % len(body))
        return body

    @app.route("/-/package/<path:name>/dist-tags")
    async def tags(self, request: Request, name: str) -> bytes:
        """Serve the dist-tags of a package, for ``npm dist-tag ls``."""
        return await self._pages.serve(
            request, PageId("packument", check_name(name)), {FULL: "full"}, Part("dist-tags")
        )

    @app.route("/<path:path>")
    async def package(self, request: Request, path: str) -> bytes:
        """
        Serve a package's packument, one of its versions, or a tarball.

        The path alone tells which, never the Accept header. A tarball is also found at the address that another
        registry gives it, since lock files name that (npm's ``replace-registry-host``).
        """
        segments = segments_of(request, scoped=True)
        if segments[-1] == "":
            segments.pop()
        parts = 2 if segments[0].startswith("@") else 1
        name, rest = "/".join(segments[:parts]), segments[parts:]
        if not rest:
            return await self._pages.serve(request, PageId("packument", check_name(name)), _offered_form(request))
        links = tarball_links(segments)
        if len(rest) == 1 and rest[0] != "-" and not links:
            part = Part("version", rest[0])
            return await self._pages.serve(request, PageId("packument", check_name(name)), {FULL: "full"}, part)
        if len(rest) == 2 and rest[0] == "-":  # noqa: PLR2004 - "-" and the file name
            check_name(name)
        return await self._tarball(request, links)

    async def _tarball(self, request: Request, links: list[str]) -> bytes:
        """Serve the first of these links that upstream lists."""
        failure: MyPyPiError = NotFound("there is nothing at this address")
        for link in links:
            try:
                return await self._files.serve(request, link)
            except (NotFound, UpstreamDown) as error:  # noqa: PERF203 - there are two links at most
                if isinstance(failure, NotFound):  # upstream may have the file if it could not be asked about one link
                    failure = error
        raise failure

    @app.route("/")
    def welcome(self, request: Request) -> bytes:
        """
        Answer ``/`` with a JSON object.

        The npm registry answers with the status of its database; clients only check that there is an answer.
        """
        request.setHeader(b"content-type", b"application/json")
        return b'{"mypypi":"a cache for npm packages"}'


def _json_type(passed: PassedResponse) -> str:
    """
    Return the JSON type of upstream's answer, which no browser runs; empty if it is not JSON.

    npm reads JSON of any type. So where only the type is wrong, the body's first character tells.
    """
    given = passed.headers.get("content-type", "")
    media_type, _ = parse_options_header(given)
    if _JSON.fullmatch(media_type.lower()):
        return given if _is_plain(given) else "application/json"
    start = passed.body[:_SNIFFED]
    if passed.headers.get("content-encoding", ""):
        start = beginning(start, _SNIFFED) or b""
    return "application/json" if start.removeprefix(BOM_UTF8).lstrip().startswith((b"{", b"[")) else ""


def _is_plain(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()


def _offered_form(request: Request) -> dict[str, str]:
    """Return the form for this client: abbreviated if it prefers that by name, else full."""
    accepted = parse_accept_header(request.getHeader("accept"))
    wants_abbreviated = ABBREVIATED in accepted.values() and accepted[ABBREVIATED] >= accepted[FULL]
    return {ABBREVIATED: "abbreviated"} if wants_abbreviated else {FULL: "full"}
