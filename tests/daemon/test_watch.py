"""Tests of `mypypi.daemon.watch`: what a watch remembers, and what it logs."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher

from mypypi.daemon.watch import Watch
from mypypi.errors import CatalogDown, Degraded
from tests.support.memory import MemoryTestCase


class WatchTest(MemoryTestCase):
    """A watch that looks every ten seconds."""

    def setUp(self) -> None:
        super().setUp()
        self.found: str | Exception | Deferred[str] = ""
        self.looks = 0
        self.watch = Watch(self.look, 10.0, self.clock, ended="all is well again")
        self.events: list[LogEvent] = []
        observer = cast("ILogObserver", self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    async def look(self) -> str:
        self.looks += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found if isinstance(self.found, str) else await self.found

    def logged(self) -> list[str | None]:
        return [formatEvent(event) for event in self.events if event["log_level"] >= LogLevel.info]

    def trouble(self) -> str:
        try:
            self.watch.check()
        except Degraded as error:
            return str(error)
        return ""

    def test_trouble_is_told_while_it_lasts_and_logged_once(self) -> None:
        """The check gives the newest reason. The log has one line for the begin and one for the end."""
        self.watch.startService()
        assert self.trouble() == ""
        self.found = "3 are missing"
        self.clock.advance(10)
        assert self.trouble() == "3 are missing"
        self.found = "4 are missing"
        self.clock.advance(10)
        assert self.trouble() == "4 are missing"
        self.found = ""
        self.clock.advance(10)
        assert self.trouble() == ""
        assert self.logged() == ["3 are missing", "all is well again"]

    def test_a_look_that_finds_nothing_out_changes_nothing(self) -> None:
        """While Redis is down, its policy is unknown. Looks go on."""
        self.found = "a policy"
        self.watch.startService()
        self.found = CatalogDown("Redis is down")
        self.clock.advance(10)
        assert (self.looks, self.trouble()) == (2, "a policy")
        self.found = ""
        self.clock.advance(10)
        assert (self.looks, self.trouble()) == (3, "")

    def test_an_unexpected_error_is_logged_and_looks_go_on(self) -> None:
        """An error in the code of a look does not end the watch."""
        self.found = ValueError("a bug")
        self.watch.startService()
        assert len(self.flushLoggedErrors(ValueError)) == 1
        self.found = "some trouble"
        self.clock.advance(10)
        assert self.trouble() == "some trouble"

    def test_a_slow_look_is_not_begun_twice(self) -> None:
        """A look that waits for a slow disk or Redis runs once, and a stopped watch begins none."""
        slow: Deferred[str] = Deferred()
        self.found = slow
        self.watch.startService()
        self.clock.pump([10, 10, 10])
        assert self.looks == 1
        slow.callback("late")
        assert self.trouble() == "late"
        self.watch.stopService()
        self.clock.pump([10, 10])
        assert self.looks == 1
