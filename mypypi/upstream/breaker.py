"""Circuit breaker: holds back requests that upstream can't take now.

These are requests to an origin that can't be reached, and requests of a kind that it refuses. What one URL was answered
says nothing about others: those who ask for a URL remember its failures by themselves. Knows origins, kinds, and how
requests ended. Must never know what was requested, or how.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from twisted.internet.task import deferLater
from twisted.logger import Logger

from mypypi.errors import CatalogDown, UpstreamPaused
from mypypi.upstream.backoff import PATIENCE
from mypypi.upstream.kind_pauses import THROTTLING, KindPauses
from mypypi.upstream.origins import Origins, Permit
from mypypi.upstream.pause_gauge import PauseGauge

if TYPE_CHECKING:
    from mypypi.coordination import Pause
    from mypypi.interfaces import ICatalog
    from mypypi.upstream.backoff import Backoff

#: Requests in a row that got no connection, after which their origin is held back.
_CONNECTION_FAILURES = 5
#: URLs that wait in vain while the origin answers none, after which it is held back.
_SILENT_URLS = 3
#: The first status that says that upstream failed.
_SERVER_ERROR = 500
#: Seconds between two tries of a request that waits for the end of a trial.
_TRIAL_INTERVAL = 0.1
#: The kind that stands for all requests to an origin, in the metrics.
_ALL = "all"


class Breaker:
    """
    Decides which requests may be sent. All processes of a fleet share its pauses, and see a new one within a second.

    An origin is held back when connections to it fail, or when it answers nothing for the length of the time-out while
    several URLs wait. After the pause, one request of the whole fleet is sent as a trial, for which `owner` holds a
    lease of `seconds`. The trial ends the pause or begins the next one. If its URL got no answer before, a request for
    another URL may become the trial in its place. A kind of request is held back when five different URLs of it were
    answered 429 or 503 within ten seconds. Now and then during such a pause, one request is sent: if it succeeds, only
    some URLs are refused, and the pause ends. Pauses grow, unless a Retry-After tells their length.
    """

    log = Logger()

    def __init__(
        self, backoff: Backoff, catalog: ICatalog, owner: str, clock: Any, seconds: float, upstream: str = ""
    ) -> None:
        """`upstream` is the URL of upstream, whose origin the metric names."""
        self._backoff = backoff
        self._catalog = catalog
        self._owner = owner
        self._clock = clock
        self._lease_seconds = seconds
        self._origins = Origins()
        self._trials: dict[str, Permit] = {}
        self._kinds = KindPauses(backoff, catalog, owner, clock)
        self.gauge = PauseGauge(clock, origin_of(upstream))

    def remaining(self, url: str, kind: str, *, patient: bool = False) -> float:
        """
        Return the seconds for which such requests are held back; for a `patient` one, until the next trial.

        Only what this process knows counts.
        """
        origin = origin_of(url)
        return max(self._backoff.remaining(origin), self._kinds.remaining(origin, kind, patient=patient))

    def is_silent(self, url: str, seconds: float) -> bool:
        """Whether a request waits for longer than this, and the origin has answered no other one since it was sent."""
        origin = self._origins.get(origin_of(url))
        if origin is None or not origin.waiting:
            return False
        latest = self._clock.seconds() - seconds
        return any(origin.answered_at < permit.since <= latest for permit in origin.waiting)

    async def check(self, url: str, kind: str) -> None:
        """Raise UpstreamPaused with the reason while such requests are held back."""
        origin = origin_of(url)
        for pause in (await self._backoff.read(origin), await self._kinds.read(origin, kind)):
            if pause is not None and pause.until > self._clock.seconds():
                raise self._paused(pause)

    async def acquire(self, url: str, kind: str, *, patient: bool = False) -> Permit:
        """
        Return a permit for a request of this kind to this URL.

        A `patient` request waits up to `PATIENCE` seconds for the end of a pause and of a trial, and may be the trial.
        Raises UpstreamPaused with the reason and the seconds until a retry.
        """
        until = self._clock.seconds() + (PATIENCE if patient else 0.0)
        while True:
            try:
                return await self._try_to_acquire(url, kind, patient=patient)
            except UpstreamPaused:
                wait = max(self.remaining(url, kind, patient=patient), _TRIAL_INTERVAL)
                if self._clock.seconds() + wait > until:
                    raise
            # The pause of a kind may end at any time before its next trial.
            await deferLater(self._clock, max(self._backoff.remaining(origin_of(url)), _TRIAL_INTERVAL))

    async def _try_to_acquire(self, url: str, kind: str, *, patient: bool) -> Permit:
        """Return a permit, or raise UpstreamPaused at once."""
        origin, now = origin_of(url), self._clock.seconds()
        kind_pause = await self._kinds.read(origin, kind)
        if kind_pause is not None and not (patient and await self._kinds.begin_trial(origin, kind)):
            self.gauge.set(origin, kind, kind_pause)
            raise self._paused(kind_pause)
        if kind_pause is None:
            self.gauge.clear(origin, kind)  # another process may have ended the pause before its time
        pause = await self._backoff.read(origin)
        if pause is not None and pause.until <= now and origin not in self._trials:
            pause = await self._backoff.read(origin, anew=True)  # another process may have just ended it
        permit = Permit(origin, kind, url, self._clock.seconds(), pause is not None, kind_pause is not None)
        if pause is not None:
            if pause.until > now:
                self.gauge.set(origin, _ALL, pause)
                raise self._paused(pause)
            if not await self._begin_trial(permit):
                raise self._paused(pause)
        self._origins.seen(origin).waiting.add(permit)
        return permit

    async def answered(self, permit: Permit, status: int, retry_after: float | None = None) -> None:
        """
        Report the status that upstream answered. `retry_after`: the seconds of its Retry-After, if it sent one.

        An answer says that the origin can be reached, whatever the status.
        """
        origin = self._origins.seen(permit.origin)
        origin.answered_at = self._clock.seconds()
        origin.failed_urls.clear()
        origin.silent_urls.clear()
        try:
            if status in THROTTLING:
                await self._note_refusal(permit, status, retry_after)
            elif status < _SERVER_ERROR:
                if await self._kinds.note_success(permit.origin, permit.kind, trial=permit.tries_kind):
                    self._log_resumed(permit.origin, permit.kind)
            elif permit.tries_kind:
                await self._kinds.forget_trial(permit.origin, permit.kind)
            if (permit.trial or permit.late) and self._backoff.last_known(permit.origin) is not None:
                await self._backoff.end(permit.origin)
                self._log_resumed(permit.origin, _ALL)
        finally:
            await self.release(permit)

    async def not_connected(self, permit: Permit, why: str, *, refused: bool) -> None:
        """
        Report that no connection could be made, or that it was closed before an answer.

        `refused`: there was no connection at all. One that is closed may be this URL's fault, so it counts once for
        each URL.
        """
        origin = self._origins.seen(permit.origin)
        if refused or permit.url not in origin.failed_urls:
            origin.failed_urls.append(permit.url)
        try:
            if self._is_trial(permit) or len(origin.failed_urls) >= _CONNECTION_FAILURES:
                origin.failed_urls.clear()
                await self._hold_back(permit, why)
        finally:
            await self.release(permit)

    async def timed_out(self, permit: Permit, why: str, *, goes_on: bool = False) -> None:
        """
        Report that no answer came within the time-out, and whether the request `goes_on`.

        URLs that wait for less than half as long say nothing about the origin yet. A late answer ends the pause that
        begins now.
        """
        permit.late = goes_on
        origin, now = self._origins.seen(permit.origin), self._clock.seconds()
        is_silent = origin.answered_at < permit.since
        if is_silent:
            origin.note_silence(permit.url)
        half = (permit.since + now) / 2
        waiting = {each.url for each in origin.waiting if origin.answered_at < each.since <= half}
        try:
            if self._is_trial(permit) or (is_silent and len(origin.silent_urls | waiting) >= _SILENT_URLS):
                await self._hold_back(permit, why)
        finally:
            await (self._end_trial(permit) if goes_on else self.release(permit))

    async def release(self, permit: Permit) -> None:
        """
        End a request, so that another one may be the trial.

        Called by itself, it reports that the request ended without an outcome.
        """
        origin = self._origins.get(permit.origin)
        if origin is not None:
            origin.waiting.discard(permit)
        await self._end_trial(permit)

    async def _end_trial(self, permit: Permit) -> None:
        """Let another request be the trial of the origin, if this one is."""
        if self._is_trial(permit):
            del self._trials[permit.origin]
            with suppress(CatalogDown):
                await self._catalog.release_lease(f"trial:{permit.origin}", self._owner)

    async def _note_refusal(self, permit: Permit, status: int, retry_after: float | None) -> None:
        origin, kind = permit.origin, permit.kind
        pause = await self._kinds.note_refusal(origin, kind, permit.url, status, retry_after)
        if pause is not None:
            self.gauge.set(origin, kind, pause)
            self._log_pause(origin, kind, pause)

    async def _hold_back(self, permit: Permit, why: str) -> None:
        before = self._backoff.last_known(permit.origin)
        if before is not None and not self._is_trial(permit):
            return  # a request that was sent before the pause does not lengthen it
        pause = await self._backoff.begin(permit.origin, why)
        self.gauge.set(permit.origin, _ALL, pause)
        if before is None:
            self._log_pause(permit.origin, _ALL, pause)

    def _log_pause(self, origin: str, kind: str, pause: Pause) -> None:
        left = max(1, round(pause.until - self._clock.seconds()))
        what = _requests(kind)
        self.log.warn(
            "{what} to {origin} are paused for {left} s: {why}", what=what, origin=origin, left=left, why=pause.why
        )

    def _log_resumed(self, origin: str, kind: str) -> None:
        self.gauge.clear(origin, kind)
        self.log.info("{what} to {origin} are resumed", what=_requests(kind), origin=origin)

    def _is_trial(self, permit: Permit) -> bool:
        """Whether this is the trial of its origin, and none has taken its place."""
        return self._trials.get(permit.origin) is permit

    async def _begin_trial(self, permit: Permit) -> bool:
        """Make this request the trial of its origin, unless there is one, here or in another process."""
        running, origin = self._trials.get(permit.origin), self._origins.get(permit.origin)
        silent = set() if origin is None else origin.silent_urls
        if running is not None and (running.url not in silent or permit.url in silent):
            return False
        self._trials[permit.origin] = permit
        try:
            held = await self._catalog.take_lease(f"trial:{permit.origin}", self._owner, self._lease_seconds)
        except CatalogDown:
            return True
        except BaseException:
            await self.release(permit)
            raise
        if held is not None and self._is_trial(permit):
            del self._trials[permit.origin]
        return held is None

    def _paused(self, pause: Pause) -> UpstreamPaused:
        left = max(1, math.ceil(pause.until - self._clock.seconds()))
        return UpstreamPaused(
            f"requests to upstream are paused for another {left} s, because it failed: {pause.why}", left
        )


def origin_of(url: str) -> str:
    """Return the scheme, host and port of a URL. Returns "" if it has no host or is invalid."""
    with suppress(ValueError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"{parts.scheme}://{parts.hostname}:{port}" if parts.hostname else ""
    return ""


def _requests(kind: str) -> str:
    return "requests" if kind == _ALL else f"{kind} requests"
