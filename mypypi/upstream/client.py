"""Requests pages and files from upstream.

Turns statuses into errors. Knows URLs and statuses. Must never know what a page or a package is, or which client asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import evolve
from twisted.web.iweb import IAgent, IResponse

from mypypi.byte_range import ByteRange
from mypypi.errors import NotFound, UpstreamDown, UpstreamPaused
from mypypi.model import PageRequest, SourceDocument
from mypypi.observability import metrics
from mypypi.upstream.backoff import PATIENCE
from mypypi.upstream.bodies import BodyCollector
from mypypi.upstream.body_memory import BodyClaim, BodyMemory
from mypypi.upstream.breaker import origin_of
from mypypi.upstream.first_urls import first_url
from mypypi.upstream.limiter import ConcurrencyLimiter, Demand, Place
from mypypi.upstream.pace import LOWEST_RATE, PaceLimits
from mypypi.upstream.redirects import follow
from mypypi.upstream.requester import Credentials, Requester
from mypypi.upstream.requests import Request
from mypypi.upstream.responses import FileRange, FileResponse, PageResponse, PassedResponse, first_values, range_in
from mypypi.upstream.statuses import Statuses

if TYPE_CHECKING:
    from mypypi.upstream.breaker import Breaker
    from mypypi.upstream.guard import AddressGuard

#: Bytes of the largest page that is fetched, in its encoding. PyPI's list of all projects has 40 MB.
LARGEST_PAGE = 128 * 1024 * 1024
_LARGEST_PASSED = 32 * 1024 * 1024
#: Bytes of the largest range of a file that is requested. It is in memory as a whole.
LARGEST_RANGE = 8 * 1024 * 1024

#: Is called if upstream has not answered within the time-out. The request goes on then, up to
#: `mypypi.upstream.requester.LATE_LIMIT`, if not too many do; without such a function it fails.
Late = Callable[[], object]


class Upstream:
    """
    One upstream, at `url`, whose own pages say where its files are.

    `timeout` (seconds) bounds connecting, waiting for the response head, and each wait for more of a body. `min_rate`
    is the lowest rate of a body (see `Pace`). At most `concurrency` requests to one origin run at once, bodies
    included; others wait. `public_host` is the public registry's (see `first_url`). See `Requester` for the rest.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        credentials: Credentials | None = None,
        concurrency: int = 64,
        timeout: float = 15,
        min_rate: int = LOWEST_RATE,
        agent: IAgent | None = None,
        breaker: Breaker | None = None,
        guard: AddressGuard | None = None,
        retries: Sequence[float] = (),
        metered: bool = True,
        public_host: str = "",
    ) -> None:
        self.url = url
        self._own_origin = origin_of(url)
        self.timeout = timeout
        self.pace = PaceLimits(timeout, min_rate)
        self._reactor = reactor
        self._breaker = breaker
        self._metered = metered
        self._public_host = public_host
        self._memory = BodyMemory()
        self._limiter = ConcurrencyLimiter(concurrency, metered=metered)
        self._requester = Requester(
            reactor,
            url,
            credentials=credentials,
            connections=concurrency,
            timeout=timeout,
            agent=agent,
            breaker=breaker,
            guard=guard,
            retries=retries,
            metered=metered,
        )
        self._statuses = Statuses(reactor, self.pace, self._requester)

    def needs_credentials(self, url: str) -> bool:
        """Whether the file at this URL needs credentials, which a redirected client would lack."""
        return self._requester.needs_credentials(self.first_url(url))

    def first_url(self, url: str) -> str:
        """Return where the file that is listed at this URL is requested first; see `first_url`."""
        return first_url(url, self.url, self._public_host)

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

    async def check_all(self) -> None:
        """Raise UpstreamPaused with the reason while any requests of this process are held back, to any origin."""
        if self._breaker is None:
            return
        origin = ""
        try:
            for origin, kind in self._breaker.gauge.open():
                await self._breaker.check(origin, kind)
        except UpstreamPaused as error:
            raise UpstreamPaused(f"{origin}: {error}") from error

    async def page(
        self,
        request: PageRequest,
        etag: str = "",
        modified: str = "",
        *,
        client: str = "",
        background: bool = False,
        patient: bool = False,
        late: Late | None = None,
    ) -> PageResponse:
        """
        Fetch a page of upstream's. The response has no source if upstream says that the validators still match.

        `client` names the client that waits, for a fair share of the places. With `background`, upstream is asked only
        while it has spare capacity. With `patient`, the end of a short pause is awaited. Raises NotFound, UpstreamDown,
        UpstreamRefused, BadUpstreamResponse; `late` is called where the request goes on after its time-out.
        """
        headers = {"Accept": request.accept}
        if etag:
            headers["If-None-Match"] = etag
        if modified:
            headers["If-Modified-Since"] = modified
        sent = Request(request.kind, self.url + request.path, headers, patient=patient)
        response = await self._get(sent, client, background=background, late=late)
        try:
            if response.status == 304:  # noqa: PLR2004 - not modified
                return PageResponse(None, etag, modified)
            content, claim = await self._collect(response, LARGEST_PAGE)
        finally:
            response.close()
        if self._metered:
            metrics.UPSTREAM_BYTES.labels("page").inc(len(content))
        source = SourceDocument(content, response.header("content-type"), response.url, response.encoding)
        return PageResponse(source, response.header("etag"), response.header("last-modified"), claim.release)

    async def file(
        self,
        url: str,
        headers: Mapping[str, str],
        client: str = "",
        late: Late | None = None,
        demand: Demand | None = None,
        kind: str = "file",
    ) -> FileResponse:
        """
        Request the file that is listed at this URL, for this client. The end of a short pause is awaited.

        It is requested at its `first_url`, and where that is 404, at the URL as listed. The status of the response is
        200 or 206. The caller reads its body and closes it. See `page` for `late`. `demand` says whether any client
        waits for the file. Raises NotFound, UpstreamDown, UpstreamRefused, BadUpstreamResponse.
        """
        sent = Request(kind, url, {"Accept": "*/*", **headers}, "identity", patient=True, demand=demand)
        return await self._get_file(sent, client, late=late)

    async def size_of(self, url: str, client: str = "") -> int | None:
        """Ask for the size of the file at this URL, in bytes; None if upstream does not tell. Raises as `file` does."""
        sent = Request("file", url, {"Accept": "*/*"}, "identity", "HEAD", patient=True)
        response = await self._get_file(sent, client)
        response.close()
        length = response.header("content-length")
        return int(length) if length.isascii() and length.isdigit() and not response.encoding else None

    async def range(self, url: str, asked: ByteRange, client: str = "") -> FileRange | None:
        """
        Request a range of the file at this URL, of at most `LARGEST_RANGE` bytes. It is empty outside the file.

        None if upstream does not answer ranges. See `file` for the rest.
        """
        sent = Request("range", url, {"Accept": "*/*", "Range": str(asked)}, "identity", patient=True)
        response = await self._get_file(sent, client)
        try:
            found = range_in(response, asked, LARGEST_RANGE)
            if found is None:
                return None
            start, stop, total = found
            if start == stop:
                return FileRange(start, total, b"")
            content, claim = await self._collect(response, stop - start, "range of a file")
        finally:
            response.close()
        claim.release()
        metrics.UPSTREAM_BYTES.labels("file").inc(len(content))
        if len(content) < stop - start:
            raise UpstreamDown("upstream closed the connection in the middle of a range of a file")
        return FileRange(start, total, content)

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

        `target` is the path with the query. The body keeps its encoding, which may be gzip only with `gzip`. Redirects
        are followed, and an answer is awaited up to `LATE_LIMIT`, since no later request could join this one. Raises
        UpstreamDown, BadUpstreamResponse.
        """
        encoding = "gzip" if gzip else "identity"
        request = Request(kind, self.url + target, dict(headers), encoding, method, content)
        place, request = await self._acquire_place(request, client, late=lambda: None)
        try:
            response, request = await self._follow(request, place)
            body = FileResponse(response.code, response.headers, request.url, response, lambda: None)
            passed = first_values(response.headers)
            if body.encoding:
                passed["content-encoding"] = body.encoding
            content, claim = await self._collect(body, _LARGEST_PASSED)
            claim.release()
            return PassedResponse(response.code, passed, content)
        finally:
            place.release()

    async def stop(self) -> None:
        """Close the connections that are kept open."""
        await self._requester.stop()

    async def _get_file(self, request: Request, client: str, late: Late | None = None) -> FileResponse:
        first = self.first_url(request.url)
        if first != request.url:
            with suppress(NotFound):
                return await self._get(evolve(request, url=first), client, late=late)
        return await self._get(request, client, late=late)

    async def _get(
        self, request: Request, client: str, *, background: bool = False, late: Late | None = None
    ) -> FileResponse:
        """Send a GET or HEAD, follow redirects, and turn other statuses than success into errors."""
        place, request = await self._acquire_place(request, client, background=background, late=late)
        try:
            response, request = await self._follow(request, place)
            await self._statuses.check(response, request)
        except BaseException:
            place.release()
            raise
        return FileResponse(response.code, response.headers, request.url, response, place.release)

    async def _follow(self, request: Request, place: Place) -> tuple[IResponse, Request]:
        """Send a request and follow redirects. One to another origin takes a place there."""
        return await follow(self._requester, request, lambda url: place.move(self._origin_of(url)))

    def _origin_of(self, url: str) -> str:
        """Return the origin whose places a request to this URL takes; empty for upstream's own."""
        origin = origin_of(url)
        return "" if origin == self._own_origin else origin

    async def _acquire_place(
        self, request: Request, client: str, *, background: bool = False, late: Late | None = None
    ) -> tuple[Place, Request]:
        """Wait for a place, but not while such requests are held back anyway. Returns the request to send, too."""
        patient = request.patient
        if self._breaker is not None:
            left = self._breaker.remaining(request.url, request.kind, patient=patient)
            if left > (PATIENCE if patient else 0.0):
                await self._breaker.check(request.url, request.kind)
        origin, demand = self._origin_of(request.url), request.demand
        place = await self._limiter.acquire(request.kind, client, origin=origin, background=background, demand=demand)
        return place, request if late is None else evolve(request, late=lambda: place.make_late(late))

    async def _collect(self, response: FileResponse, largest: int, what: str = "page") -> tuple[bytes, BodyClaim]:
        """Return the whole body, in its encoding, and its claim. Raises UpstreamDown, BadUpstreamResponse."""
        claim = self._memory.claim()
        collector = BodyCollector(self._reactor, self.pace, largest, claim, encoded=bool(response.encoding), what=what)
        response.deliver(collector)
        return await collector.done, claim
