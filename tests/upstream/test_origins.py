"""Tests of the shares of origins among the requests to upstream, and of requests that give way."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred

from mypypi.errors import UpstreamBusy
from mypypi.model import PageRequest
from mypypi.upstream.limiter import ConcurrencyLimiter, Demand, Place
from tests.support.memory import response
from tests.upstream.cases import FILE, TIMEOUT, UpstreamTestCase, paths
from tests.upstream.test_limiter import KINDS, LimiterTestCase, running

HOSTS = ("https://a.example:443", "https://b.example:443", "https://c.example:443")


class OriginsTestCase(LimiterTestCase):
    """A limiter, and files of other origins than upstream's own."""

    def ask_at(self, origin: str, count: int = 1, kind: str = "file", client: str = "") -> list[Deferred[Place]]:
        """Ask for so many places at an origin, as one client each unless a client is named."""
        return [
            self.start(self.limiter.acquire(kind, client or f"{origin} client {number}", origin=origin))
            for number in range(count)
        ]


class OriginsTest(OriginsTestCase):
    """Each origin has places of its own. Other origins than upstream's share a limit."""

    def test_other_origins_take_no_place_of_upstreams_own(self) -> None:
        """However many files of other origins hang, all places at upstream's own origin are free."""
        for number in range(500):
            self.ask_at(f"https://{number}.example:443", 3)
        pages, files = self.ask_as_many(100), self.ask_as_many(100, "file")
        self.assertEqual((32, 32), (running(pages), running(files)))

    def test_another_origin_has_the_same_shares(self) -> None:
        """A kind holds half of an origin's places, and a client three quarters of those."""
        self.assertEqual(24, running(self.ask_at(HOSTS[0], 100, client="a")))
        self.assertEqual(8, running(self.ask_at(HOSTS[0], 100, client="b")))
        self.assertEqual(0, running(self.ask_at(HOSTS[0], 100, client="c")))
        self.assertEqual(32, running(self.ask_at(HOSTS[0], 100, "page")))

    def test_slow_origins_always_leave_places_to_the_next_one(self) -> None:
        """A slow origin holds half of what all others share, and the next one half of the rest."""
        held = [sum(running(self.ask_at(host, 100, kind)) for kind in KINDS) for host in HOSTS]
        self.assertEqual([64, 32, 16], held)
        self.assertEqual(1, running(self.ask_at("https://next.example:443")))

    def test_all_other_origins_have_a_limit(self) -> None:
        """Any number of origins holds twice the places of upstream's own at most, and one client half of that."""
        asked = [each for number in range(1000) for each in self.ask_at(f"https://{number}.example:443", client="a")]
        self.assertEqual(64, running(asked))
        asked += [each for number in range(1000) for each in self.ask_at(f"https://{number}.example:443")]
        self.assertEqual(128, running(asked))

    def test_origin_without_requests_is_forgotten(self) -> None:
        """A page may name any number of hosts: one without a running or waiting request costs nothing."""
        asked = [each for number in range(1000) for each in self.ask_at(f"https://{number}.example:443", 2)]
        self.assertGreater(running(asked), 100)
        while asked:
            self.leave(asked.pop())
        limiter = self.limiter
        self.assertEqual([0, 0], [places.origins for places in (limiter._running, limiter._queued)])
        self.assertEqual((False, {}, {}), (bool(limiter._waiting), limiter._aside, limiter._idle))

    def test_freed_place_goes_to_the_client_that_runs_least(self) -> None:
        """A client that waits for a thousand hosts does not delay one that waits for a file of one host."""
        greedy = [self.ask_at(f"https://{number}.example:443", client="greedy")[0] for number in range(1000)]
        hanging = [self.ask_at(f"https://slow{number}.example:443")[0] for number in range(64)]
        modest = self.ask_at("https://good.example:443", client="modest")
        self.assertEqual((64, 64, 0), (running(greedy), running(hanging), running(modest)))
        self.release(hanging[0])
        self.assertEqual((64, 1), (running(greedy), running(modest)))

    def test_no_kind_of_metadata_waits_for_files_and_audits(self) -> None:
        """Some places are kept for pages while several other kinds hang, and for files while those of pages do."""
        hanging = [each for kind in ("file", "audit", "search") for each in self.ask_as_many(100, kind)]
        self.assertEqual(48, running(hanging))
        self.assertEqual(16, running(self.ask_as_many(100)))
        self.limiter = ConcurrencyLimiter(64, metered=False)
        hanging = [each for kind in ("page", "keys", "attestations") for each in self.ask_as_many(100, kind)]
        self.assertEqual((48, 16), (running(hanging), running(self.ask_as_many(100, "file"))))

    def test_queue_of_another_origin_has_an_end(self) -> None:
        """One origin and one client fill a part of the queue. Another client is not refused."""
        refused = 0
        for each in self.ask_at(HOSTS[0], 1000, client="greedy"):
            if each.called and not isinstance(each.result, Place):
                self.failureResultOf(each, UpstreamBusy)
                refused += 1
        self.assertEqual(1000 - 24 - 384, refused)
        for host in HOSTS:
            (modest,) = self.ask_at(host, client="modest")
            self.assertTrue(running([modest]) or not modest.called)


