"""
The npm ecosystem.

Renders packuments in full and abbreviated, with tarball links to this server. The terms are npm's own (npm registry
documentation: "Package Metadata", "Package Signatures"). Upstream's bytes are kept: only links are replaced in them,
and the abbreviated form is assembled from pieces of the full one. Knows names, formats and links. Must never know where
a page comes from or goes to: no I/O, no request.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import msgspec
from zope.interface import implementer

from mypypi.errors import BadRequest, BadUpstreamResponse, NotFound
from mypypi.interfaces import IEcosystem
from mypypi.keys import is_segment, key_of
from mypypi.model import (
    BASE_PLACEHOLDER,
    Digest,
    PackageFile,
    PageId,
    PageRequest,
    RenderedForm,
    RenderedPage,
    SourceDocument,
)

FULL = "application/json"
ABBREVIATED = "application/vnd.npm.install-v1+json"

#: The fields of a version that an installer needs ("Package Metadata", section "Abbreviated version object"), and those
#: that the npm registry has added since.
_ABBREVIATED_FIELDS = frozenset({
    "name", "version", "deprecated", "dependencies", "optionalDependencies", "devDependencies", "bundleDependencies",
    "bundledDependencies", "peerDependencies", "peerDependenciesMeta", "acceptDependencies", "bin", "directories",
    "dist", "engines", "_hasShrinkwrap", "hasInstallScript", "os", "cpu", "libc", "funding",
})  # fmt: skip
_INSTALL_SCRIPTS = ("preinstall", "install", "postinstall")

#: Legacy names may have capitals and some characters that new names may not have; none is unsafe in a path.
_NAME = re.compile(r"(?:@[A-Za-z0-9\-._~!'()*]+/)?[A-Za-z0-9\-._~!'()*]+")
_LONGEST_NAME = 214
#: Matches a member named "tarball". Text within a JSON string never matches, since its first quote is escaped.
_TARBALL = re.compile(rb'((?<!\\)"tarball"\s*:\s*)"((?:[^"\\]|\\.)*)"')
#: Matches an escaped backslash or a surrogate pair, to be kept (group 1), or else a lone surrogate, which the parser
#: would reject.
_SURROGATES = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_INTEGRITY = re.compile(r"(sha512|sha384|sha256|sha1)-([A-Za-z0-9+/]+={0,2})")

Members = dict[str, msgspec.Raw]

#: The parser's errors for bytes that are not JSON, not UTF-8, or nested too deeply.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Packument(msgspec.Struct):
    """The fields of a packument that are parsed; all others stay bytes."""

    name: Any = None
    time: Any = None
    versions: dict[str, Members] = {}
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


class _Dist(msgspec.Struct, gc=False):
    tarball: Any = None
    integrity: Any = None
    shasum: Any = None


class _Manifests(msgspec.Struct):
    """The fields of a packument that `manifest` and `dist_tags` need."""

    versions: dict[str, msgspec.Raw] = {}
    dist_tags: dict[str, str] | None = msgspec.field(default=None, name="dist-tags")


@implementer(IEcosystem)
class NPM:
    """
    The ecosystem of npm registries.

    The kinds of pages: ``packument``, a package's page; ``keys``, the registry's signing keys; and ``attestations``,
    those of ``name@version``. A tarball's link has the conventional form, ``{name}/-/{file}.tgz``, wherever upstream
    stores the tarball.
    """

    name = "npm"
    scoped = True

    def __init__(self, upstream_url: str) -> None:
        self._upstream_url = upstream_url

    def page_request(self, page: PageId) -> PageRequest:
        """See `IEcosystem.page_request`. The full packument is requested; its abbreviated form is made here."""
        if page.kind == "packument":
            return PageRequest(f"/{_escaped(page.project)}", FULL)
        if page.kind == "keys":
            return PageRequest("/-/npm/v1/keys", FULL)
        return PageRequest(f"/-/npm/v1/attestations/{quote(page.project, safe='@')}", FULL)

    def render(self, page: PageId, source: SourceDocument, withheld: frozenset[str]) -> RenderedPage:
        """See `IEcosystem.render`."""
        if page.kind != "packument":
            _decode(source.body, dict[str, Any])
            return RenderedPage({"full": RenderedForm(FULL, source.body)})
        try:
            return _render_packument(page.project, source)
        except RecursionError:  # JSON that could be parsed may be too deep to encode
            raise BadUpstreamResponse("upstream's response can't be parsed: it is nested too deeply") from None

    def listing_form(self, page: PageId) -> str | None:
        """See `IEcosystem.listing_form`."""
        return "files" if page.kind == "packument" else None

    def listing(self, page: PageId, forms: Mapping[str, bytes]) -> dict[str, PackageFile]:
        """See `IEcosystem.listing`."""
        rows = msgspec.json.decode(forms["files"], type=list[tuple[str, str, str]])
        return {link: PackageFile(link, url, Digest.parse(digest) if digest else None) for link, url, digest in rows}

    def pages_for(self, link: str) -> tuple[PageId, ...]:
        """See `IEcosystem.pages_for`."""
        name, found, _ = link.partition("/-/")
        return (PageId("packument", name),) if found and _NAME.fullmatch(name) else ()

    def key_for(self, link: str) -> str | None:
        """See `IEcosystem.key_for`. The key is right if upstream's own links have the conventional form."""
        try:
            return key_of(f"{self._upstream_url}/{quote(link, safe='@/')}")
        except ValueError:
            return None

    def example(self, address: str) -> str:
        """See `IEcosystem.example`."""
        return f"npm install --registry {address} express"


