"""Circuit breaker: pauses requests to origins that fail.

It opens after repeated failures, or for as long as a Retry-After says. Knows origins (scheme, host, port), and how
requests to them ended. Must never know what was requested, or how.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mypypi.errors import CatalogDown, UpstreamPaused
from mypypi.observability import metrics

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog
    from mypypi.model import Pause
    from mypypi.upstream.backoff import Backoff

#: Failures in a row after which the breaker opens.
_FAILURES = 5


@frozen
class Permit:
    """
    Permission for one request to an origin.

    The caller reports how the request ended. After a pause only one request is sent, the `trial`, until it is answered.
    """

    origin: str
    trial: bool = False


class Breaker:
    """
    Decides which origins may be asked. All processes of a fleet share its pauses, and see a new one within a second.

    While the breaker is closed, requests are sent. After some failures in a row it opens for a pause, which grows each
    time. After the pause, one request of the whole fleet is sent as a trial, for which `owner` holds a lease of
    `seconds`. The trial closes the breaker or begins the next pause.
    """

    log = Logger()

    def __init__(self, backoff: Backoff, catalog: ICatalog, owner: str, clock: Any, seconds: float) -> None:
        self._backoff = backoff
        self._catalog = catalog
        self._owner = owner
        self._clock = clock
        self._lease_seconds = seconds
        self._failures: dict[str, int] = {}
        self._trials: set[str] = set()
        self._metric_timers: dict[str, IDelayedCall] = {}

    def remaining(self, url: str) -> float:
        """Return the seconds left of a pause of this origin. Only what this process knows counts."""
        return self._backoff.remaining(origin_of(url))

    async def check(self, url: str) -> None:
        """Raise UpstreamPaused with the reason while this URL's origin is paused."""
        origin = origin_of(url)
        pause = await self._backoff.read(origin)
        if pause is not None and pause.until > self._clock.seconds():
            raise self._paused(pause)

    async def acquire(self, url: str) -> Permit:
        """
        Return a permit for a request to this URL.

        Raises UpstreamPaused with the reason and the seconds until a retry.
        """
        origin = origin_of(url)
        pause = await self._backoff.read(origin)
        if pause is None:
            return Permit(origin)
        if pause.until > self._clock.seconds():
            self._set_metric(origin, pause)
            raise self._paused(pause)
        if origin in self._trials:
            raise self._paused(pause)
        self._trials.add(origin)
        if not await self._take_trial_lease(origin):
            self._trials.discard(origin)
            raise self._paused(pause)
        return Permit(origin, trial=True)

    async def succeeded(self, permit: Permit) -> None:
        """Report that upstream answered; a 404 is an answer, too."""
        self._failures.pop(permit.origin, None)
        if permit.trial:
            await self._backoff.end(permit.origin)
            self._clear_metric(permit.origin)
            self.log.info("requests to {origin} are resumed", origin=permit.origin)
            await self.release(permit)

    async def failed(self, permit: Permit, why: str, retry_after: float | None = None) -> None:
        """
        Report a request that got no answer, or an error.

        `retry_after`: the seconds of upstream's Retry-After, if it sent one.
        """
        origin, before = permit.origin, self._backoff.last_known(permit.origin)
        if before is None:
            self._failures[origin] = self._failures.get(origin, 0) + 1
        # A request that was sent before the pause and fails during it does not lengthen the pause.
        if (
            permit.trial
            or self._failures.get(origin, 0) >= _FAILURES
            or (retry_after or 0) > self._backoff.remaining(origin)
        ):
            self._failures.pop(origin, None)
            pause = await self._backoff.begin(origin, why, seconds=retry_after)
            self._set_metric(origin, pause)
            if before is None:
                seconds = max(1, round(pause.until - self._clock.seconds()))
                self.log.warn(
                    "requests to {origin} are paused for {seconds} s: {why}", origin=origin, seconds=seconds, why=why
                )
        await self.release(permit)

    async def release(self, permit: Permit) -> None:
        """
        End a trial, so that another request may start one.

        Called by itself, it reports that the request ended without an outcome.
        """
        if permit.trial:
            self._trials.discard(permit.origin)
            with suppress(CatalogDown):
                await self._catalog.release_lease(f"trial:{permit.origin}", self._owner)

    async def _take_trial_lease(self, origin: str) -> bool:
        try:
            return await self._catalog.take_lease(f"trial:{origin}", self._owner, self._lease_seconds) is None
        except CatalogDown:
            return True

    def _paused(self, pause: Pause) -> UpstreamPaused:
        left = max(1, math.ceil(pause.until - self._clock.seconds()))
        return UpstreamPaused(
            f"requests to upstream are paused for another {left} s, because it failed: {pause.why}", left
        )

    def _set_metric(self, origin: str, pause: Pause) -> None:
        """
        Set the metric until the pause ends.

        A timer clears it, since this process may send no request that would see the end of the pause.
        """
        left = pause.until - self._clock.seconds()
        if left > 0:
            self._clear_metric(origin)
            self._metric_timers[origin] = self._clock.callLater(left, self._clear_metric, origin)
            metrics.BREAKER_OPEN.labels(_host(origin)).set(1)

    def _clear_metric(self, origin: str) -> None:
        timer = self._metric_timers.pop(origin, None)
        if timer is not None and timer.active():
            timer.cancel()
        metrics.BREAKER_OPEN.labels(_host(origin)).set(0)


def origin_of(url: str) -> str:
    """Return the scheme, host and port of a URL. Returns "" if it has no host or is invalid."""
    with suppress(ValueError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname else ""
    return ""


def _host(origin: str) -> str:
    return urlsplit(origin).hostname or ""
