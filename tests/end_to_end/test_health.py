"""Tests that health tells of each trouble while it lasts, with real processes.

For each, ``/-/health/ready`` has the reason, the metric of its part is 1, clients are served meanwhile, and all is well
again when the trouble is over. Failures of Redis, of the disk and of the bucket are in test_degraded.py,
test_disk_space.py and test_bucket.py.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.test_main import run_beside
from tests.end_to_end.test_degraded import Deployment, deploy
from tests.observability.test_metrics import parsed, scrape, value
from tests.rig.daemon import Daemon
from tests.rig.faults import Status
from tests.rig.host import FileHost
from tests.rig.http import eventually, get
from tests.rig.packages import make_wheel
from tests.rig.redis import Redis
from tests.support.cluster import Cluster

LINUX_ONLY = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets limits of another process")


def reason(daemon: Daemon, part: str) -> str:
    """Return what health says of this part."""
    report: Any = get(f"{daemon.url}/-/health/ready").json()
    return str(report["checks"][part])


def wait_for(daemon: Daemon, part: str, why: str) -> None:
    """Wait until health gives this reason, and assert that the metric agrees."""
    eventually(lambda: reason(daemon, part), lambda found: why in found)
    assert value(scrape(daemon), "degraded", part=part) == (why != "ok")


class TestQueue:
    """Jobs that nobody does."""

    def test_uploads_wait_and_no_worker_runs(self, cluster: Cluster) -> None:
        """The trouble begins without a worker, ends with one, and begins again when it was killed."""
        server = cluster.server()
        assert reason(server, "queue") == "ok"
        first, second = cluster.publish(), cluster.publish()
        assert cluster.get(server, first).body == first.content
        wait_for(server, "queue", "1 job waits for a worker, and none runs that can do it: start twistd mypypi-worker")
        assert value(scrape(server), "queue_jobs", state="unattended") == 1
        worker = cluster.worker()
        cluster.wait_uploaded(first)
        wait_for(server, "queue", "ok")
        worker.kill()
        for key in cluster.redis.keys(f"{cluster.name}:worker:*"):
            assert 0 < cluster.redis.call("TTL", key) <= 15
            cluster.redis.call("PEXPIRE", key, 1)  # its time is over
        assert cluster.get(server, second).body == second.content
        wait_for(server, "queue", "1 job waits for a worker")
        cluster.worker()
        cluster.wait_uploaded(second)
        wait_for(server, "queue", "ok")

    def test_fetches_wait_for_a_worker_of_their_disk(self, cluster: Cluster) -> None:
        """With a local storage, a worker on another host's disk can't fetch the files, and health says so."""
        cluster.settings |= {"FILE_STORAGE_DRIVER": "local", "COLD_FILES": "redirect"}
        server = cluster.server()
        cluster.worker("elsewhere")
        wheel = cluster.publish()
        assert cluster.follow(server, wheel).body == wheel.content
        wait_for(server, "queue", "1 job waits for a worker")
        cluster.worker()
        eventually(lambda: cluster.get(server, wheel).status, lambda status: status == 200)
        wait_for(server, "queue", "ok")

    def test_jobs_are_set_aside(self, cluster: Cluster) -> None:
        """Health gives their number until the operator has dropped them."""
        server, worker = cluster.server(), cluster.worker()
        job = json.dumps({"kind": "unheard", "name": "of", "tries": 23})
        cluster.redis.call("XADD", f"{cluster.name}:queue:pypi", "*", "job", job)
        worker.wait_for_log("unheard of is set aside")
        wait_for(server, "queue", "1 job was set aside after failing too often: mypypi jobs shows the reasons")
        assert value(scrape(server), "queue_jobs", state="dead") == 1
        wheel = cluster.publish()
        assert cluster.get(server, wheel).status == 200
        assert len(run_beside(server, "jobs", "drop", "--all")) == 1
        cluster.wait_uploaded(wheel)
        wait_for(server, "queue", "ok")


@pytest.fixture
def private_redis() -> Iterator[Redis]:
    with Redis() as redis:
        yield redis


class TestRedisPolicy:
    """A Redis that evicts what must not be lost."""

    def test_policy_is_told_at_the_start(self, private_redis: Redis, tmp_path: Path) -> None:
        """The log says once what to do, and health says it while it is so. Clients are served."""
        private_redis.call("CONFIG", "SET", "maxmemory", "100mb")
        private_redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with deploy(tmp_path, REDIS_URL=private_redis.url) as deployment:
            deployment.daemon.wait_for_log("maxmemory-policy is allkeys-lru: set it to noeviction")
            assert deployment.serves(deployment.publish())
            for _ in range(3):
                deployment.assert_degraded("redis", "maxmemory-policy is allkeys-lru")
            assert deployment.count_logged("maxmemory-policy") == 1
        private_redis.call("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
        with deploy(tmp_path, REDIS_URL=private_redis.url) as deployment:
            deployment.assert_recovered()
            assert deployment.count_logged("maxmemory-policy") == 0


class TestUpstream:
    """An upstream of which only a part fails."""

    def test_files_are_held_back(self, private_redis: Redis, tmp_path: Path) -> None:
        """While another host refuses requests for its files, health says so. Pages are fetched as always."""
        with FileHost() as files, deploy(tmp_path, REDIS_URL=private_redis.url) as deployment:
            wheels = [make_wheel(f"remote{number}") for number in range(6)]
            urls = [deployment.index.add(wheel, at=files) for wheel in wheels]
            paths = [f"{deployment.daemon.url}/file/{url.replace('://', '/')}" for url in urls]
            files.fault("/", Status(429, retry_after=30))
            assert {get(path).status for path in paths[:5]} == {503}
            deployment.assert_degraded("upstream", f"{files.url}: requests to upstream are paused")
            deployment.assert_degraded("upstream", "upstream answered 429 to several file requests")
            assert deployment.get_page(deployment.publish()).status == 200
            files.mend()
            assert eventually(lambda: get(paths[5]), lambda answer: answer.status == 200).body == wheels[5].content
            deployment.assert_recovered()


class Kept:
    """A connection that was made before the trouble, and is kept."""

    def __init__(self, daemon: Daemon) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str) -> bytes:
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        assert answer.status == 200
        return answer.read()

    def reason(self) -> str:
        checks: Any = json.loads(self.get("/-/health/ready"))["checks"]
        return str(checks["process"])

    def is_degraded(self) -> bool:
        return value(parsed(self.get("/-/metrics").decode()), "degraded", part="process") == 1


@contextmanager
def without_descriptors(pid: int) -> Iterator[int]:
    """Lower the limit of descriptors to those that the process has open; yield their number."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{pid}/fd"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, hard))
    try:
        yield used
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    """Stop a server process meanwhile, so that the other one accepts the connections."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@LINUX_ONLY
class TestProcess:
    """A server process that lacks something."""

    def test_descriptors_are_used_up(self, private_redis: Redis, tmp_path: Path) -> None:
        """Health tells that none is left, to a client that is connected. Pages are served. The log has one line."""
        with deploy(tmp_path, REDIS_URL=private_redis.url) as deployment, closing(Kept(deployment.daemon)) as client:
            wheel = deployment.publish()
            assert deployment.serves(wheel)
            assert client.reason() == "ok"
            with without_descriptors(deployment.daemon.pid) as used:
                eventually(client.reason, lambda found: "file descriptors are in use" in found)
                assert f"of {used} file descriptors are in use" in client.reason()
                assert "raise the limit (LimitNOFILE= in systemd" in client.reason()
                assert client.is_degraded()
                assert wheel.filename in client.get(f"/simple/{wheel.project}/").decode()
            deployment.assert_recovered()
            assert deployment.serves(wheel)
            assert deployment.count_logged("file descriptors are in use") == 1
            assert deployment.count_logged("this process has all it needs again") == 1
            metrics = scrape(deployment.daemon)
            assert 0 < (value(metrics, "open_descriptors") or 0) < (value(metrics, "max_descriptors") or 0)


@pytest.fixture(scope="class")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A server with two processes."""
    place = tmp_path_factory.mktemp("pair")
    with Redis() as redis, deploy(place, workers=2, REDIS_URL=redis.url) as deployment:
        yield deployment


