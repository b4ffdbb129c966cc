"""Tests large pages that are asked for again and again: the kernel copies them to the clients' sockets."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import daemons
from tests.rig.daemon import Daemon
from tests.rig.http import Answer, SlowReader, eventually, get, parallel
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel

#: Bytes of random text in the large page: more than the sockets of both sides hold.
SIZE = 7_500_000
HEADERS = {"Accept": "application/vnd.pypi.simple.v1+json", "Accept-Encoding": "gzip"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with FakeIndex() as index:
        index.describe("large", {"notes": base64.b64encode(os.urandom(SIZE)).decode()})
        index.add(make_wheel("small"))
        with daemons(index.url, tmp_path_factory.mktemp("hot") / "data") as start:
            yield start(env={"MYPYPI_CACHE_TIME": "3600"})


def memory_files(daemon: Daemon) -> int:
    """The bodies that the daemon has in files in memory."""
    links = (link.readlink() for link in Path(f"/proc/{daemon.pid}/fd").iterdir() if link.is_symlink())
    return sum("memfd:mypypi-body" in str(link) for link in links)


def ask(daemon: Daemon) -> Answer:
    return get(f"{daemon.url}/simple/large/", HEADERS)


def test_every_answer_is_whole(served: Daemon) -> None:
    """The first answer and all later ones have the same bytes, to one client and to many at once."""
    first = ask(served)
    assert (first.status, len(first.body) > SIZE / 2) == (200, True)
    answers = [ask(served), *parallel(8, lambda _: ask(served))]
    assert {answer.body for answer in answers} == {first.body}
    assert {answer.headers["ETag"] for answer in answers} == {first.headers["ETag"]}
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == len(answers)
    assert memory_files(served) == 1


def test_slow_clients_get_all_of_it(served: Daemon) -> None:
    """A client that reads slowly gets the same bytes, at its own pace, and others are served meanwhile."""
    whole = ask(served).body
    assert ask(served).body == whole
    with SlowReader(f"{served.url}/simple/large/", HEADERS) as slow, SlowReader(f"{served.url}/simple/large/", HEADERS):
        begun = slow.read(1000)
        assert ask(served).body == whole
        assert begun + slow.read(len(whole)) == whole
    line = eventually(lambda: [each for each in served.log.splitlines() if " broken" in each], bool)[0]
    assert " 200 hit page " in line
    assert int(line.split(" B GET")[0].split()[-1]) < len(whole)
    assert "Traceback" not in served.log
    assert memory_files(served) == 1


def test_the_next_request_of_a_slow_client_waits(served: Daemon) -> None:
    """A request that comes during a large answer is answered after it."""
    whole = ask(served).body
    assert ask(served).body == whole
    small = get(f"{served.url}/simple/small/", HEADERS)
    assert get(f"{served.url}/simple/small/", HEADERS).body == small.body
    request = "GET /simple/{}/ HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{}\r\n"
    fields = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", served.port))
        client.sendall(request.format("large", served.port, fields).encode())
        received = client.recv(100)
        client.sendall(request.format("small", served.port, fields).encode())
        while not received.endswith(small.body):
            block = client.recv(1 << 16)
            assert block, "the connection was closed"
            received += block
    answer = received.partition(b"\r\n\r\n")[2]
    assert answer[: len(whole)] == whole
    head, _, body = answer[len(whole) :].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == small.body
