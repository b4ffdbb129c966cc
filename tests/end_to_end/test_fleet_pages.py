"""Tests that servers with one Redis share revalidations and back-off."""

from __future__ import annotations

import time
from functools import partial

import psutil
import pytest

from tests.rig.daemon import Daemon
from tests.rig.faults import Hang, Status
from tests.rig.http import Answer, eventually, get, parallel
from tests.rig.packages import Artifact, make_wheel
from tests.rig.wire import BOUND
from tests.support.cluster import Cluster

CLIENTS = 40
#: Seconds for which a page is fresh if it has to become stale within a test.
SHORT_CACHE_TIME = 2
JSON = {"Accept": "application/vnd.pypi.simple.v1+json"}


@pytest.fixture
def local(cluster: Cluster) -> Cluster:
    """
    A cluster that stores files on its hosts' own disks.

    Its servers wait longer before they answer stale, so that a slow test gets no stale page.
    """
    cluster.settings |= {"FILE_STORAGE_DRIVER": "local", "STALE_AFTER": "14"}
    return cluster


def page_path(wheel: Artifact) -> str:
    return f"/simple/{wheel.filename.partition('-')[0]}/"


def page(server: Daemon, wheel: Artifact, timeout: float = BOUND) -> Answer:
    return get(server.url + page_path(wheel), JSON, timeout=timeout)


def connections_of(server: Daemon) -> int:
    """Count the clients that are connected to this server."""
    found = psutil.Process(server.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port for each in found)


def request_at_once(cluster: Cluster, servers: tuple[Daemon, Daemon], wheel: Artifact) -> list[Answer]:
    """
    Request the page with many clients before upstream answers.

    They ask the two servers in turn. Return their answers.
    """
    hang = cluster.index.fault(page_path(wheel), Hang())

    def request(number: int) -> Answer:
        if number < CLIENTS:
            return page(servers[number % 2], wheel)
        eventually(lambda: sum(map(connections_of, servers)), lambda connected: connected >= CLIENTS)
        hang.wait_served()
        hang.release()
        return page(servers[0], wheel)

    answers = parallel(CLIENTS + 1, request)
    assert hang.served == 1
    return answers


def is_leased(cluster: Cluster, wheel: Artifact) -> bool:
    """Tell whether a server has the page's lease."""
    return bool(cluster.redis.keys(f"{cluster.name}:lease:*page:{page_path(wheel).strip('/')}"))


def wait_until(when: float) -> None:
    eventually(time.monotonic, lambda now: now > when)


class TestOneRevalidation:
    """Tests 40 concurrent clients of two servers with one Redis. The servers have disks of their own."""

    def test_cold_page_is_requested_once(self, local: Cluster) -> None:
        """All clients of both servers get the same page as a miss."""
        servers = local.server("one"), local.server("two")
        wheel = local.publish()
        answers = request_at_once(local, servers, wheel)
        assert local.index.count(page_path(wheel)) == 1
        assert {(answer.status, answer.content) for answer in answers} == {(200, answers[0].content)}
        assert sum("fwd=miss" in answer.headers["Cache-Status"] for answer in answers) > CLIENTS / 2
        assert not is_leased(local, wheel)

    def test_stale_page_is_requested_once(self, local: Cluster) -> None:
        """All clients get upstream's new page. Both servers have the old one."""
        local.settings["CACHE_TIME"] = str(SHORT_CACHE_TIME)
        servers = local.server("one"), local.server("two")
        wheel = local.publish()
        old = [page(server, wheel).content for server in servers]
        stale_at = time.monotonic() + SHORT_CACHE_TIME
        local.index.add(make_wheel(wheel.filename.partition("-")[0], "2.0"))
        before = local.index.count(page_path(wheel))
        wait_until(stale_at)
        answers = request_at_once(local, servers, wheel)
        assert (before, local.index.count(page_path(wheel))) == (1, 2)
        assert {(answer.status, answer.content) for answer in answers} == {(200, answers[0].content)}
        assert answers[0].content not in old

    def test_other_server_takes_over_when_the_revalidating_one_is_killed(self, local: Cluster) -> None:
        """
        The other server fetches the page after the first is killed.

        Its client gets the page within pip's read timeout; the client of the killed server loses its connection.
        """
        doomed, other = local.server("one"), local.server("two")
        wheel = local.publish()
        hang = local.index.fault(page_path(wheel), Hang(), times=1)

        def request(number: int) -> Answer | None:
            if number == 0:
                return page(doomed, wheel)
            hang.wait_served()
            if number == 1:
                return page(other, wheel, timeout=15)
            eventually(lambda: connections_of(other), lambda connected: connected >= 1)
            doomed.kill()
            return None

        lost, found, _ = parallel(3, request)
        assert lost is not None
        assert found is not None
        assert (lost.complete, found.status, local.index.count(page_path(wheel))) == (False, 200, 2)


class TestSharedBackoff:
    """Tests that servers share the back-off after upstream's failures."""

    def test_breaker_is_open_for_all(self, local: Cluster) -> None:
        """
        Both servers stop requests for pages after upstream has throttled five of them.

        They answer a known page at once and an unknown one with 503; their health gives the reason.
        """
        local.settings |= {"CACHE_TIME": "0"}
        first = local.server("one")
        known, unknown = [local.publish() for _ in range(5)], local.publish()
        assert {page(first, each).status for each in known} == {200}
        fault = local.index.fault("/simple/", Status(429, retry_after=30))
        assert {page(first, each).status for each in known} == {200}
        fault.wait_served(5)
        for server in (first, local.server("two")):
            answer, error = page(server, known[0]), page(server, unknown)
            assert "detail=stale" in answer.headers["Cache-Status"]
            assert (answer.status, error.status) == (200, 503)
            assert 20 <= int(error.headers["Retry-After"] or 0) <= 30
            assert "429" in error.text
            assert "requests to upstream are paused for another" in local.health(server)["checks"]["upstream"]
        assert 5 <= fault.served <= 7, "besides the five, only trials are sent"

    def test_breaker_closes_for_all(self, local: Cluster) -> None:
        """Both servers work soon after upstream has recovered, in either order."""
        servers = local.server("one"), local.server("two")
        with local.index.refusing():
            for server in servers:  # while a pause is short, a request waits for its end and is refused in its turn
                eventually(lambda: page(server, local.publish()), lambda answer: "paused" in answer.text)  # noqa: B023
        for server in servers:
            wheel = local.publish()
            eventually(partial(page, server, wheel), lambda answer: answer.status == 200)
            assert local.health(server)["checks"]["upstream"] == "ok"
