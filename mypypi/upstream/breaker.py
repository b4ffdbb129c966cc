"""The breaker: an upstream that fails again and again, or says when to come back, is left alone for a while.

Knows origins (scheme, host, port), and how requests to them ended. Must never know what was asked for, nor how.
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
    """Leave for one request to an origin, to be settled by how it ended. A `trial` is the only one after a pause."""

    origin: str
    trial: bool = False


class Breaker:
    """
    Who may be asked. What one process found is known to all within a second, by way of the pauses that they share.

    Closed, all may be asked; after some failures in a row it opens for a pause that grows each time. After the pause
    one request goes out as a trial, one in the whole fleet, for which `owner` holds a lease of `seconds`: it closes the
    breaker, or begins the next pause.
    """

    log = Logger()

    def __init__(self, backoff: Backoff, catalog: ICatalog, owner: str, clock: Any, seconds: float) -> None:
        self._backoff = backoff
        self._catalog = catalog
        self._owner = owner
        self._clock = clock
        self._seconds = seconds
        self._failures: dict[str, int] = {}
        self._trials: set[str] = set()
        self._shown: dict[str, IDelayedCall] = {}

    def left(self, url: str) -> float:
        """Seconds for which this URL's origin is not asked, as far as it is known in this process."""
        return self._backoff.left(origin_of(url))

    async def check(self, url: str) -> None:
        """Raises UpstreamPaused with the reason while this URL's origin is not asked."""
        origin = origin_of(url)
        pause = await self._backoff.look(origin)
        if pause is not None and pause.until > self._clock.seconds():
            raise self._paused(pause)

    async def acquire(self, url: str) -> Permit:
        """Leave for a request to this URL. Raises UpstreamPaused with the reason, and when to come back."""
        origin = origin_of(url)
        pause = await self._backoff.look(origin)
        if pause is None:
            return Permit(origin)
        if pause.until > self._clock.seconds():
            self._show(origin, pause)
            raise self._paused(pause)
        if origin in self._trials:
            raise self._paused(pause)
        self._trials.add(origin)
        if not await self._is_ours(origin):
            self._trials.discard(origin)
            raise self._paused(pause)
        return Permit(origin, trial=True)

    async def succeeded(self, permit: Permit) -> None:
        """An answer came, whatever it says."""
        self._failures.pop(permit.origin, None)
        if permit.trial:
            await self._backoff.end(permit.origin)
            self._hide(permit.origin)
            self.log.info("{origin} is asked again", origin=permit.origin)
            await self.release(permit)

    async def failed(self, permit: Permit, why: str, told: float | None = None) -> None:
        """No answer came, or none that helps. `told`: seconds for which upstream wants to be left alone."""
        origin, before = permit.origin, self._backoff.known(permit.origin)
        if before is None:
            self._failures[origin] = self._failures.get(origin, 0) + 1
        # A failure of what went out before the pause tells nothing new.
        if permit.trial or self._failures.get(origin, 0) >= _FAILURES or (told or 0) > self._backoff.left(origin):
            self._failures.pop(origin, None)
            pause = await self._backoff.begin(origin, why, seconds=told)
            self._show(origin, pause)
            if before is None:
                seconds = max(1, round(pause.until - self._clock.seconds()))
                self.log.warn("{origin} is not asked for {seconds} s: {why}", origin=origin, seconds=seconds, why=why)
        await self.release(permit)

    async def release(self, permit: Permit) -> None:
        """Nothing was learnt: somebody else may be the trial."""
        if permit.trial:
            self._trials.discard(permit.origin)
            with suppress(CatalogDown):
                await self._catalog.release_lease(f"trial:{permit.origin}", self._owner)

    async def _is_ours(self, origin: str) -> bool:
        try:
            return await self._catalog.take_lease(f"trial:{origin}", self._owner, self._seconds) is None
        except CatalogDown:
            return True

    def _paused(self, pause: Pause) -> UpstreamPaused:
        left = max(1, math.ceil(pause.until - self._clock.seconds()))
        return UpstreamPaused(f"upstream is not asked for another {left} s, since it fails: {pause.why}", left)

    def _show(self, origin: str, pause: Pause) -> None:
        """The metric falls by itself: there may be no other request here that would see the pause's end."""
        left = pause.until - self._clock.seconds()
        if left > 0:
            self._hide(origin)
            self._shown[origin] = self._clock.callLater(left, self._hide, origin)
            metrics.BREAKER_OPEN.labels(_host(origin)).set(1)

    def _hide(self, origin: str) -> None:
        timer = self._shown.pop(origin, None)
        if timer is not None and timer.active():
            timer.cancel()
        metrics.BREAKER_OPEN.labels(_host(origin)).set(0)


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL; empty where it has no host, or is none."""
    with suppress(ValueError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname else ""
    return ""


def _host(origin: str) -> str:
    return urlsplit(origin).hostname or ""
