"""Tests MYPYPI_COLD_FILES=redirect with real servers and workers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.rig.daemon import Daemon
from tests.rig.faults import Gate, Status, WrongBytes
from tests.rig.http import Answer, eventually, parallel
from tests.rig.packages import Artifact
from tests.support.cluster import Cluster

DRIVERS = ["local", "s3"]


@pytest.fixture(params=DRIVERS)
def storing(cluster: Cluster, request: pytest.FixtureRequest) -> Cluster:
    """A cluster with either storage that redirects clients for cold files."""
    cluster.settings |= {"COLD_FILES": "redirect", "FILE_STORAGE_DRIVER": request.param}
    return cluster


@pytest.fixture
def strict(storing: Cluster) -> Cluster:
    """The cluster of `storing` in strict mode: no client gets an unchecked byte."""
    storing.settings |= {"UPSTREAM_STRICT": "true", "STRICT_WAIT": "1"}
    return storing


def is_sent_upstream(cluster: Cluster, answer: Answer, wheel: Artifact) -> bool:
    return (answer.status, answer.headers["Location"]) == (302, cluster.index.url_of(wheel.filename))


def wait_stored(cluster: Cluster, wheel: Artifact) -> None:
    """Wait until a worker has stored the file and nothing is under way."""
    if cluster.settings["FILE_STORAGE_DRIVER"] == "s3":
        cluster.wait_uploaded(wheel)
    else:
        eventually(cluster.files, lambda files: any(wheel.filename in file for file in files))
        cluster.wait_settled()


def assert_served_from_storage(cluster: Cluster, server: Daemon, wheel: Artifact) -> None:
    """Check that the file comes from the disk or the bucket. Upstream must get no request."""
    asked = cluster.fetched(wheel)
    answer = cluster.get(server, wheel)
    if cluster.settings["FILE_STORAGE_DRIVER"] == "s3":
        assert (answer.status, answer.headers["Location"].partition("?")[0]) == (302, cluster.bucket_url(wheel))
    else:
        assert (answer.status, answer.headers["Cache-Status"]) == (200, "MyPyPi; hit")
    assert cluster.follow(server, wheel).body == wheel.content
    assert cluster.fetched(wheel) == asked


class TestRedirect:
    """Tests redirects to upstream for files that are not stored yet."""

    def test_clients_are_redirected_until_a_worker_has_stored_the_file(self, storing: Cluster) -> None:
        """
        Clients are redirected at once, however slow upstream is.

        One worker fetches the file once for all of them.
        """
        wheel = storing.publish(50_000)
        server, _ = storing.server(), storing.workers(2)
        gate = storing.index.fault(storing.index.path_of(wheel.filename), Gate())
        answers = parallel(20, lambda _: storing.get(server, wheel))
        assert all(is_sent_upstream(storing, answer, wheel) for answer in answers)
        gate.wait_served()
        assert is_sent_upstream(storing, storing.get(server, wheel), wheel)
        gate.allow_all()
        wait_stored(storing, wheel)
        assert storing.fetched(wheel) == 1
        assert_served_from_storage(storing, server, wheel)

    def test_a_head_request_fetches_nothing(self, storing: Cluster) -> None:
        """A HEAD request is answered from the page."""
        wheel = storing.publish(50_000)
        server = storing.server()
        answer = storing.get(server, wheel, method="HEAD")
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(wheel.size))
        assert storing.jobs() == []

    def test_a_worker_is_killed_during_a_fetch(self, storing: Cluster) -> None:
        """Another worker resumes the draft of a killed worker."""
        wheel = storing.publish(100_000)
        server, doomed = storing.server(), storing.worker()
        gate = storing.index.fault(storing.index.path_of(wheel.filename), Gate())
        gate.allow(60_000)
        assert is_sent_upstream(storing, storing.get(server, wheel), wheel)
        gate.wait_sent(60_000)
        eventually(storing.drafts, lambda drafts: len(drafts) == 1)
        doomed.kill()
        gate.allow_all()
        storing.worker()
        wait_stored(storing, wheel)
        assert storing.fetched(wheel) == 2
        assert_served_from_storage(storing, server, wheel)

    def test_a_file_that_upstream_does_not_have(self, storing: Cluster) -> None:
        """The client is redirected, and the failed job is not retried. Upstream itself answers the client with 404."""
        wheel = storing.publish()
        storing.index.fault(storing.index.path_of(wheel.filename), Status(404), times=1)
        server, _ = storing.server(), storing.workers()
        assert is_sent_upstream(storing, storing.get(server, wheel), wheel)
        storing.index.wait_for(lambda: storing.fetched(wheel) == 1)
        storing.wait_settled(timeout=5)
        assert is_sent_upstream(storing, storing.get(server, wheel), wheel)
        wait_stored(storing, wheel)

    def test_an_upstream_that_needs_credentials(self, storing: Cluster) -> None:
        """
        Clients get the file from the server if upstream needs credentials.

        Upstream would refuse a redirected client. The file is fetched once.
        """
        storing.index.auth = ("user", "hush")
        storing.settings |= {"UPSTREAM_USERNAME": "user", "UPSTREAM_PASSWORD": "hush"}
        wheel = storing.publish(50_000)
        server, _ = storing.server(), storing.workers()
        gate = storing.index.fault(storing.index.path_of(wheel.filename), Gate())
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(storing.get, server, wheel)
            gate.wait_served()
            gate.allow_all()
            assert (answer.result().status, answer.result().body) == (200, wheel.content)
        wait_stored(storing, wheel)
        assert storing.fetched(wheel) == 1
        assert_served_from_storage(storing, server, wheel)

    def test_without_a_queue_the_server_fetches(self, storing: Cluster) -> None:
        """The server itself fetches the file while Redis is down. No worker could get the job."""
        wheel = storing.publish(50_000)
        server, _ = storing.server(), storing.workers()
        storing.redis.kill()
        try:
            answer = storing.get(server, wheel)
            assert (answer.status, answer.body) == (200, wheel.content)
        finally:
            storing.redis.start()
        wait_stored(storing, wheel)
        assert storing.fetched(wheel) == 1
        eventually(lambda: storing.health(server), lambda health: health["status"] == "ok")
        assert_served_from_storage(storing, server, wheel)

    def test_which_worker_fetches(self, storing: Cluster) -> None:
        """Only a worker on the server's host fetches to its disk. For the bucket, any worker fetches."""
        wheel = storing.publish(50_000)
        server = storing.server("here")
        storing.worker("there")
        assert is_sent_upstream(storing, storing.get(server, wheel), wheel)
        if storing.settings["FILE_STORAGE_DRIVER"] == "s3":
            eventually(storing.objects, lambda names: names == [storing.object_name(wheel)])
        else:
            storing.wait_for_work("there")
            assert storing.fetched(wheel) == 0
            storing.worker("here")
            eventually(lambda: storing.files("here"), lambda files: any(wheel.filename in file for file in files))
            assert storing.files("there") == []
        storing.wait_settled()
        assert storing.fetched(wheel) == 1
        assert_served_from_storage(storing, server, wheel)


