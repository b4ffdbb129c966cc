"""Renders packuments in full and abbreviated, with tarball links to this server.

Terms are those of the npm registry's documentation ("Package Metadata"). The full form keeps upstream's bytes: only
links are replaced, and versions that can't be installed are left out. The abbreviated form is assembled from pieces of
it. Knows the format. Must never know requests, or where a page comes from.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import msgspec

from mypypi.dates import http_date
from mypypi.ecosystems.lenient_json import UNREADABLE, decode, without_mark
from mypypi.ecosystems.tarballs import Dist, Tarballs
from mypypi.errors import BadUpstreamResponse
from mypypi.model import RenderedForm, RenderedPage, SourceDocument

FULL = "application/json"
ABBREVIATED = "application/vnd.npm.install-v1+json"
#: Versions of one package; the largest real ones have some ten thousand.
MOST_VERSIONS = 1_000_000

_INSTALL_SCRIPTS = ("preinstall", "install", "postinstall")
#: What the JSON of scripts has in it if it has one of these.
_INSTALL = b'install"'

#: What happens to versions that can't be served, by whether operation is strict.
_FATE = {False: "keep upstream's address", True: "were left out"}

#: The members of an object, by name; their values stay bytes.
Members = dict[str, msgspec.Raw]

_Raw = msgspec.Raw
_ABSENT = msgspec.Raw(b"")


class _Version(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """
    The fields of a version that an installer needs; their values stay bytes.

    They are those of "Package Metadata", section "Abbreviated version object", those that the npm registry has added
    since, and `scripts`, which tell whether it `has_install_script`. All others are skipped.
    """

    name: _Raw = _ABSENT
    version: _Raw = _ABSENT
    deprecated: _Raw = _ABSENT
    dependencies: _Raw = _ABSENT
    optional_dependencies: _Raw = _ABSENT
    dev_dependencies: _Raw = _ABSENT
    bundle_dependencies: _Raw = _ABSENT
    bundled_dependencies: _Raw = _ABSENT
    peer_dependencies: _Raw = _ABSENT
    peer_dependencies_meta: _Raw = _ABSENT
    accept_dependencies: _Raw = _ABSENT
    bin: _Raw = _ABSENT
    directories: _Raw = _ABSENT
    dist: _Raw = _ABSENT
    engines: _Raw = _ABSENT
    has_shrinkwrap: _Raw = msgspec.field(default=_ABSENT, name="_hasShrinkwrap")
    has_install_script: _Raw = _ABSENT
    os: _Raw = _ABSENT
    cpu: _Raw = _ABSENT
    libc: _Raw = _ABSENT
    funding: _Raw = _ABSENT
    scripts: _Raw = _ABSENT

    def abbreviate(self) -> None:
        """Leave out the scripts, and say whether one of them runs at the installation."""
        if self.scripts is not _ABSENT:
            if self.has_install_script is _ABSENT and _has_install_script(bytes(self.scripts)):
                self.has_install_script = msgspec.Raw(b"true")
            self.scripts = _ABSENT


class _Packument(msgspec.Struct):
    """The fields of a packument that are parsed; all others are skipped."""

    name: Any = None
    time: _Raw = _ABSENT
    versions: dict[str, _Version] = {}
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


class _OddPackument(msgspec.Struct):
    """The same fields of a packument whose versions have unexpected types."""

    name: Any = None
    time: _Raw = _ABSENT
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
    tarballs = Tarballs(name, source.url)
    for version, fields in list(parsed.versions.items()):
        raw = bytes(fields.dist)
        dist = _dist(raw)
        if dist is None:
            del parsed.versions[version]
            unusable.append(version)
        elif not tarballs.add(version, dist, raw):
            unserved.append(version)
            if strict:
                del parsed.versions[version]
    if unusable or is_odd or (strict and unserved):
        body = _with_versions(body, parsed.versions)
    files = list(tarballs.files.values())
    return RenderedPage(
        {
            "full": RenderedForm(FULL, tarballs.with_links(body), based=True),
            "abbreviated": RenderedForm(ABBREVIATED, tarballs.with_links(_abbreviated(parsed, name)), based=True),
            "files": RenderedForm(FULL, msgspec.json.encode(files)),
        },
        modified=http_date(_modified(parsed.time)),
        notes=(
            *_note(unusable, "versions without a tarball were left out"),
            *_note(unserved, f"versions whose tarball can't be served from here {_FATE[strict]}"),
        ),
        rows=[(link, url, digests, None, key, None) for link, url, digests, key in files],
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
            found = _version(raw)
            if found is None:
                unusable.append(version)
            else:
                parsed.versions[version] = found
    if len(parsed.versions) + len(unusable) > MOST_VERSIONS:
        raise BadUpstreamResponse(f"upstream's packument has more than {MOST_VERSIONS} versions")
    return parsed, unusable, is_odd


def _version(raw: msgspec.Raw) -> _Version | None:
    """Return the fields of a version; None if it is no object."""
    try:
        version: _Version = msgspec.json.decode(raw, type=_Version)
    except UNREADABLE:
        return None
    return version


def _check_name(parsed: _Packument, name: str) -> None:
    """Raise BadUpstreamResponse for another package's name. A missing name, or another case, is accepted."""
    if isinstance(parsed.name, str):
        if parsed.name.lower() != name.lower():
            raise BadUpstreamResponse("upstream sent the packument of another package")
    elif not parsed.versions:
        raise BadUpstreamResponse("upstream's response is no packument: it has no name and no versions")


