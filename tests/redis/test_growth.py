"""Tests that everything in Redis ends or is counted: what changing pages, made-up names and jobs leave behind."""

from __future__ import annotations

from typing import Any
from unittest import mock

from attrs import evolve
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from mypypi.coordination import Pause
from mypypi.interfaces import ICatalog
from mypypi.job import Job
from mypypi.model import FileCheck, Page, PageId, Refusal
from mypypi.redis.catalog import RedisCatalog
from mypypi.redis.client import RedisClient
from mypypi.redis.queue import RedisQueue
from tests.redis.test_catalog import DAY, NOW, PAGE, connected, reactor
from tests.support.fakes import MemoryCatalog

OTHER = PageId("project", "other")
MB = 1_000_000


def links(count: int, version: str) -> tuple[str, ...]:
    """As many links that are named after no project, which differ in each version of a page."""
    return tuple(
        f"https/files.example/packages/{number:05}/{version}-of-a-name-of-its-own.whl" for number in range(count)
    )


def missing(name: str) -> Page:
    return Page(PageId("project", name), checked_at=NOW, version="missing", refusal=Refusal(404))


class GrowthPromises:
    """What every catalog keeps of pages that change or do not exist. `most` patches the number of missing pages."""

    catalog: ICatalog
    clock: Clock

    async def listed_on(self, *links: str) -> list[PageId | None]:
        return [await self.catalog.page_listing(link) for link in links]

    async def test_links_of_an_older_version_are_forgotten(self) -> None:
        """A new version of a page replaces its indexed links as well; those that it still lists stay."""
        await self.catalog.put_page(PAGE, ("a", "b", "c"))
        await self.catalog.put_page(evolve(PAGE, version="v2"), ("c", "d"))
        assert await self.listed_on("a", "b", "c", "d") == [None, None, PAGE.id, PAGE.id]
        await self.catalog.put_page(evolve(PAGE, version="v3"), ())
        assert await self.listed_on("a", "b", "c", "d") == [None] * 4
        await self.catalog.put_page(PAGE, ("a",))
        assert await self.listed_on("a", "d") == [PAGE.id, None]

    async def test_links_stay_while_a_page_is_only_confirmed(self) -> None:
        """A page that is stored again without links, or touched, keeps those that it has."""
        await self.catalog.put_page(PAGE, ("a", "b"))
        await self.catalog.put_page(evolve(PAGE, version="unconfirmed-v1", checked_at=0.0), None)
        await self.catalog.touch_page(PAGE.id, "unconfirmed-v1", NOW)
        assert await self.listed_on("a", "b") == [PAGE.id] * 2

    async def test_link_that_another_page_lists_stays(self) -> None:
        """A link that has moved to another page leads there, also when its first page changes."""
        await self.catalog.put_page(PAGE, ("a", "b"))
        await self.catalog.put_page(evolve(PAGE, id=OTHER), ("b", "c"))
        await self.catalog.put_page(evolve(PAGE, version="v2"), ())
        assert await self.listed_on("a", "b", "c") == [None, OTHER, OTHER]

    async def test_links_of_a_page_that_is_gone_are_forgotten(self) -> None:
        """A page that upstream refuses now has no indexed links."""
        await self.catalog.put_page(PAGE, ("a",))
        await self.catalog.put_page(evolve(missing("requests"), id=PAGE.id), ())
        assert await self.listed_on("a") == [None]

    async def test_number_of_missing_pages_is_bounded(self) -> None:
        """Of names that upstream does not have, the latest are kept. Pages that exist do not count."""
        with mock.patch("mypypi.redis.catalog.MOST_MISSING", 20), mock.patch("tests.support.fakes.MOST_MISSING", 20):
            await self.catalog.put_page(missing("requests"), ())
            await self.catalog.put_page(PAGE, ())
            for number in range(100):
                await self.catalog.put_page(missing(f"no{number:02}"), ())
                self.clock.advance(0.01)
        kept = [number for number in range(100) if await self.catalog.get_page(PageId("project", f"no{number:02}"))]
        assert len(kept) == 20
        assert await self.catalog.get_page(PAGE.id) == PAGE


