"""Kills processes and injects faults while clients install packages and check every byte.

Run ``python -m tests.chaos --seconds 180 --seed 1``. Server processes, workers and Redis are killed, upstream and the
bucket fail in each known way, the disk becomes full and is freed, file descriptors are used up and given back, Redis is
slow, and clocks are put a day ahead and back.

It prints how often each fault happened and which answers clients received. It exits with 1 if a client received a wrong
answer, if anything is left over, if a file is not stored exactly once, or if a kind of fault never happened.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import psutil
from attrs import define, field

from tests.chaos.clients import Client, SharedState, count_lines
from tests.rig.clock import DAY, WallClock
from tests.rig.daemon import Daemon
from tests.rig.descriptors import few_descriptors
from tests.rig.faults import CloseEarly, Fault, Gzipped, Hang, Stall, Status, Trickle, WrongBytes, WrongLength
from tests.rig.http import Session, eventually, get
from tests.rig.packages import Artifact, make_wheel
from tests.rig.redis import Redis
from tests.rig.s3 import Refuse, S3Server, Swallow
from tests.support.cluster import Cluster, cluster_of

CLIENTS = 6
PROCESSES = 3
#: Seconds to wait until a client meets a fault, and until the cluster has recovered at the end.
_FAULT_TIMEOUT = 8.0
_END_TIMEOUT = 90.0
#: Seconds within which a server process has started.
_START_TIME = 5.0
#: Seconds within which a server process notices that its descriptors are short: it looks every second.
_LOOK_TIME = 1.3
_DISK_FULL_LOG = r"files can't be stored|can't be read|was not stored: (a draft|a file|no room)"
_DISK_FULL_HEALTH = "can't be written"
_BUCKET_LOG = "files in S3 can't be read"
#: What health says of a process that lacks file descriptors, and of another process that is in trouble.
_SHORTAGE_HEALTH = r"file descriptors|server processes are in trouble"

#: Upstream's faults by name, each for files and for pages.
UPSTREAM: dict[str, Callable[[random.Random, int], Fault]] = {
    "500": lambda *_: Status(500),
    "503": lambda *_: Status(503, 1),
    "429": lambda *_: Status(429, 1),
    "hang": lambda *_: Hang(),
    "stall": lambda rng, size: Stall(rng.randrange(size)),
    "close early": lambda rng, size: CloseEarly(rng.randrange(size)),
    "wrong length": lambda rng, _: WrongLength(rng.choice((-7, 7))),
    "wrong bytes": lambda *_: WrongBytes(),
    "gzip": lambda *_: Gzipped(),
    "trickle": lambda _, size: Trickle(5 * size, size // 10),
}
#: The bucket's faults by name; None stands for refused connections.
BUCKET: dict[str, Callable[[], Fault | None]] = {
    "403": lambda: Refuse(403, "AccessDenied"),
    "500": lambda: Status(500),
    "503": lambda: Status(503),
    "refusing": lambda: None,
    "silent": Swallow,
}
#: Faults for files only, since a page has no digest or size to be checked against.
_FILES_ONLY = {"wrong bytes", "wrong length", "gzip"}


@define(eq=False)
class Chaos:
    """One chaos run over a cluster that has its own Redis."""

    cluster: Cluster
    redis: Redis
    rng: random.Random
    server: Daemon = field(init=False)
    workers: list[Daemon] = field(init=False)
    clocks: list[WallClock] = field(init=False)
    shared: SharedState = field(init=False)
    fault_counts: Counter[str] = field(factory=Counter)

    def run(self, seconds: float) -> list[str]:
        """Run for this number of seconds, and return the violations, one line each."""
        self.cluster.settings |= {
            "CACHE_TIME": "1",
            "NEGATIVE_CACHE_TIME": "1",
            "STALE_AFTER": "1",
            "UPSTREAM_TIMEOUT": "3",
            "DRAIN_TIME": "3",
        }
        self.clocks = [WallClock(self.cluster.place / name) for name in ("server-clock", "worker-clock")]
        self.cluster.clock, workers_clock = self.clocks
        self.server = self.cluster.server(WORKERS=str(PROCESSES))
        self.cluster.clock = workers_clock
        self.workers = self.cluster.workers(2)
        self.shared = SharedState(self.server.url, self.cluster.index.url)
        for _ in range(3):
            self.publish()
        clients = [Client(self.shared, random.Random(self.rng.random())).start() for _ in range(CLIENTS)]  # noqa: S311
        try:
            self.disturb(time.monotonic() + seconds)
            self.mend()
        finally:
            self.shared.stopped.set()
            for client in clients:
                client.join()
        return [*self.shared.violations, *self.missing(), *self.leftovers()]

    def publish(self) -> Artifact:
        number, size = len(self.shared.packages), self.rng.choice((2_000, 60_000, 400_000))
        wheel = make_wheel(f"chaos{number}", padding=size)
        self.cluster.index.add(wheel)
        self.shared.packages.append(wheel)
        return wheel

    def disturb(self, deadline: float) -> None:
        """
        Run all disturbances, in a new random order each round, until the deadline.

        The first round is always completed.
        """
        first = True
        while first or time.monotonic() < deadline:
            kinds = list(self.kinds().items())
            self.rng.shuffle(kinds)
            for name, disturbance in kinds:
                if not first and time.monotonic() >= deadline:
                    return
                self.publish()
                disturbance()
                self.fault_counts[name] += 0
                self.publish()
                self.shared.stopped.wait(self.rng.uniform(0.1, 0.5))
            first = False

    def kinds(self) -> dict[str, Callable[[], None]]:
        """All disturbances by name."""
        kinds: dict[str, Callable[[], None]] = {
            "server process killed": self.kill_server,
            "worker killed": self.kill_worker,
            "redis killed": self.kill_redis,
            "redis slow": self.slow_redis,
            "disk full": self.fill_disk,
            "descriptors used up": self.use_up_descriptors,
            "clock a day ahead": self.shift_clocks,
            "upstream refusing": self.upstream_refuses,
        }
        for name in BUCKET:
            kinds[f"bucket {name}"] = partial(self.bucket_fails, name)
        for name, make in UPSTREAM.items():
            kinds[f"upstream {name}, file"] = self.upstream_fails(f"upstream {name}, file", "/packages/", make, 2_000)
            if name not in _FILES_ONLY:
                kinds[f"upstream {name}, page"] = self.upstream_fails(f"upstream {name}, page", "/simple/", make, 200)
        return kinds

    # The disturbances

    def upstream_fails(
        self, name: str, where: str, make: Callable[[random.Random, int], Fault], size: int
    ) -> Callable[[], None]:
        """Return a disturbance that makes upstream fail for bodies of at least `size` bytes."""

        def disturb_upstream() -> None:
            fault = self.cluster.index.fault(where, make(self.rng, size))
            deadline = time.monotonic() + _FAULT_TIMEOUT
            while not fault.served and time.monotonic() < deadline:
                self.publish()
                self.shared.stopped.wait(0.3)
            self.shared.stopped.wait(self.rng.uniform(0.0, 1.0))
            self.cluster.index.mend()
            self.fault_counts[name] += fault.served

        return disturb_upstream

    def upstream_refuses(self) -> None:
        with self.cluster.index.refusing():
            self.shared.stopped.wait(self.rng.uniform(0.5, 2.0))
        self.fault_counts["upstream refusing"] += 1

    def kill_server(self) -> None:
        process = self.rng.choice(eventually(lambda: server_processes(self.server), bool))
        self.shared.killed_at = time.monotonic()
        process.kill()
        self.fault_counts["server process killed"] += 1

    def kill_worker(self) -> None:
        process = self.workers.pop(self.rng.randrange(len(self.workers)))
        process.kill()
        self.workers.append(self.cluster.launch_worker())
        self.fault_counts["worker killed"] += 1

    def kill_redis(self) -> None:
        self.shared.redis_back_at = float("inf")
        self.redis.kill()
        self.shared.stopped.wait(self.rng.uniform(0.3, 1.5))
        self.redis.start()
        self.shared.redis_back_at = time.monotonic()
        self.fault_counts["redis killed"] += 1

    def slow_redis(self) -> None:
        """Let Redis answer every 1.5 s only, until health has told of it twice."""
        self.shared.redis_back_at = float("inf")
        until, deadline = self.fault_counts["redis slow"] + 2, time.monotonic() + _FAULT_TIMEOUT
        while self.fault_counts["redis slow"] < until and time.monotonic() < deadline:
            self.publish()
            self.redis.call("CLIENT", "PAUSE", 1500, "ALL")
            health = get(f"{self.server.url}/-/health/ready").text
            self.fault_counts["redis slow"] += re.search(r"Redis (takes [\d.]+ s|is too slow)", health) is not None
        self.shared.redis_back_at = time.monotonic()

    def bucket_fails(self, name: str) -> None:
        """
        Let the bucket fail in this way while files are read from it and while others wait for their upload.

        It begins when no server is in trouble with the bucket any more, since a server logs the begin of trouble once.
        It ends once a server has told, in its log and by its health, that files can't be read. A client that arrives
        now asks for a new file, since all others may hang in a bucket that says nothing.
        """
        eventually(lambda: [self.health() for _ in range(5 * PROCESSES)], lambda reports: "S3" not in "".join(reports))
        before, fault, health = count_lines(self.server.log, _BUCKET_LOG), BUCKET[name](), ""
        deadline = time.monotonic() + _FAULT_TIMEOUT
        self.shared.bucket_failed_at = time.monotonic()
        with self.cluster.proxy.refusing() if fault is None else nullcontext():
            if fault is not None:
                self.cluster.proxy.fault("/", fault)
            while time.monotonic() < deadline:
                self.cluster.get(self.server, self.publish())
                self.shared.stopped.wait(0.3)
                health = get(f"{self.server.url}/-/health/ready").text
                if "S3" in health and count_lines(self.server.log, _BUCKET_LOG) > before:
                    break
        self.cluster.proxy.mend()
        self.shared.bucket_failed_at = float("inf")
        self.fault_counts[f"bucket {name}"] += count_lines(self.server.log, _BUCKET_LOG) - before
        if "S3" not in health:
            self.shared.add_violation(f"health does not tell that the bucket fails ({name}): {health}")

    def health(self) -> str:
        """The health report of one of the server processes."""
        return get(f"{self.server.url}/-/health/ready").text

    def fill_disk(self) -> None:
        """Let no server process write a byte to a file, until the log and health have told of it."""
        before, health = count_lines(self.server.log, _DISK_FULL_LOG), ""
        with _disk_full(self.server):
            deadline = time.monotonic() + _FAULT_TIMEOUT
            while time.monotonic() < deadline:
                self.publish()
                self.shared.stopped.wait(0.3)
                health = get(f"{self.server.url}/-/health/ready").text
                if _DISK_FULL_HEALTH in health and count_lines(self.server.log, _DISK_FULL_LOG) > before:
                    break
        self.fault_counts["disk full"] += count_lines(self.server.log, _DISK_FULL_LOG) - before
        if _DISK_FULL_HEALTH not in health:
            self.shared.add_violation(f"health does not tell that the disk is full: {health}")

    def shift_clocks(self) -> None:
        """
        Put the servers' clock a day ahead and back, and the workers' clock as well or not.

        Health must tell of it, and a 404 that was received meanwhile must be forgotten within seconds.
        """
        wheel = make_wheel(f"clock{len(self.shared.packages)}")
        url = f"{self.server.url}/simple/{wheel.project}/"
        clocks = self.clocks[: self.rng.choice((1, 2))]
        for clock in clocks:
            clock.set_ahead(DAY)
        with suppress(AssertionError):
            answer = eventually(partial(get, url), lambda answer: answer.status == 404, _FAULT_TIMEOUT)
            ahead = parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()
            self.fault_counts["clock a day ahead"] += ahead > DAY / 2
        self.publish()
        try:
            health = partial(get, f"{self.server.url}/-/health/ready")
            eventually(health, lambda health: "ahead of that of Redis" in health.text, _FAULT_TIMEOUT)
        except AssertionError:
            self.shared.add_violation("health does not tell that the clock is a day ahead")
        for clock in clocks:
            clock.set_ahead(0)
        self.cluster.index.add(wheel)  # for this look alone: clients may rightly get a 404 for a second
        with suppress(AssertionError):
            eventually(partial(get, url), lambda answer: answer.status == 200, _FAULT_TIMEOUT)
            return
        self.shared.add_violation(f"{wheel.project}: a 404 that was received a day ahead is still believed")

    def use_up_descriptors(self) -> None:
        """
        Let each server process open a few descriptors more, until clients and health have told of it.

        A process that is being started would not start: each must have run for a while.
        """
        pids = [each.pid for each in eventually(lambda: server_processes(self.server), all_have_started)]
        told, deadline = "answers that name file descriptors", time.monotonic() + _FAULT_TIMEOUT
        before = self.shared.counts[told]
        self.shared.descriptors_back_at = float("inf")
        with Session(self.server.url) as operator:
            assert operator.get(f"{self.server.url}/-/health/live").status == 200
            reports, free = "", self.rng.randrange(4, 7)
            while time.monotonic() < deadline:
                with few_descriptors(pids, free):  # again each time: a transfer that ends gives descriptors back
                    self.publish()
                    self.shared.stopped.wait(_LOOK_TIME)
                    reports += operator.get(f"{self.server.url}/-/health/ready").text
                if re.search(_SHORTAGE_HEALTH, reports) and self.shared.counts[told] > before:
                    break
        self.shared.descriptors_back_at = time.monotonic()
        self.fault_counts["descriptors used up"] += self.shared.counts[told] - before
        if not re.search(_SHORTAGE_HEALTH, reports):
            self.shared.add_violation(f"health does not tell that descriptors are used up: {reports}")

    # Recovery and checks

    def mend(self) -> None:
        """Stop the clients, remove all faults, and wait for the workers."""
        self.shared.stopped.set()
        self.cluster.index.mend()
        self.cluster.proxy.mend()
        for worker in self.workers:
            worker.wait_for_log("ready: ")

    def missing(self) -> Iterator[str]:
        """The files that can't be downloaded after recovery, or are not stored exactly once."""
        for package in self.shared.packages:
            with suppress(AssertionError):
                eventually(partial(self.is_served_right, package), bool, _END_TIMEOUT)
                continue
            yield f"{package.filename} can't be downloaded"
        with suppress(AssertionError):
            self.cluster.wait_settled(_END_TIMEOUT)
        names = self.cluster.objects()
        for package in self.shared.packages:
            name = self.cluster.object_name(package)
            if names.count(name) != 1:
                yield f"{package.filename} is in the bucket {names.count(name)} times"
            elif self.cluster.s3.get(name).content != package.content:
                yield f"{package.filename} has wrong bytes in the bucket"
        if len(names) != len(self.shared.packages):
            yield f"the bucket has {len(names)} objects for {len(self.shared.packages)} files"

    def is_served_right(self, package: Artifact) -> bool:
        answer = self.cluster.follow(self.server, package)
        return answer.complete and answer.body == package.content

    def leftovers(self) -> Iterator[str]:
        """
        Drafts, jobs, leases and open files, which should exist only during work.

        It also reports degraded health, unhandled errors and faults that no client met.
        """
        for entry in self.cluster.left_over():
            yield f"left over: {entry}"
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
            yield f"the server is degraded at the end: {health.text}"
        for daemon in self.cluster.daemons:
            yield from (f"an unhandled error in a log: {line}" for line in daemon.complaints)
        for kind in self.kinds():
            if not self.fault_counts[kind]:
                yield f"no client met this fault: {kind}"

    def report(self) -> str:
        """The counts of faults and of the answers that clients received."""
        lines = [f"{count:6} x {name}" for name, count in sorted(self.fault_counts.items())]
        lines += [f"{count:6} {name}" for name, count in sorted(self.shared.counts.items())]
        total = self.shared.counts["pages"] + self.shared.counts["files"]
        lines.append(
            f"{len(self.shared.packages)} files, {sum(self.fault_counts.values())} faults, {total} requests checked"
        )
        return "\n".join(lines)


