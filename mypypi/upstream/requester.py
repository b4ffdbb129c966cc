"""Sends one request to upstream.

Adds credentials, a time limit and quick retries. The breaker decides whether the request is sent, and learns how it
ended. Knows treq and the breaker. Must never know what is requested, or what a status means for it.
"""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.web.client import HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from mypypi import __version__
from mypypi.descriptors import NONE_LEFT
from mypypi.errors import (
    BadUpstreamResponse,
    MyPyPiError,
    OutOfDescriptors,
    RequestCancelled,
    UpstreamBusy,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from mypypi.observability import metrics
from mypypi.upstream.agent import Content, ExplainingPolicy, RawEncodingAgent, connection_pool, default_agent
from mypypi.upstream.bodies import DiscardedBody
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.causes import NOT_CONNECTED, cause_of, is_closed_unanswered, lacks_descriptors, reason_of
from mypypi.upstream.responses import outcome_of, told_wait

if TYPE_CHECKING:
    from mypypi.upstream.breaker import Breaker
    from mypypi.upstream.guard import AddressGuard
    from mypypi.upstream.origins import Permit
    from mypypi.upstream.requests import Request

_USER_AGENT = f"mypypi/{__version__}"
#: Seconds after which a late request is given up: one that goes on although upstream has not answered within the
#: time-out, for which clients wait.
LATE_LIMIT = 60.0
#: Seconds before each retry of a request that failed fast; each delay is a little shorter or longer at random.
RETRIES = (0.2, 0.6)
#: Seconds within which a failure is fast. A slow failure is not retried: it would be slow again, and a client waits.
_FAST = 1.0
#: Statuses of an intermediary whose backend is being restarted (RFC 9110, sections 15.6.3 to 15.6.5).
_RETRIED_STATUSES = (502, 503, 504)
#: Kinds of requests that are passed on to upstream for a client, and not retried.
_PASSED_ON = ("search", "audit")
_CODINGS = ("gzip", "identity")


@frozen
class Credentials:
    """HTTP basic auth (RFC 7617) for one origin. Never logged or shown."""

    username: str = field(repr=False)
    password: str = field(repr=False)


class Requester:
    """
    Sends requests. `timeout` (seconds) bounds connecting and waiting for a response head, except for late requests.

    `credentials` are sent to the origin of `url` and to no other. The `breaker` says which requests may be sent. A GET
    that fails fast is retried after each of `retries` (seconds). A request whose connection is closed before a byte of
    the answer is sent once more on a new connection, whatever its method: all of them only read. With `metered`,
    requests are counted.
    """

    log = Logger()

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
        guard: AddressGuard | None,
        retries: Sequence[float],
        metered: bool,
    ) -> None:
        """
        `agent` sends the requests. The default one keeps up to `connections` open to each host, and connects only to
        addresses that the `guard` allows.
        """
        self.timeout = timeout
        self._reactor = reactor
        self._credentials = credentials
        self._origin = origin_of(url)
        self._breaker = breaker
        self._retries = retries
        self._metered = metered
        self._tls = ExplainingPolicy()
        self._pool: HTTPConnectionPool | None = None
        fresh = agent
        if agent is None:
            self._pool = connection_pool(reactor, connections)
            agent = default_agent(reactor, self._tls, timeout, self._pool, guard)
            fresh = default_agent(reactor, self._tls, timeout, connection_pool(reactor, 0), guard)
        assert fresh is not None
        #: By content coding: over kept connections, and over a new one for each request.
        self._clients = {coding: _client(agent, coding) for coding in _CODINGS}
        self._fresh_clients = {coding: _client(fresh, coding) for coding in _CODINGS}

    def needs_credentials(self, url: str) -> bool:
        """Whether requests to this URL carry credentials. A redirected client would lack them."""
        return self._credentials is not None and origin_of(url) == self._origin

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts that no message may repeat: the password, and both credentials as HTTP sends them."""
        if self._credentials is None:
            return ()
        pair = f"{self._credentials.username}:{self._credentials.password}"
        return (self._credentials.password, b64encode(pair.encode()).decode())

    async def send(self, request: Request) -> IResponse:
        """
        Send a request and return the response, of any status.

        Raises UpstreamPaused while such requests are held back, UpstreamUnreachable if there is no answer,
        BadUpstreamResponse if its head is too large, OutOfDescriptors if no connection can be opened, and
        RequestCancelled if the caller has cancelled.
        """
        permit = None
        if self._breaker is not None:
            permit = await self._breaker.acquire(request.url, request.kind, patient=request.patient)
        outcome = "none"
        try:
            response = await self._send_with_retries(request, permit)
            outcome = outcome_of(response.code)
        except UpstreamUnreachable as error:
            await self._report_failure(permit, error)
            raise
        except BaseException:
            if self._breaker is not None and permit is not None:
                await self._breaker.release(permit)
            raise
        finally:
            if self._metered:
                metrics.UPSTREAM_REQUESTS.labels(request.kind, outcome).inc()
        if self._breaker is not None and permit is not None:
            try:
                wait = told_wait(response.headers, self._reactor.seconds())
                await self._breaker.answered(permit, response.code, wait)
            except BaseException:
                self.discard(response)
                raise
        return response

    def discard(self, response: IResponse) -> None:
        """Read a short body to its end, so that its connection can be used again."""
        response.deliverBody(DiscardedBody(self._reactor, self.timeout))

    async def stop(self) -> None:
        """Close the connections that are kept open."""
        if self._pool is not None:
            await self._pool.closeCachedConnections()

    def _report_late(self, permit: Permit | None) -> None:
        """Tell the breaker that a request was not answered within the time-out, and goes on."""
        if self._breaker is not None and permit is not None:
            told = self._breaker.timed_out(permit, _unanswered_for(self.timeout), goes_on=True)
            Deferred.fromCoroutine(told).addErrback(
                lambda failure: self.log.failure("the breaker could not be told that upstream is late", failure)
            )

    async def _report_failure(self, permit: Permit | None, error: UpstreamUnreachable) -> None:
        """Tell the breaker of a failure, where it says something about the origin."""
        if self._breaker is None or permit is None:
            return
        cause = cause_of(error)
        if isinstance(error, UpstreamTimedOut):
            await self._breaker.timed_out(permit, str(error))
        elif isinstance(error.__cause__, NOT_CONNECTED) or isinstance(cause, ConnectionClosed):
            await self._breaker.not_connected(permit, str(error), refused=not isinstance(cause, ConnectionClosed))
        else:  # an invalid URL, or an answer that is not HTTP
            await self._breaker.release(permit)

    async def _send_with_retries(self, request: Request, permit: Permit | None) -> IResponse:
        """
        Return the response of the last try.

        A GET that failed fast is sent again after a delay. A request that was closed before a byte of the answer is
        sent again at once, which takes the place of a GET's first retry.
        """
        delays = list(self._retries) if request.method == "GET" and request.kind not in _PASSED_ON else []
        client, is_resent = self._clients[request.encoding], False
        until = self._reactor.seconds() + max(LATE_LIMIT, self.timeout)
        while True:
            began = self._reactor.seconds()
            try:
                response = await self._send_once(request, client, permit, until)
                if response.code not in _RETRIED_STATUSES or response.headers.hasHeader("retry-after"):
                    return response
                if not delays or self._reactor.seconds() - began >= _FAST:
                    return response
                self.discard(response)
            except UpstreamUnreachable as error:
                if not is_resent and is_closed_unanswered(error):
                    client, is_resent = self._fresh_clients[request.encoding], True
                    del delays[:1]
                    continue
                fast = self._reactor.seconds() - began < _FAST
                if not delays or not fast or not isinstance(cause_of(error), (Refused, ConnectionClosed)):
                    raise
            await deferLater(self._reactor, delays.pop(0) * random.uniform(0.5, 1.5))  # noqa: S311

    async def _send_once(self, request: Request, client: HTTPClient, permit: Permit | None, until: float) -> IResponse:
        """Return the response of one try. A late one is given up at the time `until`."""
        auth = None
        if self._credentials is not None and self.needs_credentials(request.url) and not request.anonymous:
            auth = (self._credentials.username.encode(), self._credentials.password.encode())
        fields = {"User-Agent": _USER_AGENT, **request.headers}
        is_cancelled, limit = False, self.timeout
        timer: Any = None

        def time_out() -> None:
            nonlocal limit, timer
            left = until - self._reactor.seconds()
            if limit == self.timeout and left > 0 and request.late():
                self._report_late(permit)
                limit += left
                timer = self._reactor.callLater(left, time_out)
            else:
                asked.cancel()

        timer = self._reactor.callLater(min(self.timeout, until - self._reactor.seconds()), time_out)

        def cancel(_: object) -> None:
            nonlocal is_cancelled
            is_cancelled = True
            asked.cancel()

        try:
            asked = client.request(
                request.method,
                request.url,
                data=request.content or None,
                headers=Headers({name.encode(): [value.encode("latin-1")] for name, value in fields.items()}),
                auth=auth,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
            waiting: Deferred[Any] = Deferred(cancel)
            asked.chainDeferred(waiting)
            answer = await waiting
        except Exception as error:
            if is_cancelled:  # the error may be any: a name that is not resolved, or a connection that is not made
                raise RequestCancelled("the request was cancelled") from None
            if isinstance(cause_of(error), CancelledError):
                raise UpstreamTimedOut(_unanswered_for(limit)) from None
            raise self._error_of(cause_of(error), request.url) from error
        finally:
            if timer.active():
                timer.cancel()
        response: IResponse = answer.original
        return response

    def _error_of(self, cause: BaseException, url: str) -> MyPyPiError:
        """Return the error of a request to this URL that got no answer for this cause."""
        if isinstance(cause, (BadUpstreamResponse, UpstreamBusy)):  # its head exceeds a bound; no connection was tried
            return cause
        if lacks_descriptors(cause):
            return OutOfDescriptors(f"upstream can't be asked: {NONE_LEFT}; try again")
        return UpstreamUnreachable(f"upstream can't be reached: {self._tls.explain(cause, url) or reason_of(cause)}")


def _client(agent: IAgent, encoding: str) -> HTTPClient:
    return HTTPClient(RawEncodingAgent(agent, encoding), data_to_body_producer=Content)


def _unanswered_for(seconds: float) -> str:
    return f"upstream did not answer within {seconds:g} seconds"
