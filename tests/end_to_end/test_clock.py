"""A server and a worker on a host whose clock is put a day ahead and back while they run."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

from tests.rig.clock import DAY, WallClock
from tests.rig.daemon import Daemon
from tests.rig.faults import Hang, Status, Trickle
from tests.rig.http import Answer, eventually, get
from tests.rig.packages import make_wheel
from tests.support.cluster import Cluster

#: Seconds in which everything is well again: with times of a second, and two seconds until a job's next try.
_SECONDS = 12.0


def page(server: Daemon, project: str) -> Answer:
    return get(f"{server.url}/simple/{project}/", {"Accept": "application/vnd.pypi.simple.v1+json"})


def seconds_ahead(server: Daemon) -> float:
    """By how many seconds the server's clock is ahead, as its answers tell."""
    return parsedate_to_datetime(get(f"{server.url}/-/health/live").headers["Date"]).timestamp() - time.time()


@contextmanager
def timed() -> Iterator[list[float]]:
    """Measure the seconds that the block takes."""
    took, began = [0.0], time.monotonic()
    yield took
    took[0] = time.monotonic() - began


def test_jumps_break_no_running_request(cluster: Cluster) -> None:
    """
    A transfer goes on, and a time-out comes when it would have come, while the clock jumps by a day and back.

    The file takes more than a second, and the page is not answered within the two seconds of the time-out.
    """
    clock = cluster.clock = WallClock(cluster.place / "clock")
    server = cluster.server(UPSTREAM_TIMEOUT="2")
    wheel = cluster.publish(150_000)
    cluster.index.fault(cluster.index.path_of(wheel.filename), Trickle(100_000, 5_000))
    assert page(server, wheel.project).status == 200
    hanging = cluster.index.fault("/simple/nothing/", Hang())
    with ThreadPoolExecutor() as pool, timed() as took:
        file = pool.submit(cluster.get, server, wheel)
        waiting = pool.submit(page, server, "nothing")
        eventually(lambda: hanging.served and cluster.fetched(wheel), bool)
        for ahead in (DAY, -DAY, 0.0):
            clock.set_ahead(ahead)
            assert abs(seconds_ahead(server) - ahead) < 5
            assert not waiting.done()
            assert not file.done()
        answer = file.result()
        assert (answer.status, answer.complete, answer.body) == (200, True, wheel.content)
        late = waiting.result()
    assert (late.status, "2 seconds" in late.text) == (503, True)
    assert 1.5 < took[0] < _SECONDS
    durations = [float(text) for text in re.findall(r" ([-\d.]+) ms ", server.log)]
    assert len(durations) > 4
    assert all(0 <= each < 1000 * _SECONDS for each in durations)


def test_everything_is_well_once_the_clock_is_mended(cluster: Cluster) -> None:
    """
    What was learnt while the clock was a day ahead is forgotten once it is mended, within seconds.

    A page is not fresh, a 404 not believed, and an upload does not wait, for a day. Health tells of the wrong clock.
    """
    clock = cluster.clock = WallClock(cluster.place / "clock")
    cluster.settings |= {"CACHE_TIME": "1", "NEGATIVE_CACHE_TIME": "1"}
    clock.set_ahead(DAY)
    server, worker = cluster.server(), cluster.worker()
    assert abs(seconds_ahead(server) - DAY) < 5
    wheel, missing = cluster.publish(50_000), make_wheel("missing")
    refused = cluster.proxy.fault(cluster.put_of(wheel), Status(503))
    assert page(server, wheel.project).status == 200
    assert page(server, "missing").status == 404
    assert cluster.get(server, wheel).status == 200
    worker.wait_for_log("upload .* is tried again")
    assert refused.served > 0
    eventually(lambda: cluster.health(server)["checks"]["process"], lambda state: "s ahead of that of Redis" in state)

    clock.set_ahead(0)
    cluster.proxy.mend()
    newer = make_wheel(wheel.project, "2.0")
    cluster.index.add(newer)
    cluster.index.add(missing)
    eventually(lambda: newer.filename in page(server, wheel.project).text, bool, _SECONDS)
    eventually(lambda: page(server, "missing").status, lambda status: status == 200, _SECONDS)
    cluster.wait_uploaded(wheel, timeout=_SECONDS)
    assert cluster.follow(server, wheel).body == wheel.content
    eventually(lambda: cluster.health(server)["checks"]["process"], lambda state: state == "ok", _SECONDS)
    assert page(server, wheel.project).headers["Cache-Control"] in ("public, max-age=0", "public, max-age=1")