def server_processes(server: Daemon) -> list[psutil.Process]:
    """The server's child processes, which serve requests."""
    return [each for each in psutil.Process(server.pid).children() if "mypypi-server" in each.cmdline()]


def all_have_started(processes: list[psutil.Process]) -> bool:
    """Whether these are all child processes of the server, and have been running for some seconds."""
    return len(processes) == PROCESSES and all(each.create_time() < time.time() - _START_TIME for each in processes)


@contextmanager
def _disk_full(server: Daemon) -> Iterator[None]:
    """Limit the server's files to 1 kB, which simulates a full disk."""
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
    """Run the chaos test, and return its report and the violations."""
    with Redis() as redis, S3Server() as s3, cluster_of(redis, s3, place) as cluster:
        chaos = Chaos(cluster, redis, random.Random(seed))  # noqa: S311 - repeatable, not secret
        violations = chaos.run(seconds)
        return chaos.report(), violations


def end(report: str, violations: list[str]) -> NoReturn:
    """Print what a run has found, and exit with 1 if a promise was broken."""
    print(report)  # noqa: T201 - the output of the command
    for violation in violations:
        print("VIOLATION:", violation)  # noqa: T201
    sys.exit(1 if violations else 0)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        report, violations = run(Path(place), options.seconds, options.seed)
    end(report, violations)


if __name__ == "__main__":
    main()
