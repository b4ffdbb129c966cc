"""Tests of `mypypi.web.health`: what is reported of checks that hang or fail."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mypypi.errors import StorageDown
from mypypi.web.health import Health
from tests.support.memory import MemoryTestCase


class HealthTest(MemoryTestCase):
    """A report has one entry for each check, whatever a check does."""

    async def well(self) -> None:
        pass

    async def full(self) -> None:
        raise StorageDown("the disk is full")

    async def hangs(self) -> None:
        await Deferred()

    def test_each_check_is_reported_with_its_reason(self) -> None:
        """A check that passes is "ok"; of one that fails, the report gives the reason."""
        health = Health({"redis": self.well, "storage": self.full}, self.clock)
        report = self.now(Deferred.fromCoroutine(health.report()))
        self.assertEqual({"status": "degraded", "checks": {"redis": "ok", "storage": "the disk is full"}}, report)

    def test_a_check_that_hangs_is_reported_after_its_time(self) -> None:
        """A check that does not end counts as failed after 20 s, and the others are reported as they are."""
        health = Health({"redis": self.well, "storage": self.hangs}, self.clock)
        waiting = Deferred.fromCoroutine(health.report())
        self.clock.advance(19.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)
        checks = {"redis": "ok", "storage": "no answer within 20 s"}
        self.assertEqual({"status": "degraded", "checks": checks}, self.now(waiting))