class DemandTest(OriginsTestCase):
    """Requests that no client waits for give way."""

    def setUp(self) -> None:
        super().setUp()
        self.limiter = ConcurrencyLimiter(2, metered=False)
        self.asked_to_give_way: list[str] = []

    def ask_idle(self, name: str, origin: str = HOSTS[0]) -> tuple[Demand, Deferred[Place]]:
        demand = Demand(lambda: self.asked_to_give_way.append(name), idle=True)
        return demand, self.start(self.limiter.acquire("file", name, origin=origin, demand=demand))

    def test_idle_request_waits_behind_all_others(self) -> None:
        """An idle request gets a place only if nobody else can use it."""
        (first,) = self.ask_at(HOSTS[0])
        _, idle = self.ask_idle("idle")
        waiting = self.ask_at(HOSTS[0], 3)
        for each in (first, *waiting):
            self.assertEqual(0, running([idle]))
            self.release(each)
        self.assertEqual(1, running([idle]))

    def test_idle_request_takes_no_place_in_the_queue(self) -> None:
        """A client that leaves makes room in the queue, and the next one is not refused."""
        self.ask_at(HOSTS[0])
        demands = [Demand(lambda: None) for _ in range(100)]
        asked = [
            self.start(self.limiter.acquire("file", str(number), origin=HOSTS[0], demand=demand))
            for number, demand in enumerate(demands)
        ]
        refused = [each for each in asked if each.called]
        for each in refused:
            self.failureResultOf(each, UpstreamBusy)
        self.assertEqual(100 - 16, len(refused))
        self.failureResultOf(self.ask_at(HOSTS[0])[0], UpstreamBusy)
        demands[0].set_idle(True)
        self.assertNoResult(self.ask_at(HOSTS[0])[0])
        demands[0].set_idle(False)
        self.failureResultOf(asked[0], UpstreamBusy)

    def test_each_place_is_asked_for_once(self) -> None:
        """One request that waits interrupts one idle request, and only one whose place it can use."""
        _, first = self.ask_idle("first")
        self.assertEqual(1, running([first]))
        self.ask_idle("elsewhere", HOSTS[1])
        self.ask_at(HOSTS[0])
        self.ask_at(HOSTS[0])
        self.assertEqual(["first"], self.asked_to_give_way)
        self.ask_at("")
        self.assertEqual(["first"], self.asked_to_give_way)

    def test_no_place_is_lost_or_doubled(self) -> None:
        """After any order of requests, cancellations, changes of demand and releases, all places are free."""
        chance = random.Random(23)  # noqa: S311 - an order that can be repeated
        for limit in (1, 2, 3, 5, 8):
            self.limiter = ConcurrencyLimiter(limit, metered=False)
            asked: list[tuple[Demand, Deferred[Place]]] = []
            for _ in range(3000):
                act = chance.random()
                if act < 0.4 or not asked:
                    demand = Demand(lambda: self.asked_to_give_way.append(""), idle=chance.random() < 0.3)
                    kind, client, origin = chance.choice(KINDS), chance.choice("abc"), chance.choice(("", *HOSTS))
                    work = self.limiter.acquire(kind, client, origin=origin, demand=demand)
                    asked.append((demand, self.start(work)))
                elif act < 0.6:
                    demand, _ = chance.choice(asked)
                    demand.set_idle(not demand.idle)
                else:
                    _, place = asked.pop(chance.randrange(len(asked)))
                    self.leave(place)
            while asked:
                self.leave(asked.pop()[1])
            limiter = self.limiter
            self.assertEqual(
                (False, {}, {}, {}), (bool(limiter._waiting), limiter._aside, limiter._idle, dict(limiter._asked))
            )
            self.assertEqual(
                (0, 0, 2 * limit), (limiter._running.origins, limiter._queued.origins, limiter._running._free)
            )
            self.assertEqual(limit, sum(running(self.ask_as_many(limit, kind)) for kind in KINDS))
        self.assertGreater(len(self.asked_to_give_way), 100)


