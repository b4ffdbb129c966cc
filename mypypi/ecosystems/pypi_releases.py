"""The releases that a project's JSON lists, by which a version that does not exist is told from one that does.

Knows PyPI's JSON and the spellings of a version (PEP 440). Must never know requests.
"""

from __future__ import annotations

import msgspec
from packaging.utils import canonicalize_version

from mypypi.model import UNKNOWN_SPAN, Part, Span

#: Releases that are indexed at most. The largest projects have some thousand.
_MOST_RELEASES = 50_000
#: Characters of a version that is parsed: Python does not parse numbers of thousands of digits.
_LONGEST_VERSION = 256


class _Releases(msgspec.Struct):
    """The field of a project's JSON that lists its releases."""

    releases: dict[str, msgspec.Raw]


def releases_in(document: bytes) -> dict[Part, Span] | None:
    """Return a part for each release, also for those without files. None if the JSON does not tell which there are."""
    try:
        releases = msgspec.json.decode(document, type=_Releases).releases
    except (msgspec.MsgspecError, RecursionError):
        return None
    return {release(version): UNKNOWN_SPAN for version in releases} if 0 < len(releases) < _MOST_RELEASES else None


def release(version: str) -> Part:
    """Return the part for a release, in the one spelling that stands for all that PyPI takes for the same."""
    is_long = len(version) > _LONGEST_VERSION
    return Part("release", version if is_long else canonicalize_version(version).lower())
