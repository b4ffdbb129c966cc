"""What is beneath treq: connections that are kept open quietly, and answers in the encoding that they came in.

Knows Twisted's agents. Must never know what is asked, nor of whom.
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

#: Where treq must not see a Content-Encoding, since it would undo it behind our back.
RAW_ENCODING = "X-Raw-Content-Encoding"


@implementer(IAgent)
@define
class RawEncodingAgent:
    """
    Innermost agent: asks for this encoding, whatever treq adds, and hides the one that comes from treq.

    treq would decode it, lose the length, and take what is left of a damaged or truncated gzip for all of it.
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
    """Says nothing when it starts and stops, which is once for each connection."""

    noisy = False


class _QuietPool(HTTPConnectionPool):
    _factory = _QuietFactory


def connection_pool(reactor: Any, most: int) -> HTTPConnectionPool:
    """Connections that are kept open, at most so many to each host."""
    pool = _QuietPool(reactor)
    pool.maxPersistentPerHost = most
    return pool