def check_name(name: str) -> str:
    """Return the name if it can be a package's. Raises BadRequest."""
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name) or name.startswith("."):
        raise BadRequest("this is not the name of an npm package")
    return name


def manifest(packument: bytes, wanted: str) -> bytes:
    """Cut the object of one version out of a full packument.

    `wanted` is a version or a dist-tag. Raises NotFound, and BadUpstreamResponse if the packument can't be parsed.
    """
    parsed = _decode(packument, _Manifests)
    found = parsed.versions.get(wanted) or parsed.versions.get((parsed.dist_tags or {}).get(wanted, ""))
    if found is None:
        raise NotFound(f"version not found: {wanted}")
    return bytes(found)


def dist_tags(packument: bytes) -> bytes:
    """Return a packument's dist-tags, as the registry's own endpoint does."""
    return msgspec.json.encode(_decode(packument, _Manifests).dist_tags or {})


def _render_packument(name: str, source: SourceDocument) -> RenderedPage:
    parsed = _decode(source.body, _Packument)
    if parsed.name != name:
        raise BadUpstreamResponse("upstream sent the packument of another package")
    links: dict[str, str] = {}
    files: dict[str, tuple[str, str, str]] = {}
    for version, members in parsed.versions.items():
        if "dist" in members:
            _add_tarball(name, version, _decode(bytes(members["dist"]), _Dist), source.url, links, files)
    modified = _modified(parsed.time)
    return RenderedPage(
        {
            "full": RenderedForm(FULL, _with_links(source.body, links), based=True),
            "abbreviated": RenderedForm(ABBREVIATED, _with_links(_abbreviated(parsed), links), based=True),
            "files": RenderedForm(FULL, msgspec.json.encode(list(files.values()))),
        },
        modified=modified,
    )


