"""
Compares many simultaneous clients of one uncached file with a single client.

``python -m benchmarks.stampede`` has upstream serve a file of 50 MB at 20 MB/s. One client, then 200 clients request it
from a server with ``WORKERS=4``, alternately and each time with another file. It prints the seconds until the last
client has the whole file, their ratio, the number of requests to upstream, the additional memory of all processes, and
their processor time. Clients only count bytes; tests elsewhere check the content.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from threading import Event, Thread

import psutil
from attrs import frozen

from tests.rig.daemon import Daemon
from tests.rig.faults import Trickle
from tests.rig.index import FakeIndex
from tests.rig.load import Storm
from tests.rig.packages import make_wheel
from tests.rig.redis import Redis

SIZE = 50_000_000
PACE = 20e6
MANY = 200
ROUNDS = 3
_BETWEEN = 0.05


@frozen
class Figures:
    """The figures of one run.

    `seconds` until the last client was done, `requests` to upstream, additional bytes of memory (`grown`), and seconds
    of processor time (`cpu`).
    """

    seconds: float
    requests: int
    grown: int
    cpu: float


def storm(index: FakeIndex, server: Daemon, clients: int, number: int, place: Path) -> Figures:
    """Have `clients` clients request an uncached file at once."""
    wheel = make_wheel(f"stampede{number}", padding=SIZE)
    index.add(wheel)
    path = index.path_of(wheel.filename)
    index.fault(path, Trickle(PACE, 500_000))
    expected = place / "expected"
    expected.write_bytes(wheel.content)
    url = f"{server.url}/file/{index.url_of(wheel.filename).replace('://', '/')}"
    before, cpu = server.rss_bytes(children=True), used(server)
    most, over = [before], Event()

    def watch() -> None:
        while not over.wait(_BETWEEN):
            most[0] = max(most[0], server.rss_bytes(children=True))

    watching = Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    outcomes = Storm([url] * clients, expected, check=False).outcomes()
    seconds = max(each.seconds for each in outcomes)
    over.set()
    watching.join()
    assert all(each.whole for each in outcomes), [each for each in outcomes if not each.whole][:3]
    assert time.perf_counter() - began >= seconds
    return Figures(seconds, index.count(path), most[0] - before, used(server) - cpu)


def used(server: Daemon) -> float:
    """Return the seconds of processor time of all processes of a server."""
    process = psutil.Process(server.pid)
    family = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (each.cpu_times() for each in family))


def main() -> None:
    """Run the benchmark."""
    with ExitStack() as ending:
        place = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        redis, index = ending.enter_context(Redis()), ending.enter_context(FakeIndex())
        env = {"MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_REDIS_URL": redis.url, "WORKERS": "4"}
        server = ending.enter_context(Daemon("mypypi-server", place / "data", env))
        figures: dict[int, list[Figures]] = {1: [], MANY: []}
        for turn in range(ROUNDS):
            for clients, found in figures.items():
                found.append(storm(index, server, clients, 2 * turn + (clients > 1), place))
                print(f"{clients:4} clients: {found[-1]}")
    for clients, found in figures.items():
        print(
            f"{clients:4} clients: {median(each.seconds for each in found):.2f} s, at most"
            f" {max(each.requests for each in found)} requests to upstream, at most"
            f" {max(each.grown for each in found) / 1e6:.0f} MB more, {median(each.cpu for each in found):.2f} s of CPU"
        )
    ratios = [many.seconds / one.seconds for one, many in zip(figures[1], figures[MANY], strict=True)]
    print(f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
