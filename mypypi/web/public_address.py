"""Makes out the address that a client knows this server by: for links that can't be relative.

Knows Host, Forwarded (RFC 7239) and its older cousins, and who is believed. Must never know what the links are for.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING

from attrs import frozen
from werkzeug.http import parse_options_header

from mypypi.errors import BadRequest

if TYPE_CHECKING:
    from twisted.web.http import Request

Network = IPv4Network | IPv6Network

_LABEL = "[A-Za-z0-9_-]{1,63}"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{{1,5}})?")
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9.\-_~]+)*")


def is_host(text: str) -> bool:
    """Whether this is what a Host header may hold: a name or an address, and a port where there is one."""
    return _HOST.fullmatch(text) is not None


@frozen
class Addresses:
    """`public_url` is the one address of all clients, None where each request tells it; `trusted` are the proxies
    whose word counts for what the client asked for."""

    public_url: str | None = None
    trusted: tuple[Network, ...] = ()

    def base(self, request: Request) -> str:
        """The address for this client, without a trailing slash. Raises BadRequest where the request gives none."""
        if self.public_url is not None:
            return self.public_url
        scheme = "https" if request.isSecure() else "http"
        host, prefix = request.getHeader("host") or "", ""
        if self._is_trusted(request):
            told = _told(request)
            scheme, host, prefix = told.get("proto", scheme), told.get("host", host), told.get("prefix", "")
        scheme, prefix = scheme.lower(), prefix.rstrip("/")
        if scheme not in ("http", "https") or not is_host(host) or not _PREFIX.fullmatch(prefix):
            raise BadRequest("the Host header, or what a proxy forwards of it, is not an address")
        return f"{scheme}://{host}{prefix}"

    def _is_trusted(self, request: Request) -> bool:
        if not self.trusted:
            return False
        try:
            peer = ip_address(getattr(request.getClientAddress(), "host", ""))
        except ValueError:
            return True  # a unix socket: whoever may open it is as good as named
        peer = getattr(peer, "ipv4_mapped", None) or peer  # as a socket for both versions of IP says it
        return any(peer in network for network in self.trusted)


def _told(request: Request) -> dict[str, str]:
    """What the nearest proxy says of the request it got: proto, host, prefix, where it says so."""
    told = {}
    for name in ("proto", "host", "prefix"):
        value = request.getHeader(f"x-forwarded-{name}")
        if value:
            told[name] = value.split(",")[-1].strip()
    forwarded = request.getHeader("forwarded")
    if forwarded:
        # Parameters of the last element, which the nearest proxy added; read as those of a header with options are.
        _, options = parse_options_header("forwarded; " + forwarded.split(",")[-1])
        told.update({name: options[name] for name in ("proto", "host") if name in options})
    return told
