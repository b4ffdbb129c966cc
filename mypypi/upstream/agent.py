"""Twisted agents beneath treq: persistent connections, raw encodings, and the reasons of failed TLS.

Knows Twisted's agents. Must never know what is requested, or from which host.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from attrs import define, field, frozen
from cachetools import LRUCache
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, _HTTP11ClientFactory
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from mypypi.tls import ExplainedTLS, explain
from mypypi.upstream.framing import BoundedProtocol
from mypypi.upstream.guard import AddressGuard, GuardedEndpoints

#: Connections that are kept open to all hosts together, as a multiple of those to one host.
_HOSTS_KEPT = 2
#: The hosts whose last TLS connection is remembered.
_HOSTS = 64
#: The headers by which upstream would make its clients keep cookies (RFC 6265, and its predecessor RFC 2965).
_COOKIES = ("set-cookie", "set-cookie2")
#: The header that hides a response's Content-Encoding from treq, which would decode the body.
RAW_ENCODING = "X-Raw-Content-Encoding"


@implementer(IAgent)
@define
class RawEncodingAgent:
    """
    Requests one `encoding`, and hides it and cookies from treq.

    This is the innermost agent, so it replaces the Accept-Encoding that treq adds. treq would decode the body, lose its
    length, and accept the readable start of a damaged or truncated gzip as the whole body. It would also keep cookies
    until this process ends, and send them with all later requests to their hosts.
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
            for name in _COOKIES:
                response.headers.removeHeader(name)
            encodings = response.headers.getRawHeaders("content-encoding")
            if encodings:
                response.headers.removeHeader("content-encoding")
                response.headers.setRawHeaders(RAW_ENCODING, encodings)
            return response

        return self.agent.request(method, uri, headers, bodyProducer).addCallback(hide)


@implementer(IBodyProducer)
@frozen
class Content:
    """
    The content of a request, written at once.

    treq would write it in later turns of the reactor. A connection that is closed meanwhile would not tell whether a
    byte of the answer had come.
    """

    content: bytes = field(repr=False)

    @property
    def length(self) -> int:
        """See `IBodyProducer.length`."""
        return len(self.content)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See `IBodyProducer.startProducing`."""
        consumer.write(self.content)
        return succeed(None)

    def pauseProducing(self) -> None:
        """See `IBodyProducer.pauseProducing`."""

    def resumeProducing(self) -> None:
        """See `IBodyProducer.resumeProducing`."""

    def stopProducing(self) -> None:
        """See `IBodyProducer.stopProducing`."""


class ExplainingPolicy(BrowserLikePolicyForHTTPS):
    """Twisted's own policy for TLS, which can also say why it failed."""

    def __init__(self) -> None:
        super().__init__()
        self._creators: LRUCache[str, ExplainedTLS] = LRUCache(_HOSTS)

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """See `IPolicyForHTTPS`."""
        host = hostname.decode("ascii")
        self._creators[host] = creator = ExplainedTLS(host, super().creatorForNetloc(hostname, port))
        return creator

    def explain(self, error: BaseException, url: str) -> str | None:
        """Say why TLS to this URL's host failed; None if the error has nothing to do with TLS."""
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:  # an invalid URL, so there was no connection
            return None
        creator = self._creators.get(host)
        return explain(error, host) if creator is None else creator.explain(error)


class _Factory(_HTTP11ClientFactory):
    """Makes bounded connections. Does not log its start and stop, which happen once per connection."""

    noisy = False

    def buildProtocol(self, addr: object) -> BoundedProtocol:
        return BoundedProtocol(self._quiescentCallback)


class Pool(HTTPConnectionPool):
    """
    Keeps at most `most` connections in all: the one that was used longest ago is closed for another one.

    Pages can name any number of hosts. A host without a kept connection is forgotten.
    """

    _factory = _Factory

    def __init__(self, reactor: Any, most: int) -> None:
        super().__init__(reactor, persistent=most > 0)
        self._most = most

    def getConnection(self, key: Any, endpoint: Any) -> Deferred[Any]:
        """See `HTTPConnectionPool.getConnection`."""
        found = super().getConnection(key, endpoint)
        self._forget(key)
        return found

    def _putConnection(self, key: Any, connection: Any) -> None:
        super()._putConnection(key, connection)
        while len(self._timeouts) > self._most:
            oldest = next(iter(self._timeouts))
            host = next(each for each, kept in self._connections.items() if oldest in kept)
            self._timeouts[oldest].cancel()
            self._removeConnection(host, oldest)
        self._forget(key)

    def _removeConnection(self, key: Any, connection: Any) -> None:
        super()._removeConnection(key, connection)
        connection.abort()  # over TLS, the peer may never answer that it closes, too
        self._forget(key)

    def _forget(self, key: Any) -> None:
        if not self._connections.get(key, True):
            del self._connections[key]


def connection_pool(reactor: Any, most: int) -> HTTPConnectionPool:
    """
    Return a pool of up to `most` persistent connections per host, and `_HOSTS_KEPT` times as many in all.

    With 0, each request has its own connection.

    It does not send requests again by itself: the requester does, for all methods.
    """
    pool = Pool(reactor, _HOSTS_KEPT * most)
    pool.retryAutomatically = False
    pool.maxPersistentPerHost = most
    return pool


def default_agent(
    reactor: Any, tls: ExplainingPolicy, timeout: float, pool: HTTPConnectionPool, guard: AddressGuard | None
) -> Agent:
    """Return an agent with this pool. With a `guard`, it connects only to addresses that the guard allows."""
    if guard is None:
        return Agent(reactor, tls, connectTimeout=timeout, pool=pool)
    endpoints = GuardedEndpoints(reactor, tls, timeout, guard)
    return Agent.usingEndpointFactory(reactor, endpoints, pool)  # type: ignore[no-any-return]
