"""Reads the addresses that other npm registries give to tarballs, as lock files keep them.

Knows paths, names and versions. Must never know which packages there are, or what a request gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mypypi.ecosystems.npm import is_name

#: A version (Semantic Versioning 2.0.0, sections 2, 9 and 10), and the name and version in a tarball's filename.
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:[-+][0-9A-Za-z.+-]+)?")
_NAMED = re.compile(rf"(?P<name>.+?)-(?P<version>{_VERSION.pattern})")
_EXTENSIONS = (".tgz", ".tar.gz")
#: Segments between a package's name and its file: the npm registry's own, and that of cnpm and GitHub Packages.
_SEPARATORS = ("-", "download")
#: Characters of a segment that are read. npm allows 214 in a name and 256 in a version.
_LONGEST = 512
#: How many segments before a filename may be the name of its package.
_MOST_BEFORE = 3


def tarball_links(segments: list[str]) -> list[str]:
    """
    Return the links that a path at another registry may mean, most likely first; none if it names no tarball.

    A link has the conventional form, ``{name}/-/{file}`` (see `mypypi.ecosystems.npm.NPM`). `segments` are those of the
    path, decoded. The tarball's name and version come from the segments or from the filename, for example:

    - ``repository/npm/@scope/name/-/name-1.0.0.tgz``, below any prefix
    - ``@scope/name/-/@scope/name-1.0.0.tgz``, ``name/-/1.0.0/name-1.0.0.tgz``, ``packages/name/1.0.0/name-1.0.0.tgz``
    - ``download/@scope/name/1.0.0/{digest}``, ``@scope/name/-/@scope/name-1.0.0/{digest}.tgz``
    - ``name/download/name-1.0.0.tgz``, ``@scope/name/1.0.0.tgz``
    - ``npm/-/name-1.0.0.tgz``, where only the filename tells
    """
    links = [*_as_listed(segments), *(tarball_link(name, version) for name, version in _packages(segments))]
    return [link for link in dict.fromkeys(links) if is_name(link.partition("/-/")[0])]


def _as_listed(segments: list[str]) -> Iterator[str]:
    """Yield the link with the path's own filename, which may be any, if the path ends as the conventional form does."""
    if len(segments) > 2 and segments[-2] == "-":  # noqa: PLR2004 - a name before "-", and a filename
        yield f"{_name_at(segments, len(segments) - 3)}/-/{segments[-1]}"


def _packages(segments: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the names and versions that the end of a path may mean. Its last segment may be a digest."""
    *path, last = [segment[:_LONGEST] for segment in segments if segment not in _SEPARATORS] or [""]
    if last.endswith(_EXTENSIONS):
        stem = _without_extension(last)
        if path and _VERSION.fullmatch(stem):
            yield _name_at(path, len(path) - 1), stem
        elif (named := _NAMED.fullmatch(stem)) is not None:
            yield from _named(path, stem, named)
        elif path and (named := _NAMED.fullmatch(path[-1])) is not None:
            yield from _named(path[:-1], path[-1], named)
    elif "download" in segments and len(path) > 1 and _VERSION.fullmatch(path[-1]):
        yield _name_at(path, len(path) - 2), path[-1]


def _named(before: list[str], stem: str, named: re.Match[str]) -> Iterator[tuple[str, str]]:
    """Yield the package that a filename means after these segments: one that they name, else by the filename alone."""
    if before and before[-1].startswith("@"):
        yield f"{before[-1]}/{named['name']}", named["version"]
        return
    for index in range(len(before) - 1, max(-1, len(before) - 1 - _MOST_BEFORE), -1):
        name = _name_at(before, index)
        for prefix in (before[index], name.lstrip("@").replace("/", "-"), name.replace("/", "-")):
            version = stem.removeprefix(f"{prefix}-")
            if version != stem and _VERSION.fullmatch(version):
                yield name, version
                return
    if not any(segment.startswith("@") for segment in before):
        yield named["name"], named["version"]


def _name_at(path: list[str], index: int) -> str:
    """Return the package's name that ends at this segment, with its scope."""
    scope = f"{path[index - 1]}/" if index and path[index - 1].startswith("@") else ""
    return scope + path[index]


def tarball_link(name: str, version: str) -> str:
    """Return the conventional link of a version's tarball."""
    return f"{name}/-/{name.rpartition('/')[2]}-{version}.tgz"


def _without_extension(filename: str) -> str:
    for extension in _EXTENSIONS:
        if filename.endswith(extension):
            return filename[: -len(extension)]
    return filename
