"""Asks upstream for pages and files: redirects, and what each status means for the one who asked.

Knows URLs and statuses. Must never know what a page or a package is, nor who asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from attrs import evolve
from twisted.web.iweb import IAgent, IResponse

from mypypi.errors import BadUpstreamResponse, NotFound, UpstreamDown, UpstreamRefused
from mypypi.model import SourceDocument
from mypypi.observability import metrics
from mypypi.upstream.bodies import BodyCollector
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.limiter import ConcurrencyLimiter
from mypypi.upstream.requester import Credentials, Request, Requester
from mypypi.upstream.responses import (
    FileResponse,
    PageResponse,
    PassedResponse,
    first_value,
    first_values,
    retry_after,
)

if TYPE_CHECKING:
    from mypypi.upstream.breaker import Breaker

_REDIRECTS = 5
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
#: Bytes of the largest page that is taken. PyPI's list of all projects has 40 MB.
_LARGEST_PAGE = 512 * 1024 * 1024
_LARGEST_PASSED = 32 * 1024 * 1024


class Upstream:
    """
    One upstream, at `url`, whose own pages say where its files are.

    `timeout` (seconds) bounds connecting and waiting for a response head, and each silence in a page's body. At most
    `concurrency` requests run at once, bodies included; others wait their turn. See `Requester` for the rest.
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
        self._reactor = reactor
        self._breaker = breaker
        self._metered = metered
        self._limiter = ConcurrencyLimiter(concurrency, metered=metered)
        self._requester = Requester(
            reactor,
            url,
            credentials=credentials,
            connections=concurrency,
            timeout=timeout,
            agent=agent,
            breaker=breaker,
            retries=retries,
            metered=metered,
        )

    def needs_credentials(self, url: str) -> bool:
        """Whether a client that is redirected to this URL would lack the credentials for it."""
        return self._requester.needs_credentials(url)

    @property
    def has_spare_capacity(self) -> bool:
        """Whether upstream can be asked for what nobody waits for."""
        return self._limiter.has_spare_capacity and not self.paused

    @property
    def paused(self) -> bool:
        """Whether upstream is not asked now, as far as this process knows."""
        return self._breaker is not None and self._breaker.left(self.url) > 0

    async def check(self) -> None:
        """Raises UpstreamPaused with the reason while upstream is not asked."""
        if self._breaker is not None:
            await self._breaker.check(self.url)

    async def page(
        self, path: str, accept: str, etag: str = "", modified: str = "", *, background: bool = False
    ) -> PageResponse:
        """
        The page at this path below upstream's URL, whole; without a source when the validators still hold.

        With `background`, upstream is asked only while more than half of the places are free.
        Raises NotFound, UpstreamDown, UpstreamRefused, BadUpstreamResponse.
        """
        headers = {"Accept": accept}
        if etag:
            headers["If-None-Match"] = etag
        if modified:
            headers["If-Modified-Since"] = modified
        response = await self._get(Request("page", self.url + path, headers), background=background)
        try:
            if response.status == 304:  # noqa: PLR2004 - not modified
                return PageResponse(None, etag, modified)
            content = await self._collect(response)
        finally:
            response.close()
        if self._metered:
            metrics.UPSTREAM_BYTES.labels("page").inc(len(content) if response.length is None else response.length)
        source = SourceDocument(content, response.header("content-type"), response.url)
        return PageResponse(source, response.header("etag"), response.header("last-modified"))

    async def file(self, url: str, headers: Mapping[str, str]) -> FileResponse:
        """
        The response to a GET of this URL, a 200 or a 206, with its body still to come; the caller closes it.

        Raises NotFound, UpstreamDown, UpstreamRefused, BadUpstreamResponse.
        """
        return await self._get(Request("file", url, dict(headers)))

    async def pass_on(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> PassedResponse:
        """
        Upstream's response to this very request at `target` (path and query), whatever its status.

        Raises UpstreamDown, BadUpstreamResponse.
        """
        await self._take_turn(self.url)
        try:
            request = Request("other", self.url + target, dict(headers), method, content)
            response = await self._requester.send(request)
            if response.code in _REDIRECT_STATUSES:
                self._requester.discard(response)
                raise BadUpstreamResponse("upstream redirects what can't be asked elsewhere")
            body = FileResponse(response.code, response.headers, self.url, response, lambda: None)
            return PassedResponse(
                response.code, first_values(response.headers), await self._collect(body, _LARGEST_PASSED)
            )
        finally:
            self._limiter.release()

    async def stop(self) -> None:
        """Close the connections that are kept open."""
        await self._requester.stop()

    async def _get(self, request: Request, *, background: bool = False) -> FileResponse:
        """Send a request and follow redirects by hand: credentials are decided anew at every step."""
        await self._take_turn(request.url, background=background)
        try:
            for _ in range(_REDIRECTS + 1):
                response = await self._requester.send(request)
                if response.code not in _REDIRECT_STATUSES:
                    self._check_status(response, request.headers)
                    return FileResponse(response.code, response.headers, request.url, response, self._limiter.release)
                request = evolve(request, url=self._redirect_target(request.url, response))
            raise BadUpstreamResponse("upstream redirects in circles")
        except BaseException:
            self._limiter.release()
            raise

    async def _take_turn(self, url: str, *, background: bool = False) -> None:
        """Wait for a place among the running requests, unless upstream is not asked anyway."""
        if self._breaker is not None and self._breaker.left(url):
            await self._breaker.check(url)
        await self._limiter.acquire(background=background)

    def _check_status(self, response: IResponse, asked: Mapping[str, str]) -> None:
        status = response.code
        confirms = status == 304 and not asked.keys().isdisjoint(("If-None-Match", "If-Modified-Since"))  # noqa: PLR2004
        if status == 200 or (status == 206 and "Range" in asked) or confirms:  # noqa: PLR2004 - whole, or the part
            return
        self._requester.discard(response)
        if status in (404, 410):
            raise NotFound("upstream does not have this")
        if status in (401, 403, 407):
            raise UpstreamRefused(f"upstream refused the request ({status}): check the credentials it is asked with")
        if status == 429 or status >= 500:  # noqa: PLR2004 - too many requests, and the server's own errors
            raise UpstreamDown(f"upstream answered {status}", retry_after(response.headers, self._reactor.seconds()))
        raise BadUpstreamResponse(f"upstream answered {status}")

    def _redirect_target(self, url: str, response: IResponse) -> str:
        self._requester.discard(response)
        location = first_value(response.headers, "location")
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            # Twisted would take a user in the URL for a part of the host's name.
            scheme = parts.scheme if origin_of(target) and "@" not in parts.netloc else ""
        except ValueError:
            scheme = ""
        downgrade = urlsplit(url).scheme == "https" and scheme != "https"
        if not location or scheme not in ("http", "https") or downgrade:
            raise BadUpstreamResponse("upstream redirects to where we do not go")
        return target

    async def _collect(self, response: FileResponse, largest: int = _LARGEST_PAGE) -> bytes:
        """The whole body, decoded. Raises UpstreamDown, BadUpstreamResponse."""
        if response.encoding not in ("", "gzip"):
            raise BadUpstreamResponse("upstream sends a page in an encoding that nobody asked for")
        collector = BodyCollector(self._reactor, self.timeout, largest, gzipped=bool(response.encoding))
        response.deliver(collector)
        return await collector.done
