"""Says how this server is: alive, and in what state each of the things is that it stands on.

A trouble that clients do not notice (Redis gone, a full disk, upstream down with pages here) is told as "degraded" and
does not take the server out of service: sending clients away would turn it into an outage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import frozen
from klein import Klein
from twisted.internet.defer import Deferred

from mypypi.errors import MyPyPiError
from mypypi.observability.metrics import CONTENT_TYPE
from mypypi.web.errors import answer_failure

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.http import Request

#: Something that this server stands on: raises an error with the reason while it is not in order.
Check = Callable[[], Awaitable[None]]


#: Seconds that a check has: who asks how things stand wants the reason, and S3 takes a while to be given up; Prometheus
#: gives up after ten.
_PATIENCE = 20.0
_SCRAPE_PATIENCE = 5.0

#: All numbers, in the Prometheus text format.
Metrics = Callable[[dict[str, str]], Awaitable[bytes]]


@frozen
class Health:
    """The checks by name, in the order in which they are told, on `clock`."""

    checks: dict[str, Check]
    clock: Any

    async def report(self) -> dict[str, object]:
        """``{"status": "ok" | "degraded", "checks": {name: "ok" | reason}}``."""
        found = await self.outcomes(_PATIENCE)
        status = "ok" if all(outcome == "ok" for outcome in found.values()) else "degraded"
        return {"status": status, "checks": found}

    async def outcomes(self, seconds: float) -> dict[str, str]:
        """``{name: "ok" | reason}``: what takes longer than so many seconds is in trouble. All are asked at once."""
        asked = self.checks.items()
        started = {name: Deferred.fromCoroutine(self._outcome(check, seconds)) for name, check in asked}
        return {name: await outcome for name, outcome in started.items()}

    async def _outcome(self, check: Check, seconds: float) -> str:
        try:
            await Deferred.fromCoroutine(_made(check)).addTimeout(seconds, self.clock)
        except MyPyPiError as error:
            return str(error)
        except TimeoutError:
            return f"no answer within {seconds:g} s"
        return "ok"


async def _made(check: Check) -> None:
    await check()


class OperatorRoutes:
    """The routes below ``/-/`` that are the same for every ecosystem."""

    app = Klein()

    def __init__(self, health: Health, metrics: Metrics) -> None:
        """`metrics` makes the answer to a scrape, given the outcomes of the checks."""
        self._health = health
        self._metrics = metrics

    @app.handle_errors(Exception)  # type: ignore[arg-type] # Klein takes a plain method as well
    def failed(self, request: Request, failure: Failure) -> bytes:
        """Every error of every route ends here."""
        return answer_failure(request, failure)

    @app.route("/health/live")
    def live(self, request: Request) -> bytes:
        """The process answers."""
        return _json(request, {"status": "ok"})

    @app.route("/health/ready")
    async def ready(self, request: Request) -> bytes:
        """What it stands on is in order, or else what is not."""
        return _json(request, await self._health.report())

    @app.route("/metrics")
    async def metrics(self, request: Request) -> bytes:
        """What is counted, for Prometheus."""
        body = await self._metrics(await self._health.outcomes(_SCRAPE_PATIENCE))
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
