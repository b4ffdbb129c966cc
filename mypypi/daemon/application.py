"""The HTTP application: an index's routes, health and metrics, behind the validation of every request.

Knows the routes and what a scrape is made of. Must never know where the application is served.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from mypypi.coalescing import RecentResult
from mypypi.daemon.backends import Backends
from mypypi.daemon.checks import make_checks
from mypypi.daemon.index import Index
from mypypi.errors import CatalogDown
from mypypi.job import QueueState
from mypypi.observability.metrics import CurrentState, are_in_files, render_metrics
from mypypi.redis_budget import redis_budget
from mypypi.turns import Turns
from mypypi.web.about import About
from mypypi.web.health import Health, OperatorRoutes
from mypypi.web.request import WebRequest
from mypypi.web.validation import RequestValidator

#: Seconds until the checks, and then the state of the queue, time out for a scrape. Prometheus gives up after ten.
_CHECKS_TIMEOUT = 5.0
_QUEUE_TIMEOUT = 3.0
#: Seconds for which scrapes share one state, and for which a scrape waits for a newer one. A check waits for the disk
#: and for Redis, behind the files of clients, so a scrape could otherwise take as long as they do.
_STATE_FRESH = 5.0
_STATE_PATIENCE = 0.02


def make_application(backends: Backends, index: Index) -> IResource:
    """The whole application as one resource."""
    settings = backends.settings
    about = About(settings.package_type, settings.upstream_url, index.addresses, index.ecosystem.example)
    health = Health(make_checks(backends, index), backends.reactor)
    state = RecentResult(
        partial(_current_state, backends, health), backends.reactor, fresh=_STATE_FRESH, patience=_STATE_PATIENCE
    )
    operator = OperatorRoutes(health, partial(_metrics, backends, health, state), about)
    routes = index.routes()
    turns = Turns(backends.reactor)
    trunk = _Trunk(routes.app.resource(), operator.app.resource(), operator.has_route, turns)

    def has_route(segments: list[str]) -> bool:
        return operator.has_route(segments) or routes.has_route(segments)

    remove_prefix = partial(index.addresses.remove_prefix, has_route=has_route)
    return RequestValidator(trunk, routes.methods, scoped=index.ecosystem.scoped, remove_prefix=remove_prefix)


async def _metrics(backends: Backends, health: Health, state: RecentResult[CurrentState]) -> bytes:
    """
    Render the metrics, with the current state.

    A scrape has at least the outcomes of the last health report.

    The numbers of one process take 2 ms here, and could take 50 in a thread while files are fetched. Those of several
    processes are in files, which only a thread may read.
    """
    current = await state.get()
    if current.degraded != _degraded(health.last):
        current = await state.renew()
    if are_in_files():
        return await backends.render_threads.run(render_metrics, current)
    return render_metrics(current)


async def _current_state(backends: Backends, health: Health) -> CurrentState:
    """
    Return the outcomes of the checks and the state of the queue.

    The state of the queue is left out if Redis does not answer in time.
    """
    outcomes = await health.outcomes(_CHECKS_TIMEOUT)
    degraded = _degraded(outcomes)
    if degraded["redis"]:
        return CurrentState(degraded)
    try:
        state = await Deferred.fromCoroutine(_state(backends)).addTimeout(_QUEUE_TIMEOUT, backends.reactor)
    except (CatalogDown, DeferredTimeout):
        return CurrentState(degraded)
    jobs = {"waiting": state.waiting, "later": state.later, "dead": state.dead, "unattended": state.unattended}
    return CurrentState(degraded, jobs, state.oldest)


def _degraded(outcomes: dict[str, str]) -> dict[str, bool]:
    return {part: outcome != "ok" for part, outcome in outcomes.items()}


async def _state(backends: Backends) -> QueueState:
    return await backends.queue.state()


class _Trunk(Resource):
    """
    Sends ``/-/``, ``/-/health`` and ``/-/metrics`` to the operator's routes, the rest to the index's.

    The operator's requests begin at once. Those for the index begin in `turns`, so that a scrape does not wait for all
    of them. Each request waits for Redis for a limited time in all.
    """

    isLeaf = True

    def __init__(
        self, routes: IResource, operator: IResource, is_operators: Callable[[list[str]], bool], turns: Turns
    ) -> None:
        super().__init__()
        self._routes = routes
        self._operator = operator
        self._is_operators = is_operators
        self._turns = turns

    def render(self, request: Any) -> Any:
        if self._is_operators([segment.decode() for segment in request.postpath]):
            request.prepath.append(request.postpath.pop(0))
            with redis_budget():
                return self._operator.render(request)
        self._turns.begin(partial(self._begin, request))
        return NOT_DONE_YET

    def _begin(self, request: WebRequest) -> None:
        if request.has_left:
            return
        try:
            with redis_budget():
                request.render(self._routes)
        except Exception:  # noqa: BLE001 - as twisted.web.server.Request.process does
            request.processingFailed(Failure())