class UpstreamOriginsTest(UpstreamTestCase):
    """The upstream client counts each request at the origin that it is sent to."""

    def setUp(self) -> None:
        super().setUp()
        self.upstream = self.make_upstream(concurrency=2)

    def test_hanging_files_of_another_host_leave_all_places_to_pages(self) -> None:
        """Pages are sent while files of another host wait for its answer."""
        for path in paths(10):
            self.file(f"https://files.example{path}", client=path)
        self.assertEqual(1, self.request_count)
        self.page("/simple/a/")
        self.assertEqual("/root/simple/a/", self.wire.last.path)

    def test_redirected_request_counts_where_it_is_sent(self) -> None:
        """A file that upstream redirects to a slow host frees the place at upstream, and waits for one there."""
        self.upstream = self.make_upstream(concurrency=1)
        self.file(FILE)
        for number, path in enumerate(paths(5)):
            pending = self.file(f"{self.url}{path}", client=path)
            self.assertEqual(number + 2, self.request_count)
            self.wire.last.answer(302, location="https://files.example/x")
            self.assertNoResult(pending)
        self.page("/simple/a/")
        self.assertEqual("/root/simple/a/", self.wire.last.path)

    def test_redirected_request_that_finds_no_room_is_refused(self) -> None:
        """Where too many wait for the host already, the request fails as any other, and holds no place."""
        self.upstream = self.make_upstream(concurrency=1)
        held = self.file(FILE)
        waiting = [self.file(FILE, client=path) for path in paths(30)]
        refused = [each for each in waiting if each.called]
        for each in refused:
            self.failing(each, UpstreamBusy)
        self.assertGreater(len(refused), 10)
        redirected = self.file(f"{self.url}/a.whl", client="redirected")
        self.wire.last.answer(302, location="https://files.example/x")
        self.failing(redirected, UpstreamBusy)
        self.assert_slot_is_free(self.upstream)
        self.wire.exchanges[0].send(response(200, b"", content_length="9"))
        self.now(held).close()
        self.assertEqual("/a.whl", self.wire.last.path)

    def test_late_files_of_a_slow_host_take_no_late_place_of_others(self) -> None:
        """A page may go on after its time-out, although as many files of another host do as may."""
        late: list[str] = []
        for path in paths(4):
            asked = self.upstream.file(f"https://files.example{path}", {}, path, lambda: late.append("file"))
            self.start(asked)
        self.clock.advance(TIMEOUT)
        self.clock.advance(TIMEOUT)
        self.assertEqual(["file"], late)
        page = self.start(self.upstream.page(_page(), late=lambda: late.append("page")))
        self.clock.advance(TIMEOUT)
        self.assertEqual(["file", "page"], late)
        self.assertNoResult(page)


def _page() -> PageRequest:
    return PageRequest("/simple/a/", "text/html", "page")
