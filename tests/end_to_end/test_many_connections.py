"""Tests of a client that opens hundreds of connections: others are served as if it were not there."""

from __future__ import annotations

import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.conftest import daemons
from tests.rig.daemon import Daemon
from tests.rig.descriptors import free_descriptors, started_with
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_wheel
from tests.rig.wire import BOUND

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux has 127.0.0.2 and prlimit")

DESCRIPTORS = 256
ATTACKERS = 400
#: What each connection of the attack sends: nothing, a part of a head, a request after which it stays idle, or a
#: request for a large file that it does not read.
SENT = {
    "nothing": b"",
    "a part of a request": b"GET / HTTP/1.1\r\nHost:",
    "a request": b"GET /-/health/live HTTP/1.1\r\nHost: a\r\n\r\n",
    "a request for a file": b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n",
}
#: Seconds in which a client gets a page or a file that is not cached, on a busy machine.
AT_ONCE = 3.0


#: More bytes than the buffers of a connection hold.
LARGE = 12_000_000


def path_of(index: FakeIndex, wheel: Artifact) -> str:
    return "/file/" + index.url_of(wheel.filename).replace("://", "/")


@pytest.fixture(scope="module")
def index() -> Iterator[FakeIndex]:
    """The upstream of all tests."""
    with FakeIndex() as fresh:
        yield fresh


@pytest.fixture(scope="module")
def daemon(index: FakeIndex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with few descriptors, which all tests share."""
    with daemons(index.url, tmp_path_factory.mktemp("many") / "data") as start:
        with started_with(DESCRIPTORS):
            daemon = start("mypypi")
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] == DESCRIPTORS
        yield daemon


def turned_away(daemon: Daemon) -> float:
    """The number of connections that the daemon has refused, or closed in favour of others."""
    numbers = get(f"{daemon.url}/-/metrics").text
    names = ("rejected_connections", "closed_idle_connections")
    found = [re.search(rf"^mypypi_{name}_total (\S+)$", numbers, re.MULTILINE) for name in names]
    return sum(float(each.group(1)) for each in found if each)


def attack(daemon: Daemon, sent: bytes) -> socket.socket:
    """Open a connection from another address, which stays open if the server lets it."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), BOUND, ("127.0.0.2", 0))
    with suppress(OSError):  # the server may have closed it
        connection.sendall(sent)
    connection.setblocking(False)
    return connection


def is_turned_away(connection: socket.socket) -> bool:
    """Whether the server has closed the connection, or answered it with 503."""
    try:
        if connection.recv(1000, socket.MSG_PEEK).startswith(b"HTTP/1.1 200 "):
            connection.recv(1000)
        seen = connection.recv(1000, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not seen or seen.startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("sent", SENT)
def test_many_connections_keep_nobody_out(index: FakeIndex, daemon: Daemon, sent: str) -> None:
    """
    With 256 descriptors, 400 connections of one client cost others nothing: they get pages and files at once.

    Most of the 400 are refused, or closed while they are idle.
    """
    mark = list(SENT).index(sent)
    wheels = [make_wheel(f"thing{mark}{number}") for number in range(6)]
    large = make_wheel(f"large{mark}", padding=LARGE)
    for wheel in (*wheels, large):
        index.add(wheel)
    assert get(f"{daemon.url}/simple/large{mark}/").status == 200
    assert get(daemon.url + path_of(index, large)).body == large.content
    daemon.wait_for_log(f"stored .*large{mark}")
    request = SENT[sent].replace(b"%s", path_of(index, large).encode())
    before = turned_away(daemon)
    with ExitStack() as stack:
        connections = [stack.enter_context(attack(daemon, request)) for _ in range(ATTACKERS)]
        eventually(lambda: sum(map(is_turned_away, connections)), lambda count: count >= ATTACKERS * 3 // 4)
        assert not all(map(is_turned_away, connections)), "the attacker holds no connection"
        for number, wheel in enumerate(wheels):
            began = time.monotonic()
            assert wheel.filename in get(f"{daemon.url}/simple/thing{mark}{number}/").text
            assert get(daemon.url + path_of(index, wheel)).body == wheel.content
            assert time.monotonic() - began < AT_ONCE
        assert free_descriptors(daemon.pid) > DESCRIPTORS // 8
        assert turned_away(daemon) - before >= ATTACKERS * 3 // 4
    assert daemon.log.count("127.0.0.2 has ") <= 1 + mark
