"""Sends one request to upstream.

Adds credentials, a time limit and quick retries. The breaker decides whether the request is sent, and learns how it
ended. Knows treq and the breaker. Must never know what is requested, or what a status means for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionClosed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from mypypi import __version__
from mypypi.errors import UpstreamDown, UpstreamUnreachable
from mypypi.observability import metrics
from mypypi.upstream.agent import RawEncodingAgent, connection_pool
from mypypi.upstream.bodies import DiscardedBody
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.responses import first_value, retry_after

if TYPE_CHECKING:
    from mypypi.upstream.breaker import Breaker, Permit

_USER_AGENT = f"mypypi/{__version__}"
#: Seconds before each retry of a request that failed fast; each delay is a little shorter or longer at random.
RETRIES = (0.2, 0.6)
#: Seconds within which a failure is fast. A slow failure is not retried: it would be slow again, and a client waits.
_FAST = 1.0
#: Statuses of an intermediary whose backend is being restarted (RFC 9110, sections 15.6.3 to 15.6.5).
_RETRIED_STATUSES = (502, 503, 504)


@frozen
class Credentials:
    """HTTP basic auth (RFC 7617) for one origin. Never logged or shown."""

    username: str = field(repr=False)
    password: str = field(repr=False)


@frozen
class Request:
    """
    One HTTP request to upstream.

    `kind` is page, file or other, and a label of the metrics. A `file` is requested with identity encoding, all else
    with gzip. Requests of kind `other` are not retried.
    """

    kind: str
    url: str
    headers: dict[str, str] = field(repr=False)
    method: str = "GET"
    content: bytes | None = field(default=None, repr=False)


class Requester:
    """
    Sends requests. `timeout` (seconds) bounds connecting and waiting for a response head.

    `credentials` are sent to the origin of `url` and to no other. The `breaker` says which origins may be asked. A page
    or file request that fails fast is retried after each of `retries` (seconds). With `metered`, requests are counted.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        credentials: Credentials | None,
        connections: int,
        timeout: float,
        agent: IAgent | None,
        breaker: Breaker | None,
        retries: Sequence[float],
        metered: bool,
    ) -> None:
        """`agent` sends the requests. The default one keeps up to `connections` open to each host."""
        self.timeout = timeout
        self._reactor = reactor
        self._credentials = credentials
        self._origin = origin_of(url)
        self._breaker = breaker
        self._retries = retries
        self._metered = metered
        self._pool: HTTPConnectionPool | None = None
        if agent is None:
            self._pool = connection_pool(reactor, connections)
            agent = Agent(reactor, connectTimeout=timeout, pool=self._pool)
        self._gzip = HTTPClient(RawEncodingAgent(agent, "gzip"))
        self._identity = HTTPClient(RawEncodingAgent(agent, "identity"))

    def needs_credentials(self, url: str) -> bool:
        """Whether requests to this URL carry credentials. A redirected client would lack them."""
        return self._credentials is not None and origin_of(url) == self._origin

    async def send(self, request: Request) -> IResponse:
        """
        Send a request and return the response, of any status.

        Raises UpstreamPaused while requests to the origin are paused, UpstreamUnreachable if there is no answer, and
        UpstreamDown.
        """
        permit = await self._breaker.acquire(request.url) if self._breaker is not None else None
        outcome = "none"
        try:
            response = await self._send_with_retries(request)
            outcome = f"{response.code // 100}xx"
        except UpstreamUnreachable as error:
            await self._settle(permit, str(error))
            raise
        except BaseException:
            if self._breaker is not None and permit is not None:
                await self._breaker.release(permit)
            raise
        finally:
            if self._metered:
                metrics.UPSTREAM_REQUESTS.labels(request.kind, outcome).inc()
        failed = response.code == 429 or response.code >= 500  # noqa: PLR2004 - too many requests, server errors
        has_retry_after = response.code in (429, 503) and bool(first_value(response.headers, "retry-after"))
        seconds = retry_after(response.headers, self._reactor.seconds()) if has_retry_after else None
        await self._settle(permit, f"upstream answered {response.code}" if failed else "", seconds)
        return response

    def discard(self, response: IResponse) -> None:
        """Read and drop a short body. Its connection can then be used again."""
        response.deliverBody(DiscardedBody(self._reactor, self.timeout))

    async def stop(self) -> None:
        """Close the persistent connections."""
        if self._pool is not None:
            await self._pool.closeCachedConnections()

    async def _settle(self, permit: Permit | None, why: str, seconds: float | None = None) -> None:
        if self._breaker is not None and permit is not None:
            if why:
                await self._breaker.failed(permit, why, seconds)
            else:
                await self._breaker.succeeded(permit)

    async def _send_with_retries(self, request: Request) -> IResponse:
        """
        Send a request, and retry it after fast failures.

        Requests of kind `other` are not sent again, since they may do harm twice.
        """
        for delay in self._retries if request.kind != "other" else ():
            began = self._reactor.seconds()
            try:
                response = await self._send_once(request)
                if response.code not in _RETRIED_STATUSES or response.headers.hasHeader("retry-after"):
                    return response
                if self._reactor.seconds() - began >= _FAST:
                    return response
                self.discard(response)
            except UpstreamUnreachable as error:
                cause = _cause(error.__cause__ or error)
                fast = self._reactor.seconds() - began < _FAST
                if not fast or not isinstance(cause, (Refused, ConnectionClosed)):
                    raise
            await deferLater(self._reactor, delay * random.uniform(0.5, 1.5))  # noqa: S311
        return await self._send_once(request)

    async def _send_once(self, request: Request) -> IResponse:
        auth = None
        if self._credentials is not None and self.needs_credentials(request.url):
            auth = (self._credentials.username.encode(), self._credentials.password.encode())
        fields = {"User-Agent": _USER_AGENT, **request.headers}
        began = self._reactor.seconds()
        client = self._identity if request.kind == "file" else self._gzip
        try:
            answer = await client.request(
                request.method,
                request.url,
                data=request.content or None,
                headers=Headers({name.encode(): [value.encode("latin-1")] for name, value in fields.items()}),
                auth=auth,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
                timeout=self.timeout,
            )
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, CancelledError) and self._reactor.seconds() - began < self.timeout - 0.001:
                raise UpstreamDown("the request was cancelled") from None
            if isinstance(cause, CancelledError):
                raise UpstreamUnreachable(f"upstream did not answer within {self.timeout:g} seconds") from None
            raise UpstreamUnreachable(f"upstream can't be reached: {_reason(cause)}") from error
        response: IResponse = answer.original
        return response


def _cause(error: BaseException) -> BaseException:
    """Return the error behind a failed request. Twisted wraps it once sending has begun."""
    reasons: list[Failure] = getattr(error, "reasons", [])
    return _cause(reasons[0].value) if reasons and reasons[0].value is not None else error


def _reason(error: BaseException) -> str:
    """Describe a failed request, without an address or a secret."""
    if isinstance(error, ConnectionClosed):
        return "it closed the connection"
    words = (type(error).__doc__ or type(error).__name__).strip().splitlines()[0]
    return words.rstrip(".").lower()
