"""Endpoints for operators: health, metrics, and a page that says what this server is.

Trouble that clients do not notice (Redis down, a full disk, upstream down while pages are cached) is reported as
"degraded". It does not take the server out of service: sending clients away would turn it into an outage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout

from mypypi.errors import MyPyPiError
from mypypi.observability.metrics import CONTENT_TYPE
from mypypi.web.about import About
from mypypi.web.endpoints import RoutingApp

if TYPE_CHECKING:
    from twisted.web.http import Request

#: Checks one backend; raises a MyPyPiError with the reason while the backend is in trouble.
Check = Callable[[], Awaitable[None]]

#: Seconds until a check of a health report times out. The report should give the reason, and a call to S3 takes long
#: to fail.
_REPORT_TIMEOUT = 20.0

#: Renders all metrics in the Prometheus text format.
Metrics = Callable[[], Awaitable[bytes]]


@define
class Health:
    """
    Runs the checks and reports their outcomes.

    Reports have the order of `checks`. Timeouts are measured on `clock`. `last` has the outcomes of the last run.
    """

    checks: dict[str, Check]
    clock: Any
    last: dict[str, str] = field(factory=dict, init=False)

    async def report(self) -> dict[str, object]:
        """Return ``{"status": "ok" | "degraded", "checks": {name: "ok" | reason}}``."""
        found = await self.outcomes(_REPORT_TIMEOUT)
        status = "ok" if all(outcome == "ok" for outcome in found.values()) else "degraded"
        return {"status": status, "checks": found}

    async def outcomes(self, seconds: float) -> dict[str, str]:
        """
        Run all checks at once; return ``{name: "ok" | reason}``.

        A check that takes longer than `seconds` counts as failed.
        """
        checks = self.checks.items()
        started = {name: Deferred.fromCoroutine(self._outcome(check, seconds)) for name, check in checks}
        self.last = {name: await outcome for name, outcome in started.items()}
        return self.last

    async def _outcome(self, check: Check, seconds: float) -> str:
        try:
            await Deferred.fromCoroutine(_run(check)).addTimeout(seconds, self.clock)
        except MyPyPiError as error:
            return str(error)
        except DeferredTimeout:
            return f"no answer within {seconds:g} s"
        return "ok"


async def _run(check: Check) -> None:
    await check()


class OperatorRoutes:
    """The routes below ``/-/`` that are the same for every ecosystem."""

    app = RoutingApp()

    def __init__(self, health: Health, metrics: Metrics, about: About) -> None:
        """`metrics` renders the answer to a scrape."""
        self._health = health
        self._metrics = metrics
        self._about = about

    @staticmethod
    def has_route(segments: list[str]) -> bool:
        """Return whether a path is one of these routes."""
        return segments == ["-", ""] or segments[:2] in (["-", "health"], ["-", "metrics"])

    @app.route("/")
    def about(self, request: Request) -> bytes:
        """Say what this server is."""
        return self._about.answer(request)

    @app.route("/health/live")
    def live(self, request: Request) -> bytes:
        """Answer that the process is alive."""
        return _json(request, {"status": "ok"})

    @app.route("/health/ready")
    async def ready(self, request: Request) -> bytes:
        """Answer with the outcome of every check."""
        return _json(request, await self._health.report())

    @app.route("/metrics")
    async def metrics(self, request: Request) -> bytes:
        """Answer with all metrics, for Prometheus."""
        body = await self._metrics()
        request.setHeader(b"content-type", CONTENT_TYPE)
        request.setHeader(b"cache-control", b"no-store")
        request.setHeader(b"content-length", b"%d" % len(body))
        return body


def _json(request: Request, value: object) -> bytes:
    body = msgspec.json.encode(value)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(body))
    return body
