"""Leases are renewed for as long as they are held, and run out when their owner is gone."""

from __future__ import annotations

from mypypi.errors import CatalogDown
from mypypi.redis.leases import LEASE_SECONDS, Leases
from tests.support.fakes import MemoryCatalog
from tests.support.memory import MemoryTestCase

NAME = "fetch/https/files.example/a.whl"


class LeasesTest(MemoryTestCase):
    """Two owners over one catalog."""

    def setUp(self) -> None:
        super().setUp()
        self.catalog = MemoryCatalog(self.clock)
        self.mine = Leases(self.catalog, "me", self.clock)
        self.yours = Leases(self.catalog, "you", self.clock)

    def test_a_lease_is_held_for_as_long_as_it_is_needed(self) -> None:
        """Far longer than one renewal lasts; whoever finds it hears how things stand now."""
        progress = iter(["0 of 9", *(f"{number} of 9" for number in range(1, 100))])
        self.assertIsNone(self.now(self.mine.take(NAME, lambda: next(progress))))
        for _ in range(8):
            self.clock.advance(LEASE_SECONDS / 3)
        held = self.now(self.yours.take(NAME))
        assert held is not None
        self.assertEqual(("me", "8 of 9"), (held.owner, held.about))

    def test_a_lease_that_is_let_go_of_is_free(self) -> None:
        """At once, for whoever asks."""
        self.now(self.mine.take(NAME))
        self.now(self.mine.release_if_held(NAME))
        self.assertIsNone(self.now(self.yours.take(NAME)))

    def test_a_lease_can_be_left_to_ones_own(self) -> None:
        """For a while, after which it runs out: whoever has the same owner goes on with it."""
        self.now(self.mine.take(NAME))
        self.now(self.mine.keep_for(NAME, 900))
        self.clock.advance(899)
        self.assertIsNotNone(self.now(self.yours.take(NAME)))
        self.clock.advance(1)
        self.assertIsNone(self.now(self.yours.take(NAME)))

    def test_letting_go_of_what_is_not_held_changes_nothing(self) -> None:
        """What was left to one's own stays left."""
        self.now(self.mine.take(NAME))
        self.now(self.mine.keep_for(NAME, 900))
        self.now(self.mine.release_if_held(NAME))
        self.now(self.yours.release_if_held(NAME))
        self.assertIsNotNone(self.now(self.yours.take(NAME)))

    def test_a_lease_whose_owner_is_gone_runs_out(self) -> None:
        """Within its expiry, which is far shorter than a fetch may take."""
        self.now(self.mine.take(NAME))
        for call in self.clock.getDelayedCalls():
            call.cancel()
        self.clock.advance(LEASE_SECONDS)
        self.assertIsNone(self.now(self.yours.take(NAME)))

    def test_a_catalog_that_goes_away_is_missed_quietly(self) -> None:
        """Whoever takes a lease hears of it; a renewal waits for the next one."""
        self.now(self.mine.take(NAME))
        self.catalog.down = "cable pulled"
        self.clock.advance(LEASE_SECONDS / 3)
        self.failing(self.yours.take(NAME), CatalogDown)
        self.catalog.down = None
        self.clock.advance(LEASE_SECONDS / 3)
        self.assertIsNotNone(self.now(self.yours.take(NAME)))
        self.now(self.mine.release_if_held(NAME))
