"""Tests of the memory that bodies share: which connection waits, and that each body ends."""

from __future__ import annotations

from unittest import mock

from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone

from mypypi.errors import UpstreamDown
from mypypi.model import PageRequest
from mypypi.upstream.bodies import BodyCollector
from mypypi.upstream.body_memory import MOST_HELD, SMALL, BodyClaim, BodyMemory
from mypypi.upstream.client import Upstream
from mypypi.upstream.pace import LONGEST_PAGE, PaceLimits
from mypypi.upstream.responses import PageResponse, PassedResponse
from tests.support.memory import Exchange, MemoryTestCase, Wire, response

PIECE = SMALL // 2
TIMEOUT = 15


class BodyMemoryTest(MemoryTestCase):
    """Bodies share the memory: small ones go on, and large ones end one after the other."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = BodyMemory()
        self.resumed: list[BodyClaim] = []

    def take(self, claim: BodyClaim, count: int) -> bool:
        return claim.take(count, lambda: self.resumed.append(claim))

    def filled(self) -> BodyClaim:
        """Return a body that has taken all memory, and goes on."""
        claim = self.memory.claim()
        self.assertTrue(self.take(claim, MOST_HELD))
        return claim

    def test_bodies_go_on_while_there_is_memory(self) -> None:
        """No body waits before the memory is used up."""
        claims = [self.memory.claim() for _ in range(10)]
        self.assertTrue(all(self.take(claim, MOST_HELD // 10) for claim in claims))
        self.assertEqual(MOST_HELD // 10 * 10, self.memory.held)
        for claim in claims:
            claim.release()
            claim.release()
        self.assertEqual(0, self.memory.held)

    def test_one_body_may_have_any_size(self) -> None:
        """A single body goes on to its end, however large it is."""
        claim = self.memory.claim()
        self.assertTrue(all(self.take(claim, MOST_HELD) for _ in range(5)))
        claim.release()
        self.assertEqual((0, []), (self.memory.held, self.resumed))

    def test_small_bodies_do_not_wait_for_large_ones(self) -> None:
        """While large bodies wait, small ones go on, up to as much again."""
        full, favoured, large = self.filled(), self.memory.claim(), self.memory.claim()
        self.assertTrue(self.take(favoured, 2 * SMALL))
        self.assertFalse(self.take(large, 2 * SMALL))
        small = [self.memory.claim() for _ in range(2 * MOST_HELD // SMALL)]
        went_on = [self.take(claim, SMALL) for claim in small]
        self.assertEqual((MOST_HELD - 2 * SMALL) // SMALL, went_on.count(True))
        self.assertLessEqual(self.memory.held, 4 * MOST_HELD)
        for claim in (*small, full, favoured, large):
            claim.release()
        self.assertEqual(0, self.memory.held)

    def test_large_bodies_end_one_after_the_other(self) -> None:
        """When a body ends, the smallest of those that wait goes on. None waits for ever."""
        full = self.filled()
        sizes = [5 * SMALL, 3 * SMALL, 4 * SMALL]
        claims = [self.memory.claim() for _ in sizes]
        going_on = [self.take(claim, size) for claim, size in zip(claims, sizes, strict=True)]
        self.assertEqual([True, False, False], going_on)
        claims[0].release()
        self.assertEqual([claims[1]], self.resumed)
        self.assertTrue(self.take(claims[1], MOST_HELD))
        claims[1].release()
        self.assertEqual(claims[1:], self.resumed)
        claims[2].release()
        full.release()
        self.assertEqual((0, claims[1:]), (self.memory.held, self.resumed))

    def test_memory_that_is_free_again_is_for_all(self) -> None:
        """All bodies go on once there is memory for them."""
        full, favoured = self.filled(), self.memory.claim()
        waiting = [self.memory.claim() for _ in range(3)]
        self.assertTrue(self.take(favoured, 2 * SMALL))
        self.assertEqual([False] * 3, [self.take(claim, 2 * SMALL) for claim in waiting])
        full.release()
        self.assertEqual(waiting, self.resumed)

    def test_a_body_that_ends_while_it_waits_is_not_resumed(self) -> None:
        """A connection that broke while it was paused is forgotten."""
        full, favoured, waiting = self.filled(), self.memory.claim(), self.memory.claim()
        self.take(favoured, 2 * SMALL)
        self.assertFalse(self.take(waiting, 2 * SMALL))
        waiting.release()
        favoured.release()
        full.release()
        self.assertEqual((0, []), (self.memory.held, self.resumed))


class PausedBodyTest(MemoryTestCase):
    """A body that has to wait for memory pauses its connection, and breaks no limit meanwhile."""

    def setUp(self) -> None:
        super().setUp()
        self.memory = BodyMemory()
        self.other = self.memory.claim()
        self.other.take(MOST_HELD, lambda: None)
        self.favoured = self.memory.claim()
        self.favoured.take(2 * SMALL, lambda: None)
        self.transport = StringTransport()
        claim = self.memory.claim()
        self.collector = BodyCollector(self.clock, PaceLimits(TIMEOUT), 10 * SMALL, claim, encoded=True)
        self.collector.makeConnection(self.transport)
        self.collector.dataReceived(bytes(2 * SMALL))
        self.assertEqual("paused", self.transport.producerState)

    def test_it_goes_on_when_there_is_memory(self) -> None:
        """A paused connection is resumed, and its body is whole. The pause is no silence of upstream's."""
        self.clock.advance(LONGEST_PAGE / 2)
        self.favoured.release()
        self.assertEqual("producing", self.transport.producerState)
        self.clock.advance(TIMEOUT - 1)
        self.collector.dataReceived(b"x")
        self.collector.connectionLost(Failure(ResponseDone()))
        self.assertEqual(2 * SMALL + 1, len(self.now(self.collector.done)))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_it_does_not_wait_for_ever(self) -> None:
        """The time for the whole body goes on while it waits. Then its memory is free."""
        held = self.memory.held
        self.clock.advance(LONGEST_PAGE)
        self.assertTrue(self.transport.disconnecting)
        self.assertEqual(held - 2 * SMALL, self.memory.held)
        self.collector.connectionLost(Failure(error.ConnectionAborted()))
        self.failing(self.collector.done, UpstreamDown)

    def test_a_caller_that_leaves_frees_the_memory(self) -> None:
        """A request that is cancelled while its body waits holds nothing."""
        held = self.memory.held
        self.collector.done.cancel()
        self.failing(self.collector.done, CancelledError)
        self.assertEqual(held - 2 * SMALL, self.memory.held)
        self.collector.connectionLost(Failure(error.ConnectionAborted()))
        self.assertEqual(held - 2 * SMALL, self.memory.held)


