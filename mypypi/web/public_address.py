"""Finds the address by which a client knows this server.

Links that can't be relative need that address, and its path may stand before the path of a request. Knows Host,
Forwarded (RFC 7239), X-Forwarded-*, and which proxies are trusted. Must never know what the links are for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from attrs import frozen
from werkzeug.http import parse_options_header

from mypypi.errors import BadRequest
from mypypi.web.negotiation import vary_on

if TYPE_CHECKING:
    from twisted.web.http import Request

Network = IPv4Network | IPv6Network

_LABEL = "[A-Za-z0-9_-]{1,63}"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*\.?|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?")
_HIGHEST_PORT = 65_535
#: The headers of each family, by what they tell.
_HEADERS = {
    "x-forwarded": {part: f"X-Forwarded-{part.capitalize()}" for part in ("for", "proto", "host", "prefix")},
    "forwarded": dict.fromkeys(("for", "proto", "host"), "Forwarded"),
}
#: Characters of a forwarded address of a client.
_LONGEST_CLIENT = 100
_PREFIX = re.compile(r"(?:/(?!\.\.?(?:/|$))[A-Za-z0-9.\-_~]+)*")


def is_host(text: str) -> bool:
    """Return whether a text is a host: a name or address, optionally with a port."""
    found = _HOST.fullmatch(text)
    if found is None or int(found["port"] or 0) > _HIGHEST_PORT:
        return False
    if found["ipv6"]:
        try:
            IPv6Address(found["ipv6"])
        except ValueError:
            return False
    return True


@frozen
class Addresses:
    """
    Finds the address of this server for a request.

    `public_url` is one address for all clients; None if each request gives it. `trusted` are the networks of the
    proxies whose forwarding headers are believed. `family` names these headers. Those of the other family are ignored:
    a proxy passes on what it does not know, so a client may have made them up.
    """

    public_url: str | None = None
    trusted: tuple[Network, ...] = ()
    family: Literal["x-forwarded", "forwarded"] = "x-forwarded"

    def base(self, request: Request) -> str:
        """
        Return the address for this client, without a trailing slash.

        Headers of a proxy that the address depends on are added to the response's Vary. Raises BadRequest if the
        request gives no valid address.
        """
        if self.public_url is not None:
            return self.public_url
        scheme = "https" if request.isSecure() else "http"
        host, prefix = request.getHeader("host") or "", ""
        if self._is_trusted(request):
            forwarded = self._forwarded(request)
            vary_on(request, *(name for part, name in _HEADERS[self.family].items() if part != "for"))
            scheme, host = forwarded.get("proto", scheme), forwarded.get("host", host)
            prefix = forwarded.get("prefix", "")
        scheme, prefix = scheme.lower(), prefix.rstrip("/")
        if scheme not in ("http", "https") or not is_host(host) or not _PREFIX.fullmatch(prefix):
            raise BadRequest("the Host header, or a proxy's Forwarded or X-Forwarded-* header, is not a valid address")
        return f"{scheme}://{host}{prefix}"

    def remove_prefix(self, request: Request, segments: list[str], has_route: Callable[[list[str]], bool]) -> list[str]:
        """
        Remove the path of `public_url` from a request that a proxy passed on with it; return the segments that remain.

        A request is changed if it begins with that path and `has_route` is true for what remains. Where nothing
        remains, it is changed unless `has_route` is true for the path as it is. A trusted proxy that sends
        X-Forwarded-Prefix has removed the prefix itself.
        """
        prefix = _segments(urlsplit(self.public_url or "").path)
        path, mark, query = request.uri.partition(b"?")
        parts = path[1:].split(b"/")
        if not prefix or [unquote(part.decode("latin-1")) for part in parts[: len(prefix)]] != prefix:
            return segments
        if self._is_trusted(request) and self._forwarded(request).get("prefix"):
            vary_on(request, _HEADERS[self.family]["prefix"])
            return segments
        rest, raw = segments[len(prefix) :], parts[len(prefix) :]
        if not has_route(rest) if any(rest) else has_route(segments):
            return segments
        changed: Any = request
        changed.path = b"/" + b"/".join(raw)
        changed.uri = changed.path + mark + query
        changed.postpath = [unquote_to_bytes(part) for part in raw] or [b""]
        return rest or [""]

    def client(self, request: Request) -> str:
        """
        Name the client that sent a request: its address, as a trusted proxy forwards it or as its connection has it.

        For a fair share between clients; behind a proxy that is not trusted, all clients are one.
        """
        if self._is_trusted(request):
            forwarded = self._forwarded(request).get("for", "")
            if forwarded:
                return forwarded[:_LONGEST_CLIENT]
        return str(getattr(request.getClientAddress(), "host", None) or "-")

    def _forwarded(self, request: Request) -> dict[str, str]:
        """Return for, proto, host and prefix, as far as the nearest proxy forwards them; it adds the last element."""
        headers = _HEADERS[self.family]
        last = {name: (request.getHeader(name) or "").split(",")[-1].strip() for name in set(headers.values())}
        if self.family == "forwarded":  # its parameters have the syntax of a header's options
            _, options = parse_options_header(f"forwarded; {last['Forwarded']}")
            return {part: options[part] for part in headers if part in options}
        return {part: last[name] for part, name in headers.items() if last[name]}

    def _is_trusted(self, request: Request) -> bool:
        return is_trusted(getattr(request.getClientAddress(), "host", None), self.trusted)


def is_trusted(host: str | None, trusted: Sequence[Network]) -> bool:
    """Whether a client with this address is a proxy in one of these networks. Without an address, it is one of us."""
    if not trusted:
        return False
    try:
        peer = ip_address(host or "")
    except ValueError:
        return True  # a unix socket: a program that may open it is trusted
    peer = getattr(peer, "ipv4_mapped", None) or peer  # how a dual-stack socket reports IPv4
    return any(peer in network for network in trusted)


def _segments(path: str) -> list[str]:
    """Return the decoded segments of an address's path, none for an empty path."""
    return [unquote(part) for part in path.strip("/").split("/") if part]
