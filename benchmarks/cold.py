"""
Measures pages that are not in the cache: how long clients wait for them, and what they cost.

``python -m benchmarks cold`` starts an upstream with as many pages as real installs read (see `benchmarks.recorded`).
Sixteen connections ask for all of them: directly at upstream, through a daemon with an empty cache, and once more
through the same daemon. It prints seconds in all, median and 90th percentile of one answer, processor time of the
daemon and of all its children (also of those that have ended), and their memory afterwards. ``--latency`` is how many
milliseconds upstream takes for each answer (more than once for several), ``--kind`` is pypi or npm, and ``--rounds``
repeats all that.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from queue import Empty, SimpleQueue
from statistics import median, quantiles
from threading import Thread

import psutil
from attrs import frozen

from benchmarks.recorded import SIZES, names, path_of
from tests.rig.daemon import Daemon

#: What the clients accept: that of uv, and that of npm.
ACCEPT = {
    "pypi": "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01",
    "npm": "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*",
}
CONNECTIONS = 16


@contextmanager
def started(name: str, *arguments: str) -> Iterator[str]:
    """Start the upstream in the benchmarks' module of this name; yield its address."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - a module of ours
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate("")


@frozen
class Asked:
    """How long all answers took, and each of them, in seconds."""

    seconds: float
    each: list[float]

    def __str__(self) -> str:
        p90 = quantiles(self.each, n=10)[-1]
        return f"{self.seconds:6.2f} s in all; one: median {median(self.each) * 1e3:6.1f} ms, 90 % {p90 * 1e3:6.1f} ms"


def ask_all(url: str, kind: str) -> Asked:
    """Ask for all pages, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cold", "ask", url, kind]
    seconds, *each = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)  # noqa: S603 - this module
    return Asked(seconds, each)


def _ask(url: str, kind: str) -> None:
    """Be the clients: print how long all took, and each."""
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in names(kind):
        waiting.put(path_of(kind, name))
    took: list[float] = []

    def work() -> None:
        connection = HTTPConnection(url.removeprefix("http://"), timeout=120)
        while True:
            try:
                path = waiting.get_nowait()
            except Empty:
                return
            began = time.perf_counter()
            connection.request("GET", path, headers={"Accept": ACCEPT[kind], "Accept-Encoding": "gzip"})
            answer = connection.getresponse()
            body = answer.read()
            took.append(time.perf_counter() - began)
            assert (answer.status, body[:2]) == (200, b"\x1f\x8b"), (path, answer.status)

    began = time.perf_counter()
    threads = [Thread(target=work) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(took) == len(names(kind))
    print(json.dumps([time.perf_counter() - began, *took]))


def used(daemon: Daemon) -> tuple[float, float]:
    """Seconds of processor time so far: of the daemon, and of all processes that it started."""
    process = psutil.Process(daemon.pid)
    own = process.cpu_times()
    ended = own.children_user + own.children_system
    running = [child.cpu_times() for child in process.children(recursive=True)]
    return own.user + own.system, ended + sum(times.user + times.system for times in running)


def resident(daemon: Daemon) -> tuple[float, float]:
    """Resident memory in MB: of the daemon, and of its render processes together."""
    process = psutil.Process(daemon.pid)
    renderers = [child for child in process.children(recursive=True) if "rendering" in " ".join(child.cmdline())]
    return process.memory_info().rss / 1e6, sum(child.memory_info().rss for child in renderers) / 1e6


def measure(kind: str, latency: float) -> None:
    """Measure one kind of pages with one latency of upstream."""
    count, size = len(SIZES[kind]), sum(size for _, size in SIZES[kind])
    print(f"{kind}: {count} pages of {size / 1e6:.0f} MB, upstream takes {latency * 1e3:.0f} ms", flush=True)
    with started("recorded", kind, str(latency)) as upstream, tempfile.TemporaryDirectory() as place:
        print(f"  direct {ask_all(upstream, kind)}", flush=True)
        env = {"MYPYPI_PACKAGE_TYPE": kind, "MYPYPI_UPSTREAM_URL": upstream}
        with Daemon("mypypi", Path(place, "data"), env) as daemon:
            for what in ("cold", "warm"):
                before = used(daemon)
                asked = ask_all(daemon.url, kind)
                own, children = (after - earlier for after, earlier in zip(used(daemon), before, strict=True))
                cost = (own + children) / count * 1e3
                print(
                    f"  {what:6} {asked}; {cost:.1f} ms of CPU a page (daemon {own:.2f} s, children {children:.2f} s)"
                )
            server, renderers = resident(daemon)
            print(f"  memory {server:.0f} MB for the server process, {renderers:.0f} MB for the render processes")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=sorted(SIZES))
    parser.add_argument("--latency", action="append", type=float, help="milliseconds")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    for _ in range(options.rounds):
        for kind in options.kind or ("pypi", "npm"):
            for latency in options.latency or (0, 20):
                measure(kind, latency / 1e3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["ask"]:
        _ask(*sys.argv[2:])
    else:
        main()