def _dist(raw: bytes) -> Dist | None:
    """Return a version's ``dist``; None if it names no tarball, so that the version can't be installed."""
    try:
        dist = msgspec.json.decode(raw, type=Dist)
    except UNREADABLE:  # or there is none
        return None
    return dist if isinstance(dist.tarball, str) and dist.tarball else None


def _with_versions(body: bytes, versions: Container[str]) -> bytes:
    """Return the packument with only these of its versions. Everything else stays as it is."""
    whole: Members = decode(body, Members)
    raw = decode(bytes(whole["versions"]), Members | None) if "versions" in whole else None
    usable = {version: manifest for version, manifest in (raw or {}).items() if version in versions}
    return msgspec.json.encode({**whole, "versions": usable})


def _note(versions: list[str], what: str) -> tuple[str, ...]:
    return (f"{len(versions)} {what}, such as {versions[0][:50]!r}",) if versions else ()


def _abbreviated(parsed: _Packument, name: str) -> bytes:
    """Assemble the abbreviated packument from unchanged pieces of the full one."""
    for version in parsed.versions.values():
        version.abbreviate()
    known_name = parsed.name if isinstance(parsed.name, str) else name
    whole: dict[str, object] = {"name": known_name, "dist-tags": parsed.dist_tags or {}, "versions": parsed.versions}
    if bytes(parsed.time).startswith(b"{"):  # pnpm's resolutionMode "time-based", and minimum release ages, need it
        whole["time"] = parsed.time
    if modified := _modified(parsed.time):
        whole["modified"] = modified
    return msgspec.json.encode(whole)


def _has_install_script(scripts: bytes) -> bool:
    """Whether one of these scripts runs at the installation."""
    if _INSTALL not in scripts and b"\\" not in scripts:
        return False
    try:
        named = msgspec.json.decode(scripts, type=Members)
    except UNREADABLE:
        return False
    return any(script in named for script in _INSTALL_SCRIPTS)


def _modified(time: msgspec.Raw) -> str:
    """Return ``time.modified``; empty if there is none. Raises BadUpstreamResponse if ``time`` is no valid JSON."""
    decoded = decode(bytes(time), Any) if bytes(time) else None
    modified = decoded.get("modified") if isinstance(decoded, dict) else None
    return modified if isinstance(modified, str) else ""
