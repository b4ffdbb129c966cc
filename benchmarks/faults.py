"""
Compares installs beside a failing upstream with the same installs without its faults.

``python -m benchmarks.faults`` has an upstream with 100 packages of each ecosystem. In a run with faults, 10 of them
answer 500, 10 answer 429 with ``Retry-After: 60``, 10 hang, 10 are pages made to hurt (see `BOMBS`), and audits answer
500, while 20 clients ask for those 40 in a loop. In a run without faults, the same 20 clients ask for the same 40
packages, which are well. Both times npm or uv then installs 50 other packages that are not cached. It prints the
seconds of each install, their ratio, how long ``/-/metrics`` took meanwhile, and how long the daemon took to end after
SIGTERM. It checks every byte that was stored.
"""

from __future__ import annotations

import gzip
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from threading import Thread
from urllib.parse import urlsplit

from attrs import frozen

from tests.rig.clients import Client, Npm, Uv
from tests.rig.daemon import Daemon
from tests.rig.faults import Fault, Hang, Instead, Status
from tests.rig.host import FileHost
from tests.rig.http import get
from tests.support.kinds import Kind, NPMKind, Published, PyPIKind

ROUNDS = 5
GOOD, FAULTY = 50, 40
CLIENTS = 20
#: Seconds between the requests of one client in a loop, so that the clients leave the processors to the daemon.
PACE = 0.1
#: Seconds for which they ask before the install begins.
LEAD = 3.0
STOP_LIMIT = 15.0
_HTML = {"Content-Type": "text/html", "Content-Encoding": "gzip"}
_JSON = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
#: Pages made to hurt, compressed, with their headers.
BOMBS = [
    (gzip.compress(b"<html>" + b"<!--" * 100_000), _HTML),
    (gzip.compress(b'{"versions":{' + b",".join(b'"%d":{}' % number for number in range(2_000_000)) + b"}}", 1), _JSON),
    (gzip.compress(b'{"files":[' + b"{}," * 20_000_000 + b"{}]}", 1), _JSON),
    (gzip.compress(b'<a href="a-1.0.tar.gz">a</a>' * 900_000, 1), _HTML),
    (gzip.compress(b"<html>" + b"<a>" * 200_000), _HTML),
    (gzip.compress(b"<html>" + b"<![" * 200_000), _HTML),
    (gzip.compress(b'{"name":' + b"[" * 300_000), _JSON),
]


@frozen
class Figures:
    """One run: seconds of the install, the slowest answer of ``/-/metrics``, seconds until the end after SIGTERM."""

    seconds: float
    slowest_metrics: float
    median_metrics: float
    stop: float


def faults() -> Iterator[Fault]:
    """Yield a fault for each of the faulty packages."""
    for number in range(FAULTY):
        bomb, headers = BOMBS[number // 4 % len(BOMBS)]
        yield (Status(500), Status(429, retry_after=60), Hang(), Instead(bomb, headers))[number % 4]


@contextmanager
def watched(url: str) -> Iterator[list[float]]:
    """Measure how long ``/-/metrics`` takes, again and again, in seconds, in a process of its own."""
    command, times = [sys.executable, "-m", "benchmarks.faults", "watch", url], list[float]()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - this module
        try:
            yield times
        finally:
            output, _ = process.communicate()
            times += map(float, output.split())


def watch(url: str) -> None:
    """Print the seconds of each answer until standard input ends. It keeps its connection, as Prometheus does."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=60)
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        began = time.perf_counter()
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        assert (answer.status, b"mypypi_degraded" in answer.read()) == (200, True)
        print(time.perf_counter() - began)


@contextmanager
def clients(urls: list[str], accept: str) -> Iterator[None]:
    """Have clients ask for these pages in a loop, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.faults", "clients", accept, *urls]
    with subprocess.Popen(command) as process:  # noqa: S603 - this module
        try:
            yield
        finally:
            process.kill()


def ask_in_a_loop(accept: str, urls: list[str]) -> None:
    """Be all of the clients that ask in a loop, until this process is killed."""

    def ask() -> None:
        own = random.sample(urls, len(urls))
        while True:
            for url in own:
                with suppress(OSError):
                    get(url, {"Accept": accept}, timeout=60)
                time.sleep(PACE)

    for _ in range(CLIENTS):
        Thread(target=ask).start()


def run(kind: Kind, upstream: FileHost, things: list[Published], place: Path, *, faulty: bool) -> Figures:
    """Install the good packages through a new daemon with an empty cache."""
    good, others = things[:GOOD], things[-FAULTY:]
    if faulty:
        for thing, fault in zip(others, faults(), strict=True):
            upstream.fault(kind.upstream_page_path(thing.name), fault)
        upstream.fault("/-/npm/v1/security/", Status(500))
    env = {"MYPYPI_PACKAGE_TYPE": kind.package_type, "MYPYPI_UPSTREAM_URL": upstream.url}
    daemon = Daemon("mypypi", place / "data", env).start()
    try:
        urls = [daemon.url + kind.page_path(thing.name) for thing in others]
        client: Client = Npm(place, patient=True) if isinstance(kind, NPMKind) else Uv(place)
        with clients(urls, kind.accept), watched(f"{daemon.url}/-/metrics") as times:
            time.sleep(LEAD)
            began = time.perf_counter()
            found = client.install(daemon.url, *(thing.name for thing in good))
            seconds = time.perf_counter() - began
            assert len(found) == GOOD, found
            for thing in good:
                answer = get(daemon.url + thing.path)
                assert (answer.status, answer.body) == (200, thing.content)
        began = time.perf_counter()
        daemon.stop(STOP_LIMIT)
        stop = time.perf_counter() - began
        assert daemon.ended_in_order
        assert daemon.leftovers() == []
        assert daemon.complaints == [], daemon.log
    finally:
        daemon.kill()
        daemon.sweep()
    if faulty:
        met = upstream.faults_served
        assert min(met[name] for name in ("Status", "Hang", "Instead")) >= FAULTY // 10, met
    upstream.mend()
    return Figures(seconds, max(times), median(times), stop)


def main() -> None:
    """Run the benchmark."""
    for kind in (NPMKind(), PyPIKind()):
        figures: dict[bool, list[Figures]] = {False: [], True: []}
        for _ in range(ROUNDS):
            for faulty, found in figures.items():
                with ExitStack() as ending:
                    place = Path(ending.enter_context(tempfile.TemporaryDirectory()))
                    upstream = ending.enter_context(kind.upstream())
                    things = [
                        kind.publish(upstream, f"thing{number}", "1.0.0", padding=random.randrange(5_000, 200_000))
                        for number in range(100)
                    ]
                    found.append(run(kind, upstream, things, place, faulty=faulty))
                    print(f"{kind.package_type:4} {'with' if faulty else 'without':7} faults: {found[-1]}", flush=True)
        ratios = [bad.seconds / well.seconds for well, bad in zip(figures[False], figures[True], strict=True)]
        print(f"{kind.package_type}: ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["clients"]:
        ask_in_a_loop(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["watch"]:
        watch(sys.argv[2])
    else:
        main()
