"""
``python -m tests.chaos --seconds 180 --seed 1``: server processes, workers and Redis are killed, upstream and the
bucket fail in each of the known ways, the disk fills up and is freed, while clients install and check every byte.

Prints how often each fault happened and what clients were told; ends with 1 where a client saw what it never should,
where anything is left over or stored other than once, or where a kind of fault never happened.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
from attrs import define, field

from tests.chaos.clients import Client, Weather, told_in
from tests.rig.daemon import Daemon
from tests.rig.faults import CloseEarly, Fault, Gzipped, Hang, Stall, Status, Trickle, WrongBytes, WrongLength
from tests.rig.http import eventually, get
from tests.rig.packages import Artifact, make_wheel
from tests.rig.redis import Redis
from tests.rig.s3 import S3Server
from tests.support.cluster import Cluster, cluster_of

CLIENTS = 6
PROCESSES = 3
#: Seconds that a fault waits to be met, and that the end may take.
_MET = 8.0
_END = 90.0
_FULL = r"files can't be stored|can't be read|was not stored: (a draft|a file|no room)"

#: The ways in which upstream fails, by name, each for files and for pages.
UPSTREAM: dict[str, Callable[[random.Random, int], Fault]] = {
    "500": lambda *_: Status(500),
    "503": lambda *_: Status(503, 1),
    "429": lambda *_: Status(429, 1),
    "hang": lambda *_: Hang(),
    "stall": lambda chance, size: Stall(chance.randrange(size)),
    "close early": lambda chance, size: CloseEarly(chance.randrange(size)),
    "wrong length": lambda chance, _: WrongLength(chance.choice((-7, 7))),
    "wrong bytes": lambda *_: WrongBytes(),
    "gzip": lambda *_: Gzipped(),
    "trickle": lambda _, size: Trickle(5 * size, size // 10),
}
#: What a page can't be checked against: these are for files alone.
_FILES_ONLY = {"wrong bytes", "wrong length", "gzip"}


@define(eq=False)
class Chaos:
    """One run over a cluster, which has a Redis for itself."""

    cluster: Cluster
    redis: Redis
    chance: random.Random
    server: Daemon = field(init=False)
    workers: list[Daemon] = field(init=False)
    weather: Weather = field(init=False)
    met: Counter[str] = field(factory=Counter)

    def run(self, seconds: float) -> list[str]:
        """What went wrong, a line each."""
        self.cluster.settings |= {
            "CACHE_TIME": "1",
            "NEGATIVE_CACHE_TIME": "1",
            "STALE_AFTER": "1",
            "UPSTREAM_TIMEOUT": "3",
            "DRAIN_TIME": "3",
        }
        self.server = self.cluster.server(WORKERS=str(PROCESSES))
        self.workers = self.cluster.workers(2)
        self.weather = Weather(self.server.url, self.cluster.index.url)
        for _ in range(3):
            self.publish()
        clients = [Client(self.weather, random.Random(self.chance.random())).start() for _ in range(CLIENTS)]  # noqa: S311
        try:
            self.disturb(time.monotonic() + seconds)
            self.mend()
        finally:
            self.weather.over.set()
            for client in clients:
                client.join()
        return [*self.weather.wrongs, *self.missing(), *self.leftovers()]

    def publish(self) -> None:
        number, size = len(self.weather.things), self.chance.choice((2_000, 60_000, 400_000))
        wheel = make_wheel(f"chaos{number}", padding=size)
        self.cluster.index.add(wheel)
        self.weather.things.append(wheel)

    def disturb(self, until: float) -> None:
        """Every kind of disturbance in turn, in an order of its own each time, until it is time; at least once each."""
        first = True
        while first or time.monotonic() < until:
            kinds = list(self.kinds().items())
            self.chance.shuffle(kinds)
            for name, disturbance in kinds:
                if not first and time.monotonic() >= until:
                    return
                self.publish()
                disturbance()
                self.met[name] += 0
                self.publish()
                self.weather.over.wait(self.chance.uniform(0.1, 0.5))
            first = False

    def kinds(self) -> dict[str, Callable[[], None]]:
        """All disturbances by name."""
        kinds: dict[str, Callable[[], None]] = {
            "server process killed": self.kill_server,
            "worker killed": self.kill_worker,
            "redis killed": self.kill_redis,
            "disk full": self.fill_disk,
            "bucket 503": self.bucket_fails,
            "upstream refusing": self.upstream_refuses,
        }
        for name, make in UPSTREAM.items():
            kinds[f"upstream {name}, file"] = self.upstream_fails(f"upstream {name}, file", "/packages/", make, 2_000)
            if name not in _FILES_ONLY:
                kinds[f"upstream {name}, page"] = self.upstream_fails(f"upstream {name}, page", "/simple/", make, 200)
        return kinds

    # The disturbances

    def upstream_fails(
        self, name: str, where: str, make: Callable[[random.Random, int], Fault], size: int
    ) -> Callable[[], None]:
        """What is there has at least `size` bytes."""

        def fail() -> None:
            fault = self.cluster.index.fault(where, make(self.chance, size))
            deadline = time.monotonic() + _MET
            while not fault.served and time.monotonic() < deadline:
                self.publish()
                self.weather.over.wait(0.3)
            self.weather.over.wait(self.chance.uniform(0.0, 1.0))
            self.cluster.index.mend()
            self.met[name] += fault.served

        return fail

    def upstream_refuses(self) -> None:
        with self.cluster.index.refusing():
            self.weather.over.wait(self.chance.uniform(0.5, 2.0))
        self.met["upstream refusing"] += 1

    def kill_server(self) -> None:
        victim = self.chance.choice(eventually(lambda: server_processes(self.server), bool))
        self.weather.killed_at = time.monotonic()
        victim.kill()
        self.met["server process killed"] += 1

    def kill_worker(self) -> None:
        victim = self.workers.pop(self.chance.randrange(len(self.workers)))
        victim.kill()
        self.workers.append(self.cluster.launch_worker())
        self.met["worker killed"] += 1

    def kill_redis(self) -> None:
        self.weather.redis_at = float("inf")
        self.redis.kill()
        self.weather.over.wait(self.chance.uniform(0.3, 1.5))
        self.redis.start()
        self.weather.redis_at = time.monotonic()
        self.met["redis killed"] += 1

    def bucket_fails(self) -> None:
        fault = self.cluster.proxy.fault("/", Status(503))
        deadline = time.monotonic() + _MET
        while not fault.served and time.monotonic() < deadline:
            self.publish()
            self.weather.over.wait(0.3)
        self.cluster.proxy.mend()
        self.met["bucket 503"] += fault.served

    def fill_disk(self) -> None:
        before = told_in(self.server.log, _FULL)
        with _full(self.server):
            deadline = time.monotonic() + _MET
            while told_in(self.server.log, _FULL) == before and time.monotonic() < deadline:
                self.publish()
                self.weather.over.wait(0.3)
        self.met["disk full"] += told_in(self.server.log, _FULL) - before

    # The end

    def mend(self) -> None:
        """All is well again: each file that upstream has is to be had."""
        self.weather.over.set()
        self.cluster.index.mend()
        self.cluster.proxy.mend()
        for worker in self.workers:
            worker.wait_for_log("ready: ")

    def missing(self) -> Iterator[str]:
        """What clients can't have, though all is well again; each file that is not stored once."""
        for thing in self.weather.things:
            with suppress(AssertionError):
                eventually(partial(self.is_right, thing), bool, _END)
                continue
            yield f"{thing.filename} is not to be had"
        with suppress(AssertionError):
            self.cluster.wait_settled(_END)
        names = self.cluster.objects()
        for thing in self.weather.things:
            name = self.cluster.object_name(thing)
            if names.count(name) != 1:
                yield f"{thing.filename} is in the bucket {names.count(name)} times"
            elif self.cluster.s3.get(name).content != thing.content:
                yield f"{thing.filename} has other bytes in the bucket"
        if len(names) != len(self.weather.things):
            yield f"the bucket has {len(names)} objects for {len(self.weather.things)} files"

    def is_right(self, thing: Artifact) -> bool:
        answer = self.cluster.follow(self.server, thing)
        return answer.complete and answer.body == thing.content

    def leftovers(self) -> Iterator[str]:
        """Drafts, jobs, leases, descriptors: what there is only while something is under way."""
        for left in self.cluster.left_over():
            yield f"left over: {left}"
        leases = f"{self.cluster.name}:lease:*"
        with suppress(AssertionError):
            eventually(lambda: self.redis.keys(leases), lambda keys: keys == [], 30)
        for lease in self.redis.keys(leases):
            yield f"left over: {lease}"
        data = str(self.cluster.data())
        for process in (*server_processes(self.server), *(psutil.Process(worker.pid) for worker in self.workers)):
            for each in process.open_files():
                if each.path.startswith((f"{data}/drafts", f"{data}/waiting", f"{data}/files")):
                    yield f"process {process.pid} has {each.path} open"
        health = get(f"{self.server.url}/-/health/ready")
        if b'"degraded"' in health.body:
            yield f"not well in the end: {health.text}"
        for daemon in self.cluster.daemons:
            yield from (f"complaint in a log: {line}" for line in daemon.complaints)
        for kind in self.kinds():
            if not self.met[kind]:
                yield f"this fault never happened: {kind}"

    def report(self) -> str:
        """Faults, and what clients were told."""
        lines = [f"{count:6} x {name}" for name, count in sorted(self.met.items())]
        lines += [f"{count:6} {name}" for name, count in sorted(self.weather.counts.items())]
        total = self.weather.counts["pages"] + self.weather.counts["files"]
        lines.append(f"{len(self.weather.things)} files, {sum(self.met.values())} faults, {total} requests checked")
        return "\n".join(lines)


