"""Names of Python projects and of their files (PEP 503, PEP 508, PEP 427, PEP 625).

Knows names and filenames. Must never know a page, or where a file comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from urllib.parse import unquote

from packaging.utils import InvalidName, canonicalize_name, parse_sdist_filename

from mypypi.errors import BadRequest

_LONGEST_NAME = 200
_MOST_CANDIDATES = 3
#: Names that are remembered with their normalised form: a page has thousands of files of one name.
_MOST_REMEMBERED = 1000
_BEFORE_VERSION = re.compile(r"-(?=[0-9])")
_PLAIN_WHEEL = re.compile(r"[A-Za-z0-9._+-]+\.whl(?:\.metadata)?")
_EXTENSIONS = (
    *(".tar.gz", ".tar.bz2", ".tar.xz", ".tar.z", ".tar", ".tgz", ".zip"),
    *(".egg", ".exe", ".deb", ".rpm", ".msi", ".dmg"),
)


@lru_cache(_MOST_REMEMBERED)
def normalise(name: str) -> str:
    """Return the normalised name of a project (PEP 503). Raises BadRequest for an invalid name (PEP 508)."""
    if len(name) <= _LONGEST_NAME and name.isascii():
        with suppress(InvalidName):
            return canonicalize_name(name, validate=True)
    raise BadRequest(f"not a project name: {name[:_LONGEST_NAME]!r}")


def projects_of(link: str) -> list[str]:
    """Return the projects to which a file may belong, most likely first.

    `link` ends with the filename (see `PackageFile.link`), or with it and one more segment, as ``…/provenance`` does
    (PEP 740). The result has normalised names.
    """
    for segment in reversed(link.rsplit("/", 2)[-2:]):
        filename = unquote(segment).partition("?")[0].removesuffix(".metadata").removesuffix(".asc")
        projects: dict[str, None] = {}
        for name in _names_in(filename):
            with suppress(BadRequest):
                projects[normalise(name)] = None
        if projects:
            return list(projects)[:_MOST_CANDIDATES]
    return []


def is_file_of(link: str, project: str) -> bool:
    """Whether `projects_of` the link has this project. Quick for the project's own wheels."""
    filename = link.rpartition("/")[2]
    name, dash, _ = filename.partition("-")
    if dash and _PLAIN_WHEEL.fullmatch(filename):
        with suppress(BadRequest):
            if normalise(name) == project:
                return True
    return project in projects_of(link)


def _names_in(filename: str) -> Iterator[str]:
    lower = filename.lower()
    if lower.endswith(".whl"):
        name, dash, _ = filename.partition("-")
        if dash:
            yield name
        return
    extension = next((extension for extension in _EXTENSIONS if lower.endswith(extension)), None)
    if extension is None:
        return
    stem = filename[: -len(extension)]
    with suppress(ValueError):
        yield parse_sdist_filename(f"{stem}.tar.gz")[0]
    dashes = [match.start() for match in _BEFORE_VERSION.finditer(stem)]
    yield from (stem[:dash] for dash in reversed(dashes[-_MOST_CANDIDATES:]))
