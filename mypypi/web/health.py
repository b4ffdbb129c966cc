"""Says how this server is: alive, and in what state each of the things is that it stands on.

A trouble that clients do not notice (Redis gone, a full disk, upstream down with pages here) is told as "degraded" and
does not take the server out of service: sending clients away would turn it into an outage.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from attrs import frozen
from klein import Klein

from mypypi.errors import MyPyPiError
from mypypi.web.errors import answer_failure

if TYPE_CHECKING:
    from twisted.python.failure import Failure
    from twisted.web.http import Request

#: Something that this server stands on: raises an error with the reason while it is not in order.
Check = Callable[[], Awaitable[None]]


@frozen
class Health:
    """The checks by name, in the order in which they are told."""

    checks: dict[str, Check]

    async def report(self) -> dict[str, object]:
        """``{"status": "ok" | "degraded", "checks": {name: "ok" | reason}}``."""
        found = {name: await _outcome(check) for name, check in self.checks.items()}
        status = "ok" if all(outcome == "ok" for outcome in found.values()) else "degraded"
        return {"status": status, "checks": found}


async def _outcome(check: Check) -> str:
    try:
        await check()
    except MyPyPiError as error:
        return str(error)
    return "ok"


class OperatorRoutes:
    """The routes below ``/-/`` that are the same for every ecosystem."""

    app = Klein()

    def __init__(self, health: Health) -> None:
        self._health = health

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


def _json(request: Request, value: object) -> bytes:
    body = msgspec.json.encode(value)
    request.setHeader(b"content-type", b"application/json")
    request.setHeader(b"cache-control", b"no-store")
    request.setHeader(b"content-length", b"%d" % len(body))
    return body
