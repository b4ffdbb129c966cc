"""Fixtures for the tests with real processes.

Each fixture ends the processes that it started when its test, class or session ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.rig.daemon import Daemon
from tests.rig.index import FakeIndex
from tests.rig.redis import Redis
from tests.rig.s3 import S3Server
from tests.support.cluster import Cluster, cluster_of
from tests.support.kinds import Kind
from tests.support.site import Site

# Generated cases have no time limit. Hypothesis measures time on the clock, so a busy machine makes any case slow; the
# first one in a fresh clone also builds its tables of characters.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

#: Starts a `Daemon`. It takes the arguments of that class, with defaults for the data directory and the upstream.
DaemonFactory = Callable[..., Daemon]

#: Returns a site for a kind, upstream's credentials, and settings without prefix: ``sites(kind, CACHE_TIME="0")``.
Sites = Callable[..., Site]

#: Characters at the end of a shared daemon's log that pytest shows for a failed test.
_LOG_TAIL = 8000


@pytest.fixture
def index() -> Iterator[FakeIndex]:
    """A package index upstream for one test."""
    with FakeIndex() as fresh:
        yield fresh


@contextmanager
def daemons(upstream_url: str, data: Path) -> Iterator[DaemonFactory]:
    """
    Yield a function that starts daemons in front of an upstream.

    Call it as ``start("mypypi", env={"WORKERS": "2"})``. Daemons share the data directory `data` unless the call names
    another. At the end all are stopped, and the test fails if one of them logged an unhandled error.
    """
    started: list[Daemon] = []
    exit_stack = ExitStack()  # stops all daemons, even if stopping one of them fails

    def start(plugin: str = "mypypi", data: Path = data, env: dict[str, str] | None = None, **more: object) -> Daemon:
        upstream = {"MYPYPI_UPSTREAM_URL": upstream_url}
        daemon = Daemon(plugin, data, upstream | (env or {}), **more)  # type: ignore[arg-type]
        started.append(daemon.start())
        exit_stack.callback(daemon.show)
        exit_stack.callback(daemon.sweep)
        exit_stack.callback(daemon.stop)
        return daemon

    with exit_stack:
        yield start
    for daemon in started:
        assert daemon.complaints == [], daemon.log


@pytest.fixture
def daemon_factory(index: FakeIndex, tmp_path: Path) -> Iterator[DaemonFactory]:
    """The `daemons` function with `index` as its upstream."""
    with daemons(index.url, tmp_path / "data") as start:
        yield start


@pytest.fixture(scope="class")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """
    A function that returns sites, which the tests of a class share.

    Each site starts on its first use; the same arguments return the same site.
    """
    with ExitStack() as exit_stack:

        @cache
        def make(kind: Kind, auth: tuple[str, str] | None = None, **settings: str) -> Site:
            upstream = exit_stack.enter_context(kind.upstream(auth=auth))
            data = tmp_path_factory.mktemp("site") / "data"
            start = exit_stack.enter_context(daemons(upstream.url, data))
            if auth is not None:
                settings |= {"UPSTREAM_USERNAME": auth[0], "UPSTREAM_PASSWORD": auth[1]}
            env = {f"MYPYPI_{name}": value for name, value in {"PACKAGE_TYPE": kind.package_type, **settings}.items()}
            return Site(kind, upstream, data, partial(start, env=env))

        yield make


@pytest.fixture
def site(sites: Sites, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The site of the test's class with default settings."""
    site = sites(request.cls.kind)
    yield site
    site.upstream.mend()
    print(site.daemon.log[-_LOG_TAIL:])  # noqa: T201 - pytest shows the output of a failed test


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A Redis server on loopback. Each cluster uses its own key prefix."""
    with Redis() as redis:
        yield redis


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server on loopback. Each cluster uses its own prefix in the bucket."""
    with S3Server() as s3:
        yield s3


@pytest.fixture
def cluster(redis: Redis, s3: S3Server, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster: servers and workers that share an upstream, Redis and a bucket."""
    with cluster_of(redis, s3, tmp_path) as cluster:
        yield cluster


#: Modules with slow tests, which mostly wait. They start first, so that the run does not end with one slow test.
_SLOW_MODULES = (
    "test_strict_clients",
    "test_chaos",
    "test_fleet_files",
    "test_bucket",
    "test_processes",
    "test_signals",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests so that the slow modules start first."""
    order = {name: position for position, name in enumerate(_SLOW_MODULES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
