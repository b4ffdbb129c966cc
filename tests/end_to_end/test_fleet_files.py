"""One fetch per file for all processes of a host, and for all hosts that share a Redis and a bucket."""

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

#: The file that everybody asks for at once, and the pace at which upstream serves it.
LARGE = 50 * 1000 * 1000
PACE = 20e6
CLIENTS = 200
MB = 1024 * 1024


@pytest.fixture
def local(cluster: Cluster) -> Cluster:
    """Files are kept on the hosts' own disks."""
    cluster.settings |= {"FILE_STORAGE_DRIVER": "local"}
    return cluster


def slow(cluster: Cluster, wheel: Artifact) -> Trickle:
    """Upstream serves this file at its pace, and no faster."""
    return cluster.index.fault(cluster.index.path_of(wheel.filename), Trickle(PACE, MB))


def storm(cluster: Cluster, wheel: Artifact, servers: Sequence[Daemon], clients: int, place: Path) -> Storm:
    """So many clients ask these servers for the file, in turn."""
    expected = place / "expected"
    expected.write_bytes(wheel.content)
    return Storm([servers[number % len(servers)].url + cluster.path(wheel) for number in range(clients)], expected)


def ranges(cluster: Cluster, wheel: Artifact) -> list[str | None]:
    """What each request that upstream got for the file asked for."""
    return [request.headers["Range"] for request in cluster.index.seen(cluster.index.path_of(wheel.filename))]


def filler(cluster: Cluster) -> psutil.Process:
    """The process that fills the one draft: the kernel knows who holds the lock of its note."""
    (note,) = (cluster.data() / "drafts").glob("*.note")
    inode = note.stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    (pid,) = {int(words[4]) for words in lines if words[1] == "FLOCK" and words[5].endswith(f":{inode}")}
    return psutil.Process(pid)


def _family(server: Daemon) -> list[psutil.Process]:
    process = psutil.Process(server.pid)
    return [process, *process.children(recursive=True)]


def clients_of(process: psutil.Process, server: Daemon) -> int:
    """How many clients are connected to this process of a server."""
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port
        for each in process.net_connections("tcp")
    )


def are_whole(outcomes: Sequence[Outcome]) -> bool:
    return all(each.whole for each in outcomes)


class TestOneHost:
    """``WORKERS=4`` over one socket, and one cold file that everybody wants."""

    def test_two_hundred_clients_make_one_request(self, local: Cluster, tmp_path: Path) -> None:
        """Promise 3: each gets the same bytes, while they come; all processes together hardly grow."""
        wheel = local.publish(LARGE)
        trickle = slow(local, wheel)
        server = local.server(WORKERS="4")
        get(f"{server.url}/-/health/ready")
        before = server.rss_bytes(children=True)
        storming = storm(local, wheel, [server], CLIENTS, tmp_path)
        trickle.wait_served()
        eventually(lambda: clients_at_work(server), lambda working: working > 1)
        grown = server.rss_bytes(children=True) - before
        outcomes = storming.outcomes()
        grown = max(grown, server.rss_bytes(children=True) - before)
        assert are_whole(outcomes), Counter(outcomes)
        assert ranges(local, wheel) == [None]
        assert grown < 150 * MB
        assert local.left_over() == []

    @pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who holds a lock is told by Linux alone")
    def test_the_process_that_fetches_is_killed(self, local: Cluster, tmp_path: Path) -> None:
        """Promise 5: another one asks for the rest; only clients of the killed one notice more than a pause."""
        wheel = local.publish(LARGE)
        gate = local.index.fault(local.index.path_of(wheel.filename), Gate())
        server = local.server(WORKERS="4")
        storming = storm(local, wheel, [server], CLIENTS, tmp_path)
        gate.allow(LARGE // 2)
        gate.wait_sent(LARGE // 2)
        doomed = filler(local)
        eventually(lambda: sum(clients_of(each, server) for each in _family(server)), lambda all_: all_ == CLIENTS)
        its_clients = clients_of(doomed, server)
        doomed.kill()
        gate.allow_all()
        outcomes = storming.outcomes()
        broken = [each for each in outcomes if not each.whole]
        assert not any(each.wrong for each in outcomes)
        assert len(broken) == its_clients
        first, second = ranges(local, wheel)
        assert first is None
        assert second is not None
        eventually(local.left_over, lambda left: left == [])
        assert local.get(server, wheel).body == wheel.content

    def test_two_daemons_over_one_data_directory(self, local: Cluster) -> None:
        """As two deployments that share a disk would be: one fetch, and a stop of one hands it to the other."""
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


def clients_at_work(server: Daemon) -> int:
    """How many processes of a server have clients."""
    return sum(clients_of(process, server) > 0 for process in _family(server))


class TestHosts:
    """Two servers with a disk each, one Redis, one bucket."""

    def test_clients_of_the_other_host_are_sent_to_upstream(self, cluster: Cluster, tmp_path: Path) -> None:
        """The hosts fetch once; when the file is in the bucket, both send their clients there."""
        wheel = cluster.publish(LARGE // 5)
        gate = cluster.index.fault(cluster.index.path_of(wheel.filename), Gate())
        here, there = cluster.server("here"), cluster.server("there")
        cluster.workers(1, "here")
        gate.allow(MB)
        with SlowReader(here.url + cluster.path(wheel)) as first:
            first.read(1000)
            storming = storm(cluster, wheel, [here], 40, tmp_path)
            others = storm(cluster, wheel, [there], 40, tmp_path).outcomes()
            gate.allow_all()
            assert first.rest().complete
        assert {(each.status, each.location) for each in others} == {(302, cluster.index.url_of(wheel.filename))}
        assert are_whole(storming.outcomes())
        assert ranges(cluster, wheel) == [None]
        eventually(cluster.objects, lambda names: names == [cluster.object_name(wheel)])
        for server in (here, there):
            answer = eventually(partial(cluster.get, server, wheel), lambda answer: answer.status == 302)
            assert answer.headers["Location"].partition("?")[0] == cluster.bucket_url(wheel)
        assert ranges(cluster, wheel) == [None]

    def test_strict_clients_of_the_other_host_wait_for_the_bucket(self, cluster: Cluster, tmp_path: Path) -> None:
        """Never a redirect to upstream, never a second fetch: they get the file from the bucket once it is there."""
        wheel = cluster.publish(LARGE // 5)
        slow(cluster, wheel)
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
        """Its lease runs out: who asked elsewhere is told to come back, and when it does, the other host fetches."""
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
