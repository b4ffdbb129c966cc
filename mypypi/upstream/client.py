"""Asks the index or registry behind us: the only importer of treq.

Knows credentials and where they may go, redirects, time limits, and what upstream's statuses mean for us. Must never
know what a page or a package is, nor who asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from attrs import define, field, frozen
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectionClosed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IResponse

from mypypi import __version__
from mypypi.dates import parse_date
from mypypi.errors import NotFound, UpstreamBroken, UpstreamDown, UpstreamRefused, UpstreamSilent
from mypypi.model import Source
from mypypi.observability import metrics
from mypypi.upstream.agent import RAW_ENCODING, Undecoded, quiet_pool
from mypypi.upstream.bodies import Collector, Nobody, Sink
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.limiter import Turns

if TYPE_CHECKING:
    from mypypi.upstream.breaker import Breaker, Pass

_USER_AGENT = f"mypypi/{__version__}"
_REDIRECTS = 5
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_LONGEST_RETRY_AFTER = 60
#: Seconds before each further try of what failed fast; each is a little shorter or longer.
RETRIES = (0.2, 0.6)
#: Seconds within which a failure is fast: what took longer would take long again, and somebody waits.
_FAST = 1.0
#: What an intermediary says while what is behind it starts anew (RFC 9110, sections 15.6.3 to 15.6.5).
_PASSING = (502, 503, 504)
#: No page of any index comes near; PyPI's list of all projects has 40 MB.
_LARGEST_PAGE = 512 * 1024 * 1024
_LARGEST_PASSED = 32 * 1024 * 1024


@frozen
class PageAnswer:
    """What upstream says of a page: a `source`, or None when it is not modified. Its validators, as sent."""

    source: Source | None
    etag: str
    modified: str


@frozen
class Passed:
    """Upstream's answer to a request that was passed on: headers by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@define
class Body:
    """The answer to a request for a file, before its body. `close` gives back the place among the running requests."""

    status: int
    headers: Headers
    url: str
    _response: IResponse
    _closed: Callable[[], None]
    _open: bool = field(default=True, init=False)
    _delivered: bool = field(default=False, init=False)

    @property
    def length(self) -> int | None:
        """Content-Length of the body in bytes, where upstream gives one; Twisted takes it out of the headers."""
        length = self._response.length
        return length if isinstance(length, int) else None

    @property
    def encoding(self) -> str:
        """The Content-Encoding of the body; empty for identity."""
        value = self.header(RAW_ENCODING).lower()
        return "" if value == "identity" else value

    def header(self, name: str) -> str:
        """A header's first value; empty where there is none."""
        return _first(self.headers, name)

    def deliver(self, receiver: Protocol) -> None:
        """Hand the body's bytes to this protocol, undecoded."""
        self._delivered = True
        self._response.deliverBody(receiver)

    def close(self) -> None:
        """Say that no more of the body is wanted, or that it has come. May be called more than once."""
        if self._open:
            self._open = False
            if not self._delivered:
                self.deliver(Nobody())  # or the connection would wait for a receiver for ever
            self._closed()


@frozen
class Credentials:
    """HTTP basic auth (RFC 7617) for one origin. Never shown."""

    username: str = field(repr=False)
    password: str = field(repr=False)


