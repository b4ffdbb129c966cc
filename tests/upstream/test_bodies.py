"""Tests of the body protocols: how a body is collected, and which ends of it are failures."""

from __future__ import annotations

import os

from twisted.internet import error
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from mypypi.errors import BadUpstreamResponse, MyPyPiError, UpstreamDown
from mypypi.upstream.bodies import BodyCollector
from mypypi.upstream.pace import PaceLimits
from tests.support.memory import MemoryTestCase, gzipped

TIMEOUT = 15


class CollectorTest(MemoryTestCase):
    """A collector returns a body as it came, or fails."""

    def collector(self, largest: int = 100, *, encoded: bool = False) -> BodyCollector:
        collector = BodyCollector(self.clock, PaceLimits(TIMEOUT), largest, encoded=encoded)
        self.transport = StringTransport()
        collector.makeConnection(self.transport)
        return collector

    def test_body_is_not_decoded(self) -> None:
        """The bytes are returned as they came, whatever they are."""
        for body in (b"{}", gzipped(b"{}"), gzipped(b"{}")[:9], b"\x1f\x8b", b""):
            collector = self.collector(encoded=True)
            for byte in body:
                collector.dataReceived(bytes([byte]))
            collector.connectionLost(Failure(ResponseDone()))
            self.assertEqual(body, self.now(collector.done))

    def test_limit_counts_the_bytes_as_they_come(self) -> None:
        """A body of exactly the limit is returned. One byte more aborts the connection, at once and only once."""
        collector = self.collector(10)
        collector.dataReceived(b"x" * 10)
        self.assertFalse(self.transport.disconnecting)
        collector.connectionLost(Failure(ResponseDone()))
        self.assertEqual(b"x" * 10, self.now(collector.done))
        collector = self.collector(10)
        for _ in range(3):
            collector.dataReceived(b"x" * 10)
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(collector.done)
        collector.connectionLost(Failure(error.ConnectionAborted()))
        self.assertIn("more than 10 bytes", str(self.failing(collector.done, BadUpstreamResponse)))

    def test_empty_gzip_members_are_refused_while_they_arrive(self) -> None:
        """A body of empty gzip members would have no end. Members with content are left to the decoder."""
        for member, is_refused in ((gzipped(b""), True), (gzipped(os.urandom(300)), False)):
            collector = self.collector(1_000_000, encoded=True)
            for _ in range(100):
                collector.dataReceived(member * 10)
            self.assertEqual(is_refused, self.transport.disconnecting)
            collector.connectionLost(Failure(error.ConnectionAborted() if is_refused else ResponseDone()))
            if is_refused:
                self.assertIn("gzip members", str(self.failing(collector.done, BadUpstreamResponse)))
            else:
                self.assertEqual(member * 1000, self.now(collector.done))

    def test_body_without_a_mark_of_its_end(self) -> None:
        """
        Without a length, a page is complete if it ends as its format does.

        The end of an encoded body is checked by its decoder.
        """
        for body, encoded, complete in (
            (b'{"files": []}\n', False, True),
            (b"<html>\n</HTML>\n", False, True),
            (b'{"files": [', False, False),
            (b"", False, False),
            (gzipped(b"{}"), True, True),
            (gzipped(b"{}")[:9], True, True),
        ):
            collector = self.collector(encoded=encoded)
            collector.dataReceived(body)
            collector.connectionLost(Failure(PotentialDataLoss()))
            if complete:
                self.assertEqual(body, self.now(collector.done))
            else:
                self.failing(collector.done, UpstreamDown)

    def test_end_of_a_collector_leaves_no_timer(self) -> None:
        """A collector that ended, in whatever way, waits for nothing."""
        reasons = (ResponseDone(), PotentialDataLoss(), error.ConnectionLost(), error.ConnectionAborted())
        for reason in reasons:
            collector = self.collector()
            collector.dataReceived(b"{}")
            collector.connectionLost(Failure(reason))
            collector.done.addErrback(lambda failure: failure.trap(MyPyPiError) and None)
            self.assertEqual([], self.clock.getDelayedCalls())

    def test_stalled_body_fails_after_the_time_out(self) -> None:
        """A body fails after 15 seconds without a byte, and its connection is closed."""
        collector = self.collector()
        collector.dataReceived(b"{")
        self.clock.advance(TIMEOUT - 1)
        collector.dataReceived(b"}")
        self.clock.advance(TIMEOUT - 1)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(self.transport.disconnecting)
        collector.connectionLost(Failure(error.ConnectionAborted()))
        self.assertIn("stopped in the middle", str(self.failing(collector.done, UpstreamDown)))
