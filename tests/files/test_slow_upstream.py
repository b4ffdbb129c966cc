"""Tests of files that upstream sends too slowly: their transfers end, and are resumed a few times only."""

from __future__ import annotations

import os

from mypypi.errors import Interrupted, TooSlow
from mypypi.files.content import Content
from mypypi.files.receiver import BACKLOG
from mypypi.files.resuming import FRUITLESS
from tests.files.test_fetch import DATA, SIZE, TIMEOUT, FetchTestCase, SlowDiskTestCase, listed
from tests.support.memory import sha256

SLOW = "upstream sent less than 1000 bytes per second for 30 seconds"
#: Seconds in which all attempts and the pauses between them are over.
ALL_ATTEMPTS = 200


class SlowFileTest(FetchTestCase):
    """A host sends a file that never ends."""

    def trickle(self, count: int, every: float) -> tuple[Content, list[float]]:
        """
        Send pieces of so many bytes at this interval, in each answer, until the fetch fails.

        Returns its content, and how long each answer lasted.
        """
        data = os.urandom(count * int(ALL_ATTEMPTS / every))
        content, at, lasted = self.fetch(listed(sha256(data))), 0, [0.0]
        self.send_head(length=len(data))
        for _ in range(int(ALL_ATTEMPTS / every)):
            self.wire.last.send(data[at : at + count])
            at += count
            self.clock.advance(every)
            lasted[-1] += every
            if self.wire.last.closed:
                self.clock.advance(0.2)
                if content.error is not None:
                    break
                lasted.append(0.0)
                self.send_head(206, len(data) - at, content_range=f"bytes {at}-{len(data) - 1}/{len(data)}")
        return content, lasted

    def test_one_byte_every_five_seconds(self) -> None:
        """A file that comes a byte every five seconds is ended after 30 seconds, and resumed three times."""
        content, lasted = self.trickle(1, 5)
        self.assertEqual([30] * (FRUITLESS + 1), lasted)
        self.assertEqual(FRUITLESS + 1, len(self.wire.exchanges))
        self.assertEqual(SLOW, str(content.error))
        self.assertIsInstance(content.error, TooSlow)
        self.assertIsNone(self.find_stored())

    def test_half_of_the_lowest_rate(self) -> None:
        """A host that sends 500 bytes per second is not asked for ever, although each attempt brings many bytes."""
        content, lasted = self.trickle(250, 0.5)
        self.assertEqual([30] * (FRUITLESS + 1), lasted)
        self.assertEqual(SLOW, str(content.error))

    def test_few_bytes_and_silence(self) -> None:
        """A host that sends a few bytes and then nothing is not asked for ever either."""
        content = self.fetch()
        self.send_head()
        for at in range(0, 10 * (FRUITLESS + 1), 10):
            self.assertIsNone(content.error)
            self.wire.last.send(DATA[at : at + 10])
            self.clock.advance(TIMEOUT)
            self.assertTrue(self.wire.last.closed)
            self.clock.advance(0.2)
            if content.error is None:
                self.send_head(206, SIZE - at - 10, content_range=f"bytes {at + 10}-{SIZE - 1}/{SIZE}")
        self.assertIsInstance(content.error, TooSlow)
        self.assertEqual(FRUITLESS + 1, len(self.wire.exchanges))

    def test_file_that_keeps_the_rate_is_stored(self) -> None:
        """A file that comes at little more than the lowest rate is stored."""
        content = self.fetch()
        self.send_head()
        for at in range(0, SIZE, 1100):
            self.wire.last.send(DATA[at : at + 1100])
            self.clock.advance(1)
        self.assertTrue(content.whole)
        self.assert_stored()


class SlowDiskTest(SlowDiskTestCase):
    """The disk is slower than upstream."""

    def begin(self) -> Content:
        content = self.fetch(listed(sha256(self.large)))
        self.send_head(length=len(self.large))
        return content

    def test_time_in_which_the_disk_is_behind_does_not_count(self) -> None:
        """While upstream is paused since the disk is behind, no rate is measured."""
        content = self.begin()
        sent = self.send(self.large)
        self.clock.pump([1.0] * 300)
        self.assertFalse(self.wire.last.closed)
        self.threads.finish()
        self.wire.last.send(self.large[sent : sent + BACKLOG // 2])
        self.threads.finish()
        self.clock.pump([1.0] * (TIMEOUT - 1))
        self.assertFalse(self.wire.last.closed)
        self.stop(content)

    def test_last_write_may_take_long(self) -> None:
        """A file whose last bytes have come is stored, however long the disk takes for them."""
        content = self.begin()
        for at in range(0, len(self.large), 65_536):
            while self.wire.last.paused:
                self.threads.step()
            self.wire.last.send(self.large[at : at + 65_536])
        self.clock.pump([1.0] * 100)
        self.assertIsNone(content.error)
        self.threads.finish()
        self.assertTrue(content.whole)

    def stop(self, content: Content) -> None:
        """End the transfer, so that nothing is left of it."""
        self.wire.last.cut()
        self.clock.advance(0.2)
        self.wire.last.answer(404)
        self.clock.advance(0)
        self.assertNotIsInstance(content.error, Interrupted)
