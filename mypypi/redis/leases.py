"""Leases that one owner holds: taken, renewed for as long as they are needed, and let go of.

Whoever finds a lease of somebody else waits, or goes another way; one whose owner is gone runs out. Knows the catalog
and a clock. Must never know what a lease is for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall

from mypypi.errors import CatalogDown

if TYPE_CHECKING:
    from mypypi.interfaces import ICatalog
    from mypypi.model import HeldLease

#: Seconds for which a lease holds where nothing else is said.
LEASE_SECONDS = 15.0


class Leases:
    """
    The leases of this `owner`, in the catalog that all share. Whoever has the same owner has the same leases.

    Each holds for so many `seconds`, for which others wait in vain where its holder is gone, and is renewed three times
    as often.
    """

    def __init__(self, catalog: ICatalog, owner: str, clock: Any, seconds: float = LEASE_SECONDS) -> None:
        self._catalog = catalog
        self._owner = owner
        self._clock = clock
        self._seconds = seconds
        self._renewals: dict[str, LoopingCall] = {}

    async def take(self, name: str, about: Callable[[], str] = str) -> HeldLease | None:
        """
        Hold a lease until it is let go of: None; else who holds it. `about` is what others are told, asked for anew at
        each renewal. Raises CatalogDown.
        """
        held = await self._catalog.take_lease(name, self._owner, self._seconds, about())
        if held is None and name not in self._renewals:
            renewal = self._renewals[name] = LoopingCall(self._renew, name, about)
            renewal.clock = self._clock
            renewal.start(self._seconds / 3, now=False)
        return held

    async def let_go(self, name: str) -> None:
        """Hold it no more, where it is held."""
        if name in self._renewals:
            await self.release(name)

    async def release(self, name: str) -> None:
        """Let go of it, and of what was left of it."""
        self._end_renewal(name)
        with suppress(CatalogDown):  # it runs out
            await self._catalog.release_lease(name, self._owner)

    async def leave(self, name: str, seconds: float) -> None:
        """Hold it for so many seconds and no more, or until whoever has the same owner releases it."""
        if self._end_renewal(name):
            with suppress(CatalogDown):
                await self._catalog.take_lease(name, self._owner, seconds)

    def _end_renewal(self, name: str) -> bool:
        renewal = self._renewals.pop(name, None)
        if renewal is not None:
            renewal.stop()
        return renewal is not None

    async def _renew(self, name: str, about: Callable[[], str]) -> None:
        with suppress(CatalogDown):  # until it is back
            await self._catalog.take_lease(name, self._owner, self._seconds, about())
