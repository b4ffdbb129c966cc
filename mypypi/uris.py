"""What URLs, and the segments of their paths, are written with.

Knows characters. Must never know what a URL leads to.
"""

from __future__ import annotations

import re
from urllib.parse import quote


def as_uri(text: str) -> str:
    """A URL, or a part of one, with all that RFC 3986 has no place for percent-encoded; what is encoded stays so."""
    return quote(text, safe="%:/?#[]@!$&'()*+,;=~")


def is_segment(text: str) -> bool:
    """Whether this, decoded, can be a segment of a path here: what the gate lets through, and a file may be called."""
    return text not in ("", ".", "..") and not re.search(r"[/\\]", text) and text.isprintable()
