"""
Tests of ``/-/metrics``.

Counters cover all processes of a server; the current state is determined for each scrape.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mypypi.observability.metrics import CurrentState, render_metrics
from tests.conftest import DaemonFactory
from tests.rig.daemon import Daemon
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.rig.redis import Redis

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Return every number, by name and labels. Raises ValueError if Prometheus could not parse the text."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(daemon: Daemon) -> Samples:
    answer = get(f"{daemon.url}/-/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.body.decode())


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"mypypi_{name}", frozenset(labels.items())))


def test_current_state_is_reported_beside_the_counters() -> None:
    """
    The current state is reported beside the counters.

    A value that could not be determined is absent, since an old one would mislead.
    """
    samples = parsed(render_metrics(CurrentState({"redis": True, "storage": False}, {"waiting": 3}, 7.5)).decode())
    assert value(samples, "degraded", part="redis") == 1
    assert value(samples, "degraded", part="storage") == 0
    assert value(samples, "queue_jobs", state="waiting") == 3
    assert value(samples, "queue_oldest_seconds") == 7.5
    assert value(samples, "connections") is not None
    incomplete = parsed(render_metrics(CurrentState({"redis": True})).decode())
    assert [name for name, _ in incomplete if "queue" in name] == []


def test_requests_are_counted(index: FakeIndex, daemon_factory: DaemonFactory) -> None:
    """Requests are counted by kind, cache result and status. Bytes to clients and durations are recorded as well."""
    wheel = make_wheel("thing")
    index.add(wheel)
    daemon = daemon_factory()
    for _ in range(3):
        page = get(f"{daemon.url}/simple/thing/")
    path = f"/file/{index.url_of(wheel.filename).replace('://', '/')}"
    assert get(daemon.url + path).body == wheel.content
    daemon.wait_for_log("stored ")
    assert get(daemon.url + path).body == wheel.content
    assert get(f"{daemon.url}/simple/nothing/").status == 404
    samples = scrape(daemon)
    assert value(samples, "requests_total", kind="page", cache="miss", status="200") == 1
    assert value(samples, "requests_total", kind="page", cache="hit", status="200") == 2
    assert value(samples, "requests_total", kind="file", cache="miss", status="200") == 1
    assert value(samples, "requests_total", kind="file", cache="hit", status="200") == 1
    assert value(samples, "requests_total", kind="page", cache="none", status="404") == 1
    assert value(samples, "sent_bytes_total", cache="hit") == 2 * len(page.body) + len(wheel.content)
    assert value(samples, "request_seconds_count", kind="file") == 2
    assert value(samples, "connections") == 1
    assert value(samples, "degraded", part="redis") == 0
    assert value(samples, "queue_jobs", state="dead") == 0
    assert value(samples, "queue_oldest_seconds") is not None


def test_clients_can_not_create_series(daemon_factory: DaemonFactory) -> None:
    """A path, method or header of a client never creates a series."""
    daemon = daemon_factory()
    get(f"{daemon.url}/simple/nothing0/")
    get(daemon.url, method="M0")
    before = scrape(daemon).keys()
    for number in range(1, 20):
        get(f"{daemon.url}/simple/nothing{number}/", {"X-Request-ID": str(number), "X-Forwarded-Host": f"h{number}"})
        get(daemon.url, method=f"M{number}")
    assert {key for key in scrape(daemon).keys() - before if ("kind", "other") not in key[1]} == set()


def test_processes_add_up(index: FakeIndex, redis: Redis, daemon_factory: DaemonFactory, tmp_path: Path) -> None:
    """A scrape of any process covers all of them. The current state appears once."""
    index.add(make_wheel("thing"))
    directory = tmp_path / "numbers"
    directory.mkdir()
    env = {"PROMETHEUS_MULTIPROC_DIR": str(directory), "WORKERS": "1", "MYPYPI_REDIS_URL": redis.url}
    daemons = [
        daemon_factory("mypypi-server", data=tmp_path / name, env={**env, "MYPYPI_REDIS_PREFIX": "adding-up"})
        for name in ("one", "two")
    ]
    for daemon, times in zip(daemons, (2, 3), strict=True):
        for _ in range(times):
            assert get(f"{daemon.url}/simple/thing/").status == 200
    for daemon in daemons:
        # The process notices a moment later that the client has closed its connection.
        samples = eventually(partial(scrape, daemon), lambda samples: value(samples, "connections") == 1)
        pages = [number for (name, labels), number in samples.items()
                 if name == "mypypi_requests_total" and ("kind", "page") in labels]  # fmt: skip
        assert sum(pages) == 5
        assert value(samples, "request_seconds_count", kind="page") == 5
        assert value(samples, "degraded", part="redis") == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can set the limits of another process")
def test_a_full_disk_stops_neither_serving_nor_counting(
    index: FakeIndex, redis: Redis, daemon_factory: DaemonFactory
) -> None:
    """
    Requests are served and counted even on a full disk.

    The files for metrics get all their blocks before the first request.
    """
    index.add(make_wheel("thing"))
    daemon = daemon_factory("mypypi-server", env={"WORKERS": "2", "MYPYPI_REDIS_URL": redis.url})
    children = psutil.Process(daemon.pid).children()
    files = set(Path(children[0].environ()["PROMETHEUS_MULTIPROC_DIR"]).iterdir())
    for child in children:
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    for _ in range(8):
        assert get(f"{daemon.url}/simple/thing/").status == 200
    assert get(f"{daemon.url}/simple/nothing/").status == 404
    assert value(scrape(daemon), "request_seconds_count", kind="page") == 9
    assert set(Path(children[0].environ()["PROMETHEUS_MULTIPROC_DIR"]).iterdir()) == files
