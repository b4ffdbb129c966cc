"""Tests of `mypypi.web.health`: what is reported of checks that hang or fail, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import formatEvent

from mypypi.errors import StorageDown
from mypypi.web.health import Health
from tests.fuzz.world import Transmission, World
from tests.support.memory import MemoryTestCase, response


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


NAME = "secret-project"
TEXT = f'{{"error": "{NAME} is quarantined", "name": "{NAME}-2"}}'.encode()


class TestNames:
    """Any client may read the report, so it names no page. The log does."""

    @pytest.mark.parametrize("package_type", ["pypi", "npm"])
    @pytest.mark.parametrize(
        "sent",
        [
            response(200, b"neither JSON nor HTML"),
            response(200, TEXT, content_type="application/json"),
            response(200, b"[" * 100_000, content_type="application/json"),
            response(200, b"<form action='/login?for=secret-project'>", content_type="text/html"),
            *(response(status, TEXT, content_type="application/json") for status in (400, 401, 407, 500, 418)),
            response(302, location=f"/simple/{NAME}/"),
            response(302, location=f"ftp://up.example/{NAME}"),
        ],
    )
    def test_page_that_fails_is_not_named(self, tmp_path: Path, package_type: str, sent: bytes) -> None:
        """Whatever upstream sends, the part is degraded, and neither the page nor a text of upstream's is shown."""
        world = World(package_type, tmp_path, lambda _: Transmission(sent), lambda _: True)
        assert world.get(f"/simple/{NAME}/" if package_type == "pypi" else f"/{NAME}").status >= 400
        report = world.get("/-/health/ready").body.decode()
        assert '"upstream":"ok"' not in report
        assert [text for text in (NAME, "/simple", "quarantined", "login") if text in report] == []
        assert any(NAME in formatEvent(event) for event in world.logged if event["log_level"].name == "warn")
