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

from mypypi.errors import BadUpstreamResponse, MyPyPiError, NotFound, UpstreamDown
from mypypi.model import PageRequest, SourceDocument
from mypypi.observability import metrics
from mypypi.upstream.backoff import PATIENCE
from mypypi.upstream.bodies import BodyCollector, abort_connection
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.limiter import ConcurrencyLimiter, Slot
from mypypi.upstream.refusals import LARGEST_REASON, RULES, inflated, refusal
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
#: Bytes of the largest page that is fetched, in its encoding. PyPI's list of all projects has 40 MB.
LARGEST_PAGE = 128 * 1024 * 1024
_LARGEST_PASSED = 32 * 1024 * 1024
#: Seconds until a refusal is passed on without its reason, if that comes slowly.
_REASON_SECONDS = 2.0


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

    def has_spare_capacity(self, kind: str) -> bool:
        """Whether upstream can be sent background requests of this kind."""
        return self._limiter.has_spare_capacity(kind) and not self.is_paused(kind)

    def is_paused(self, kind: str) -> bool:
        """Whether such requests to upstream are held back. Only what this process knows counts."""
        return self._breaker is not None and self._breaker.remaining(self.url, kind) > 0

    def is_silent(self, seconds: float) -> bool:
        """Whether a request waits for longer than this, and upstream has answered no other one since it was sent."""
        return self._breaker is not None and self._breaker.is_silent(self.url, seconds)

    async def check(self, kind: str) -> None:
        """Raise UpstreamPaused with the reason while such requests to upstream are held back."""
        if self._breaker is not None:
            await self._breaker.check(self.url, kind)

    async def page(
        self,
        request: PageRequest,
        etag: str = "",
        modified: str = "",
        *,
        client: str = "",
        background: bool = False,
        patient: bool = False,
    ) -> PageResponse:
        """
        Fetch a page of upstream's. The response has no source if upstream says that the validators still match.

        `client` names the client that waits, for a fair share of the places. With `background`, upstream is asked only
        while it has spare capacity. With `patient`, the end of a short pause is awaited. Raises NotFound, UpstreamDown,
        UpstreamRefused, BadUpstreamResponse.
        """
        headers = {"Accept": request.accept}
        if etag:
            headers["If-None-Match"] = etag
        if modified:
            headers["If-Modified-Since"] = modified
        sent = Request(request.kind, self.url + request.path, headers, patient=patient)
        response = await self._get(sent, client, background=background)
        try:
            if response.status == 304:  # noqa: PLR2004 - not modified
                return PageResponse(None, etag, modified)
            content = await self._collect(response, LARGEST_PAGE)
        finally:
            response.close()
        if self._metered:
            metrics.UPSTREAM_BYTES.labels("page").inc(len(content))
        source = SourceDocument(content, response.header("content-type"), response.url, response.encoding)
        return PageResponse(source, response.header("etag"), response.header("last-modified"))

    async def file(self, url: str, headers: Mapping[str, str], client: str = "") -> FileResponse:
        """
        Request the file at this URL, for this client. The end of a short pause is awaited.

        The status of the response is 200 or 206. The caller reads its body and closes it.
        Raises NotFound, UpstreamDown, UpstreamRefused, BadUpstreamResponse.
        """
        return await self._get(Request("file", url, dict(headers), "identity", patient=True), client)

    async def pass_on(
        self,
        kind: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        content: bytes,
        *,
        gzip: bool = False,
        client: str = "",
    ) -> PassedResponse:
        """
        Pass a client's request of this kind on to upstream, and return the response whatever its status.

        `target` is the path with the query. The body keeps its encoding, which may be gzip only with `gzip`. Raises
        UpstreamDown, BadUpstreamResponse.
        """
        encoding = "gzip" if gzip else "identity"
        request = Request(kind, self.url + target, dict(headers), encoding, method, content)
        slot = await self._acquire_slot(request, client)
        try:
            response = await self._requester.send(request)
            if response.code in _REDIRECT_STATUSES:
                self._requester.discard(response)
                raise BadUpstreamResponse("upstream redirects a request that is only passed on to upstream itself")
            body = FileResponse(response.code, response.headers, self.url, response, lambda: None)
            passed = first_values(response.headers)
            if body.encoding:
                passed["content-encoding"] = body.encoding
            return PassedResponse(response.code, passed, await self._collect(body, _LARGEST_PASSED))
        finally:
            self._limiter.release(slot)

    async def stop(self) -> None:
        """Close the connections that are kept open."""
        await self._requester.stop()

    async def _get(self, request: Request, client: str, *, background: bool = False) -> FileResponse:
        """Send a GET and follow redirects. At every step, the credentials are decided anew."""
        slot = await self._acquire_slot(request, client, background=background)
        try:
            for _ in range(_REDIRECTS + 1):
                response = await self._requester.send(request)
                if response.code not in _REDIRECT_STATUSES:
                    await self._check_status(response, request)
                    return FileResponse(
                        response.code,
                        response.headers,
                        request.url,
                        response,
                        lambda: self._limiter.release(slot),
                    )
                request = evolve(request, url=self._redirect_target(request.url, response))
            raise BadUpstreamResponse(f"upstream redirects more than {_REDIRECTS} times")
        except BaseException:
            self._limiter.release(slot)
            raise

    async def _acquire_slot(self, request: Request, client: str, *, background: bool = False) -> Slot:
        """Wait for a place, but not while such requests are held back anyway."""
        patient = request.patient
        if self._breaker is not None:
            left = self._breaker.remaining(request.url, request.kind, patient=patient)
            if left > (PATIENCE if patient else 0.0):
                await self._breaker.check(request.url, request.kind)
        return await self._limiter.acquire(request.kind, client, background=background)

    async def _check_status(self, response: IResponse, request: Request) -> None:
        status, asked = response.code, request.headers
        confirms = status == 304 and not asked.keys().isdisjoint(("If-None-Match", "If-Modified-Since"))  # noqa: PLR2004
        if status == 200 or (status == 206 and "Range" in asked) or confirms:  # noqa: PLR2004 - whole, or the part
            return
        if status in RULES and status != NotFound.status:
            raise await self._refusal(response, request.url)
        self._requester.discard(response)
        if status == NotFound.status:  # its reason is not passed on, and nobody should wait for it
            raise NotFound(RULES[status].words)
        if status == 429 or status >= 500:  # noqa: PLR2004 - too many requests, and the server's own errors
            raise self._down(response)
        raise BadUpstreamResponse(f"upstream answered {status}")

    def _down(self, response: IResponse) -> UpstreamDown:
        seconds = retry_after(response.headers, self._reactor.seconds())
        error = UpstreamDown(f"upstream answered {response.code}", seconds)
        if first_value(response.headers, "retry-after"):
            error.told = seconds
        return error

    async def _refusal(self, response: IResponse, url: str) -> MyPyPiError:
        """Read a refusal's reason, where its body is short and comes in time, and return the error for it."""
        body = FileResponse(response.code, response.headers, url, response, lambda: None)
        collector = BodyCollector(self._reactor, self.timeout, LARGEST_REASON, encoded=bool(body.encoding))
        body.deliver(collector)
        deadline = self._reactor.callLater(_REASON_SECONDS, abort_connection, collector)
        try:
            content = await collector.done
        except (UpstreamDown, BadUpstreamResponse):
            content = b""
        finally:
            if deadline.active():
                deadline.cancel()
        if body.encoding:
            content = inflated(content) if body.encoding == "gzip" else b""
        phrase = response.phrase.decode("latin-1").strip()
        return refusal(response.code, phrase, body.header("content-type"), content, self._requester.secrets)

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

    async def _collect(self, response: FileResponse, largest: int) -> bytes:
        """Return the whole body, in its encoding. Raises UpstreamDown, BadUpstreamResponse."""
        collector = BodyCollector(self._reactor, self.timeout, largest, encoded=bool(response.encoding))
        response.deliver(collector)
        return await collector.done
