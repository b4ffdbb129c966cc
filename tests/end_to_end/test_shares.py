"""Tests that slow hosts and greedy clients never take what others need: requests to upstream, places in queues."""

from __future__ import annotations

import re
import select
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

import pytest
from typing_extensions import Self

from tests.conftest import Sites
from tests.rig.faults import Hang, Trickle
from tests.rig.host import FileHost
from tests.rig.http import Answer, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.support.kinds import NPMKind, PyPIKind
from tests.support.site import Site

BULK = "/-/npm/v1/security/advisories/bulk"
#: The other client. Those that mean harm have the address 127.0.0.1.
OTHER = "127.0.0.2"
#: Seconds for an answer to the other client; all that hangs does so for longer.
SOON = 3.0
#: Requests of the greedy client for files of the slow host.
FILES = 64
#: How many of them run: three quarters of the 32 that one kind may hold at an origin.
RUNNING = 24
#: A concurrency so small that a test can use it up.
SMALL = 8
#: Two addresses of those that mean harm.
TWO = ("127.0.0.1", "127.0.0.3")


class Crowd:
    """Requests that are sent at once, each on a connection of its own. Use as a context manager."""

    def __init__(self, site: Site, paths: Iterable[str], body: bytes = b"", sources: Sequence[str] = ("",)) -> None:
        address = ("127.0.0.1", site.daemon.port)
        method, length = (b"POST", b"Content-Length: %d\r\n" % len(body)) if body else (b"GET", b"")
        self._answers: dict[socket.socket, bytes] = {}
        for path, source in zip(paths, cycle(sources), strict=False):
            connection = socket.create_connection(address, source_address=(source, 0))
            self._answers[connection] = b""
            head = b"%s %s HTTP/1.1\r\nHost: here\r\nConnection: close\r\n%s\r\n" % (method, path.encode(), length)
            connection.sendall(head + body)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close all connections."""
        for connection in self._answers:
            connection.close()

    def answered(self) -> Counter[int]:
        """Return how many have got which status so far."""
        for connection in select.select([*self._answers], [], [], 0)[0]:
            self._answers[connection] += connection.recv(65536)  # an answer that has ended adds nothing
        return Counter(int(answer.split()[1]) for answer in self._answers.values() if answer)

    def refusals(self) -> list[bytes]:
        """Return the answers with the status 503."""
        return [answer for answer in self._answers.values() if answer.startswith(b"HTTP/1.1 503")]


def metric(site: Site, name: str) -> float:
    text = get(f"{site.daemon.url}/-/metrics", source=OTHER).text
    found = re.findall(rf"^{name}(?:_total)?(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return sum(map(float, found))


def assert_soon(site: Site, *paths: str) -> list[Answer]:
    """Assert that the other client gets these pages and files soon, and return the answers."""
    answers = []
    for path in paths:
        began = time.monotonic()
        answer = get(site.daemon.url + path, {"Accept": site.kind.accept}, source=OTHER)
        assert (answer.status, answer.complete) == (200, True), (path, answer.text)
        assert time.monotonic() - began < SOON, path
        answers.append(answer)
    return answers


def assert_others_are_served(site: Site, times: int = 5) -> None:
    """Assert that cold pages and cold files of other projects come through for the other client."""
    for _ in range(times):
        thing = site.publish(seen=False)
        answers = assert_soon(site, site.kind.page_path(thing.name), thing.path)
        assert answers[1].body == thing.content


class TestSlowHost:
    """A page lists files on a host that sends one byte every five seconds."""

    kind = PyPIKind()

    @pytest.fixture
    def slow(self) -> Iterator[FileHost]:
        with FileHost() as host:
            yield host

    @staticmethod
    def publish_at(site: Site, host: FileHost, name: str, files: int = 1) -> list[str]:
        """Publish files of a project on a host, and return their paths there."""
        assert isinstance(site.upstream, FakeIndex)
        wheels = [make_wheel(name, f"{number}.0") for number in range(files)]
        for wheel in wheels:
            site.upstream.add(wheel, at=host)
        return [site.upstream.path_of(wheel.filename) for wheel in wheels]

    def trickle(self, site: Site, host: FileHost, name: str, files: int = FILES) -> list[str]:
        """Publish the files that trickle, and return the paths of their links."""
        paths = self.publish_at(site, host, name, files)
        trickle = Trickle(0.2)
        for path in paths:
            host.fault(path, trickle)
        return [self.link(host, path) for path in paths]

    @staticmethod
    def link(host: FileHost, path: str) -> str:
        return f"/file/http/{host.host}:{host.port}{path}"

    def assert_served_at(self, site: Site, host: FileHost, name: str) -> None:
        """Assert that the other client soon gets a project's page, and its file, which is on this host."""
        (path,) = self.publish_at(site, host, name)
        _, file = assert_soon(site, f"/simple/{name}/", self.link(host, path))
        assert file.body == get(host.url + path).body

    def test_clients_that_wait_keep_no_others_waiting(self, sites: Sites, slow: FileHost) -> None:
        """
        While 64 files of one client trickle, another file of that host comes through.

        While those of two clients do, pages, and files of other hosts.
        """
        site = sites(self.kind)
        links = self.trickle(site, slow, "greedy", 2 * FILES)
        with Crowd(site, links[:FILES]) as crowd, FileHost() as fast:
            eventually(lambda: metric(site, "mypypi_upstream_waiting"), lambda waiting: waiting == FILES - RUNNING)
            slow.wait_for(lambda: len(slow.requests) == RUNNING)
            self.assert_served_at(site, slow, "beside")
            with Crowd(site, links[FILES:], sources=TWO[1:]) as second:
                slow.wait_for(lambda: sum(not request.done for request in slow.requests) == 32)
                assert_others_are_served(site)
                self.assert_served_at(site, fast, "elsewhere")
                assert not any(request.done for request in slow.requests[:RUNNING])
                assert (crowd.answered(), second.answered()) == ({}, {})

    def test_files_that_no_client_waits_for_give_way(self, sites: Sites, slow: FileHost) -> None:
        """Files whose clients left make room for another file of their host. In the end all are stored (promise 4)."""
        site = sites(self.kind, UPSTREAM_CONCURRENCY=str(SMALL))
        with Crowd(site, self.trickle(site, slow, "left"), sources=TWO) as crowd:
            slow.wait_for(lambda: len(slow.requests) >= SMALL // 2)
            eventually(lambda: metric(site, "mypypi_fetches_running"), lambda running: running >= SMALL)
            crowd.leave()
        with FileHost() as fast:
            assert_others_are_served(site)
            self.assert_served_at(site, fast, "away")
            assert not any(request.done for request in slow.requests)
            before = metric(site, "mypypi_fetches_gave_way")
            self.assert_served_at(site, slow, "near")
        assert metric(site, "mypypi_fetches_gave_way") > before
        running = metric(site, "mypypi_fetches_running")
        slow.mend()
        eventually(lambda: metric(site, "mypypi_fetches_running"), lambda now: now == 0)
        assert len(site.logged("stored", "/left-")) == running


class TestGreedyClients:
    """A client that asks for more than its share waits, or is told so. Others do not notice."""

    @pytest.mark.parametrize("kind", [PyPIKind(), NPMKind()], ids=["pypi", "npm"])
    def test_names_that_do_not_exist(self, sites: Sites, kind: PyPIKind | NPMKind) -> None:
        """150 requests for names, which upstream is slow to deny, leave room for another client's pages and files."""
        site = sites(kind, UPSTREAM_CONCURRENCY=str(SMALL))
        paths = [kind.page_path(f"missing{number}") for number in range(150)]
        hang = Hang()
        for number in range(150):
            site.upstream.fault(kind.upstream_page_path(f"missing{number}"), hang)
        with Crowd(site, paths) as crowd:
            hang.wait_served(3)
            # 3 run and 48 wait: three quarters of the half that a kind has of 8 places, and of a queue of 128
            eventually(lambda: crowd.answered()[503], lambda refused: refused == 150 - 51)
            assert all(b"\r\nretry-after: " in answer.lower() for answer in crowd.refusals())
            assert_others_are_served(site, 10)
            assert (hang.served, crowd.answered()) == (3, {503: 150 - 51})
            site.upstream.mend()
            eventually(lambda: crowd.answered()[404], lambda denied: denied == 51)

    def test_slow_audits(self, sites: Sites) -> None:
        """64 audits that upstream does not answer leave room for packuments and tarballs, also of the same client."""
        site = sites(NPMKind())
        hang = site.upstream.fault(BULK, Hang())
        with Crowd(site, [BULK] * 64, b'{"thing":["1.0.0"]}', TWO) as crowd:
            hang.wait_served(32)
            assert metric(site, "mypypi_upstream_waiting") == 32
            assert_others_are_served(site)
            thing = site.publish()
            assert site.get(thing).body == thing.content
            assert (hang.served, crowd.answered()) == (32, {})
            site.upstream.mend()
            eventually(lambda: crowd.answered()[200], lambda answered: answered == 64)
