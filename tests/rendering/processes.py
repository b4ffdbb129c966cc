"""Tasks, hostile pages, processes that are fakes or observed, and a loop for tests with real render processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any, cast
from unittest import mock

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mypypi.model import Form, PageId, SourceDocument
from mypypi.rendering.pool import RenderPool
from mypypi.rendering.process import RenderProcess, RenderProcessEnded
from mypypi.rendering.tasks import ListingTask, RenderTask, encode_task, perform
from mypypi.threads import Threads
from tests.rig.wire import BOUND
from tests.support.memory import gzipped, simple_page

URL = "https://index.example"
THING = PageId("simple", "thing")
JSON = "application/vnd.pypi.simple.v1+json"
HTML = "text/html"
SMALL = simple_page({"filename": "thing-1.0.tar.gz", "url": "https://files.example/thing-1.0.tar.gz", "hashes": {}})


def document(body: bytes, content_type: str = JSON, encoding: str = "") -> SourceDocument:
    sent = gzipped(body) if encoding == "gzip" else body
    return SourceDocument(sent, content_type, f"{URL}/simple/thing/", encoding)


def render_task(source: SourceDocument, page: PageId = THING) -> RenderTask:
    return RenderTask(page, source)


def encoded(source: SourceDocument, page: PageId = THING) -> bytes:
    """Encode the task to render this page."""
    package_type = "npm" if page.kind == "packument" else "pypi"
    return encode_task(package_type, URL, render_task(source, page))


def encoded_work(name: str, work: int = 0) -> bytes:
    """Encode a task that claims so many bytes of work. No process can do it."""
    return encode_task("pypi", URL, ListingTask(PageId("simple", name), "json", Form("", "", work, b"")))


class FakeProcess:
    """A render process in memory. It does tasks with `do`, and ends as the real one does."""

    def __init__(self, do: Callable[[bytes], bytes] = perform) -> None:
        self.has_grown = self.is_killed = self.is_closed = self.is_slow = False
        self.done: list[bytes] = []
        self._do = do

    @property
    def is_alive(self) -> bool:
        return not self.is_killed

    def perform(self, task: bytes) -> bytes:
        if self.is_killed:
            raise RenderProcessEnded("killed")
        self.done.append(task)
        return self._do(task)

    def slow_down(self) -> None:
        self.is_slow = True

    def kill(self) -> None:
        self.is_killed = True

    def close(self) -> None:
        self.is_killed = self.is_closed = True


def python(directory: Path, program: str) -> mock._patch[str]:
    """Patch `RenderProcess` so that its process runs this Python program."""
    script = directory / "program.py"
    script.write_text(f"import os, sys\nsys.path.insert(0, os.getcwd())\n{program}\n")
    return executable(directory, f'exec "{sys.executable}" "{script}"')


def executable(directory: Path, command: str) -> mock._patch[str]:
    """Patch `RenderProcess` so that its process runs this shell command."""
    path = directory / "command"
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return mock.patch.object(sys, "executable", str(path))


def children() -> dict[int, str]:
    """Return the status of each child of this process by its id, zombies included."""
    found = {child.pid: _status(child) for child in psutil.Process().children()}
    return {pid: status for pid, status in found.items() if status}


def _status(process: psutil.Process) -> str:
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return ""


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def peak_bytes(pid: int, name: str) -> int:
    """Return a peak from ``/proc``: VmPeak (address space) or VmHWM (resident memory)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def has_ended(pid: int) -> bool:
    """Whether the process has ended. A zombie has, which its new parent has yet to reap."""
    try:
        return _status(psutil.Process(pid)) in ("", psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Loop(Clock):
    """The reactor of a test: real time and threads, and nothing else, run by the test's own thread."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()
        self._calls: Queue[Callable[[], object]] = Queue()

    def callFromThread(self, function: Callable[..., object], *args: object, **kwargs: object) -> None:
        self._calls.put(lambda: function(*args, **kwargs))

    def run_until(self, condition: Callable[[], object], timeout: float = BOUND) -> None:
        """Run what is due until the condition holds. Fails after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, "the condition does not hold in time"
            with suppress(Empty):
                self._calls.get(timeout=0.02)()
            self.advance(time.monotonic() - self._started - self.seconds())

    def wait(self, *waiting: Deferred[bytes], timeout: float = BOUND) -> list[Any]:
        """Wait for all of these, and return their results. An error is returned as well."""
        results: dict[int, Any] = {}
        for index, deferred in enumerate(waiting):
            deferred.addBoth(partial(results.__setitem__, index))
        self.run_until(lambda: len(results) == len(waiting), timeout)
        found = [results[index] for index in range(len(waiting))]
        return [result.value if isinstance(result, Failure) else result for result in found]


class RealPool:
    """A pool with real processes and threads, in a loop."""

    def __init__(self, size: int, seconds: float) -> None:
        self.loop = Loop()
        self.others = set(children())
        self.threads = Threads(cast("IReactorFromThreads", self.loop), "render", size + 1, 5.0)
        self.pool = RenderPool(self.threads, self.loop, size, seconds=seconds)
        self.threads.startService()
        self.pool.startService()

    @property
    def children(self) -> dict[int, str]:
        """The status of each child that this pool has started, by its id."""
        return {pid: status for pid, status in children().items() if pid not in self.others}

    def stop(self) -> None:
        """Stop pool and threads, and wait until all processes have ended."""
        if self.threads.running:
            self.pool.stopService()
            self.loop.run_until(lambda: not self.children)
            self.threads.stopService()


def real_pool(size: int, seconds: float) -> Iterator[RealPool]:
    """Yield a pool for a fixture, and stop it at the end."""
    pool = RealPool(size, seconds)
    try:
        yield pool
    finally:
        pool.stop()


def real_process() -> Iterator[RenderProcess]:
    process = RenderProcess()
    try:
        yield process
    finally:
        process.close()
