"""Twisted agents beneath treq: persistent connections and raw encodings.

Knows Twisted's agents. Must never know what is requested, or from which host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.web.client import HTTPConnectionPool, _HTTP11ClientFactory
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IBodyProducer  # type: ignore[attr-defined]

#: The header that hides a response's Content-Encoding from treq, which would decode the body.
RAW_ENCODING = "X-Raw-Content-Encoding"


@implementer(IAgent)
@define
class RawEncodingAgent:
    """
    Requests one `encoding`, and hides it from treq.

    This is the innermost agent, so it replaces the Accept-Encoding that treq adds. treq would decode the body, lose its
    length, and accept the readable start of a damaged or truncated gzip as the whole body.
    """

    agent: IAgent
    encoding: str

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803 - the interface's name
    ) -> Deferred[IResponse]:
        """See `IAgent.request`."""
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders("accept-encoding", [self.encoding])

        def hide(response: IResponse) -> IResponse:
            encodings = response.headers.getRawHeaders("content-encoding")
            if encodings:
                response.headers.removeHeader("content-encoding")
                response.headers.setRawHeaders(RAW_ENCODING, encodings)
            return response

        return self.agent.request(method, uri, headers, bodyProducer).addCallback(hide)


class _QuietFactory(_HTTP11ClientFactory):
    """Does not log its start and stop, which happen once per connection."""

    noisy = False


class _QuietPool(HTTPConnectionPool):
    _factory = _QuietFactory


def connection_pool(reactor: Any, most: int) -> HTTPConnectionPool:
    """Return a pool of up to `most` persistent connections per host."""
    pool = _QuietPool(reactor)
    pool.maxPersistentPerHost = most
    return pool
