"""Tests of files that are in the bucket while it fails, with real servers, workers, Redis and S3."""

from __future__ import annotations

import time

import pytest

from tests.end_to_end.test_bucket import failing_bucket
from tests.rig.daemon import Daemon
from tests.rig.http import eventually, parallel
from tests.rig.packages import Artifact
from tests.support.cluster import Cluster

#: Seconds: the longest that a client is sent to a bucket that has begun to fail, that it waits for a hanging one, and
#: that others are not sent to a bucket that works again. With some time for a busy machine.
SENT, WAITED, UNUSED = 5 + 4, 3 + 4, 5 + 4
BEGAN, ENDED = "files in S3 can't be read", "files in S3 can be read again"


@pytest.mark.parametrize(
    ("serve", "failures"),
    [
        ("redirect", ("403", "500", "503", "refusing", "silent")),
        ("proxy", ("silent", "refusing", "503", "500", "403")),
    ],
    ids=["redirect", "proxy"],
)
def test_clients_get_stored_files_while_the_bucket_fails(
    cluster: Cluster, serve: str, failures: tuple[str, ...]
) -> None:
    """
    Whatever the bucket answers, clients get the right bytes within seconds, and health says why.

    The log has a line when it begins and one when it ends. Soon after that, files come from the bucket again. No file
    was forgotten, and each is in the bucket once.
    """
    server, _ = cluster.server(S3_SERVE=serve), cluster.worker()
    wheels = [cluster.publish(50_000) for _ in range(len(failures) + 1)]
    for wheel in wheels:
        assert cluster.get(server, wheel).status == 200
    cluster.wait_uploaded(*wheels)
    for number, failure in enumerate(failures):
        with failing_bucket(cluster, failure):
            if number == 0:  # clients may be sent there as long as the last answer counts
                eventually(lambda: cluster.get(server, wheels[0]), lambda answer: answer.status == 200, SENT)
            asked = [wheels[0], wheels[number]] * 5  # the second one is read for the first time since it failed
            began = time.monotonic()
            answers = parallel(10, lambda index: cluster.get(server, asked[index]))  # noqa: B023 - done before it changes
            assert time.monotonic() - began < WAITED
            assert [(answer.status, answer.body) for answer in answers] == [(200, wheel.content) for wheel in asked]
            assert "S3" in cluster.health(server)["checks"]["storage"]
    eventually(lambda: comes_from_bucket(cluster, server, wheels[-1]), bool, UNUSED)
    cluster.wait_uploaded(*wheels)
    assert all(comes_from_bucket(cluster, server, wheel) for wheel in wheels)
    assert sorted(cluster.objects()) == sorted(map(cluster.object_name, wheels))
    assert max(map(cluster.fetched, wheels)) <= 1 + len(failures)  # once more for each time that the bucket failed
    assert cluster.health(server)["checks"]["storage"] == "ok"
    eventually(lambda: server.log.count(ENDED), lambda count: count == 1)
    assert server.log.count(BEGAN) == 1


def comes_from_bucket(cluster: Cluster, server: Daemon, wheel: Artifact) -> bool:
    """Whether a client gets the right file from the bucket, by a redirect or through the server."""
    before = len(cluster.proxy.asked("GET", cluster.object_name(wheel)))
    answer = cluster.follow(server, wheel)
    assert (answer.status, answer.complete, answer.body) == (200, True, wheel.content)
    return len(cluster.proxy.asked("GET", cluster.object_name(wheel))) > before