def _add_tarball(
    name: str, version: str, dist: _Dist, base: str, links: dict[str, str], files: dict[str, tuple[str, str, str]]
) -> None:
    """
    Add a version's tarball to `links` and `files`.

    `links` maps upstream's address to the new one, `files` a link to its file. The tarball is also listed under
    upstream's filename, since a lock file written against upstream may have that name. A tarball that can't be served
    from here is skipped, so its address stays as it is.
    """
    unscoped = name.rpartition("/")[2]
    filename = f"{unscoped}-{version}.tgz"
    if not isinstance(dist.tarball, str) or not is_segment(filename):
        return
    try:
        url = urljoin(base, dist.tarball)
        key_of(url)
    except ValueError:
        return
    digest = str(_digest(dist) or "")
    link = f"{name}/-/{filename}"
    links[dist.tarball] = f"{BASE_PLACEHOLDER.decode()}/{quote(link, safe='@/+')}"
    files[link] = (link, url, digest)
    upstream_link = f"{name}/-/{unquote(urlsplit(url).path.rpartition('/')[2])}"
    files.setdefault(upstream_link, (upstream_link, url, digest))


def _digest(dist: _Dist) -> Digest | None:
    """Return the strongest digest of ``integrity`` (Subresource Integrity, section 3.5), else ``shasum``."""
    hashes: dict[str, object] = {}
    if isinstance(dist.integrity, str):
        for algorithm, encoded in _INTEGRITY.findall(dist.integrity):
            with suppress(binascii.Error):
                hashes[algorithm] = base64.b64decode(encoded, validate=True).hex()
    strongest = Digest.strongest(hashes)
    return strongest or Digest.strongest({"sha1": dist.shasum})


def _with_links(body: bytes, links: Mapping[str, str]) -> bytes:
    """Replace the tarball addresses that `links` has a new one for. All other bytes stay."""

    def replaced(match: re.Match[bytes]) -> bytes:
        try:
            old = msgspec.json.decode(b'"' + match[2] + b'"', type=str)
        except _UNREADABLE:
            return match[0]
        new = links.get(old)
        return match[0] if new is None else match[1] + msgspec.json.encode(new)

    return _TARBALL.sub(replaced, body)


def _abbreviated(parsed: _Packument) -> bytes:
    """Assemble the abbreviated packument from unchanged pieces of the full one."""
    versions = {version: _abbreviated_version(members) for version, members in parsed.versions.items()}
    whole: dict[str, object] = {"name": parsed.name, "dist-tags": parsed.dist_tags or {}, "versions": versions}
    if isinstance(parsed.time, dict) and isinstance(parsed.time.get("modified"), str):
        whole["modified"] = parsed.time["modified"]
    return msgspec.json.encode(whole)


def _abbreviated_version(members: Members) -> dict[str, object]:
    version: dict[str, object] = {name: value for name, value in members.items() if name in _ABBREVIATED_FIELDS}
    if "hasInstallScript" not in version and "scripts" in members:
        try:
            scripts = msgspec.json.decode(members["scripts"], type=dict[str, msgspec.Raw])
        except _UNREADABLE:
            return version
        if any(script in scripts for script in _INSTALL_SCRIPTS):
            version["hasInstallScript"] = True
    return version


def _modified(time: object) -> str:
    """Return ``time.modified`` as an HTTP date; empty if there is none."""
    modified = time.get("modified") if isinstance(time, dict) else None
    if not isinstance(modified, str):
        return ""
    try:
        moment = datetime.fromisoformat(modified.replace("Z", "+00:00"))
    except ValueError:
        return ""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    try:
        return format_datetime(moment.astimezone(timezone.utc), usegmt=True)
    except OverflowError:  # near the first or last possible day, the conversion to UTC leaves the range
        return ""


def _escaped(name: str) -> str:
    """Encode a name as one path segment, with the scope's slash, as npm does."""
    return quote(name, safe="@").replace("%2F", "%2f")


def _decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except _UNREADABLE:
        pass  # registries truncate readmes, even in the middle of a surrogate pair
    try:
        return msgspec.json.decode(_SURROGATES.sub(lambda match: match[1] or rb"\ufffd", body), type=kind)
    except _UNREADABLE as error:
        raise BadUpstreamResponse(f"upstream's response can't be parsed: {error}") from None
