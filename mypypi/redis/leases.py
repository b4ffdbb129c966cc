"""Takes, renews and releases leases for one owner.

A process that finds a lease of another owner waits, or does without. The lease of an owner that has died expires. Knows
the catalog and a clock. Must never know the purpose of a lease.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from mypypi.errors import CatalogDown, RedisTooSlow

if TYPE_CHECKING:
    from mypypi.coordination import HeldLease
    from mypypi.interfaces import ICatalog

#: The default time until a lease expires unless it is renewed, in seconds.
LEASE_SECONDS = 15.0


class Leases:
    """
    The leases of one `owner`, in the shared catalog.

    Processes with the same owner share its leases. A lease expires after `seconds`, and is renewed after each third of
    that time. If its holder dies, other owners wait in vain until it expires.
    """

    def __init__(self, catalog: ICatalog, owner: str, clock: Any, seconds: float = LEASE_SECONDS) -> None:
        self._catalog = catalog
        self._owner = owner
        self._clock = clock
        self._seconds = seconds
        self._renewals: dict[str, LoopingCall] = {}
        #: Leases that Redis may have given to this owner after the caller had gone on without.
        self._unsure: set[str] = set()

    async def take(self, name: str, about: Callable[[], str] = str) -> HeldLease | None:
        """
        Take a lease, and renew it until it is released.

        Returns None if this owner has the lease now, else the lease of the other owner. `about` returns the text that
        other owners see; it is called again for each renewal. Raises CatalogDown.
        """
        try:
            held = await self._catalog.take_lease(name, self._owner, self._seconds, about())
        except RedisTooSlow:
            self._unsure.add(name)
            raise
        if held is None and name not in self._renewals:
            renewal = self._renewals[name] = LoopingCall(self._renew, name, about)
            renewal.clock = self._clock
            renewal.start(self._seconds / 3, now=False)
        return held

    async def release_if_held(self, name: str) -> None:
        """Release a lease, if this object renews it or may have it."""
        if name in self._renewals or name in self._unsure:
            await self.release(name)

    async def release(self, name: str) -> None:
        """Release a lease of this owner, even one that `keep_for` has left to expire."""
        self._end_renewal(name)
        with suppress(CatalogDown):  # then it expires
            await self._catalog.release_lease(name, self._owner)

    async def keep_for(self, name: str, seconds: float) -> None:
        """
        Keep a lease for this many more seconds, without renewing it.

        It ends earlier if a process with the same owner releases it. Does nothing if this object does not renew it.
        """
        if self._end_renewal(name):
            with suppress(CatalogDown):
                await self._catalog.take_lease(name, self._owner, seconds)

    def _end_renewal(self, name: str) -> bool:
        self._unsure.discard(name)
        renewal = self._renewals.pop(name, None)
        if renewal is not None:
            renewal.stop()
        return renewal is not None

    async def _renew(self, name: str, about: Callable[[], str]) -> None:
        with suppress(CatalogDown):  # the next renewal tries again
            await self._catalog.take_lease(name, self._owner, self._seconds, about())
