"""Tests of the budget of time that a request has for Redis."""

from __future__ import annotations

import contextlib  # for trial, `suppress` in a module has a meaning of its own
from collections.abc import Coroutine
from typing import Any

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mypypi.errors import RedisTooSlow
from mypypi.redis_budget import (
    REQUEST_BUDGET,
    end_redis_budget,
    goes_on,
    redis_budget,
    renew_redis_budget,
    within_budget,
)
from tests.support.memory import MemoryTestCase


@define
class Redis:
    """Commands that take a while; `sent` and `executed` count them."""

    _clock: Any
    seconds: float
    sent: int = 0
    executed: int = 0

    async def command(self) -> str:
        return await within_budget(self._execute(), self._clock)

    @goes_on
    async def write(self) -> None:
        await self._execute()
        await self._execute()

    async def _execute(self) -> str:
        self.sent += 1
        await deferLater(self._clock, self.seconds)
        self.executed += 1
        return "reply"


class RedisBudgetTest(MemoryTestCase):
    def request(self, work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """Start the work of a request that has a budget."""
        with redis_budget():
            return self.start(work)

    def test_commands_share_the_budget_of_their_request(self) -> None:
        """A request waits for its commands for two seconds in all. Then a command fails without being sent."""
        redis = Redis(self.clock, 0.75)

        async def serve() -> None:
            for _ in range(5):
                await redis.command()

        serving, began = self.request(serve()), self.clock.seconds()
        while not serving.called:
            self.clock.advance(0.25)
        assert self.clock.seconds() - began == REQUEST_BUDGET
        why = str(self.failureResultOf(serving, RedisTooSlow).value)
        assert why == "Redis is too slow: this request has waited 2 s for it in all"
        assert redis.sent == 3

    def test_nothing_left_fails_at_once(self) -> None:
        """A command is not sent when nothing is left of the budget."""
        redis = Redis(self.clock, 5)

        async def serve() -> None:
            with contextlib.suppress(RedisTooSlow):
                await redis.command()
            with contextlib.suppress(RedisTooSlow):
                await redis.command()

        serving = self.request(serve())
        self.clock.advance(REQUEST_BUDGET)
        self.successResultOf(serving)
        assert redis.sent == 1
        self.clock.advance(5)
        assert redis.executed == 1

    def test_waits_at_the_same_time_count_once(self) -> None:
        """Commands that run side by side use up the budget as one does."""
        redis = Redis(self.clock, 1.5)

        async def serve() -> list[str]:
            running = [Deferred.fromCoroutine(redis.command()) for _ in range(3)]
            return [await each for each in running]

        serving = self.request(serve())
        self.clock.advance(1.5)
        assert self.successResultOf(serving) == ["reply"] * 3

    def test_time_between_commands_does_not_count(self) -> None:
        """A wait for something else, such as upstream, does not use up the budget."""
        redis = Redis(self.clock, 0.9)

        async def serve() -> str:
            await redis.command()
            await deferLater(self.clock, 60)
            return await redis.command()

        serving = self.request(serve())
        self.clock.pump([0.9, 60, 0.9])
        assert self.successResultOf(serving) == "reply"

    def test_a_write_goes_on(self) -> None:
        """A write holds its request up for as long as the budget lasts, and goes on to its end."""
        redis = Redis(self.clock, 1.5)
        for left in (REQUEST_BUDGET, 0):
            before = redis.executed

            async def serve(used: float = REQUEST_BUDGET - left) -> None:
                await within_budget(wait(self.clock, used), self.clock)
                await redis.write()

            serving = self.request(serve())
            self.clock.pump([0, REQUEST_BUDGET, 0])
            self.successResultOf(serving)
            self.clock.pump([1.5, 1.5])
            assert redis.executed == before + 2

    def test_work_without_a_budget_has_no_limit(self) -> None:
        """Work that no client waits for has no budget: that of no request, or that of one which has its answer."""
        redis = Redis(self.clock, 1.5)

        async def work(*, ended: bool) -> None:
            if ended:
                end_redis_budget()
            for _ in range(3):
                await redis.command()

        working = [self.start(work(ended=False)), self.request(work(ended=True))]
        self.clock.pump([1.5] * 3)
        assert [self.successResultOf(each) for each in working] == [None, None]

    def test_a_look_now_and_then_does_not_use_up_the_budget(self) -> None:
        """Work that looks at Redis again and again has the budget for each look."""
        redis = Redis(self.clock, 0.5)

        async def poll() -> None:
            for _ in range(20):
                await redis.command()
                renew_redis_budget()

        polling = self.request(poll())
        self.clock.pump([0.5] * 20)
        self.successResultOf(polling)

    def test_requests_have_budgets_of_their_own(self) -> None:
        """One request that has used up its budget leaves that of others as it is."""
        redis = Redis(self.clock, 1.75)

        async def serve() -> None:
            await redis.command()
            await redis.command()

        first = self.request(serve())
        self.clock.advance(1.75)
        second = self.request(redis.command())
        self.clock.advance(0.25)
        self.failureResultOf(first, RedisTooSlow)
        self.clock.advance(1.5)
        assert self.successResultOf(second) == "reply"


async def wait(clock: Any, seconds: float) -> None:
    await deferLater(clock, seconds)
