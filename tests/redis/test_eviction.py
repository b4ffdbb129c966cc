"""Tests of `mypypi.redis.eviction` with a real Redis: which policies lose jobs and pages."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from mypypi.daemon.watch import Watch
from mypypi.errors import Degraded
from mypypi.job import Job
from mypypi.redis.client import RedisClient
from mypypi.redis.eviction import eviction_trouble
from mypypi.redis.queue import RedisQueue
from tests.support.redis_server import RedisServer

reactor: Any = the_reactor


class EvictionTest(TestCase):
    """A Redis whose policy the test sets."""

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.server = RedisServer(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.server.clean_up()))
        await self.server.start()
        self.client = RedisClient(reactor, self.server.url())
        self.client.start()
        self.addCleanup(self.client.stop)

    async def set(self, policy: str, megabytes: int) -> None:
        await self.client.call("CONFIG", "SET", "maxmemory-policy", policy, "maxmemory", f"{megabytes}mb")

    async def test_only_policies_that_evict_any_key_are_trouble(self) -> None:
        """The trouble names the policy and what to set. Without a limit of memory, Redis evicts nothing."""
        for policy in ("allkeys-lru", "allkeys-lfu", "allkeys-random"):
            await self.set(policy, 100)
            trouble = await eviction_trouble(self.client)
            assert f"its maxmemory-policy is {policy}: set it to noeviction" in trouble
            await self.set(policy, 0)
            assert await eviction_trouble(self.client) == ""
        for policy in ("noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"):
            await self.set(policy, 100)
            assert await eviction_trouble(self.client) == ""

    async def test_jobs_survive_a_policy_that_is_no_trouble(self) -> None:
        """A full Redis with ``volatile-lru`` evicts keys with an expiry, and keeps the jobs."""
        queue = RedisQueue(self.client, "test", "pypi", "", Clock())
        await queue.put(Job("fetch", "a"))
        await self.set("volatile-lru", 4)
        for number in range(100):
            await self.client.call("SET", f"filler{number}", "x" * 100_000, "EX", 1000)
        assert b"evicted_keys:0\r" not in await self.client.call("INFO", "stats")
        assert (await queue.state()).waiting == 1

    async def test_a_watch_sees_a_policy_that_was_mended(self) -> None:
        """A minute after the policy was set to another one, the trouble is over."""
        clock = Clock()
        await self.set("allkeys-lru", 100)
        looked: list[str] = []

        async def look() -> str:
            looked.append(await eviction_trouble(self.client))
            return looked[-1]

        watch = Watch(look, 60.0, clock, ended="mended")
        watch.startService()
        self.addCleanup(watch.stopService)
        while not looked:
            await self.client.call("PING")
        self.assertRaises(Degraded, watch.check)
        await self.set("noeviction", 100)
        clock.advance(60)
        while len(looked) < 2:
            await self.client.call("PING")
        watch.check()
