"""Limits concurrent requests, and shares them between origins, kinds of requests and clients.

Requests that find no free place wait in a bounded queue. Background requests do not wait, and only run while there is
spare capacity. Late requests, which upstream has not answered in time, take no place from others. A request that no
client waits for gives its place to one that a client waits for. Knows places. Must never know what a request is about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from attrs import define, evolve, field
from twisted.internet.defer import Deferred

from mypypi.errors import UpstreamBusy
from mypypi.observability import metrics
from mypypi.upstream.places import Places, Slot
from mypypi.upstream.waiting import Waiting

#: Requests that may wait, for each that may run. If each takes a second, the last one waits about as many seconds.
_WAITING_PER_SLOT = 16


@define(eq=False)
class Demand:
    """
    Whether any client waits for a request. While it is `idle`, none does.

    An idle request gives way to others: `give_way` is called, once for each place, when another request needs the
    place. The request releases the place then, and may ask for one again. That is granted while nobody else needs it.
    """

    give_way: Callable[[], object]
    idle: bool = False
    _place: Place | None = field(default=None, repr=False)

    def set_idle(self, idle: bool) -> None:  # noqa: FBT001 - it is the value
        """Record whether any client waits. Another request may take the place at once."""
        if self.idle != idle:
            self.idle = idle
            if self._place is not None:
                self._place.limiter.reconsider(self._place)

    def belongs_to(self, place: Place) -> None:
        """Use this place from now on, which waits or runs."""
        self._place = place


@define(eq=False)
class Place:
    """
    The place of one request, which waits for it or holds it. Its slot is another one once the request is late.

    It `holds` until it is released. `turn` fires when it may run. It was `asked_by` another slot to give way.
    """

    limiter: ConcurrencyLimiter
    slot: Slot
    demand: Demand | None = None
    holds: bool = False
    turn: Deferred[None] | None = field(default=None, repr=False)
    asked_by: Slot | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no client waits for the request."""
        return self.demand is not None and self.demand.idle

    def release(self) -> None:
        """Free the place for the next request that waits. May be called more than once."""
        if self.holds:
            self.limiter.release(self)

    def make_late(self, told: Callable[[], object]) -> bool:
        """Let the request go on, if not too many are late; then call `told`. Returns whether it goes on."""
        if not self.limiter.make_late(self):
            return False
        told()
        return True

    async def move(self, origin: str) -> None:
        """
        Exchange the place for one at this origin, to which the request was redirected.

        The first place is free meanwhile. Raises UpstreamBusy, and then holds none.
        """
        if origin != self.slot.origin:
            self.release()
            self.slot = evolve(self.slot, origin=origin, late=False)
            await self.limiter.enter(self)


