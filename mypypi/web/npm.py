"""The routes of npm mode: packuments and what is cut out of them, tarballs, and the registry's own endpoints.

A request goes: validation (`RequestValidator`), route (here), proxy, then `PageResponses` or `Files`. What can't be
cached is passed on to upstream.
Knows routes and names. Must never decide what is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from klein import Klein
from werkzeug.http import parse_accept_header

from mypypi.ecosystems.npm import ABBREVIATED, FULL, check_name, dist_tags, manifest
from mypypi.errors import BadUpstreamResponse, NotFound
from mypypi.model import PageId
from mypypi.pages.rendering import Part
from mypypi.web.errors import answer, answer_failure
from mypypi.web.validation import segments_of

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.http import Request

    from mypypi.upstream.client import Upstream
    from mypypi.web.files import Files
    from mypypi.web.pages import PageResponses

#: What a client may send to an endpoint that is passed on, and what it gets of the answer's headers.
_FORWARDED = ("accept", "content-type", "content-encoding", "user-agent", "npm-command")
_RETURNED = ("content-type", "retry-after")


class NPMRoutes:
    """Klein routes over the two kinds of responses, and upstream for what is never cached."""

    app = Klein()

    def __init__(self, pages: PageResponses, files: Files, upstream: Upstream) -> None:
        self._pages = pages
        self._files = files
        self._upstream = upstream

    @staticmethod
    def methods(segments: list[str]) -> tuple[str, ...]:
        """What may be asked of a path. An audit is a question that is POSTed; everything else only reads."""
        if segments[:4] == ["-", "npm", "v1", "security"]:
            return ("POST",)
        return ("GET", "HEAD")

    @app.handle_errors(Exception)  # type: ignore[arg-type] # Klein takes a plain method as well
    def failed(self, request: Request, failure: Failure) -> bytes:
        """Every error of every route ends here."""
        return answer_failure(request, failure)

    @app.route("/-/ping")
    def ping(self, request: Request) -> bytes:
        """``npm ping``: this server answers, whatever upstream does."""
        request.setHeader(b"content-type", b"application/json")
        return b"{}"

    @app.route("/-/whoami")
    @app.route("/-/npm/v1/user")
    @app.route("/-/npm/v1/tokens")
    def whoami(self, request: Request) -> bytes:
        """Nobody logs in here."""
        return answer(request, 401, "this registry is a read-only cache: it has no users")

    @app.route("/-/npm/v1/keys")
    async def keys(self, request: Request) -> bytes:
        """The keys that signatures are checked with ("Package Signatures")."""
        return await self._pages.serve(request, PageId("keys"), {FULL: "full"})

    @app.route("/-/npm/v1/attestations/<path:spec>")
    async def attestations(self, request: Request, spec: str) -> bytes:
        """The attestations of ``name@version``."""
        name, _, version = spec.rpartition("@")
        if not name or not version:
            raise NotFound("attestations are those of a package's version: name@version")
        return await self._pages.serve(request, PageId("attestations", f"{check_name(name)}@{version}"), {FULL: "full"})

    @app.route("/-/v1/search")
    @app.route("/-/npm/v1/security/advisories/bulk", methods=["POST"])
    @app.route("/-/npm/v1/security/audits", methods=["POST"])
    @app.route("/-/npm/v1/security/audits/quick", methods=["POST"])
    async def passed_on(self, request: Request) -> bytes:
        """Search and audit: each answer is for one question, and old ones mislead."""
        headers = {name: value for name in _FORWARDED if (value := request.getHeader(name)) is not None}
        assert request.content is not None
        method, target = request.method.decode(), request.uri.decode("latin-1")
        passed = await self._upstream.pass_on(method, target, headers, request.content.read())
        if passed.status > 599:  # noqa: PLR2004 - nothing is defined beyond (RFC 9110, section 15)
            raise BadUpstreamResponse(f"upstream answered {passed.status}")
        request.setResponseCode(passed.status)
        for name in _RETURNED:
            value = passed.headers.get(name, "")
            if value and value.isascii() and value.isprintable():
                request.setHeader(name, value)
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"cache-status", b"MyPyPi; fwd=bypass")
        request.setHeader(b"content-length", b"%d" % len(passed.body))
        return passed.body

    @app.route("/-/package/<path:name>/dist-tags")
    async def tags(self, request: Request, name: str) -> bytes:
        """``npm dist-tag ls``."""
        return await self._pages.serve(
            request, PageId("packument", check_name(name)), {FULL: "full"}, Part("dist-tags", dist_tags)
        )

    @app.route("/<path:path>")
    async def package(self, request: Request, path: str) -> bytes:
        """A package's packument, one of its versions, or a tarball: told apart by the path alone, never by Accept."""
        segments = segments_of(request, scoped=True)
        if segments[-1] == "":
            segments.pop()
        parts = 2 if segments[0].startswith("@") else 1
        name, rest = check_name("/".join(segments[:parts])), segments[parts:]
        if not rest:
            return await self._pages.serve(request, PageId("packument", name), _packuments(request))
        if len(rest) == 1 and rest[0] != "-":
            wanted = rest[0]
            part = Part(wanted, lambda packument: manifest(packument, wanted))
            return await self._pages.serve(request, PageId("packument", name), {FULL: "full"}, part)
        if len(rest) == 2 and rest[0] == "-":  # noqa: PLR2004 - "-" and the file
            return await self._files.serve(request, f"{name}/-/{rest[1]}")
        raise NotFound("there is nothing at this address")

    @app.route("/")
    def welcome(self, request: Request) -> bytes:
        """What npm's own registry answers here is a database's; clients only look whether anybody answers."""
        request.setHeader(b"content-type", b"application/json")
        return b'{"mypypi":"a cache for npm packages"}'


def _packuments(request: Request) -> dict[str, str]:
    """The form that this client wants: abbreviated where it prefers that by name, else the full one."""
    accepted = parse_accept_header(request.getHeader("accept"))
    wants_abbreviated = ABBREVIATED in accepted.values() and accepted[ABBREVIATED] >= accepted[FULL]
    return {ABBREVIATED: "abbreviated"} if wants_abbreviated else {FULL: "full"}
