"""Counts places, and bounds the shares that origins, kinds of requests and clients may hold.

Knows numbers and names. Must never know what holds a place, or who waits for one.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

from attrs import frozen

N = TypeVar("N", bound=object)

#: A kind may hold one in so many places of an origin: half of them.
_KINDS = 2
#: The share of an origin's places that one client may hold, and of a kind's places there. All kinds that a resolution
#: reads may hold the same share together. So may all other kinds. A quarter is thus kept for each of these two groups.
_SHARE = 0.75
#: All other origins may hold so many times the places of upstream's own origin.
_OTHERS = 2
#: The kinds that a resolution reads: pages are made of them, or they are small.
_METADATA = frozenset(("page", "keys", "attestations", "metadata", "range"))


@frozen(cache_hash=True)
class Slot:
    """
    Whose a place is: the kind of request, its client, and its origin, which is empty for upstream's own.

    A `late` one is among the requests that upstream has not answered in time.
    """

    kind: str
    client: str
    origin: str = ""
    late: bool = False


class _Shares:
    """
    The places at one origin: how many are taken, and by whom.

    A kind of requests takes at most half of them. A client takes at most three quarters of a kind's places, and of all
    places. So do all kinds that a resolution reads, and all others. Where that is less than one place, it is one.
    """

    def __init__(self, limit: int) -> None:
        self.taken = 0
        self._limit = limit
        self._per_kind = max(1, limit // _KINDS)
        self._share = max(1, int(limit * _SHARE))
        self._per_slot = max(1, int(self._per_kind * _SHARE))
        self._kinds: Counter[str] = Counter()
        self._metadata: Counter[bool] = Counter()
        self._clients: Counter[str] = Counter()
        self._slots: Counter[Slot] = Counter()

    def has_room(self, slot: Slot) -> bool:
        return (
            not self.is_full
            and self._kinds[slot.kind] < self._per_kind
            and self._metadata[slot.kind in _METADATA] < self._share
            and self._clients[slot.client] < self._share
            and self._slots[slot] < self._per_slot
        )

    @property
    def is_full(self) -> bool:
        return self.taken >= self._limit

    def is_half_free(self, kind: str) -> bool:
        return 2 * self._kinds[kind] < self._per_kind and 2 * self.taken < self._limit

    def of_kind(self, kind: str) -> int:
        return self._kinds[kind]

    def add(self, slot: Slot, number: int) -> None:
        self.taken += number
        self._kinds[slot.kind] += number
        self._metadata[slot.kind in _METADATA] += number
        _add(self._clients, slot.client, number)
        _add(self._slots, slot, number)


class Places:
    """
    `limit` places at upstream's own origin, and as many at each other one.

    All other origins together hold at most twice as many. An origin gets one of these places only while it holds fewer
    of them than are free. The same goes for a client. So one slow origin holds at most half of the places, a second one
    half of the rest, and some remain for a third. An origin that holds none is forgotten.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._own = _Shares(limit)
        self._others: dict[str, _Shares] = {}
        self._free = _OTHERS * limit
        self._clients: Counter[str] = Counter()

    def has_room(self, slot: Slot) -> bool:
        """Whether there is a place for such a request."""
        if not slot.origin:
            return self._own.has_room(slot)
        shares = self._others.get(slot.origin)
        if self._clients[slot.client] >= self._free:
            return False
        return shares is None or (shares.taken < self._free and shares.has_room(slot))

    def is_half_free(self, kind: str) -> bool:
        """Whether more than half of this kind's places, and of all, are free at upstream's own origin."""
        return self._own.is_half_free(kind)

    def are_full(self, *, others: bool) -> bool:
        """Whether there is no place for any request to upstream's own origin, or to `others`."""
        return self._free <= 0 if others else self._own.is_full

    def rank(self, slot: Slot) -> tuple[bool, int]:
        """
        Return what decides whose turn it is; the least comes first.

        Whole files come last: they are large, and a resolution waits for all else. Before that counts who holds the
        fewest places: the slot's kind, or its client at other origins.
        """
        held = self._clients[slot.client] if slot.origin else self._own.of_kind(slot.kind)
        return slot.kind == "file", held

    @property
    def origins(self) -> int:
        """How many other origins are remembered."""
        return len(self._others)

    def take(self, slot: Slot) -> None:
        """Take a place."""
        if slot.origin:
            self._free -= 1
            self._clients[slot.client] += 1
            self._others.setdefault(slot.origin, _Shares(self._limit)).add(slot, 1)
        else:
            self._own.add(slot, 1)

    def free(self, slot: Slot) -> None:
        """Free a place."""
        if not slot.origin:
            self._own.add(slot, -1)
            return
        self._free += 1
        _add(self._clients, slot.client, -1)
        self._others[slot.origin].add(slot, -1)
        if not self._others[slot.origin].taken:
            del self._others[slot.origin]


def _add(counter: Counter[N], name: N, number: int) -> None:
    """Count, and forget a name of which there is none left."""
    counter[name] += number
    if not counter[name]:
        del counter[name]
