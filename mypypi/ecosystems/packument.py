"""Renders packuments in full and abbreviated, with tarball links to this server.

Terms are those of the npm registry's documentation ("Package Metadata"). The full form keeps upstream's bytes: only
links are replaced, and versions that can't be installed are left out. The abbreviated form is assembled from pieces of
it. Knows the format. Must never know requests, or where a page comes from.
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

from mypypi.errors import BadUpstreamResponse, NotFound
from mypypi.file_keys import is_segment, key_of
from mypypi.model import BASE_PLACEHOLDER, Digest, RenderedForm, RenderedPage, SourceDocument

FULL = "application/json"
ABBREVIATED = "application/vnd.npm.install-v1+json"
#: Versions of one package; the largest real ones have some ten thousand.
MOST_VERSIONS = 1_000_000

#: The fields of a version that an installer needs ("Package Metadata", section "Abbreviated version object"), and those
#: that the npm registry has added since.
_ABBREVIATED_FIELDS = frozenset({
    "name", "version", "deprecated", "dependencies", "optionalDependencies", "devDependencies", "bundleDependencies",
    "bundledDependencies", "peerDependencies", "peerDependenciesMeta", "acceptDependencies", "bin", "directories",
    "dist", "engines", "_hasShrinkwrap", "hasInstallScript", "os", "cpu", "libc", "funding",
})  # fmt: skip
_INSTALL_SCRIPTS = ("preinstall", "install", "postinstall")

#: Matches a member named "tarball". Text within a JSON string never matches, since its first quote is escaped. Longer
#: text is no URL that could be served, and matching it would take much memory.
_TARBALL = re.compile(rb'((?<!\\)"tarball"\s*:\s*)"((?:[^"\\]|\\.){0,16384})"')
#: Matches escaped backslashes or a surrogate pair, to be kept (group 1), or else a lone surrogate, which the parser
#: would reject.
_SURROGATES = re.compile(
    rb"((?:\\\\){1,1000}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
#: An escape that may be half of a surrogate pair.
_HAS_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_INTEGRITY = re.compile(r"(sha512|sha384|sha256|sha1)-([A-Za-z0-9+/]+={0,2})")

#: The members of an object, by name; their values stay bytes.
Members = dict[str, msgspec.Raw]

#: The parser's errors for bytes that are not JSON, not UTF-8, or nested too deeply.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Packument(msgspec.Struct):
    """The fields of a packument that are parsed; all others stay bytes."""

    name: Any = None
    time: Any = None
    versions: dict[str, Members] = {}
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


class _OddPackument(msgspec.Struct):
    """The same fields of a packument whose versions have unexpected types."""

    name: Any = None
    time: Any = None
    versions: dict[str, msgspec.Raw] | None = None
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


class _Dist(msgspec.Struct, gc=False):
    tarball: Any = None
    integrity: Any = None
    shasum: Any = None


class _Manifests(msgspec.Struct):
    """The fields of a packument that `manifest` and `dist_tags` need."""

    versions: dict[str, msgspec.Raw] | None = None
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


def render_packument(name: str, source: SourceDocument) -> RenderedPage:
    """
    Render the packument of the package with this name.

    Raises BadUpstreamResponse if the body is no packument, or another package's.
    """
    parsed, unusable, is_odd = _parse(source.body)
    _check_name(parsed, name)
    body = source.body
    links: dict[str, str] = {}
    files: dict[str, tuple[str, str, str]] = {}
    for version, members in list(parsed.versions.items()):
        dist = _dist(members)
        if dist is None:
            del parsed.versions[version]
            unusable.append(version)
        else:
            _add_tarball(name, version, dist, source.url, links, files)
    if unusable or is_odd:
        body = _with_versions(body, parsed.versions)
    return RenderedPage(
        {
            "full": RenderedForm(FULL, _with_links(body, links), based=True),
            "abbreviated": RenderedForm(ABBREVIATED, _with_links(_abbreviated(parsed, name), links), based=True),
            "files": RenderedForm(FULL, msgspec.json.encode(list(files.values()))),
        },
        modified=_modified(parsed.time),
        notes=_left_out(unusable),
    )


def manifest(packument: bytes, wanted: str) -> bytes:
    """
    Cut the object of one version out of a full packument.

    `wanted` is a version or a dist-tag. Raises NotFound, and BadUpstreamResponse if the packument can't be parsed.
    """
    parsed = decode(packument, _Manifests)
    versions = parsed.versions or {}
    tags = parsed.dist_tags if isinstance(parsed.dist_tags, dict) else {}
    found = versions.get(wanted) or versions.get(str(tags.get(wanted, "")))
    if found is None:
        raise NotFound(f"version not found: {wanted}")
    return bytes(found)


def dist_tags(packument: bytes) -> bytes:
    """Return a packument's dist-tags, as the registry's own endpoint does."""
    return msgspec.json.encode(decode(packument, _Manifests).dist_tags or {})


def decode(body: bytes, kind: Any) -> Any:
    """Parse JSON as this type. Raises BadUpstreamResponse."""
    try:
        return msgspec.json.decode(body, type=kind)
    except _UNREADABLE as error:
        problem: Exception = error
    if _HAS_SURROGATE.search(body):  # registries truncate readmes, even in the middle of a surrogate pair
        try:
            return msgspec.json.decode(_SURROGATES.sub(lambda match: match[1] or rb"\ufffd", body), type=kind)
        except _UNREADABLE as error:
            problem = error
    reason = "it is nested too deeply" if isinstance(problem, RecursionError) else str(problem)
    raise BadUpstreamResponse(f"upstream's response can't be parsed: {reason}")


def _parse(body: bytes) -> tuple[_Packument, list[str], bool]:
    """Return the packument, its versions that are no objects, and whether its ``versions`` must be written anew."""
    unusable: list[str] = []
    is_odd = False
    try:
        parsed: _Packument = decode(body, _Packument)
    except BadUpstreamResponse:
        is_odd = True
        odd: _OddPackument = decode(body, _OddPackument)
        parsed = _Packument(odd.name, odd.time, {}, odd.dist_tags)
        for version, raw in (odd.versions or {}).items():
            members = _members(raw)
            if members is None:
                unusable.append(version)
            else:
                parsed.versions[version] = members
    if len(parsed.versions) + len(unusable) > MOST_VERSIONS:
        raise BadUpstreamResponse(f"upstream's packument has more than {MOST_VERSIONS} versions")
    return parsed, unusable, is_odd


def _members(raw: msgspec.Raw) -> Members | None:
    """Return the members of an object; None if this is no object."""
    try:
        members: Members = msgspec.json.decode(raw, type=Members)
    except _UNREADABLE:
        return None
    return members


def _check_name(parsed: _Packument, name: str) -> None:
    """Raise BadUpstreamResponse for another package's name. A missing name, or another case, is accepted."""
    if isinstance(parsed.name, str):
        if parsed.name.lower() != name.lower():
            raise BadUpstreamResponse("upstream sent the packument of another package")
    elif not parsed.versions:
        raise BadUpstreamResponse("upstream's response is no packument: it has no name and no versions")