class ConcurrencyLimiter:
    """
    Runs at most `limit` requests at once at upstream's own origin, and as many at each other one; see `Places`.

    The same shares hold for the queue. So requests that hang can't keep all others waiting. With less than four places,
    there are not enough for all that. Places that become free go to the kind that has the fewest, at other origins to
    the client that has the fewest, and else to clients in turn. As many late requests go on besides, with the same
    shares. With `metered`, requests are counted in the metrics.
    """

    def __init__(self, limit: int, *, metered: bool = True) -> None:
        self._metered = metered
        self._running = Places(limit)
        self._late = Places(limit)
        self._queued = Places(_WAITING_PER_SLOT * limit)
        self._waiting: Waiting[Place] = Waiting()
        #: Idle requests that wait, and those that run and may be asked to give way. Their owner bounds their number.
        self._aside: dict[Place, None] = {}
        self._idle: dict[Place, None] = {}
        #: How many requests were asked to give way for a slot, and have not done so yet.
        self._asked: Counter[Slot] = Counter()

    def has_spare_capacity(self, kind: str) -> bool:
        """Whether more than half of this kind's places, and of all, are free. Only then may background requests run."""
        return self._running.is_half_free(kind)

    async def acquire(
        self,
        kind: str,
        client: str = "",
        *,
        origin: str = "",
        background: bool = False,
        demand: Demand | None = None,
    ) -> Place:
        """
        Wait for a place, which the caller has to release. `origin` is empty for upstream's own.

        Raises UpstreamBusy if too many requests wait, or if a `background` request finds no spare capacity.
        """
        place = Place(self, Slot(kind, client, origin), demand)
        if background:
            if not self.has_spare_capacity(kind):
                raise UpstreamBusy("upstream has no spare capacity for requests that no client waits for")
            self._start(place)
        else:
            await self.enter(place)
        return place

    async def enter(self, place: Place) -> None:
        """Wait until this place holds. Raises UpstreamBusy if too many requests wait."""
        if place.demand is not None:
            place.demand.belongs_to(place)
        if self._running.has_room(place.slot):
            self._start(place)
            return
        turn: Deferred[None] = Deferred(lambda _: None)
        place.turn = turn
        if place.is_idle:
            self._aside[place] = None
        else:
            self._enqueue(place)
        try:
            await turn
        except BaseException:
            self._leave(place)
            raise

    def release(self, place: Place) -> None:
        """Free the place for the next request that waits."""
        place.holds = False
        self._idle.pop(place, None)
        if place.asked_by is not None:
            self._asked[place.asked_by] -= 1
            self._asked += Counter()  # forget those without any
            place.asked_by = None
        (self._late if place.slot.late else self._running).free(place.slot)
        self._count(running=-1)
        self._start_waiting(place.slot)

    def make_late(self, place: Place) -> bool:
        """
        Give the place of a request that upstream has not answered in time to others.

        Returns whether it goes on. Otherwise too many requests are late.
        """
        slot = place.slot
        if slot.late:
            return True
        late = evolve(slot, late=True)
        if not self._late.has_room(late):
            return False
        self._late.take(late)
        self._running.free(slot)
        self._idle.pop(place, None)
        place.slot = late
        self._start_waiting(slot)
        return True

    def reconsider(self, place: Place) -> None:
        """Act on a change of the place's demand."""
        if place.holds:
            if place.slot.late or place.asked_by is not None:
                return
            if place.is_idle:
                self._idle[place] = None
                self._let_give_way(place)
            else:
                self._idle.pop(place, None)
        elif place in self._aside:
            del self._aside[place]
            try:
                self._enqueue(place)
            except UpstreamBusy as error:
                assert place.turn is not None
                place.turn.errback(error)
        elif place.is_idle and place in self._waiting:
            self._dequeue(place)
            self._aside[place] = None

    def _start(self, place: Place) -> None:
        self._running.take(place.slot)
        place.holds = True
        if place.is_idle:
            self._idle[place] = None
        self._count(running=1)

    def _enqueue(self, place: Place) -> None:
        """Let a request wait, and ask an idle one to give way to it. Raises UpstreamBusy."""
        slot = place.slot
        if not self._queued.has_room(slot):
            if self._metered:
                metrics.UPSTREAM_REFUSED.inc()
            raise UpstreamBusy("too many requests wait for upstream: try again later")
        self._waiting.add(place)
        self._queued.take(slot)
        self._count(waiting=1)
        for idle in self._idle:
            if self._would_help(idle, slot):
                self._ask(idle, slot)
                return

    def _dequeue(self, place: Place) -> None:
        self._waiting.remove(place)
        self._dequeued(place)

    def _dequeued(self, place: Place) -> None:
        self._queued.free(place.slot)
        self._count(waiting=-1)

    def _leave(self, place: Place) -> None:
        """The request was cancelled: it waits no longer, or gives back the place that it just got."""
        if place in self._aside:
            del self._aside[place]
        elif place in self._waiting:
            self._dequeue(place)
        else:
            place.release()

    def _start_waiting(self, freed: Slot) -> None:
        """Start requests that wait, and then idle ones, as far as there are places."""
        while (place := self._waiting.take_next(self._running, freed)) is not None:
            self._dequeued(place)
            self._begin(place)
        for place in tuple(self._aside):
            if place in self._aside and self._running.has_room(place.slot):
                del self._aside[place]
                self._begin(place)

    def _begin(self, place: Place) -> None:
        self._start(place)
        assert place.turn is not None
        place.turn.callback(None)

    def _let_give_way(self, idle: Place) -> None:
        """Ask a request that has become idle to give way, if it would help one that waits."""
        for slot in self._waiting.slots(like=idle.slot):
            if self._waiting.count(slot) > self._asked[slot] and self._would_help(idle, slot):
                self._ask(idle, slot)
                return

    def _would_help(self, idle: Place, slot: Slot) -> bool:
        """Whether such a request would have room without the idle one."""
        if not _compete(idle.slot, slot):
            return False
        self._running.free(idle.slot)
        has_room = self._running.has_room(slot)
        self._running.take(idle.slot)
        return has_room

    def _ask(self, idle: Place, slot: Slot) -> None:
        del self._idle[idle]
        idle.asked_by = slot
        self._asked[slot] += 1
        assert idle.demand is not None
        idle.demand.give_way()

    def _count(self, *, waiting: int = 0, running: int = 0) -> None:
        if self._metered:
            metrics.UPSTREAM_WAITING.inc(waiting)
            metrics.UPSTREAM_RUNNING.inc(running)


def _compete(slot: Slot, other: Slot) -> bool:
    """Whether both are at upstream's own origin, or both at others: then one's place may be of use to the other."""
    return bool(slot.origin) == bool(other.origin)
