"""Limits concurrent requests, and shares them between kinds of requests and between clients.

Requests that find no free place wait in a bounded queue. Background requests do not wait, and only run while there is
spare capacity. Late requests, which upstream has not answered in time, take no place from others. Knows numbers and
names. Must never know what a request is about.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable

from attrs import define, evolve, frozen
from twisted.internet.defer import Deferred

from mypypi.errors import UpstreamBusy
from mypypi.observability import metrics

#: Requests that may wait, for each that may run. If each takes a second, the last one waits about as many seconds.
_WAITING_PER_SLOT = 16
#: A kind may hold one in so many places: half of them.
_KINDS = 2
#: Share of all places, and of a kind's places, that one client may hold.
_CLIENT_SHARE = 0.75


@frozen
class Slot:
    """A place among the running requests, or among the `late` ones, to be released once."""

    kind: str
    client: str
    late: bool = False


class _Places:
    """
    A number of places: how many are taken, and by whom.

    A kind of requests takes at most half of them. A client takes at most three quarters of a kind's places, and of all
    places. Where that is less than one place, it is one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._per_kind = max(1, limit // _KINDS)
        self._per_client = max(1, int(limit * _CLIENT_SHARE))
        self._per_slot = max(1, int(self._per_kind * _CLIENT_SHARE))
        self._taken = 0
        self._kinds: Counter[str] = Counter()
        self._clients: Counter[str] = Counter()
        self._slots: Counter[Slot] = Counter()

    def has_room(self, slot: Slot) -> bool:
        """Whether there is a place for such a request."""
        return (
            not self.is_full
            and self._kinds[slot.kind] < self._per_kind
            and self._clients[slot.client] < self._per_client
            and self._slots[slot] < self._per_slot
        )

    @property
    def is_full(self) -> bool:
        """Whether all places are taken."""
        return self._taken >= self._limit

    def is_half_free(self, kind: str) -> bool:
        """Whether more than half of this kind's places, and of all, are free."""
        return 2 * self._kinds[kind] < self._per_kind and 2 * self._taken < self._limit

    def of_kind(self, kind: str) -> int:
        """Return how many places this kind has taken."""
        return self._kinds[kind]

    def take(self, slot: Slot) -> None:
        """Take a place."""
        self._add(slot, 1)

    def free(self, slot: Slot) -> None:
        """Free a place."""
        self._add(slot, -1)
        if not self._clients[slot.client]:
            del self._clients[slot.client]
        if not self._slots[slot]:
            del self._slots[slot]

    def _add(self, slot: Slot, number: int) -> None:
        self._taken += number
        self._kinds[slot.kind] += number
        self._clients[slot.client] += number
        self._slots[slot] += number


class ConcurrencyLimiter:
    """
    Runs at most `limit` requests at once.

    At most half of them are of one kind, and at most three quarters of one client; the same holds for the queue. So
    requests that hang can't keep all others waiting. With less than four places, there are not enough for all that.
    Places that become free go to the kind that has the fewest, and to its clients in turn. As many late requests go on
    besides, with the same shares. With `metered`, requests are counted in the metrics.
    """

    def __init__(self, limit: int, *, metered: bool = True) -> None:
        self._metered = metered
        self._running = _Places(limit)
        self._late = _Places(limit)
        self._queued = _Places(_WAITING_PER_SLOT * limit)
        self._waiting: OrderedDict[Slot, deque[Deferred[None]]] = OrderedDict()

    def has_spare_capacity(self, kind: str) -> bool:
        """Whether more than half of this kind's places, and of all, are free. Only then may background requests run."""
        return self._running.is_half_free(kind)

    async def acquire(self, kind: str, client: str = "", *, background: bool = False) -> Slot:
        """
        Wait for a place, which the caller has to release.

        Raises UpstreamBusy if too many requests wait, or if a `background` request finds no spare capacity.
        """
        slot = Slot(kind, client)
        if background:
            if not self.has_spare_capacity(kind):
                raise UpstreamBusy("upstream has no spare capacity for requests that no client waits for")
        elif not self._running.has_room(slot):
            await self._wait(slot)
            return slot
        self._start(slot)
        return slot

    def release(self, slot: Slot) -> None:
        """Free the place for the next request that waits."""
        (self._late if slot.late else self._running).free(slot)
        self._count(running=-1)
        self._start_waiting()

    def make_late(self, slot: Slot) -> Slot | None:
        """
        Give the place of a request that upstream has not answered in time to others.

        Returns the place in which it goes on. Returns None if there is none: too many requests are late.
        """
        if slot.late:
            return slot
        late = evolve(slot, late=True)
        if not self._late.has_room(late):
            return None
        self._late.take(late)
        self._running.free(slot)
        self._start_waiting()
        return late

    def _start(self, slot: Slot) -> None:
        self._running.take(slot)
        self._count(running=1)

    async def _wait(self, slot: Slot) -> None:
        if not self._queued.has_room(slot):
            if self._metered:
                metrics.UPSTREAM_REFUSED.inc()
            raise UpstreamBusy("too many requests wait for upstream: try again later")
        turn: Deferred[None] = Deferred(lambda _: None)
        self._waiting.setdefault(slot, deque()).append(turn)
        self._queued.take(slot)
        self._count(waiting=1)
        try:
            await turn
        except BaseException:
            self._leave_queue(slot, turn)
            raise

    def _leave_queue(self, slot: Slot, turn: Deferred[None]) -> None:
        """The request was cancelled: it waits no longer, or gives back the place that it just got."""
        queue = self._waiting.get(slot)
        if queue is not None and turn in queue:
            queue.remove(turn)
            self._left(slot)
        else:
            self.release(slot)

    def _left(self, slot: Slot) -> None:
        self._queued.free(slot)
        self._count(waiting=-1)
        if not self._waiting[slot]:
            del self._waiting[slot]

    def _start_waiting(self) -> None:
        """Start requests that wait: the kind that runs least first, and one of each client in turn."""
        for slot in sorted(self._waiting, key=lambda each: self._running.of_kind(each.kind)):
            if self._running.is_full:
                return
            queue = self._waiting.get(slot)
            if queue and self._running.has_room(slot):
                turn = queue.popleft()
                self._waiting.move_to_end(slot)
                self._left(slot)
                self._start(slot)
                turn.callback(None)

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        if self._metered:
            metrics.UPSTREAM_WAITING.inc(waiting)
            metrics.UPSTREAM_RUNNING.inc(running)


@define
class Place:
    """The slot of a request that runs. It is another one once the request is late."""

    limiter: ConcurrencyLimiter
    slot: Slot

    def release(self) -> None:
        """Free the slot."""
        self.limiter.release(self.slot)

    def make_late(self, told: Callable[[], object]) -> bool:
        """Let the request go on, if not too many are late; then call `told`. Returns whether it goes on."""
        slot = self.limiter.make_late(self.slot)
        if slot is None:
            return False
        self.slot = slot
        told()
        return True