class Upstream:
    """
    One upstream, at `url`, whose own pages say where its files are.

    `timeout` (seconds) bounds connecting and waiting for a response head, and each silence in a page's body. At most
    `concurrency` requests run at once, bodies included; others wait their turn. `breaker` says who may be asked.
    A GET that fails fast is tried again after each of `retries` (seconds). One that is `metered` is counted.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        credentials: Credentials | None = None,
        concurrency: int = 64,
        timeout: float = 15,
        agent: IAgent | None = None,
        breaker: Breaker | None = None,
        retries: Sequence[float] = (),
        metered: bool = True,
    ) -> None:
        self.url = url
        self.timeout = timeout
        self._breaker = breaker
        self._retries = retries
        self._metered = metered
        self._reactor = reactor
        self._credentials = credentials
        self._origin = origin_of(url)
        self._turns = Turns(concurrency, metered=metered)
        self._pool: HTTPConnectionPool | None = None
        if agent is None:
            self._pool = quiet_pool(reactor, concurrency)
            agent = Agent(reactor, connectTimeout=timeout, pool=self._pool)
        self._pages = HTTPClient(Undecoded(agent, "gzip"))
        self._files = HTTPClient(Undecoded(agent, "identity"))

    def needs_credentials(self, url: str) -> bool:
        """Whether a client that is sent to this URL would lack what we have."""
        return self._credentials is not None and origin_of(url) == self._origin

    @property
    def spare(self) -> bool:
        """Whether upstream can be asked for what nobody waits for."""
        return self._turns.spare and not self.paused

    @property
    def paused(self) -> bool:
        """Whether it is not asked now, as far as it is known in this process."""
        return self._breaker is not None and self._breaker.left(self.url) > 0

    async def check(self) -> None:
        """Raises UpstreamPaused with the reason while it is not asked."""
        if self._breaker is not None:
            await self._breaker.check(self.url)

    async def page(
        self, path: str, accept: str, etag: str = "", modified: str = "", *, patient: bool = False
    ) -> PageAnswer:
        """
        A page at this path below upstream's URL, whole; None as its source when the validators still hold. For one
        that is `patient` upstream is asked only while there is room to spare.

        Raises NotFound, UpstreamDown, UpstreamRefused, UpstreamBroken.
        """
        headers = {"Accept": accept}
        if etag:
            headers["If-None-Match"] = etag
        if modified:
            headers["If-Modified-Since"] = modified
        body = await self._request("page", self._pages, self.url + path, headers, patient=patient)
        try:
            if body.status == 304:  # noqa: PLR2004 - not modified
                return PageAnswer(None, etag, modified)
            content = await self._collect(body)
        finally:
            body.close()
        if self._metered:
            metrics.UPSTREAM_BYTES.labels("page").inc(len(content) if body.length is None else body.length)
        source = Source(content, body.header("content-type"), body.url)
        return PageAnswer(source, body.header("etag"), body.header("last-modified"))

    async def file(self, url: str, headers: Mapping[str, str]) -> Body:
        """
        The answer to a GET of this URL, a 200 or a 206, with its body still to come; to be closed by the caller.

        Raises NotFound, UpstreamDown, UpstreamRefused, UpstreamBroken.
        """
        return await self._request("file", self._files, url, dict(headers))

    async def pass_on(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> Passed:
        """
        Upstream's answer to this very request at `target` (path and query), whatever it is, its body decoded.

        Raises UpstreamDown, UpstreamBroken.
        """
        await self._turn(self.url)
        try:
            response = await self._answer("other", self._pages, self.url + target, dict(headers), method, content)
            body = Body(response.code, response.headers, self.url, response, _nothing)
            if response.code in _REDIRECT_STATUSES:
                self._discard(response)
                raise UpstreamBroken("upstream redirects what can't be asked elsewhere")
            return Passed(response.code, _first_values(response.headers), await self._collect(body, _LARGEST_PASSED))
        finally:
            self._turns.end()

    async def stop(self) -> None:
        """Close the connections that are kept open."""
        if self._pool is not None:
            await self._pool.closeCachedConnections()

    async def _request(
        self, kind: str, client: HTTPClient, url: str, headers: dict[str, str], *, patient: bool = False
    ) -> Body:
        """Follow redirects by hand: credentials are decided anew at every step."""
        await self._turn(url, patient=patient)
        try:
            for _ in range(_REDIRECTS + 1):
                response = await self._answer(kind, client, url, headers)
                if response.code not in _REDIRECT_STATUSES:
                    self._check_status(response, headers)
                    return Body(response.code, response.headers, url, response, self._turns.end)
                url = self._redirect_target(url, response)
            raise UpstreamBroken("upstream redirects in circles")
        except BaseException:
            self._turns.end()
            raise

    async def _turn(self, url: str, *, patient: bool = False) -> None:
        """Wait for a turn, but not for one that would come to nothing."""
        if self._breaker is not None and self._breaker.left(url):
            await self._breaker.check(url)
        await self._turns.take(patient=patient)

    async def _answer(
        self,
        kind: str,
        client: HTTPClient,
        url: str,
        headers: dict[str, str],
        method: str = "GET",
        content: bytes | None = None,
    ) -> IResponse:
        """The answer of one that may be asked, with whom it is settled what came of it."""
        leave = await self._breaker.ask_leave(url) if self._breaker is not None else None
        outcome = "none"
        try:
            response = await self._tried(kind, client, url, headers, method, content)
            outcome = f"{response.code // 100}xx"
        except UpstreamSilent as error:
            await self._settle(leave, str(error))
            raise
        except BaseException:
            if self._breaker is not None and leave is not None:
                await self._breaker.give_back(leave)
            raise
        finally:
            if self._metered:
                metrics.UPSTREAM_REQUESTS.labels(kind, outcome).inc()
        failed = response.code == 429 or response.code >= 500  # noqa: PLR2004 - as in _check_status
        told = response.code in (429, 503) and bool(_first(response.headers, "retry-after"))
        seconds = _retry_after(response, self._reactor.seconds()) if told else None
        await self._settle(leave, f"upstream answered {response.code}" if failed else "", seconds)
        return response

    async def _settle(self, leave: Pass | None, why: str, told: float | None = None) -> None:
        if self._breaker is not None and leave is not None:
            if why:
                await self._breaker.failed(leave, why, told)
            else:
                await self._breaker.worked(leave)

    async def _tried(
        self, kind: str, client: HTTPClient, url: str, headers: dict[str, str], method: str, content: bytes | None
    ) -> IResponse:
        """The answer of the last try: what failed fast, and does no harm twice, is tried again."""
        for pause in self._retries if kind != "other" else ():
            began = self._reactor.seconds()
            try:
                response = await self._ask(client, url, headers, method, content)
                if response.code not in _PASSING or response.headers.hasHeader("retry-after"):
                    return response
                if self._reactor.seconds() - began >= _FAST:
                    return response
                self._discard(response)
            except UpstreamSilent as error:
                cause = _cause(error.__cause__ or error)
                fast = self._reactor.seconds() - began < _FAST
                if not fast or not isinstance(cause, (Refused, ConnectionClosed)):
                    raise
            await deferLater(self._reactor, pause * random.uniform(0.5, 1.5))  # noqa: S311
        return await self._ask(client, url, headers, method, content)

    async def _ask(
        self, client: HTTPClient, url: str, headers: dict[str, str], method: str = "GET", content: bytes | None = None
    ) -> IResponse:
        auth = None
        if self._credentials is not None and self.needs_credentials(url):
            auth = (self._credentials.username.encode(), self._credentials.password.encode())
        fields = {"User-Agent": _USER_AGENT, **headers}
        began = self._reactor.seconds()
        try:
            answer = await client.request(
                method,
                url,
                data=content or None,
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
                raise UpstreamDown("the request was given up") from None
            if isinstance(cause, CancelledError):
                raise UpstreamSilent(f"upstream did not answer within {self.timeout:g} seconds") from None
            raise UpstreamSilent(f"upstream can't be reached: {_reason(cause)}") from error
        response: IResponse = answer.original
        return response

    def _check_status(self, response: IResponse, asked: Mapping[str, str]) -> None:
        status = response.code
        confirms = status == 304 and not asked.keys().isdisjoint(("If-None-Match", "If-Modified-Since"))  # noqa: PLR2004
        if status == 200 or (status == 206 and "Range" in asked) or confirms:  # noqa: PLR2004 - whole, or what was asked
            return
        self._discard(response)
        if status in (404, 410):
            raise NotFound("upstream does not have this")
        if status in (401, 403, 407):
            raise UpstreamRefused(f"upstream refused the request ({status}): check the credentials it is asked with")
        if status == 429 or status >= 500:  # noqa: PLR2004 - too many requests, and the server's own errors
            raise UpstreamDown(f"upstream answered {status}", _retry_after(response, self._reactor.seconds()))
        raise UpstreamBroken(f"upstream answered {status}")

    def _redirect_target(self, url: str, response: IResponse) -> str:
        self._discard(response)
        location = _first(response.headers, "location")
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            # Twisted would take a user in it for a part of the host's name.
            scheme = parts.scheme if origin_of(target) and "@" not in parts.netloc else ""
        except ValueError:
            scheme = ""
        downgrade = urlsplit(url).scheme == "https" and scheme != "https"
        if not location or scheme not in ("http", "https") or downgrade:
            raise UpstreamBroken("upstream redirects to where we do not go")
        return target

    def _discard(self, response: IResponse) -> None:
        """Read a short body off, so that its connection can be used again."""
        response.deliverBody(Sink(self._reactor, self.timeout))

    async def _collect(self, body: Body, largest: int = _LARGEST_PAGE) -> bytes:
        """The whole body, decoded. Raises UpstreamDown, UpstreamBroken."""
        if body.encoding not in ("", "gzip"):
            raise UpstreamBroken("upstream sends a page in an encoding that nobody asked for")
        collector = Collector(self._reactor, self.timeout, largest, gzipped=bool(body.encoding))
        body.deliver(collector)
        return await collector.done


def _first_values(headers: Headers) -> dict[str, str]:
    return {name.decode("latin-1").lower(): values[0].decode("latin-1") for name, values in headers.getAllRawHeaders()}


def _nothing() -> None:
    pass


def _first(headers: Headers, name: str) -> str:
    """A header's first value; empty where there is none. Any bytes are read (RFC 9110, section 5.5)."""
    return (headers.getRawHeaders(name.encode()) or [b""])[0].decode("latin-1").strip()


def _retry_after(response: IResponse, now: float) -> int:
    """Seconds from a Retry-After header in either of its forms (RFC 9110, section 10.2.3), within bounds."""
    value = _first(response.headers, "retry-after")
    date = parse_date(value)
    if value.isascii() and value.isdigit():
        seconds = int(value[:18])  # int() takes no more than some thousand digits
    else:
        seconds = 5 if date is None else int(date.timestamp() - now)
    return max(1, min(seconds, _LONGEST_RETRY_AFTER))


def _cause(error: BaseException) -> BaseException:
    """What made a request fail: Twisted wraps it where the request was already on its way."""
    reasons: list[Failure] = getattr(error, "reasons", [])
    return _cause(reasons[0].value) if reasons and reasons[0].value is not None else error


def _reason(error: BaseException) -> str:
    """A short text for a failed request, without an address or a secret."""
    if isinstance(error, ConnectionClosed):
        return "it closed the connection"
    words = (type(error).__doc__ or type(error).__name__).strip().splitlines()[0]
    return words.rstrip(".").lower()
