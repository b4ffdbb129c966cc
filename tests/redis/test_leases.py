"""Tests of leases: holders renew them, and they expire when the owner is gone."""

from __future__ import annotations

from unittest import mock

from mypypi.errors import CatalogDown, RedisTooSlow
from mypypi.redis.leases import LEASE_SECONDS, Leases
from tests.support.fakes import MemoryCatalog
from tests.support.memory import MemoryTestCase

NAME = "fetch/https/files.example/a.whl"


class LeasesTest(MemoryTestCase):
    """Two owners that share one catalog."""

    def setUp(self) -> None:
        super().setUp()
        self.catalog = MemoryCatalog(self.clock)
        self.mine = Leases(self.catalog, "me", self.clock)
        self.yours = Leases(self.catalog, "you", self.clock)

    def test_a_lease_is_renewed_while_it_is_held(self) -> None:
        """A lease is renewed far beyond its expiry. Another owner sees the holder's latest text."""
        progress = iter(["0 of 9", *(f"{number} of 9" for number in range(1, 100))])
        self.assertIsNone(self.now(self.mine.take(NAME, lambda: next(progress))))
        for _ in range(8):
            self.clock.advance(LEASE_SECONDS / 3)
        held = self.now(self.yours.take(NAME))
        assert held is not None
        self.assertEqual(("me", "8 of 9"), (held.owner, held.about))

    def test_a_released_lease_is_free(self) -> None:
        """A released lease is free for other owners at once."""
        self.now(self.mine.take(NAME))
        self.now(self.mine.release_if_held(NAME))
        self.assertIsNone(self.now(self.yours.take(NAME)))

    def test_a_lease_can_be_kept_without_renewal(self) -> None:
        """
        A lease can be kept for a while without renewal.

        Then it expires; until then, processes with the same owner can go on with it.
        """
        self.now(self.mine.take(NAME))
        self.now(self.mine.keep_for(NAME, 900))
        self.clock.advance(899)
        self.assertIsNotNone(self.now(self.yours.take(NAME)))
        self.clock.advance(1)
        self.assertIsNone(self.now(self.yours.take(NAME)))

    def test_releasing_a_lease_that_is_not_renewed_changes_nothing(self) -> None:
        """`release_if_held` does nothing unless this object renews the lease. A lease from `keep_for` stays."""
        self.now(self.mine.take(NAME))
        self.now(self.mine.keep_for(NAME, 900))
        self.now(self.mine.release_if_held(NAME))
        self.now(self.yours.release_if_held(NAME))
        self.assertIsNotNone(self.now(self.yours.take(NAME)))

    def test_a_lease_whose_owner_is_gone_expires(self) -> None:
        """A lease expires when its owner stops renewing it. Its expiry is far shorter than a fetch may take."""
        self.now(self.mine.take(NAME))
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.clock.advance(LEASE_SECONDS)
        self.assertIsNone(self.now(self.yours.take(NAME)))

    def test_renewals_survive_a_catalog_that_is_down(self) -> None:
        """Taking a lease fails while the catalog is down. A renewal ignores that, and the next one succeeds."""
        self.now(self.mine.take(NAME))
        self.catalog.down = "cable pulled"
        self.clock.advance(LEASE_SECONDS / 3)
        self.failing(self.yours.take(NAME), CatalogDown)
        self.catalog.down = None
        self.clock.advance(LEASE_SECONDS / 3)
        self.assertIsNotNone(self.now(self.yours.take(NAME)))
        self.now(self.mine.release_if_held(NAME))

    def test_a_lease_that_came_too_late_is_released(self) -> None:
        """A lease that Redis gives after its caller has gone on without it is released at the end of the work."""
        taken = self.catalog.take_lease

        async def too_late(*args: object) -> None:
            await taken(*args)  # type: ignore[arg-type]
            raise RedisTooSlow("Redis takes 1.9 s to answer")

        with mock.patch.object(self.catalog, "take_lease", too_late):
            self.failing(self.mine.take(NAME), RedisTooSlow)
        self.assertIsNotNone(self.now(self.yours.take(NAME)))
        self.now(self.mine.release_if_held(NAME))
        self.assertIsNone(self.now(self.yours.take(NAME)))
