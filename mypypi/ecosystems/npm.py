"""
npm registries: packuments, taken in once and rendered in full and abbreviated, with tarball links that point here.

The words are npm's own (npm registry documentation: "Package Metadata", "Package Signatures"). What upstream wrote is
kept byte for byte: links are replaced in the bytes, and the abbreviated form is put together from pieces of the full
one. Knows names, formats and links. Must never know where a page comes from or goes to: no I/O, no request.
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

#: What an installer needs of a version ("Package Metadata", section "Abbreviated version object"), and what the
#: registry itself has come to add since.
_ABBREVIATED_FIELDS = frozenset({
    "name", "version", "deprecated", "dependencies", "optionalDependencies", "devDependencies", "bundleDependencies",
    "bundledDependencies", "peerDependencies", "peerDependenciesMeta", "acceptDependencies", "bin", "directories",
    "dist", "engines", "_hasShrinkwrap", "hasInstallScript", "os", "cpu", "libc", "funding",
})  # fmt: skip
_INSTALL_SCRIPTS = ("preinstall", "install", "postinstall")

#: Legacy names may have capitals and a few characters that new ones may not; none is unsafe in a path.
_NAME = re.compile(r"(?:@[A-Za-z0-9\-._~!'()*]+/)?[A-Za-z0-9\-._~!'()*]+")
_LONGEST_NAME = 214
#: A member named "tarball". Inside a JSON string its first quote would be escaped, so it can't be mistaken for one.
_TARBALL = re.compile(rb'((?<!\\)"tarball"\s*:\s*)"((?:[^"\\]|\\.)*)"')
#: An escaped backslash or a pair of surrogates, to be kept; else half a pair, which the parser would refuse.
_SURROGATES = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
_INTEGRITY = re.compile(r"(sha512|sha384|sha256|sha1)-([A-Za-z0-9+/]+={0,2})")

Members = dict[str, msgspec.Raw]

#: What the parser says of bytes that are no JSON, no UTF-8, or nested too deeply.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Packument(msgspec.Struct):
    """Of a packument, what is read; everything else stays bytes."""

    name: Any = None
    time: Any = None
    versions: dict[str, Members] = {}
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


class _Dist(msgspec.Struct, gc=False):
    tarball: Any = None
    integrity: Any = None
    shasum: Any = None


class _Manifests(msgspec.Struct):
    """Of a packument, what it takes to cut out one version."""

    versions: dict[str, msgspec.Raw] = {}
    dist_tags: dict[str, str] | None = msgspec.field(default=None, name="dist-tags")


@implementer(IEcosystem)
class NPM:
    """
    npm registries.

    Its pages: "packument" (a package, by name), "keys" (the registry's signing keys), "attestations" (of
    ``name@version``). A tarball's link is ``{name}/-/{file}.tgz``, the conventional form, wherever upstream keeps it.
    """

    name = "npm"
    scoped = True

    def __init__(self, upstream_url: str) -> None:
        self._upstream_url = upstream_url

    def page_request(self, page: PageId) -> PageRequest:
        """See `IEcosystem.page_request`. The abbreviated form is made here, of the full one."""
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
        except RecursionError:  # what could just be read can be too deep to be written
            raise BadUpstreamResponse("upstream's answer can't be read: it is nested too deeply") from None

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
        """See `IEcosystem.key_for`: right where upstream keeps to the conventional form itself."""
        try:
            return key_of(f"{self._upstream_url}/{quote(link, safe='@/')}")
        except ValueError:
            return None

    def example(self, address: str) -> str:
        """See `IEcosystem.example`."""
        return f"npm install --registry {address} express"


def check_name(name: str) -> str:
    """The name, if it can be one of a package; raises BadRequest."""
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name) or name.startswith("."):
        raise BadRequest("this is not the name of an npm package")
    return name


def manifest(packument: bytes, wanted: str) -> bytes:
    """One version's object, cut out of a full packument, by version or dist-tag. Raises NotFound."""
    parsed = _decode(packument, _Manifests)
    found = parsed.versions.get(wanted) or parsed.versions.get((parsed.dist_tags or {}).get(wanted, ""))
    if found is None:
        raise NotFound(f"version not found: {wanted}")
    return bytes(found)


def dist_tags(packument: bytes) -> bytes:
    """The dist-tags of a packument, as the registry's endpoint of that name gives them."""
    return msgspec.json.encode(_decode(packument, _Manifests).dist_tags or {})


def _render_packument(name: str, source: SourceDocument) -> RenderedPage:
    parsed = _decode(source.body, _Packument)
    if parsed.name != name:
        raise BadUpstreamResponse("upstream sends the packument of another package")
    links: dict[str, str] = {}
    files: dict[str, tuple[str, str, str]] = {}
    for version, members in parsed.versions.items():
        if "dist" in members:
            _take_dist(name, version, _decode(bytes(members["dist"]), _Dist), source.url, links, files)
    modified = _modified(parsed.time)
    return RenderedPage(
        {
            "full": RenderedForm(FULL, _with_links(source.body, links), based=True),
            "abbreviated": RenderedForm(ABBREVIATED, _with_links(_abbreviated(parsed), links), based=True),
            "files": RenderedForm(FULL, msgspec.json.encode(list(files.values()))),
        },
        modified=modified,
    )


def _take_dist(
    name: str, version: str, dist: _Dist, base: str, links: dict[str, str], files: dict[str, tuple[str, str, str]]
) -> None:
    """
    Note the tarball's new address by its old one, and the file by its link.

    A lock file that was written against upstream may name the tarball as upstream does, so that name leads here too.
    A link that can't be served from here stays as it is.
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
    upstreams = f"{name}/-/{unquote(urlsplit(url).path.rpartition('/')[2])}"
    files.setdefault(upstreams, (upstreams, url, digest))


def _digest(dist: _Dist) -> Digest | None:
    """The strongest of ``integrity`` (Subresource Integrity, section 3.5), else ``shasum``."""
    hashes: dict[str, object] = {}
    if isinstance(dist.integrity, str):
        for algorithm, encoded in _INTEGRITY.findall(dist.integrity):
            with suppress(binascii.Error):
                hashes[algorithm] = base64.b64decode(encoded, validate=True).hex()
    strongest = Digest.strongest(hashes)
    return strongest or Digest.strongest({"sha1": dist.shasum})


def _with_links(body: bytes, links: Mapping[str, str]) -> bytes:
    """The body with every tarball link replaced for which there is another; all else as it is."""

    def replaced(match: re.Match[bytes]) -> bytes:
        try:
            old = msgspec.json.decode(b'"' + match[2] + b'"', type=str)
        except _UNREADABLE:
            return match[0]
        new = links.get(old)
        return match[0] if new is None else match[1] + msgspec.json.encode(new)

    return _TARBALL.sub(replaced, body)


def _abbreviated(parsed: _Packument) -> bytes:
    """The abbreviated packument: pieces of the full one, as they are."""
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
    """``time.modified`` as an HTTP date; empty where there is none."""
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
    except OverflowError:  # of the first or the last day that there is, and elsewhere it is another one
        return ""


def _escaped(name: str) -> str:
    """A name as one segment of a path, as npm sends it: the scope's slash encoded."""
    return quote(name, safe="@").replace("%2F", "%2f")


def _decode(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except _UNREADABLE:
        pass  # readmes are cut to a length, in the middle of a character if need be
    try:
        return msgspec.json.decode(_SURROGATES.sub(lambda match: match[1] or rb"\ufffd", body), type=kind)
    except _UNREADABLE as error:
        raise BadUpstreamResponse(f"upstream's answer can't be read: {error}") from None