class MemoryCatalogTests(GrowthPromises, TestCase):
    """The catalog for tests."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.catalog = MemoryCatalog(self.clock)


class RedisCatalogTests(GrowthPromises, TestCase):
    """The catalog in a real Redis."""

    timeout = 60

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.clock = Clock()
        self.clock.advance(NOW)
        self.client = await connected(self)
        self.catalog = self.redis = RedisCatalog(self.client, "test", "pypi", self.clock)

    async def keys(self, pattern: str = "*") -> list[str]:
        return sorted(key.decode() for key in await self.client.call("KEYS", pattern))

    async def used(self) -> int:
        """The bytes that Redis uses for its data."""
        lines = (await self.client.call("INFO", "memory")).decode().splitlines()
        return next(int(line.partition(":")[2]) for line in lines if line.startswith("used_memory_dataset:"))

    async def test_page_with_other_names_at_each_change(self) -> None:
        """A page with 8,000 names of its own takes the same space after five changes as after the first."""
        used, counts = [], []
        for number in range(6):
            await self.catalog.put_page(evolve(PAGE, version=f"v{number}"), links(8_000, f"v{number}"))
            used.append(await self.used())
            counts.append(len(await self.keys()))
        assert used[0] > MB, "the links take space"
        assert max(used) - used[0] < MB / 2
        assert set(counts) == {8_002}
        assert await self.listed_on(links(8_000, "v5")[-1], links(8_000, "v4")[-1]) == [PAGE.id, None]

    async def test_process_that_dies_leaves_no_links(self) -> None:
        """Links of a version that was never stored, since its process died, are dropped with the next changes."""
        for number in range(5):
            dying = links(1200, f"dying{number}")
            await self.redis._index(dying, "project/requests", "test:strays:pypi:project/requests:new")
            assert await self.listed_on(dying[0]) == [PAGE.id]
        await self.catalog.put_page(PAGE, ("a",))
        await self.catalog.put_page(evolve(PAGE, version="v2"), ("a",))
        assert await self.keys("*stray*") == ["test:stray:pypi:a", "test:strays:pypi:project/requests"]

    async def test_process_that_dies_while_it_drops_links(self) -> None:
        """Links that a process did not finish to drop are dropped with the next change."""
        await self.catalog.put_page(PAGE, links(1200, "one"))
        with mock.patch.object(self.client, "call", self.dies_before("SPOP")), self.assertRaises(ConnectionError):
            await self.catalog.put_page(evolve(PAGE, version="v2"), ("a", "b"))
        assert len(await self.keys("*stray:*")) == 1202
        await self.catalog.put_page(evolve(PAGE, version="v3"), ("b", "c"))
        assert await self.keys("*stray:*") == ["test:stray:pypi:b", "test:stray:pypi:c"]
        assert await self.keys("*strays:*") == ["test:strays:pypi:project/requests"]

    def dies_before(self, word: str) -> Any:
        call = self.client.call

        async def until_then(*command: Any) -> Any:
            if word in str(command[1]):
                raise ConnectionError
            return await call(*command)

        return until_then

    async def test_missing_page_lives_as_long_as_it_is_fresh(self) -> None:
        """A name that upstream does not have is kept for MYPYPI_NEGATIVE_CACHE_TIME, and for a minute at least."""
        for seconds, expected in ((0, 60), (60, 60), (600, 600)):
            catalog = RedisCatalog(self.client, "test", "pypi", self.clock, None, seconds)
            await catalog.put_page(missing("no"), ())
            assert expected - 5 < await self.client.call("TTL", "test:page:pypi:project/no") <= expected
            assert expected - 5 < await self.client.call("TTL", "test:missing:pypi") <= expected

    async def test_number_of_records_of_files_is_bounded(self) -> None:
        """Of checks of files, and of keys that links do not tell, the latest are kept. One that is renewed is late."""
        with mock.patch("mypypi.redis.catalog.MOST_RECORDS", 10):
            for number in range(30):
                for again in (0, number):
                    await self.catalog.put_key_of_link(f"link{again}", "key")
                    await self.catalog.put_file_check(f"file{again}", FileCheck(NOW, f'"{again}"'))
        assert len(await self.keys("test:key:*")) == len(await self.keys("test:check:*")) == 10
        kept = [number for number in range(30) if await self.catalog.key_of_link(f"link{number}")]
        assert kept == [0, *range(21, 30)]
        assert kept == [number for number in range(30) if await self.catalog.file_check(f"file{number}")]

    async def test_number_of_withheld_links_is_bounded(self) -> None:
        """Of the links that a page lists without having their files, the latest are withheld."""
        with mock.patch("mypypi.redis.catalog.MOST_MARKED", 10):
            for number in range(30):
                await self.catalog.withhold(PAGE.id, f"link{number}")
                self.clock.advance(1)
        assert await self.catalog.withheld(PAGE.id) == {f"link{number}" for number in range(20, 30)}

    async def test_every_other_key_has_an_end(self) -> None:
        """Leases, back-offs, withheld and signed links, and missing pages expire."""
        for number in range(3):
            name = f"name{number}"
            await self.catalog.put_page(missing(name), ())
            await self.catalog.touch_page(PageId("project", name), "missing", NOW)
            await self.catalog.withhold(PageId("project", name), "link")
            await self.catalog.put_link(name, "https://bucket.example/", NOW + 600)
            await self.catalog.take_lease(name, "me", 10)
            await self.catalog.put_pause(name, Pause(NOW + 60, "down"))
        ends = {key: await self.client.call("TTL", key) for key in await self.keys()}
        assert len(ends) == 16
        assert {key: left for key, left in ends.items() if not 0 < left <= DAY} == {}


class QueueTests(TestCase):
    """The queue in a real Redis."""

    async def setUp(self) -> None:  # type: ignore[override] # trial waits for it
        self.client: RedisClient = await connected(self)

    def worker(self) -> RedisQueue:
        return RedisQueue(self.client, "test", "pypi", "", reactor, wait=20)

    async def test_number_of_jobs_is_bounded(self) -> None:
        """Jobs that no worker does are counted: a further one is not queued until there is room."""
        queue = self.worker()
        with mock.patch("mypypi.redis.queue.MOST_WAITING", 10):
            for number in range(30):
                await queue.put(Job("fetch", f"file{number}"))
            assert (await queue.state()).waiting == 10
            assert len(await self.client.call("KEYS", "*:queued:*")) == 10
            taken = await queue.take(3)
            await queue.failed(taken[0], "no luck")
            await queue.put(Job("fetch", "file29"))
            assert ((await queue.state()).waiting, (await queue.state()).later) == (9, 1)
            for each in taken[1:]:
                await queue.done(each)
            await queue.put(Job("fetch", "file29"))
            assert (await queue.state()).waiting == 8

    async def test_workers_that_are_gone_are_forgotten(self) -> None:
        """A worker that starts forgets others that are gone for long; one with a claim stays."""
        await self.worker().put(Job("fetch", "file"))
        assert len(await self.worker().take(1)) == 1
        for _ in range(9):
            await self.worker().take(1)
        assert len(await self.consumers()) == 10
        with mock.patch("mypypi.redis.queue._WORKER_KEPT", -1):
            await self.worker().take(1)
        assert sorted(fields[3] for fields in await self.consumers()) == [0, 1], "the new one, and the one with a claim"

    async def consumers(self) -> list[list[Any]]:
        found: list[list[Any]] = await self.client.call("XINFO", "CONSUMERS", "test:queue:pypi", "workers")
        return found