def _dist(members: Members) -> _Dist | None:
    """Return a version's ``dist``; None if it names no tarball, so that the version can't be installed."""
    if "dist" not in members:
        return None
    try:
        dist = msgspec.json.decode(members["dist"], type=_Dist)
    except _UNREADABLE:
        return None
    return dist if isinstance(dist.tarball, str) and dist.tarball else None


def _with_versions(body: bytes, versions: Mapping[str, Members]) -> bytes:
    """Return the packument with only these of its versions. Everything else stays as it is."""
    whole: Members = decode(body, Members)
    raw = decode(bytes(whole["versions"]), Members | None) if "versions" in whole else None
    usable = {version: manifest for version, manifest in (raw or {}).items() if version in versions}
    return msgspec.json.encode({**whole, "versions": usable})


def _left_out(unusable: list[str]) -> tuple[str, ...]:
    if not unusable:
        return ()
    return (f"{len(unusable)} versions without a tarball were left out, such as {unusable[0][:50]!r}",)


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
    if not is_segment(filename):
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


def _abbreviated(parsed: _Packument, name: str) -> bytes:
    """Assemble the abbreviated packument from unchanged pieces of the full one."""
    versions = {version: _abbreviated_version(members) for version, members in parsed.versions.items()}
    known_name = parsed.name if isinstance(parsed.name, str) else name
    whole: dict[str, object] = {"name": known_name, "dist-tags": parsed.dist_tags or {}, "versions": versions}
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
