"""Renders packuments in full and abbreviated, with tarball links to this server.

Terms are those of the npm registry's documentation ("Package Metadata"). The full form keeps upstream's bytes: only
links are replaced, and versions that can't be installed are left out. The abbreviated form is assembled from pieces of
it. Knows the format. Must never know requests, or where a page comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mypypi.dates import http_date
from mypypi.ecosystems.lenient_json import UNREADABLE, decode, without_mark
from mypypi.ecosystems.tarballs import Dist, add_tarball, with_links
from mypypi.errors import BadUpstreamResponse
from mypypi.model import RenderedForm, RenderedPage, SourceDocument

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

#: What happens to versions that can't be served, by whether operation is strict.
_FATE = {False: "keep upstream's address", True: "were left out"}

#: The members of an object, by name; their values stay bytes.
Members = dict[str, msgspec.Raw]


class _Packument(msgspec.Struct):
    """The fields of a packument that are parsed; all others stay bytes."""

    name: Any = None
    time: msgspec.Raw = msgspec.Raw(b"")
    versions: dict[str, Members] = {}
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


class _OddPackument(msgspec.Struct):
    """The same fields of a packument whose versions have unexpected types."""

    name: Any = None
    time: msgspec.Raw = msgspec.Raw(b"")
    versions: dict[str, msgspec.Raw] | None = None
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


def render_packument(name: str, source: SourceDocument, *, strict: bool = False) -> RenderedPage:
    """
    Render the packument of the package with this name.

    A tarball that can't be served from here keeps upstream's address; with `strict`, its version is left out. Raises
    BadUpstreamResponse if the body is no packument, or another package's.
    """
    body = without_mark(source.body)
    parsed, unusable, is_odd = _parse(body)
    _check_name(parsed, name)
    unserved: list[str] = []
    links: dict[str, str] = {}
    files: dict[str, tuple[str, str, str, str]] = {}
    for version, members in list(parsed.versions.items()):
        dist = _dist(members)
        if dist is None:
            del parsed.versions[version]
            unusable.append(version)
        elif not add_tarball(name, version, dist, source.url, links, files):
            unserved.append(version)
            if strict:
                del parsed.versions[version]
    if unusable or is_odd or (strict and unserved):
        body = _with_versions(body, parsed.versions)
    return RenderedPage(
        {
            "full": RenderedForm(FULL, with_links(body, links), based=True),
            "abbreviated": RenderedForm(ABBREVIATED, with_links(_abbreviated(parsed, name), links), based=True),
            "files": RenderedForm(FULL, msgspec.json.encode(list(files.values()))),
        },
        modified=http_date(_modified(parsed.time)),
        notes=(
            *_note(unusable, "versions without a tarball were left out"),
            *_note(unserved, f"versions whose tarball can't be served from here {_FATE[strict]}"),
        ),
    )


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
    except UNREADABLE:
        return None
    return members


def _check_name(parsed: _Packument, name: str) -> None:
    """Raise BadUpstreamResponse for another package's name. A missing name, or another case, is accepted."""
    if isinstance(parsed.name, str):
        if parsed.name.lower() != name.lower():
            raise BadUpstreamResponse("upstream sent the packument of another package")
    elif not parsed.versions:
        raise BadUpstreamResponse("upstream's response is no packument: it has no name and no versions")


def _dist(members: Members) -> Dist | None:
    """Return a version's ``dist``; None if it names no tarball, so that the version can't be installed."""
    if "dist" not in members:
        return None
    try:
        dist = msgspec.json.decode(members["dist"], type=Dist)
    except UNREADABLE:
        return None
    return dist if isinstance(dist.tarball, str) and dist.tarball else None


def _with_versions(body: bytes, versions: Mapping[str, Members]) -> bytes:
    """Return the packument with only these of its versions. Everything else stays as it is."""
    whole: Members = decode(body, Members)
    raw = decode(bytes(whole["versions"]), Members | None) if "versions" in whole else None
    usable = {version: manifest for version, manifest in (raw or {}).items() if version in versions}
    return msgspec.json.encode({**whole, "versions": usable})


def _note(versions: list[str], what: str) -> tuple[str, ...]:
    return (f"{len(versions)} {what}, such as {versions[0][:50]!r}",) if versions else ()


def _abbreviated(parsed: _Packument, name: str) -> bytes:
    """Assemble the abbreviated packument from unchanged pieces of the full one."""
    versions = {version: _abbreviated_version(members) for version, members in parsed.versions.items()}
    known_name = parsed.name if isinstance(parsed.name, str) else name
    whole: dict[str, object] = {"name": known_name, "dist-tags": parsed.dist_tags or {}, "versions": versions}
    if bytes(parsed.time).startswith(b"{"):  # pnpm's resolutionMode "time-based", and minimum release ages, need it
        whole["time"] = parsed.time
    if modified := _modified(parsed.time):
        whole["modified"] = modified
    return msgspec.json.encode(whole)


def _abbreviated_version(members: Members) -> dict[str, object]:
    version: dict[str, object] = {name: value for name, value in members.items() if name in _ABBREVIATED_FIELDS}
    if "hasInstallScript" not in version and "scripts" in members:
        try:
            scripts = msgspec.json.decode(members["scripts"], type=dict[str, msgspec.Raw])
        except UNREADABLE:
            return version
        if any(script in scripts for script in _INSTALL_SCRIPTS):
            version["hasInstallScript"] = True
    return version


def _modified(time: msgspec.Raw) -> str:
    """Return ``time.modified``; empty if there is none. Raises BadUpstreamResponse if ``time`` is no valid JSON."""
    decoded = decode(bytes(time), Any) if bytes(time) else None
    modified = decoded.get("modified") if isinstance(decoded, dict) else None
    return modified if isinstance(modified, str) else ""
