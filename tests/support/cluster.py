"""Servers and workers that share an upstream, a Redis and a bucket.

They run on one simulated host or several. Knows where the daemons keep their data. Must never import the code that they
run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.rig.clock import WallClock
from tests.rig.daemon import ROOT, Daemon
from tests.rig.http import Answer, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_wheel
from tests.rig.redis import Redis
from tests.rig.s3 import ACCESS_KEY, REGION, SECRET_KEY, S3Proxy, S3Server
from tests.rig.wire import BOUND

_NUMBERS = count()


@define(eq=False)
class Cluster:
    """
    The daemons that a test starts, with their upstream, Redis and bucket.

    The daemons use `index` as their upstream, `redis`, and `s3` through `proxy`. Each cluster has its own prefix in
    Redis and in the bucket. `settings` apply to all daemons started from now on, without their ``MYPYPI_`` prefix. A
    host is a data directory below `place`. Daemons have the time of day of `clock`, if there is one.
    """

    index: FakeIndex
    redis: Redis
    s3: S3Server
    proxy: S3Proxy
    place: Path
    settings: dict[str, str] = field(factory=dict)
    name: str = field(factory=lambda: f"cluster{next(_NUMBERS)}")
    daemons: list[Daemon] = field(factory=list)
    clock: WallClock | None = None

    # Daemons

    def server(self, host: str = "data", **settings: str) -> Daemon:
        """Start a server on this host, and wait until it is ready."""
        daemon = self._make("mypypi-server", host, settings)
        daemon.start()
        return daemon

    def workers(self, number: int = 1, host: str = "data", **settings: str) -> list[Daemon]:
        """Start `number` workers on this host, and wait until they are ready."""
        started = [self.launch_worker(host, **settings) for _ in range(number)]
        for daemon in started:
            daemon.wait_for_log("ready: ")
        return started

    def worker(self, host: str = "data", **settings: str) -> Daemon:
        """Start one worker on this host, and wait until it is ready."""
        (daemon,) = self.workers(1, host, **settings)
        return daemon

    def launch_worker(self, host: str = "data", **settings: str) -> Daemon:
        """Start a worker on this host without waiting."""
        daemon = self._make("mypypi-worker", host, settings)
        daemon.launch()
        return daemon

    def all_in_one(self, **settings: str) -> Daemon:
        """
        Start a server and worker in one process, with its own Redis.

        Waits until it is ready.
        """
        daemon = self._make("mypypi", "data", settings | {"REDIS_URL": ""})
        daemon.start()
        return daemon

    def data(self, host: str = "data") -> Path:
        """A host's data directory."""
        return self.place / host

    def _make(self, plugin: str, host: str, settings: dict[str, str]) -> Daemon:
        common = {
            "UPSTREAM_URL": self.index.url,
            "REDIS_URL": self.redis.url,
            "REDIS_PREFIX": self.name,
            "FILE_STORAGE_DRIVER": "s3",
            "S3_BUCKET": self.s3.bucket,
            "S3_PREFIX": self.name,
            "S3_ENDPOINT_URL": self.proxy.url,
            "S3_ACCESS_KEY": ACCESS_KEY,
            "S3_SECRET_KEY": SECRET_KEY,
            "S3_REGION": REGION,
        }
        given = common | self.settings | settings
        env = {name if name == "WORKERS" else f"MYPYPI_{name}": value for name, value in given.items()}
        python_path = [ROOT]
        if self.clock is not None:
            env |= self.clock.env
            python_path.append(self.clock.module)
        daemon = Daemon(plugin, self.data(host), env, python_path=python_path)
        self.daemons.append(daemon)
        return daemon

    # Packages

    def publish(self, padding: int = 0, version: str = "1.0") -> Artifact:
        """Publish a new wheel upstream, with at least `padding` bytes."""
        wheel = make_wheel(f"thing{next(_NUMBERS)}", version, padding=padding)
        self.index.add(wheel)
        return wheel

    def path(self, wheel: Artifact) -> str:
        """The path of the file on a server."""
        return f"/file/{self.index.url_of(wheel.filename).replace('://', '/')}"

    def get(
        self, server: Daemon, wheel: Artifact, headers: dict[str, str] | None = None, method: str = "GET"
    ) -> Answer:
        """Request the file from a server, without following a redirect."""
        return get(server.url + self.path(wheel), headers, method=method)

    def follow(self, server: Daemon, wheel: Artifact, headers: dict[str, str] | None = None) -> Answer:
        """Request the file from a server, and follow a redirect."""
        answer = self.get(server, wheel, headers)
        return get(answer.headers["Location"], headers) if answer.status in (301, 302) else answer

    def fetched(self, wheel: Artifact) -> int:
        """The number of requests for the file's bytes that upstream received."""
        return sum(asked.method == "GET" for asked in self.index.seen(self.index.path_of(wheel.filename)))

    # The bucket

    def object_name(self, wheel: Artifact) -> str:
        """The name of the file's object in the bucket."""
        return f"{self.name}/{self.index.url_of(wheel.filename).replace('://', '/')}"

    def bucket_url(self, wheel: Artifact) -> str:
        """The unsigned URL of the file in the bucket."""
        return self.proxy.url + self.proxy.path_of(self.object_name(wheel))

    def objects(self) -> list[str]:
        """The names of this cluster's objects in the bucket."""
        return [name for name in self.s3.names() if name.startswith(f"{self.name}/")]

    def put_of(self, wheel: Artifact) -> str:
        """The prefix for a fault that the file's upload meets."""
        return f"PUT {self.proxy.path_of(self.object_name(wheel))}"

    def put_into_bucket(self, wheel: Artifact) -> int:
        """The number of successful single-part uploads of the file."""
        return sum(request.status == 200 for request in self.proxy.asked("PUT", self.object_name(wheel)))

    def wait_uploaded(self, *wheels: Artifact, timeout: float = BOUND) -> None:
        """Wait until these files are in the bucket and all work is done."""
        wanted = {self.object_name(wheel) for wheel in wheels}
        eventually(self.objects, wanted.issubset, timeout)
        self.wait_settled(timeout)

    # Work in progress

    def left_over(self) -> list[str]:
        """Jobs, drafts, waiting files and pending uploads, which exist only during work."""
        return [*self.jobs(), *_files(self.data() / "drafts"), *self.waiting(), *self.pending()]

    def wait_settled(self, timeout: float = BOUND) -> None:
        """Wait until no work is in progress."""
        eventually(self.left_over, lambda found: found == [], timeout)

    def jobs(self) -> list[str]:
        """The jobs in Redis, as stored there: waiting, claimed, delayed or dead."""
        found = []
        for key in self.redis.keys(f"{self.name}:queue:*"):
            kind = self.redis.call("TYPE", key)
            if kind == "stream":
                found += [str(entry[1]) for entry in self.redis.call("XRANGE", key, "-", "+")]
            elif kind == "zset":
                found += self.redis.call("ZRANGE", key, 0, -1)
            else:
                found.append(key)
        return found

    def drafts(self, host: str = "data") -> list[str]:
        """The drafts on a host."""
        return [name for name in _files(self.data(host) / "drafts") if name.endswith(".draft")]

    def waiting(self, host: str = "data") -> list[str]:
        """The files on a host that wait for their upload."""
        return _files(self.data(host) / "waiting")

    def files(self, host: str = "data") -> list[str]:
        """The stored files on a host's disk, if there is no bucket."""
        return _files(self.data(host) / "files")

    def wait_for_work(self, host: str = "data") -> None:
        """
        Wait until this host's queues are empty.

        These are the shared queue and the queue of the host's disk.
        """
        disk = (self.data(host) / "id").read_text()
        queues = [f"{self.name}:queue:pypi", f"{self.name}:queue:pypi:{disk}"]
        eventually(lambda: [self.redis.call("XLEN", queue) for queue in queues], lambda found: found == [0, 0])

    def pending(self) -> list[str]:
        """The objects with an unfinished multipart upload."""
        return [name for name in self.s3.pending() if name.startswith(f"{self.name}/")]

    def health(self, server: Daemon) -> Any:
        """The health report of a server."""
        return get(f"{server.url}/-/health/ready").json()


def _files(directory: Path) -> list[str]:
    return sorted(f"{place}/{name}" for place, _, names in os.walk(directory) for name in names)


@contextmanager
def cluster_of(redis: Redis, s3: S3Server, place: Path) -> Iterator[Cluster]:
    """
    Make a cluster, whose daemons are stopped at the end.

    The test fails if one of them logged an unhandled error.
    """
    with ExitStack() as resources:
        index, proxy = resources.enter_context(FakeIndex()), resources.enter_context(S3Proxy(s3))
        cluster = Cluster(index, redis, s3, proxy, place)
        try:
            yield cluster
        finally:
            proxy.mend()
            _stop_all(cluster.daemons)
    for daemon in cluster.daemons:
        assert daemon.complaints == [], daemon.log


def _stop_all(daemons: list[Daemon]) -> None:
    """
    Stop the daemons in parallel.

    Each worker needs a while to release the queue.
    """
    with ThreadPoolExecutor() as pool:
        stopped = [pool.submit(daemon.stop) for daemon in daemons]
    for daemon in daemons:
        daemon.sweep()
        daemon.show()
    for each in stopped:
        each.result()