@LINUX_ONLY
class TestServerProcesses:
    """One of two server processes is in trouble. The other one tells it, too."""

    def test_descriptors_of_one_process_are_used_up(self, pair: Deployment) -> None:
        """Each process says so: the one about itself, the other one about its sibling."""
        processes = psutil.Process(pair.daemon.pid).children()
        with ExitStack() as clients:
            kept = []
            for other in reversed(processes):
                with suspended(other):
                    kept.append(clients.enter_context(closing(Kept(pair.daemon))))
                    kept[-1].get("/-/health/live")
            assert [each.reason() for each in kept] == ["ok", "ok"]
            with without_descriptors(processes[0].pid):
                own, sibling = kept
                eventually(own.reason, lambda found: "file descriptors are in use" in found)
                told = "1 of 2 server processes are in trouble: see the log of each for why"
                eventually(sibling.reason, lambda found: found == told)
                assert {each.is_degraded() for each in kept} == {True}
            eventually(lambda: {each.reason() for each in kept}, lambda found: found == {"ok"})
        pair.assert_recovered()

    def test_a_process_that_ends_again_and_again(self, pair: Deployment) -> None:
        """While the supervisor starts it again, health tells that it is missing. Clients are served by the other."""
        wheel = pair.publish()
        for _ in range(2):
            child = psutil.Process(pair.daemon.pid).children()[0]
            child.kill()
            child.wait()
            eventually(lambda: reason(pair.daemon, "process"), lambda found: "1 of 2 server processes run" in found)
            assert value(scrape(pair.daemon), "processes") == 1
            assert pair.serves(wheel)
            pair.assert_recovered()
        assert value(scrape(pair.daemon), "processes") == 2
