"""Remembers a few addresses of this server, for which forms are worth being made and kept.

A client chooses the address with its Host header, so their number has limits. Knows addresses, clients and times. Must
never know a page.
"""

from __future__ import annotations

from typing import Any

#: Addresses that are known at a time, in one process; and those of them that one client brought up.
MOST_BASES = 16
MOST_OF_CLIENT = 4
#: Seconds after its last use for which an address keeps its place.
IDLE = 600.0


class KnownBases:
    """The addresses in use: of each the client that used it first, the time of its last use, and the number of uses."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._used: dict[str, tuple[str, float, int]] = {}

    @property
    def usual(self) -> str:
        """The address with the most uses; empty if none is in use."""
        return max(self._used, key=lambda base: self._used[base][2], default="")

    def accepts(self, base: str, client: str) -> bool:
        """Whether this address is known, or has a place if this client uses it now."""
        before = self._clock.seconds() - IDLE
        self._used = {each: use for each, use in self._used.items() if use[1] > before}
        if base in self._used:
            return True
        owners = [owner for owner, _, _ in self._used.values()]
        return len(owners) < MOST_BASES and owners.count(client) < MOST_OF_CLIENT

    def use(self, base: str, client: str) -> bool:
        """Note the use of an address, if it is accepted. Returns whether it is."""
        if not self.accepts(base, client):
            return False
        owner, _, uses = self._used.get(base, (client, 0.0, 0))
        self._used[base] = (owner, self._clock.seconds(), uses + 1)
        return True
