"""Turns the status of an answer into an error, unless it is a success.

Knows statuses, and the kinds of requests for which each is a success. Must never know what a body has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.web.iweb import IResponse

from mypypi.errors import BadUpstreamResponse, NotFound
from mypypi.upstream.pace import PaceLimits
from mypypi.upstream.refusals import RULES, read_refusal
from mypypi.upstream.responses import down_error

if TYPE_CHECKING:
    from mypypi.upstream.requester import Requester
    from mypypi.upstream.requests import Request


@frozen
class Statuses:
    """Checks the statuses of the answers to this requester's requests. Reasons arrive at this pace."""

    reactor: Any
    pace: PaceLimits
    requester: Requester

    async def check(self, response: IResponse, request: Request) -> None:
        """Raise NotFound, UpstreamRefused, UpstreamDown or BadUpstreamResponse, unless the status is a success."""
        status, asked = response.code, request.headers
        confirms = status == 304 and not asked.keys().isdisjoint(("If-None-Match", "If-Modified-Since"))  # noqa: PLR2004
        is_range = (status == 206 and "Range" in asked) or (status == 416 and request.kind == "range")  # noqa: PLR2004
        if status == 200 or is_range or confirms:  # noqa: PLR2004
            return
        if status in RULES and status != NotFound.status:
            raise await read_refusal(self.reactor, self.pace, response, request.url, self.requester.secrets)
        self.requester.discard(response)
        if status == NotFound.status:  # its reason is not passed on, and nobody should wait for it
            raise NotFound(RULES[status].words)
        lacks_head = status == 501 and request.method == "HEAD"  # noqa: PLR2004 - it answers no request of this method
        if (status == 429 or status >= 500) and not lacks_head:  # noqa: PLR2004 - too many requests; its own errors
            raise down_error(response, self.reactor.seconds())
        raise BadUpstreamResponse(f"upstream answered {status}")
