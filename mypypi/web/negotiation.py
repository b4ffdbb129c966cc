"""Content negotiation: which media type and encoding a client takes (RFC 9110, section 12). Strings in, values out.

Parsing is Werkzeug's. Must never know what is served.
"""

from __future__ import annotations

from collections.abc import Mapping

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from mypypi.errors import NotAcceptable


def choose_type(accept: str | None, offered: Mapping[str, str]) -> str:
    """
    The media type to answer with, of those `offered`, best first; its value is the form it stands for.

    Raises NotAcceptable (RFC 9110, section 12.5.1).
    """
    types = list(offered)
    if not accept or not accept.strip():
        return types[0]
    best = parse_accept_header(accept, MIMEAccept).best_match(types)
    if best is None:
        raise NotAcceptable("none of the accepted types is served here: " + ", ".join(types))
    return best


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether a body may be sent in gzip (RFC 9110, section 12.5.3)."""
    if not accept_encoding:
        return False
    accepted = parse_accept_header(accept_encoding)
    return accepted.quality("gzip") > 0
