"""Tests a whole server with a slow Redis: a request waits for Redis for a limited time in all.

The catalog is in memory. Each of its calls takes as long as one round trip to a slow Redis.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mypypi.digests import Digest
from mypypi.model import PageId, StoredFile
from mypypi.redis_budget import REQUEST_BUDGET, goes_on, within_budget
from mypypi.storage.disk import DiskStorage
from tests.fuzz.test_fuzz import fixed_hosts, fixed_upstream
from tests.fuzz.world import Answer, Client, World, read_answer
from tests.support.fakes import MemoryCatalog

#: Seconds of a round trip: a little less than the time limit for one command.
SLOW = 1.9
CACHE_TIME = 1000
#: For each ecosystem, the page and a file that it lists.
PATHS = {
    "pypi": ("/simple/holy-grail/", "/file/https/up.example/a/holy_grail-1.0.tar.gz"),
    "npm": ("/holy-grail", "/holy-grail/-/holy-grail-1.0.0.tgz"),
}


class SlowCatalog(MemoryCatalog):
    """A catalog whose calls take `delay` seconds each, as those of RedisCatalog do when Redis is slow."""

    delay = 0.0
    calls = 0

    async def check(self) -> None:
        if self.delay:
            self.calls += 1
            await within_budget(self._answer(), self._clock)
        await super().check()

    async def _answer(self) -> None:
        await deferLater(self._clock, self.delay)

    put_page = goes_on(MemoryCatalog.put_page)
    touch_page = goes_on(MemoryCatalog.touch_page)
    put_key_of_link = goes_on(MemoryCatalog.put_key_of_link)
    put_file_check = goes_on(MemoryCatalog.put_file_check)
    release_lease = goes_on(MemoryCatalog.release_lease)
    put_pause = goes_on(MemoryCatalog.put_pause)
    end_pause = goes_on(MemoryCatalog.end_pause)


class SlowWorld(World):
    """A server in memory, with its catalog."""

    catalog: SlowCatalog
    took: float

    @property
    def page(self) -> PageId:
        return PageId("simple" if self.package_type == "pypi" else "packument", "holy-grail")

    def timed(self, path: str) -> Answer:
        """The answer to a request. `took` has its seconds; then the server goes on until it has nothing to do."""
        request = f"GET {path} HTTP/1.1\r\nHost: here.example\r\nConnection: close\r\n\r\n"
        client, began = Client(self.site, self.reactor, [request.encode()]), self.reactor.seconds()
        while not client.ending:
            self._step()
        self.took = self.reactor.seconds() - began
        while self.reactor.getDelayedCalls():
            self._step()
        return read_answer(client.value())

    def _step(self) -> None:
        calls = self.reactor.getDelayedCalls()
        assert calls, "the request is never answered"
        self.reactor.advance(max(0.0, min(call.getTime() for call in calls) - self.reactor.seconds()))


@pytest.fixture(params=["pypi", "npm"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SlowWorld]:
    catalogs: list[SlowCatalog] = []

    def make(*args: object) -> SlowCatalog:
        catalogs.append(SlowCatalog(*args))  # type: ignore[arg-type]
        return catalogs[-1]

    with patch("tests.fuzz.world.MemoryCatalog", make):
        world = SlowWorld(request.param, tmp_path, fixed_upstream, fixed_hosts, {"MYPYPI_CACHE_TIME": str(CACHE_TIME)})
    world.catalog = catalogs[0]
    yield world
    assert world.logged == []


@pytest.mark.parametrize("cached", ["nothing", "page", "file"])
@pytest.mark.parametrize("wanted", ["page", "file"])
def test_a_request_waits_for_a_limited_time_in_all(world: SlowWorld, cached: str, wanted: str) -> None:
    """
    A slow Redis delays an answer by two seconds at most, whatever is cached.

    What the request writes is written all the same.
    """
    page, file = PATHS[world.package_type]
    if cached != "nothing":
        assert world.timed(page if cached == "page" else file).status == 200
        world.reactor.advance(2)
    world.catalog.delay = SLOW
    answer = world.timed(page if wanted == "page" else file)
    assert (answer.status, answer.whole) == (200, True)
    assert world.catalog.calls > 0
    assert SLOW <= round(world.took, 3) <= REQUEST_BUDGET
    asked = len(world.wire.exchanges)
    world.catalog.delay = 0.0
    assert [world.timed(path).status for path in (page, file)] == [200, 200]
    assert len(world.wire.exchanges) == asked + (wanted == "page" and cached != "file")


def test_a_page_is_written_after_its_answer(world: SlowWorld) -> None:
    """A page from upstream is written to Redis, for other processes, although its client did not wait for that."""
    world.catalog.delay = SLOW
    assert world.timed(PATHS[world.package_type][0]).status == 200
    world.catalog.delay = 0.0
    assert list(world.catalog._pages) == [world.page]
    assert world.catalog._leases == {}


def test_an_early_refresh_has_a_budget_of_its_own(world: SlowWorld) -> None:
    """A refresh in the background takes the page's lease, although the request that began it has used up its budget."""
    page = PATHS[world.package_type][0]
    assert world.timed(page).status == 200
    world.reactor.advance(0.96 * CACHE_TIME)
    world.catalog.delay = SLOW
    with patch.object(SlowCatalog, "release_lease", wraps=world.catalog.release_lease) as released:
        assert world.timed(page).headers["cache-status"].count("hit") == 1
    assert len(world.wire.exchanges) == 2
    assert released.call_count == 1


def test_a_wait_for_another_process_does_not_use_up_the_budget(world: SlowWorld) -> None:
    """A process that waits for the page of another one looks at Redis again and again, for as long as it takes."""
    lease, seconds, asked_at = f"page:{world.page}", 20, []

    async def end() -> None:
        asked_at.append(len(world.wire.exchanges))
        await MemoryCatalog.release_lease(world.catalog, lease, "another process")

    Deferred.fromCoroutine(world.catalog.take_lease(lease, "another process", 60))
    world.catalog.delay = 0.02
    world.reactor.callLater(seconds, lambda: Deferred.fromCoroutine(end()))
    assert world.timed(PATHS[world.package_type][0]).status == 200
    assert world.took > seconds
    assert world.catalog.calls * world.catalog.delay > 2 * REQUEST_BUDGET
    assert asked_at == [0]


def test_a_file_is_stored_after_its_answer(world: SlowWorld) -> None:
    """No limit in all applies to what follows a transfer, such as queueing the upload, since no client waits for it."""
    commit = DiskStorage.commit

    async def slowly(storage: DiskStorage, key: str, draft: Path, digest: Digest) -> StoredFile:
        for _ in range(3):
            await world.catalog.check()
        return await commit(storage, key, draft, digest)

    world.catalog.delay = SLOW
    with patch.object(DiskStorage, "commit", slowly):
        assert world.timed(PATHS[world.package_type][1]).status == 200
    assert round(world.took, 3) <= REQUEST_BUDGET
    world.catalog.delay = 0.0
    asked = len(world.wire.exchanges)
    assert world.timed(PATHS[world.package_type][1]).headers["cache-status"].count("hit") == 1
    assert len(world.wire.exchanges) == asked