def server_processes(server: Daemon) -> list[psutil.Process]:
    """The processes that serve, without their parent."""
    return [each for each in psutil.Process(server.pid).children() if "mypypi-server" in each.cmdline()]


@contextmanager
def _full(server: Daemon) -> Iterator[None]:
    """No process of the server can write a file that is larger than 1 kB: as where a disk is full."""
    processes = server_processes(server)
    limits = [resource.prlimit(each.pid, resource.RLIMIT_FSIZE) for each in processes]
    for process, limit in zip(processes, limits, strict=True):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        yield
    finally:
        for process, limit in zip(processes, limits, strict=True):
            with suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)


def run(place: Path, seconds: float, seed: int) -> tuple[str, list[str]]:
    """A report, and what went wrong."""
    with Redis() as redis, S3Server() as s3, cluster_of(redis, s3, place) as cluster:
        chaos = Chaos(cluster, redis, random.Random(seed))  # noqa: S311 - repeatable, not secret
        wrongs = chaos.run(seconds)
        return chaos.report(), wrongs


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        report, wrongs = run(Path(place), options.seconds, options.seed)
    print(report)  # noqa: T201 - for whoever runs it
    for wrong in wrongs:
        print("WRONG:", wrong)  # noqa: T201
    sys.exit(1 if wrongs else 0)


if __name__ == "__main__":
    main()
