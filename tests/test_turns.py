"""Tests of `mypypi.turns`: requests of the operator do not wait for those that arrive at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import define, field

from mypypi.turns import Turns
from tests.fuzz.world import Client, Transmission, World
from tests.support.memory import Exchange, response

SECONDS = 0.003


@define
class SlowReactor:
    """A reactor whose time passes only while requests begin."""

    now: float = 0.0
    due: list[Callable[[], object]] = field(factory=list)
    begun: list[int] = field(factory=list)

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, call: Callable[[], object]) -> None:
        assert delay == 0
        self.due.append(call)

    def turn(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()

    def request(self, number: int) -> Callable[[], object]:
        """A request that takes 3 ms to begin."""

        def begin() -> None:
            self.begun.append(number)
            self.now += SECONDS

        return begin


class TestTurns:
    """Requests that take 3 ms each: two begin in each turn of the reactor."""

    def test_a_request_begins_at_once(self) -> None:
        """A request that arrives alone does not wait, whenever it arrives."""
        reactor = SlowReactor()
        turns = Turns(reactor)
        for number in range(5):
            turns.begin(reactor.request(number))
            assert len(reactor.begun) == number + 1
            reactor.turn()
        assert reactor.due == []

    def test_many_begin_in_several_turns(self) -> None:
        """Each turn has two, in their order, also when more arrive meanwhile."""
        reactor = SlowReactor()
        turns = Turns(reactor)
        for number in range(5):
            turns.begin(reactor.request(number))
        assert reactor.begun == [0, 1]
        reactor.turn()
        assert reactor.begun == [0, 1, 2, 3]
        turns.begin(reactor.request(5))
        assert reactor.begun == [0, 1, 2, 3]
        reactor.turn()
        assert reactor.begun == [0, 1, 2, 3, 4, 5]
        reactor.turn()
        assert reactor.due == []


def upstream(_: Exchange) -> Transmission:
    return Transmission(response(200, b'{"name": "app", "files": [], "versions": {}}', content_type="application/json"))


@pytest.fixture(params=["pypi", "npm"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A server on which each look at the clock takes a second, so that one request begins in each turn."""
    found = World(request.param, tmp_path, upstream, lambda _: True)
    clock, seconds = found.reactor, found.reactor.seconds

    def slow() -> float:
        clock.rightNow += 1
        return float(seconds())

    clock.seconds = slow  # type: ignore[method-assign]
    return found


def connect(world: World, path: str) -> Client:
    return Client(world.site, world.reactor, [f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()])


class TestRequests:
    """Requests that wait for their turn."""

    def test_the_operator_does_not_wait(self, world: World) -> None:
        """While pages wait for their turn, the endpoints for operators are answered."""
        connect(world, "/simple/app/")
        waiting = connect(world, "/simple/other/")
        assert connect(world, "/-/health/live").value().startswith(b"HTTP/1.1 200 ")
        assert connect(world, "/-/").value().startswith(b"HTTP/1.1 200 ")
        assert waiting.value() == b""

    def test_every_request_is_answered(self, world: World) -> None:
        """A request that had to wait gets its answer, also if it is for an unknown address."""
        clients = [connect(world, "/a/b/c/d/e/f") for _ in range(4)]
        assert [bool(client.value()) for client in clients] == [True, False, False, False]
        for _ in range(3):
            world.reactor.advance(0)
        assert [client.value().partition(b"\r\n")[0] for client in clients] == [b"HTTP/1.1 404 Not Found"] * 4

    def test_a_client_that_left_costs_nothing(self, world: World) -> None:
        """A request whose client leaves while it waits never begins: upstream is not asked."""
        for _ in range(2):
            connect(world, "/a/b/c/d/e/f")
        leaving = connect(world, "/simple/app/")
        leaving.disconnect()
        for _ in range(3):
            world.reactor.advance(1)
        assert leaving.ending
        assert world.wire.exchanges == []
