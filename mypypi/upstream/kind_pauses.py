"""Holds back a kind of requests to an origin, such as its pages, when upstream refuses several of them.

Upstream may refuse these URLs alone, so now and then during a pause one request is sent as a trial. Knows kinds, URLs,
and statuses that ask for fewer requests. Must never know what was requested, or whether the origin can be reached.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from attrs import define
from cachetools import LRUCache

from mypypi.errors import CatalogDown
from mypypi.upstream.backoff import Backoff

if TYPE_CHECKING:
    from mypypi.coordination import Pause
    from mypypi.interfaces import ICatalog

#: Statuses that ask for fewer requests.
THROTTLING = (429, 503)
#: A kind is held back once so many different URLs of it were answered so, without a success, within so many seconds.
_REFUSED_URLS, _REFUSED_SECONDS = 5, 10.0
#: Seconds from the begin of a pause to its first trial, and how much longer each interval is than the one before. This
#: makes thirteen trials in a minute.
_FIRST_TRIAL, _GROWTH = 0.25, 1.4
#: Kinds of origins that this process remembers.
_MOST_KINDS = 4000


@define
class _Trials:
    """When the next trial is due, and the holder of the lease that keeps other processes from sending one."""

    due: float
    interval: float = _FIRST_TRIAL
    holder: str = ""


class KindPauses:
    """The pauses of kinds of requests. All processes of a fleet share them, and their trials."""

    def __init__(self, backoff: Backoff, catalog: ICatalog, owner: str, clock: Any) -> None:
        self._backoff = backoff
        self._catalog = catalog
        self._owner = owner
        self._clock = clock
        #: By kind and URL: when it was answered 429 or 503, and until when its Retry-After lasts.
        self._refused: LRUCache[str, dict[str, tuple[float, float]]] = LRUCache(_MOST_KINDS)
        self._trials: LRUCache[str, _Trials] = LRUCache(_MOST_KINDS)

    def remaining(self, origin: str, kind: str, *, patient: bool = False) -> float:
        """
        Return the seconds left of a pause, or for a `patient` request until its next trial.

        Only what this process knows counts.
        """
        name = _name(origin, kind)
        left = self._backoff.remaining(name)
        if not patient or not left:
            return left
        trials = self._trials.get(name)
        return min(left, _FIRST_TRIAL if trials is None else max(0.0, trials.due - self._clock.seconds()))

    async def read(self, origin: str, kind: str) -> Pause | None:
        """Return the pause that lasts now, if any."""
        name = _name(origin, kind)
        pause = await self._backoff.read(name)
        if pause is not None and pause.until > self._clock.seconds():
            return pause
        self._trials.pop(name, None)
        return None

    async def begin_trial(self, origin: str, kind: str) -> bool:
        """Return whether a request may be sent as a trial now, during the pause."""
        name, now = _name(origin, kind), self._clock.seconds()
        trials = self._trials.setdefault(name, _Trials(now + _FIRST_TRIAL))
        if now < trials.due:
            return False
        trials.interval *= _GROWTH
        trials.due = now + trials.interval
        trials.holder = f"{self._owner} {now}"
        try:
            # Until the lease expires, no process sends another trial.
            held = await self._catalog.take_lease(f"trial:{name}", trials.holder, trials.interval)
        except CatalogDown:
            return True
        return held is None

    async def forget_trial(self, origin: str, kind: str) -> None:
        """Let another request be the trial at once, since the answer to the last one tells nothing about the kind."""
        name = _name(origin, kind)
        trials = self._trials.get(name)
        if trials is not None:
            trials.due = self._clock.seconds()
            trials.interval /= _GROWTH
            with suppress(CatalogDown):
                await self._catalog.release_lease(f"trial:{name}", trials.holder)

    async def note_refusal(
        self, origin: str, kind: str, url: str, status: int, retry_after: float | None
    ) -> Pause | None:
        """
        Hold the kind back once enough different URLs of it were refused; return the pause.

        The longest Retry-After counts, also that of a request that was sent before the pause.
        """
        name, now, seconds = _name(origin, kind), self._clock.seconds(), retry_after or 0.0
        left = self._backoff.remaining(name)
        if left:
            return await self._begin(name, kind, status, seconds) if seconds >= left + 1 else None
        refused = self._refused.setdefault(name, {})
        refused[url] = now, now + seconds
        for old in [old for old, (at, _) in refused.items() if now - at > _REFUSED_SECONDS]:
            del refused[old]
        if len(refused) < _REFUSED_URLS:
            return None
        del self._refused[name]
        self._trials.pop(name, None)
        return await self._begin(name, kind, status, max(until for _, until in refused.values()) - now)

    async def note_success(self, origin: str, kind: str, *, trial: bool) -> bool:
        """
        Forget the refusals of this kind. Returns whether that ended a pause.

        A request that was sent before a pause does not end it, but a trial does.
        """
        name = _name(origin, kind)
        self._refused.pop(name, None)
        is_paused = self._backoff.remaining(name) > 0
        if trial or not is_paused:
            await self._backoff.end(name)
        return trial and is_paused

    async def _begin(self, name: str, kind: str, status: int, seconds: float) -> Pause:
        why = f"upstream answered {status} to several {kind} requests"
        return await self._backoff.begin(name, why, seconds=seconds or None)


def _name(origin: str, kind: str) -> str:
    """The name of a kind's pause."""
    return f"{origin} {kind}"