class SharedMemoryTest(MemoryTestCase):
    """All pages of an upstream share the memory, and so do the answers that are passed on."""

    def setUp(self) -> None:
        super().setUp()
        self.wire = Wire(self.clock)
        self.upstream = Upstream(self.clock, "https://index.example", timeout=TIMEOUT, agent=self.wire.agent)
        self.memory = self.upstream._memory
        self.start_page("full")
        self.send(MOST_HELD)

    def start_page(self, name: str) -> Deferred[PageResponse]:
        page = self.start(self.upstream.page(PageRequest(f"/{name}", "*/*")))
        self.clock.advance(0)
        return page

    def start_search(self) -> Deferred[PassedResponse]:
        search = self.start(self.upstream.pass_on("search", "GET", "/-/v1/search", {}, b""))
        self.clock.advance(0)
        return search

    def send(self, count: int) -> Exchange:
        """Send the head of the last answer, with a longer length, and this many bytes of its body."""
        exchange = self.wire.last
        exchange.send(response(200, b"", content_length=str(count + PIECE)))
        exchange.send(bytes(count))
        return exchange

    def test_a_page_waits_until_another_one_is_rendered(self) -> None:
        """A page holds its memory until it is released, not only while it arrives. Searches wait as well."""
        first = self.start_page("first")
        exchange = self.send(2 * SMALL)
        self.assertFalse(exchange.paused)
        self.start_search()
        search = self.send(2 * SMALL)
        self.assertTrue(search.paused)
        exchange.send(bytes(PIECE))
        page = self.now(first)
        self.assertTrue(search.paused)
        page.release()
        self.assertFalse(search.paused)
        held = self.memory.held
        search.send(bytes(PIECE))
        self.clock.advance(0)
        self.assertEqual(held - 2 * SMALL, self.memory.held)

    def test_small_pages_are_fetched_meanwhile(self) -> None:
        """A page of a usual size is fetched while large ones wait."""
        for name in ("favoured", "waiting"):
            self.start_page(name)
            exchange = self.send(2 * SMALL)
        self.assertTrue(exchange.paused)
        pending = self.start_page("small")
        self.wire.last.answer(body=bytes(PIECE))
        self.now(pending).release()
        self.assertTrue(exchange.paused)

    def test_a_page_that_fails_frees_its_memory(self) -> None:
        """A body that breaks off, or is too large, holds nothing."""
        held = self.memory.held
        pending = self.start_page("broken")
        self.send(SMALL).cut()
        self.failing(pending, UpstreamDown)
        self.assertEqual(held, self.memory.held)
        with mock.patch("mypypi.upstream.client.LARGEST_PAGE", SMALL):
            self.start_page("large")
            self.send(SMALL + 1)
        self.assertEqual(held, self.memory.held)
