"""Chooses the media type and encoding of a response, and names in Vary what it depends on (RFC 9110, section 12).

Knows header values, as strings, which Werkzeug parses. Must never know what is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from mypypi.errors import NotAcceptable

if TYPE_CHECKING:
    from twisted.web.http import Request


def choose_type(accept: str | None, offered: Mapping[str, str]) -> str:
    """
    Return the media type to answer with, one of `offered`.

    `offered` maps media types, the best first, to the forms that they stand for. Raises NotAcceptable if the client
    accepts none of them (RFC 9110, section 12.5.1).
    """
    types = list(offered)
    if not accept or not accept.strip():
        return types[0]
    best = parse_accept_header(accept, MIMEAccept).best_match(types)
    if best is None:
        raise NotAcceptable("none of the accepted media types is available; this address offers " + ", ".join(types))
    return best


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Return whether the client accepts gzip (RFC 9110, section 12.5.3)."""
    if not accept_encoding:
        return False
    accepted = parse_accept_header(accept_encoding)
    return accepted.quality("gzip") > 0


def vary_on(request: Request, *names: str) -> None:
    """Add request headers to the response's Vary, each once: the response depends on them."""
    before = ", ".join(request.responseHeaders.getRawHeaders("vary", []))
    known = [name for name in before.split(", ") if name]
    request.responseHeaders.setRawHeaders("vary", [", ".join(dict.fromkeys([*known, *names]))])
