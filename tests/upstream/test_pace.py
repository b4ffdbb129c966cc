"""Tests of how slowly a body may arrive."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from mypypi.upstream.pace import RATE_SECONDS, Pace, PaceLimits

SILENCE, RATE, LONGEST = 15, 1000, 600
SLOW = "upstream sent less than 1000 bytes per second for 30 seconds"


class Body:
    """A body of which bytes arrive when a test says so."""

    def __init__(self, rate: int = RATE) -> None:
        self.clock = Clock()
        self.reasons: list[str] = []
        self.pace = Pace(self.clock, PaceLimits(SILENCE, rate), "the file", LONGEST, self.reasons.append)

    def arrive(self, count: int, every: float, seconds: float) -> float:
        """Let so many bytes come at this interval, until the body is too slow; return the seconds until then."""
        began = self.clock.seconds()
        while not self.reasons and self.clock.seconds() - began < seconds:
            self.clock.advance(every)
            self.pace.received(count)
        return self.clock.seconds() - began

    def assert_ended(self, reason: str) -> None:
        assert self.reasons == [reason]
        self.clock.advance(2 * LONGEST)
        assert (self.reasons, self.clock.getDelayedCalls()) == ([reason], [])


class TestPace:
    """A body ends that is silent, slower than the lowest rate, or too long on its way."""

    @pytest.mark.parametrize(("count", "every"), [(1, 5), (2500, 5), (14_000, 14), (999, 1)])
    def test_slow_body_ends(self, count: int, every: float) -> None:
        """A body that comes more slowly than the lowest rate ends after some 30 seconds."""
        body = Body()
        assert RATE_SECONDS <= body.arrive(count, every, LONGEST) < RATE_SECONDS + every
        body.assert_ended(SLOW)

    def test_body_that_becomes_slow_ends(self) -> None:
        """The rate is that of the last seconds, not of the whole body."""
        body = Body()
        assert body.arrive(100_000, 1, 65) == 65
        assert body.arrive(1, 5, LONGEST) <= 2 * RATE_SECONDS
        body.assert_ended(SLOW)

    def test_lowest_rate_is_enough(self) -> None:
        """A body that keeps the lowest rate, or needs none, goes on until its time in all is over."""
        for rate, count in ((RATE, 1100), (0, 1)):
            body = Body(rate)
            assert body.arrive(count, 1, 2 * LONGEST) == LONGEST
            body.assert_ended("upstream took more than 10 minutes for the file")

    def test_silent_body_ends(self) -> None:
        """A body ends after 15 seconds without a byte, with a reason of its own before the first one."""
        body = Body()
        body.clock.advance(SILENCE)
        body.assert_ended("no byte of the file came for 15 seconds")
        body = Body()
        body.arrive(100_000, 1, 10)
        body.clock.advance(SILENCE)
        body.assert_ended("upstream stopped in the middle of the file for 15 seconds")

    def test_pauses_do_not_count(self) -> None:
        """While this process does not read, neither silence nor rate counts. Afterwards the measurement goes on."""
        body = Body()
        body.arrive(1, 5, 20)
        body.pace.pause()
        body.pace.pause()
        body.clock.advance(200)
        assert body.reasons == []
        body.pace.resume()
        body.pace.resume()
        assert body.arrive(1, 5, LONGEST) == 10
        body.assert_ended(SLOW)

    def test_pauses_are_not_the_fault_of_upstream(self) -> None:
        """A body is poor if it brought little for its time, in which it was not paused."""
        body = Body()
        body.arrive(20_000, 1, 10)
        assert not body.pace.is_poor
        body.pace.pause()
        body.clock.advance(500)
        body.pace.resume()
        assert not body.pace.is_poor
        body.clock.advance(14)
        body.pace.received(1)
        assert body.pace.is_poor

    def test_nothing_ends_after_the_body(self) -> None:
        """Once the body has ended, nothing is too slow, also if it was paused."""
        for paused in (False, True):
            body = Body()
            if paused:
                body.pace.pause()
            body.pace.stop()
            body.pace.resume()
            body.clock.advance(2 * LONGEST)
            assert (body.reasons, body.clock.getDelayedCalls()) == ([], [])
