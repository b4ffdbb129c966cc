"""Tests that all processes and hosts share one fetch per file.

Processes share the disk of their host. Hosts share Redis and a bucket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.rig.daemon import Daemon
from tests.rig.faults import Gate, Trickle
from tests.rig.http import SlowReader, eventually, get
from tests.rig.load import Outcome, Storm
from tests.rig.packages import Artifact
from tests.support.cluster import Cluster

#: The size of the file that all clients request (bytes), and the rate at which upstream sends it (bytes/s).
LARGE = 50 * 1000 * 1000
RATE = 20e6
CLIENTS = 200
MB = 1024 * 1024


@pytest.fixture
def local(cluster: Cluster) -> Cluster:
    """A cluster whose hosts store files on their own disks."""
    cluster.settings |= {"FILE_STORAGE_DRIVER": "local"}
    return cluster


def limit_rate(cluster: Cluster, wheel: Artifact) -> Trickle:
    """Limit the rate at which upstream sends this file."""
    return cluster.index.fault(cluster.index.path_of(wheel.filename), Trickle(RATE, MB))


def storm(cluster: Cluster, wheel: Artifact, servers: Sequence[Daemon], clients: int, place: Path) -> Storm:
    """Start clients that request the file from these servers in turn."""
    expected = place / "expected"
    expected.write_bytes(wheel.content)
    return Storm([servers[number % len(servers)].url + cluster.path(wheel) for number in range(clients)], expected)


def ranges(cluster: Cluster, wheel: Artifact) -> list[str | None]:
    """List the Range header of each request for the file that upstream got."""
    return [request.headers["Range"] for request in cluster.index.seen(cluster.index.path_of(wheel.filename))]


def fetching_process(cluster: Cluster) -> psutil.Process:
    """
    Find the process that fills the only draft.

    It holds the lock on the draft's note, and the kernel lists the locks.
    """
    (note,) = (cluster.data() / "drafts").glob("*.note")
    inode = note.stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    (pid,) = {int(words[4]) for words in lines if words[1] == "FLOCK" and words[5].endswith(f":{inode}")}
    return psutil.Process(pid)


def _processes_of(server: Daemon) -> list[psutil.Process]:
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def clients_of(process: psutil.Process, server: Daemon) -> int:
    """Count the clients that are connected to this process of a server."""
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port
        for each in process.net_connections("tcp")
    )


def all_complete(outcomes: Sequence[Outcome]) -> bool:
    return all(each.whole for each in outcomes)


class TestOneHost:
    """Tests clients that request one cold file with ``WORKERS=4``. The processes share one socket."""

    def test_two_hundred_clients_make_one_request(self, local: Cluster, tmp_path: Path) -> None:
        """
        Promise 3: all clients get the same bytes from one fetch.

        They get them while upstream sends, and the processes together hardly grow in memory.
        """
        wheel = local.publish(LARGE)
        trickle = limit_rate(local, wheel)
        server = local.server(WORKERS="4")
        get(f"{server.url}/-/health/ready")
        before = server.rss_bytes(children=True)
        clients = storm(local, wheel, [server], CLIENTS, tmp_path)
        trickle.wait_served()
        eventually(lambda: processes_with_clients(server), lambda processes: processes > 1)
        grown = server.rss_bytes(children=True) - before
        outcomes = clients.outcomes()
        grown = max(grown, server.rss_bytes(children=True) - before)
        assert all_complete(outcomes), Counter(outcomes)
        assert ranges(local, wheel) == [None]
        assert grown < 150 * MB
        assert local.left_over() == []

    @pytest.mark.skipif(not Path("/proc/locks").exists(), reason="only Linux lists the holders of locks")
    def test_the_process_that_fetches_is_killed(self, local: Cluster, tmp_path: Path) -> None:
        """
        Promise 5: another process resumes the fetch of a killed process.

        Only clients of the killed process notice more than a pause.
        """
        wheel = local.publish(LARGE)
        gate = local.index.fault(local.index.path_of(wheel.filename), Gate())
        server = local.server(WORKERS="4")
        clients = storm(local, wheel, [server], CLIENTS, tmp_path)
        gate.allow(LARGE // 2)
        gate.wait_sent(LARGE // 2)
        doomed = fetching_process(local)
        eventually(
            lambda: sum(clients_of(each, server) for each in _processes_of(server)),
            lambda connected: connected == CLIENTS,
        )
        its_clients = clients_of(doomed, server)
        doomed.kill()
        gate.allow_all()
        outcomes = clients.outcomes()
        broken = [each for each in outcomes if not each.whole]
        assert not any(each.wrong for each in outcomes)
        assert len(broken) == its_clients
        first, second = ranges(local, wheel)
        assert first is None
        assert second is not None
        eventually(local.left_over, lambda left: left == [])
        assert local.get(server, wheel).body == wheel.content

    def test_two_daemons_over_one_data_directory(self, local: Cluster) -> None:
        """
        Two daemons with one data directory share a fetch.

        When the first stops, the second resumes it. Two deployments may share a disk like this.
        """
        wheel = local.publish(2 * MB)
        gate = local.index.fault(local.index.path_of(wheel.filename), Gate())
        first, second = local.server(DRAIN_TIME="0"), local.server()
        gate.allow(MB)
        with SlowReader(first.url + local.path(wheel)) as its_own:
            its_own.read(MB // 2)
            with SlowReader(second.url + local.path(wheel)) as follower:
                received = follower.read(MB // 2)
                assert ranges(local, wheel) == [None]
                first.stop()
                assert not its_own.rest().complete
                gate.allow_all()
                rest = follower.rest()
        assert (rest.complete, received + rest.body) == (True, wheel.content)
        assert ranges(local, wheel) == [None, f"bytes={MB}-"]


def processes_with_clients(server: Daemon) -> int:
    """Count the processes of a server that have clients."""
    return sum(clients_of(process, server) > 0 for process in _processes_of(server))


class TestHosts:
    """Tests two servers with a disk each, one Redis and one bucket."""

    def test_clients_of_the_other_host_are_sent_to_upstream(self, cluster: Cluster, tmp_path: Path) -> None:
        """
        While one host fetches, the other redirects to upstream.

        When the file is in the bucket, both redirect there.
        """
        wheel = cluster.publish(LARGE // 5)
        gate = cluster.index.fault(cluster.index.path_of(wheel.filename), Gate())
        here, there = cluster.server("here"), cluster.server("there")
        cluster.workers(1, "here")
        gate.allow(MB)
        with SlowReader(here.url + cluster.path(wheel)) as first:
            first.read(1000)
            clients = storm(cluster, wheel, [here], 40, tmp_path)
            others = storm(cluster, wheel, [there], 40, tmp_path).outcomes()
            gate.allow_all()
            assert first.rest().complete
        assert {(each.status, each.location) for each in others} == {(302, cluster.index.url_of(wheel.filename))}
        assert all_complete(clients.outcomes())
        assert ranges(cluster, wheel) == [None]
        eventually(cluster.objects, lambda names: names == [cluster.object_name(wheel)])
        for server in (here, there):
            answer = eventually(partial(cluster.get, server, wheel), lambda answer: answer.status == 302)
            assert answer.headers["Location"].partition("?")[0] == cluster.bucket_url(wheel)
        assert ranges(cluster, wheel) == [None]

    def test_strict_clients_of_the_other_host_wait_for_the_bucket(self, cluster: Cluster, tmp_path: Path) -> None:
        """
        Strict clients of the other host get the file from the bucket.

        There is no redirect to upstream and no second fetch.
        """
        wheel = cluster.publish(LARGE // 5)
        limit_rate(cluster, wheel)
        cluster.settings |= {"UPSTREAM_STRICT": "true"}
        here, there = cluster.server("here"), cluster.server("there")
        cluster.workers(1, "here")
        cluster.workers(1, "there")
        outcomes = storm(cluster, wheel, [here, there], 40, tmp_path).outcomes()
        for each in outcomes:
            assert each.whole or each.location.partition("?")[0] == cluster.bucket_url(wheel)
        assert any(each.location for each in outcomes)
        assert ranges(cluster, wheel) == [None]
        cluster.wait_uploaded(wheel)
        assert cluster.put_into_bucket(wheel) <= 1
        assert cluster.follow(there, wheel).body == wheel.content

    def test_the_host_that_fetches_is_killed(self, cluster: Cluster) -> None:
        """
        The other host fetches after the killed host's lease has expired.

        Its clients get 503 with Retry-After until then.
        """
        wheel = cluster.publish(MB)
        gate = cluster.index.fault(cluster.index.path_of(wheel.filename), Gate())
        gate.allow(MB // 2)
        cluster.settings |= {"UPSTREAM_STRICT": "true", "STRICT_WAIT": "2"}
        here, there = cluster.server("here"), cluster.server("there")
        cluster.workers(1, "there")
        assert cluster.get(here, wheel).status == 503
        answer = cluster.get(there, wheel)
        assert (answer.status, ranges(cluster, wheel)) == (503, [None])
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        here.kill()
        gate.allow_all()
        eventually(lambda: cluster.follow(there, wheel).status, lambda status: status == 200)
        assert cluster.follow(there, wheel).body == wheel.content
        assert ranges(cluster, wheel) == [None, None]
