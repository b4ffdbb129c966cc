"""Follows redirects of upstream, and asks again without conditions that upstream refuses.

Knows URLs, statuses and headers. Must never know what is requested, or for whom.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from attrs import evolve

from mypypi.errors import BadUpstreamResponse
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.responses import first_value

if TYPE_CHECKING:
    from twisted.web.iweb import IResponse

    from mypypi.upstream.requester import Requester
    from mypypi.upstream.requests import Request

_REDIRECTS = 5
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
#: Redirects after which a POST becomes a GET, as in npm and in browsers (the Fetch standard, "HTTP-redirect fetch").
_BECOMES_GET = (301, 302, 303)
#: Statuses by which upstream may refuse a condition that it can't read, or does not want, and the headers to leave out
#: then. Without If-Range, a Range could mix two versions of a file.
_CONDITION_REFUSED = (400, 412, 428)
_CONDITIONS = ("If-None-Match", "If-Modified-Since", "If-Range")
_CONDITIONAL = (*_CONDITIONS, "Range")


async def follow(
    requester: Requester, request: Request, turned: Callable[[str], Awaitable[None]]
) -> tuple[IResponse, Request]:
    """
    Send a request, follow redirects, and return the last response with its request.

    Once a redirect has left the origin that credentials belong to, no later request carries them: another host could
    else have anything requested with them. Conditions that upstream refuses are left out. `turned` is awaited with the
    target of each redirect, before it is requested.
    """
    for _ in range(_REDIRECTS + 1):
        response = await requester.send(request)
        if response.code in _REDIRECT_STATUSES:
            target = _target(requester, request.url, response)
            await turned(target)
            is_own = requester.needs_credentials(request.url) and requester.needs_credentials(target)
            request = evolve(request, url=target, anonymous=request.anonymous or not is_own)
            if request.method == "POST" and response.code in _BECOMES_GET:
                request = evolve(request, method="GET", content=None, headers=_without_content(request.headers))
        elif response.code in _CONDITION_REFUSED and not request.headers.keys().isdisjoint(_CONDITIONS):
            requester.discard(response)
            kept = {name: value for name, value in request.headers.items() if name not in _CONDITIONAL}
            request = evolve(request, headers=kept)
        else:
            return response, request
    raise BadUpstreamResponse(f"upstream redirects more than {_REDIRECTS} times")


def _target(requester: Requester, url: str, response: IResponse) -> str:
    requester.discard(response)
    location = first_value(response.headers, "location")
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        # Twisted would read a user name in the URL as part of the host name.
        scheme = parts.scheme if origin_of(target) and "@" not in parts.netloc else ""
    except ValueError:
        scheme = ""
    downgrade = urlsplit(url).scheme == "https" and scheme != "https"
    if not location or scheme not in ("http", "https") or downgrade:
        raise BadUpstreamResponse("upstream redirects to an address that is invalid or less secure")
    return target


def _without_content(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a request without those that describe its content."""
    return {name: value for name, value in headers.items() if not name.lower().startswith("content-")}
