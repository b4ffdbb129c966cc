"""The parts of a packument: its versions and its dist-tags, and where they lie in it.

Terms are those of the npm registry's documentation ("Package Metadata"). Knows the format. Must never know requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from mypypi.ecosystems.lenient_json import decode
from mypypi.errors import NotFound
from mypypi.model import UNKNOWN_SPAN, Part, Span

#: Bytes at the start of a version's object that are looked for before all of it is compared.
_PROBE = 64
#: Objects that may be missing where they are expected, before all others count as missing too. Each costs a search
#: through the whole packument.
_MOST_MISSES = 8


class _Manifests(msgspec.Struct):
    """The fields of a packument that have parts."""

    versions: dict[str, msgspec.Raw] | None = None
    dist_tags: Any = msgspec.field(default=None, name="dist-tags")


def manifest(packument: bytes, wanted: str) -> bytes:
    """
    Cut the object of one version out of a full packument.

    `wanted` is a version or a dist-tag. Raises NotFound, and BadUpstreamResponse if the packument can't be parsed.
    """
    parsed = decode(packument, _Manifests)
    versions, tags = parsed.versions or {}, _tags(parsed)
    found = versions.get(wanted)
    if found is None and wanted in tags:
        found = versions.get(str(tags[wanted]))
    if found is None:
        raise NotFound(f"version not found: {wanted}")
    return bytes(found)


def dist_tags(packument: bytes) -> bytes:
    """Return a packument's dist-tags, as the registry's own endpoint does."""
    return _encoded_tags(decode(packument, _Manifests))


def parts_in(packument: bytes) -> dict[Part, Span]:
    """Return all versions, tags, and the dist-tags, and where each lies. Raises BadUpstreamResponse."""
    parsed = decode(packument, _Manifests)
    tags, spans = _encoded_tags(parsed), dict(_spans(packument, parsed.versions or {}))
    parts = {Part("version", tag): spans[str(name)] for tag, name in _tags(parsed).items() if str(name) in spans}
    parts.update({Part("version", name): span for name, span in spans.items()})
    start = packument.find(tags)
    parts[Part("dist-tags")] = (start, len(tags)) if start >= 0 else UNKNOWN_SPAN
    return parts


def _tags(parsed: _Manifests) -> dict[str, Any]:
    return parsed.dist_tags if isinstance(parsed.dist_tags, dict) else {}


def _encoded_tags(parsed: _Manifests) -> bytes:
    """Return the dist-tags as the registry's own endpoint does."""
    return msgspec.json.encode(parsed.dist_tags or {})


def _spans(packument: bytes, versions: Mapping[str, msgspec.Raw]) -> Iterator[tuple[str, Span]]:
    """
    Yield where each version's object lies.

    Each is looked for behind the one before it. Bytes that are the same elsewhere are as good. Where an object is not
    found, since a key is repeated or the parser read mended bytes, the span is unknown.
    """
    end = misses = 0
    for version, raw in versions.items():
        found = bytes(raw)
        start = packument.find(found[:_PROBE], end) if misses < _MOST_MISSES else -1
        if start >= 0 and not packument.startswith(found, start):
            start = packument.find(found, start)
        if start < 0:
            misses += 1
            yield version, UNKNOWN_SPAN
        else:
            end = start + len(found)
            yield version, (start, len(found))
