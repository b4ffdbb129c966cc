"""Requests pages and files from upstream.

Follows redirects, and turns statuses into errors. Knows URLs and statuses. Must never know what a page or a package is,
or which client asked.
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
#: Bytes of the largest page that is accepted. PyPI's list of all projects has 40 MB.
_LARGEST_PAGE = 512 * 1024 * 1024
_LARGEST_PASSED = 32 * 1024 * 1024


class Upstream:
    """
    One upstream, at `url`, whose own pages say where its files are.

    `timeout` (seconds) bounds connecting, waiting for the response head, and each wait for more of a page's body. At
    most `concurrency` requests run at once, bodies included; others wait. See `Requester` for the other arguments.
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
        """Whether this URL needs credentials, which a redirected client would lack."""
        return self._requester.needs_credentials(url)

    @property
    def has_spare_capacity(self) -> bool:
        """Whether upstream can be sent background requests."""
        return self._limiter.has_spare_capacity and not self.paused

    @property
    def paused(self) -> bool:
        """Whether requests to upstream are paused. Only what this process knows counts."""
        return self._breaker is not None and self._breaker.remaining(self.url) > 0

    async def check(self) -> None:
        """Raise UpstreamPaused with the reason while requests to upstream are paused."""
        if self._breaker is not None:
            await self._breaker.check(self.url)

    async def page(
        self, path: str, accept: str, etag: str = "", modified: str = "", *, background: bool = False
    ) -> PageResponse:
        """
        Fetch the page at this path below upstream's URL.

        The response has no source if upstream says that the validators still match. With `background`, upstream is
        asked only while more than half of the slots are free.
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
        Request the file at this URL.

        The status of the response is 200 or 206. The caller reads its body and closes it.
        Raises NotFound, UpstreamDown, UpstreamRefused, BadUpstreamResponse.
        """
        return await self._get(Request("file", url, dict(headers)))

    async def pass_on(self, method: str, target: str, headers: Mapping[str, str], content: bytes) -> PassedResponse:
        """
        Pass a client's request on to upstream.

        `target` is the path with the query. The response is returned whatever its status. Raises UpstreamDown,
        BadUpstreamResponse.
        """
        await self._acquire_slot(self.url)
        try:
            request = Request("other", self.url + target, dict(headers), method, content)
            response = await self._requester.send(request)
            if response.code in _REDIRECT_STATUSES:
                self._requester.discard(response)
                raise BadUpstreamResponse("upstream answered with a redirect, which is not followed for this request")
            body = FileResponse(response.code, response.headers, self.url, response, lambda: None)
            return PassedResponse(
                response.code, first_values(response.headers), await self._collect(body, _LARGEST_PASSED)
            )
        finally:
            self._limiter.release()

    async def stop(self) -> None:
        """Close the persistent connections."""
        await self._requester.stop()

    async def _get(self, request: Request, *, background: bool = False) -> FileResponse:
        """Send a request and follow redirects. Each step decides anew whether to send credentials."""
        await self._acquire_slot(request.url, background=background)
        try:
            for _ in range(_REDIRECTS + 1):
                response = await self._requester.send(request)
                if response.code not in _REDIRECT_STATUSES:
                    self._check_status(response, request.headers)
                    return FileResponse(response.code, response.headers, request.url, response, self._limiter.release)
                request = evolve(request, url=self._redirect_target(request.url, response))
            raise BadUpstreamResponse(f"upstream redirects in circles, or more than {_REDIRECTS} times")
        except BaseException:
            self._limiter.release()
            raise

    async def _acquire_slot(self, url: str, *, background: bool = False) -> None:
        """Wait for a slot. Raises UpstreamPaused while requests to upstream are paused."""
        if self._breaker is not None and self._breaker.remaining(url):
            await self._breaker.check(url)
        await self._limiter.acquire(background=background)

    def _check_status(self, response: IResponse, sent: Mapping[str, str]) -> None:
        status = response.code
        confirms = status == 304 and not sent.keys().isdisjoint(("If-None-Match", "If-Modified-Since"))  # noqa: PLR2004
        if status == 200 or (status == 206 and "Range" in sent) or confirms:  # noqa: PLR2004 - all of it, or the part
            return
        self._requester.discard(response)
        if status in (404, 410):
            raise NotFound("upstream does not have this page or file")
        if status in (401, 403, 407):
            raise UpstreamRefused(
                f"upstream refused the request ({status}): check the credentials configured for upstream"
            )
        if status == 429 or status >= 500:  # noqa: PLR2004 - too many requests, and the server's own errors
            raise UpstreamDown(f"upstream answered {status}", retry_after(response.headers, self._reactor.seconds()))
        raise BadUpstreamResponse(f"upstream answered {status}")

    def _redirect_target(self, url: str, response: IResponse) -> str:
        self._requester.discard(response)
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

    async def _collect(self, response: FileResponse, largest: int = _LARGEST_PAGE) -> bytes:
        """Return the complete body, decoded. Raises UpstreamDown, BadUpstreamResponse."""
        if response.encoding not in ("", "gzip"):
            raise BadUpstreamResponse("upstream sent a page in an encoding that was not requested")
        collector = BodyCollector(self._reactor, self.timeout, largest, gzipped=bool(response.encoding))
        response.deliver(collector)
        return await collector.done
