"""Tests of bodies that are small on the wire and large when they are decoded: they take nothing from other clients."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest
from typing_extensions import Self

from tests.conftest import Sites
from tests.rig.faults import Instead
from tests.rig.http import Answer, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.support.kinds import Kind, NPMKind, PyPIKind
from tests.support.memory import gzipped
from tests.support.site import Site
from tests.support.swollen import BARELY, swollen

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells what a process has open")

MB = 1_000_000
#: Bytes by which the memory of all processes may grow during an attack, and what may be left ten seconds later.
MOST_GROWTH, MOST_LEFT = 150 * MB, 50 * MB
#: Seconds in which another client gets a page or a small file on a busy machine: usually, and at most.
USUALLY, AT_MOST = 0.5, 5.0
#: MYPYPI_RENDER_PROCESSES.
RENDER_PROCESSES = 2
#: MYPYPI_DRAFTS_MAX_BYTES.
LIMIT = 100 * MB
#: A page that lists nothing, around spaces.
START, END = b'{"meta":{"api-version":"1.0"},"name":"thing","versions":{},"files":[]', b"}"


class Peak:
    """The highest value of a measurement, which is taken all the time. Use as a context manager."""

    def __init__(self, measure: Callable[[], int]) -> None:
        self._measure = measure
        self.before = self.highest = measure()
        self._ended = Event()
        self._thread = Thread(target=self._watch)

    @property
    def growth(self) -> int:
        return self.highest - self.before

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.highest = max(self.highest, self._measure())


def memory_of(site: Site) -> Callable[[], int]:
    """Return a function that measures the memory of the daemon with all its processes, in bytes."""

    def measure() -> int:
        process, found = psutil.Process(site.daemon.pid), 0
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found += each.memory_info().rss
        return found

    return measure


def drafts_of(site: Site) -> Callable[[], int]:
    """Return a function that measures the disk space of drafts, deleted files that are still open included."""

    def measure() -> int:
        drafts = site.data / "drafts"
        files = {}
        for path in (*Path(f"/proc/{site.daemon.pid}/fd").iterdir(), *drafts.glob("*")):
            with suppress(OSError):
                if path.parent == drafts or str(path.readlink()).startswith(f"{drafts}/"):
                    status = path.stat()
                    files[status.st_ino] = status.st_blocks * 512
        return sum(files.values())

    return measure


def busy_others(site: Site, attack: list[Future[Answer]]) -> list[float]:
    """While the attack runs, request cached and new pages and files. Return how long each took."""
    hot = site.publish_stored()
    seconds: list[float] = []
    while not seconds or not all(each.done() for each in attack):
        cold = site.publish(seen=False)
        for thing, path in ((hot, None), (hot, hot.path), (cold, None), (cold, cold.path)):
            began = time.monotonic()
            url = site.daemon.url + (path or site.kind.page_path(thing.name))
            answer = get(url, {"Accept": site.kind.accept}, source="127.0.0.2")
            seconds.append(time.monotonic() - began)
            assert (answer.status, answer.complete) == (200, True)
    return seconds


def assert_soon(seconds: list[float]) -> None:
    assert statistics.median(seconds) < USUALLY
    assert max(seconds) < AT_MOST


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


class TestPages:
    """Pages that swell: those that are refused early, and those that are as large as a page may be."""

    @staticmethod
    def prepare(site: Site, bodies: dict[str, bytes]) -> list[str]:
        """Let upstream have these pages by the names of their projects, and return their URLs on the daemon."""
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        for name, body in bodies.items():
            site.upstream.fault(site.kind.page_path(name), Instead(body, headers))
        site.publish_stored()
        return [site.daemon.url + site.kind.page_path(name) for name in bodies]

    @staticmethod
    def attack(site: Site, clients: ThreadPoolExecutor, urls: list[str]) -> tuple[list[Answer], list[float]]:
        """Request these pages at once. Return the answers, and how long others waited meanwhile."""
        before = site.upstream.faults_served["Instead"]
        attack = [clients.submit(get, url, {"Accept": site.kind.accept}) for url in urls]
        seconds = busy_others(site, attack)
        assert site.upstream.faults_served["Instead"] == before + len(urls)
        return [each.result() for each in attack], seconds

    @staticmethod
    def warm_up(site: Site, clients: ThreadPoolExecutor) -> None:
        """Let the daemon start all its render processes, as it does on any busy day."""

        def render_processes() -> int:
            things = [site.publish(seen=False) for _ in range(16)]
            list(clients.map(get, [site.daemon.url + site.kind.page_path(thing.name) for thing in things]))
            children = psutil.Process(site.daemon.pid).children()
            return sum("mypypi.rendering.process" in child.cmdline() for child in children)

        eventually(render_processes, lambda count: count == RENDER_PROCESSES)

    @pytest.mark.parametrize("kind", [PyPIKind(), NPMKind()], ids=lambda kind: kind.package_type)
    def test_pages_of_spaces_and_of_empty_members_are_dropped(
        self, sites: Sites, clients: ThreadPoolExecutor, kind: Kind
    ) -> None:
        """Pages of 510 kB with 500 MB of spaces, or of 200,000 empty gzip members, take nothing from others."""
        site = sites(kind, RENDER_PROCESSES=str(RENDER_PROCESSES))
        spaces = swollen(500 * MB, START, END)
        assert len(spaces) < 520_000
        noise = swollen(110 * MB, START + os.urandom(500_000).hex().encode(), END)
        empty = gzipped(b"") * 200_000 + gzipped(START + END)
        bodies = [spaces] * 3 + [noise] * 3 + [empty] * 3
        urls = self.prepare(site, {f"swollen{number}": body for number, body in enumerate(bodies)})
        self.warm_up(site, clients)
        measure = memory_of(site)
        with Peak(measure) as memory:
            answers, seconds = self.attack(site, clients, urls)
        assert [answer.status for answer in answers] == [502] * 9
        assert all("grows more than 200 times" in answer.text for answer in answers[:6])
        assert all("next to nothing in them" in answer.text for answer in answers[6:])
        assert_soon(seconds)
        assert memory.growth < MOST_GROWTH
        eventually(measure, lambda now: now < memory.before + MOST_LEFT, timeout=10)

    def test_largest_pages_are_read_one_after_the_other(self, sites: Sites, clients: ThreadPoolExecutor) -> None:
        """Several pages of the largest size are served, and take no more memory together than one."""
        site = sites(PyPIKind(), RENDER_PROCESSES=str(RENDER_PROCESSES))
        names = [f"largest{number}" for number in range(2)]
        starts = {name: START.replace(b"thing", name.encode()) for name in names}
        urls = self.prepare(site, {name: swollen(133 * MB, start, END, unit=BARELY) for name, start in starts.items()})
        self.warm_up(site, clients)
        measure = memory_of(site)
        with Peak(measure) as memory:
            answers, seconds = self.attack(site, clients, urls)
        assert [answer.status for answer in answers] == [200] * 2
        assert_soon(seconds)
        assert memory.growth < 200 * MB
        eventually(measure, lambda now: now < memory.before + MOST_LEFT, timeout=10)


class TestFiles:
    """Files with ``Content-Encoding: gzip`` that swell."""

    @pytest.mark.parametrize("unit", [1024**2, BARELY], ids=["a thousand to one", "a hundred to one"])
    def test_files_that_swell_take_neither_disk_nor_threads(
        self, sites: Sites, clients: ThreadPoolExecutor, unit: int
    ) -> None:
        """Of eight files that decode to more than there is room for, none is written. Others get their small files."""
        site = sites(PyPIKind(), DRAFTS_MAX_BYTES=str(LIMIT))
        body = swollen(1500 * MB if unit > BARELY else 150 * MB, unit=unit)
        urls = []
        assert isinstance(site.upstream, FakeIndex)
        for number in range(8):
            wheel = make_wheel(f"swollen{unit}-{number}", "1.0")
            extra: dict[str, object] = {"size": len(body)} if number % 2 else {"hashes": {}, "size": None}
            url = site.upstream.add(wheel, extra=extra)
            site.upstream.fault(url.removeprefix(site.upstream.url), Instead(body, {"Content-Encoding": "gzip"}))
            get(site.daemon.url + site.kind.page_path(wheel.project))
            urls.append(f"{site.daemon.url}/file/{url.replace('://', '/')}")
        with Peak(drafts_of(site)) as drafts, Peak(memory_of(site)) as memory:
            attack = [clients.submit(get, url) for url in urls]
            seconds = busy_others(site, attack)
        assert {each.result().status for each in attack} <= {302, 502}
        assert_soon(seconds)
        assert len(body) < drafts.highest < 9 * len(body) < LIMIT
        assert memory.growth < MOST_GROWTH
        eventually(drafts_of(site), lambda left: left == 0, timeout=10)