class TestStrict:
    """Tests the same setting in strict mode."""

    def test_a_client_waits_for_the_worker_for_a_limited_time(self, strict: Cluster) -> None:
        """A client gets 503 with Retry-After when its wait ends. Later the file is served, complete and checked."""
        wheel = strict.publish(50_000)
        server, _ = strict.server(), strict.workers()
        gate = strict.index.fault(strict.index.path_of(wheel.filename), Gate())
        asked_at = time.monotonic()
        answer = strict.get(server, wheel)
        assert 1 <= time.monotonic() - asked_at < 5
        assert (answer.status, int(answer.headers["Retry-After"])) == (503, 1)
        gate.wait_served()
        gate.allow_all()
        wait_stored(strict, wheel)
        assert strict.fetched(wheel) == 1
        assert_served_from_storage(strict, server, wheel)

    def test_a_waiting_client_gets_the_file_once_it_is_stored(self, strict: Cluster) -> None:
        """A waiting client gets the file in the same response. It comes from the disk or from the bucket."""
        wheel = strict.publish(50_000)
        server, _ = strict.server(STRICT_WAIT="14"), strict.workers()
        answers = parallel(10, lambda _: strict.follow(server, wheel))
        assert {(answer.status, answer.body) for answer in answers} == {(200, wheel.content)}
        assert strict.fetched(wheel) == 1
        wait_stored(strict, wheel)

    def test_wrong_bytes_reach_no_client(self, strict: Cluster) -> None:
        """The worker discards wrong bytes and fetches the file again."""
        wheel = strict.publish(50_000)
        fault = strict.index.fault(strict.index.path_of(wheel.filename), WrongBytes(), times=1)
        server, _ = strict.server(), strict.workers()
        answer = strict.get(server, wheel)
        assert (answer.status, answer.headers["Location"]) == (503, None)
        fault.wait_served()
        wait_stored(strict, wheel)
        assert strict.fetched(wheel) == 2
        assert_served_from_storage(strict, server, wheel)

    def test_without_a_queue_the_server_fetches(self, strict: Cluster) -> None:
        """
        A client waits for the server's own fetch.

        The wait is limited, and the client gets the complete file only.
        """
        wheel = strict.publish(50_000)
        server, _ = strict.server(), strict.workers()
        gate = strict.index.fault(strict.index.path_of(wheel.filename), Gate())
        strict.redis.kill()
        try:
            assert strict.get(server, wheel).status == 503
            gate.allow_all()
            server.wait_for_log(rf"stored \S*{wheel.filename}")
            answer = strict.get(server, wheel)
            assert (answer.status, answer.body) == (200, wheel.content)
        finally:
            strict.redis.start()
        wait_stored(strict, wheel)
        assert strict.fetched(wheel) == 1
