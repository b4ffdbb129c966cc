"""Tests of one connection to Redis: many answers that arrive at once are handed over in several turns."""

from __future__ import annotations

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mypypi.redis.connection import Connection
from mypypi.settings.types import RedisUrl
from tests.support.memory import MemoryTestCase
from tests.test_turns import SECONDS, SlowReactor


class AnswersTest(MemoryTestCase):
    """Each answer lets a request go on, which takes 3 ms here."""

    def setUp(self) -> None:
        super().setUp()
        self.reactor = SlowReactor()
        self.connection = Connection(self.reactor, RedisUrl.parse("redis://localhost"))  # type: ignore[arg-type]
        self.connection.factory = None
        self.connection.transport = StringTransport()
        self.connection.connected = 1
        self.answers: list[object] = []

    def send(self, count: int) -> None:
        for number in range(count):
            self.connection.execute_command("GET", f"key{number}").addBoth(self.note)

    def note(self, answer: object) -> None:
        self.reactor.now += SECONDS
        self.answers.append(answer.type if isinstance(answer, Failure) else answer)

    def test_an_answer_is_handed_over_at_once(self) -> None:
        """A single answer does not wait for another turn."""
        self.send(1)
        self.connection.dataReceived(b"$1\r\na\r\n")
        assert self.answers == [b"a"]

    def test_many_answers_take_several_turns(self) -> None:
        """Others get their turn between them, and each command has its own answer."""
        self.send(5)
        self.connection.dataReceived(b"".join(b"$1\r\n%d\r\n" % number for number in range(5)))
        assert self.answers == [b"0", b"1"]
        self.reactor.turn()
        assert self.answers == [b"0", b"1", b"2", b"3"]
        self.reactor.turn()
        assert self.answers == [b"0", b"1", b"2", b"3", b"4"]

    def test_answers_that_came_before_the_end_count(self) -> None:
        """If the connection is lost, answers that have arrived are handed over, and the other commands fail."""
        self.send(4)
        self.connection.dataReceived(b"$1\r\n0\r\n$1\r\n1\r\n$1\r\n2\r\n")
        self.connection.connectionLost(Failure(ConnectionDone()))
        assert self.answers[:3] == [b"0", b"1", b"2"]
        assert isinstance(self.answers[3], type)
