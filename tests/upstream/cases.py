"""What the tests of `mypypi.upstream` share: an upstream over an in-memory wire, and a fleet with a circuit breaker."""

from __future__ import annotations

import gc
from typing import Any, cast
from unittest import mock

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogPublisher
from twisted.web.client import URI

from mypypi.errors import MyPyPiError, UpstreamDown, UpstreamPaused
from mypypi.model import PageRequest
from mypypi.observability import metrics
from mypypi.upstream.backoff import Backoff
from mypypi.upstream.breaker import Breaker
from mypypi.upstream.client import Upstream
from mypypi.upstream.requester import Credentials
from mypypi.upstream.responses import FileResponse, PageResponse, PassedResponse
from tests.support.fakes import MemoryCatalog
from tests.support.memory import Exchange, MemoryTestCase, Wire

JSON = "application/vnd.pypi.simple.v1+json"
FILE = "https://files.example/a.whl"
#: Seconds until a request times out.
TIMEOUT = 15


class UpstreamTestCase(MemoryTestCase):
    """An upstream behind an in-memory wire, with a clock that the test moves."""

    url = "https://index.example/root"

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.addCleanup(self.wire.hang_up)
        self.catalog = MemoryCatalog(self.clock)
        self.upstream = self.make_upstream()

    def make_upstream(
        self, url: str = "", credentials: Credentials | None = None, concurrency: int = 64, **options: Any
    ) -> Upstream:
        return Upstream(
            self.clock,
            url or self.url,
            credentials=credentials,
            concurrency=concurrency,
            timeout=TIMEOUT,
            agent=self.wire.agent,
            **options,
        )

    def page(
        self,
        path: str = "/simple/a/",
        *,
        etag: str = "",
        modified: str = "",
        kind: str = "page",
        client: str = "",
        background: bool = False,
        patient: bool = False,
        upstream: Upstream | None = None,
    ) -> Deferred[PageResponse]:
        asked = upstream or self.upstream
        request = PageRequest(path, JSON, kind)
        options: dict[str, Any] = {"client": client, "background": background, "patient": patient}
        return self.start(asked.page(request, etag, modified, **options))

    def file(self, url: str = FILE, *, client: str = "", **headers: str) -> Deferred[FileResponse]:
        return self.start(self.upstream.file(url, headers, client))

    def audit(self, target: str = "/audit", *, client: str = "") -> Deferred[PassedResponse]:
        return self.start(self.upstream.pass_on("audit", "POST", target, {}, b"{}", client=client))

    def assert_slot_is_free(self, upstream: Upstream) -> None:
        """Send another request. It is only sent if a slot is free."""
        before = self.request_count
        self.page("/probe", upstream=upstream)
        self.assertEqual(before + 1, self.request_count)

    @property
    def request_count(self) -> int:
        return len(self.wire.exchanges)


class BreakerTestCase(UpstreamTestCase):
    """Two processes of a fleet, with one wire to upstream and one catalog."""

    url = "https://index.example"
    retries: tuple[float, ...] = ()

    def setUp(self) -> None:
        uniform = mock.patch("random.uniform", lambda low, high: (low + high) / 2)
        uniform.start()
        self.addCleanup(uniform.stop)
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        super().setUp()
        self.other = self.make_upstream(owner="two")

    def make_upstream(
        self,
        url: str = "",
        credentials: Credentials | None = None,
        concurrency: int = 64,
        owner: str = "one",
        **options: Any,
    ) -> Upstream:
        breaker = Breaker(Backoff(self.catalog, self.clock), self.catalog, owner, self.clock, TIMEOUT, self.url)
        return super().make_upstream(url, credentials, concurrency, breaker=breaker, retries=self.retries, **options)

    def refuse_connections(self, times: int = 5, upstream: Upstream | None = None) -> None:
        """Request pages; upstream refuses each connection. After five of them, its origin is held back."""
        self.wire.refuses = True
        for _ in range(times):
            self.assertIn("refused", str(self.failing(self.page(upstream=upstream), UpstreamDown)))
        self.wire.refuses = False

    def fail_requests(self, status: int, *paths: str, kind: str = "page", **headers: str) -> None:
        """Request pages one after another; upstream answers each with this status."""
        for path in paths or ("/simple/a/",):
            pending = self.send(path, kind=kind)
            self.wire.last.answer(status, b"", **headers)
            self.failing(pending, MyPyPiError)

    def send(
        self, path: str = "/simple/a/", kind: str = "page", upstream: Upstream | None = None
    ) -> Deferred[PageResponse]:
        """Request a page, and assert that the request is sent."""
        before = self.request_count
        pending = self.page(path, kind=kind, upstream=upstream)
        self.assertEqual(before + 1, self.request_count, "the request is sent")
        return pending

    def assert_request_succeeds(
        self, upstream: Upstream | None = None, *, path: str = "/simple/a/", kind: str = "page"
    ) -> None:
        pending = self.send(path, kind, upstream)
        self.wire.last.answer(body=b"{}")
        self.now(pending)

    def assert_paused(
        self, upstream: Upstream | None = None, *, path: str = "/simple/a/", kind: str = "page"
    ) -> UpstreamPaused:
        """Request a page, and return the error of the request, which is not sent."""
        before = self.request_count
        error = self.failing(self.page(path, kind=kind, upstream=upstream), UpstreamPaused)
        self.assertEqual(before, self.request_count, "no request is sent")
        assert isinstance(error, UpstreamPaused)
        return error

    def settle(self, pending: Deferred[Any]) -> None:
        """Wait for the end of a request, whatever its outcome."""
        pending.addErrback(lambda failure: failure.trap(MyPyPiError) and None)
        self.now(pending)

    def log_lines(self) -> list[str]:
        return [eventAsText(event, includeTimestamp=False, includeSystem=False) for event in self.events]


class Unreachable(Wire):
    """An upstream that no connection reaches, for the reason of this `error`. It counts the attempts."""

    def __init__(self, clock: Clock, error: Exception) -> None:
        super().__init__(clock)
        self.attempts = 0
        self._error = error

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        return cast("IStreamClientEndpoint", self)

    def connect(self, factory: IProtocolFactory) -> Deferred[Any]:
        self.attempts += 1
        return fail(self._error)


def breaker_metric_is_set(host: str = "index.example", kind: str = "all") -> bool:
    return bool(metrics.BREAKER_OPEN.labels(host, kind)._value.get())


def end_abandoned_requests() -> None:
    """
    End the requests that earlier tests left unanswered.

    Python ends their coroutines when it collects them, which may be at any time. They leave the limiter then, which
    changes the gauges that all tests share.
    """
    gc.collect()


def paths(count: int, prefix: str = "/simple/") -> tuple[str, ...]:
    """Return as many different paths."""
    return tuple(f"{prefix}{number}/" for number in range(count))


def cut_in_body(exchange: Exchange) -> None:
    """Send the head and the first byte of a body, and break the connection."""
    exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
    exchange.cut()
