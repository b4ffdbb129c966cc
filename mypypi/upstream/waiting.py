"""The requests that wait for a place, and whose turn it is.

Knows slots, places and their order. Must never know why a request waits, or what starts it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from mypypi.upstream.places import Places, Slot


class _HasSlot(Protocol):
    slot: Slot


Place = TypeVar("Place", bound=_HasSlot)


class Waiting(Generic[Place]):
    """
    Requests that wait, of which each client is served in turn.

    Those for upstream's own origin and those for others do not compete: they have places of their own.
    """

    def __init__(self) -> None:
        self._clients: dict[bool, OrderedDict[str, OrderedDict[Slot, deque[Place]]]] = {
            False: OrderedDict(),
            True: OrderedDict(),
        }

    def __bool__(self) -> bool:
        return any(self._clients.values())

    def __contains__(self, place: Place) -> bool:
        return place in self._queue(place.slot)

    def slots(self, like: Slot) -> Iterator[Slot]:
        """Yield the slots of the requests that compete with this one."""
        for slots in self._clients[bool(like.origin)].values():
            yield from slots

    def count(self, slot: Slot) -> int:
        """Return how many requests of this slot wait."""
        return len(self._queue(slot))

    def add(self, place: Place) -> None:
        """Let a request wait."""
        slot = place.slot
        client = self._clients[bool(slot.origin)].setdefault(slot.client, OrderedDict())
        client.setdefault(slot, deque()).append(place)

    def remove(self, place: Place) -> None:
        """Remove a request, which must wait."""
        slot = place.slot
        clients = self._clients[bool(slot.origin)]
        slots = clients[slot.client]
        slots[slot].remove(place)
        if not slots[slot]:
            del slots[slot]
        if not slots:
            del clients[slot.client]

    def take_next(self, places: Places, freed: Slot) -> Place | None:
        """
        Remove and return the request whose turn it is, among those that may use what this slot has freed.

        Whole files come last. At upstream's own origin, the kind that holds the fewest places comes first. At others,
        it is the client.
        """
        best, least = None, (True, 0)
        others = bool(freed.origin)
        if places.are_full(others=others):
            return None
        for slots in self._clients[others].values():
            ready = (slot for slot in slots if places.has_room(slot))
            slot = min(ready, key=places.rank, default=None)
            if slot is not None and (best is None or places.rank(slot) < least):
                best, least = slot, places.rank(slot)
                if least == (False, 0):  # no other comes before it
                    break
        if best is None:
            return None
        clients = self._clients[others]
        place = clients[best.client][best][0]
        clients.move_to_end(best.client)
        clients[best.client].move_to_end(best)
        self.remove(place)
        return place

    def _queue(self, slot: Slot) -> deque[Place]:
        client = self._clients[bool(slot.origin)].get(slot.client)
        return deque() if client is None else client.get(slot, deque())
