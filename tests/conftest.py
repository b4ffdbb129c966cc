"""Fixtures for the tests with real processes. Everything they start is theirs, and ended with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path

import pytest

from tests.rig.daemon import Daemon
from tests.rig.index import FakeIndex
from tests.rig.redis import Redis
from tests.rig.s3 import S3Server
from tests.support.cluster import Cluster, cluster_of
from tests.support.kinds import Kind
from tests.support.site import Site

#: Starts a `Daemon` as that class is made, with the data directory and the upstream filled in where they are not given.
DaemonFactory = Callable[..., Daemon]

#: Sites by their kind, upstream's credentials, and settings without their prefix: ``sites(kind, CACHE_TIME="0")``.
Sites = Callable[..., Site]

#: Characters of a shared daemon's log that a test which fails shows.
_SHOWN = 8000


@pytest.fixture
def index() -> Iterator[FakeIndex]:
    """An upstream index of this test's own."""
    with FakeIndex() as fresh:
        yield fresh


@contextmanager
def daemons(upstream_url: str, data: Path) -> Iterator[DaemonFactory]:
    """
    Starts daemons before this upstream: ``start("mypypi", env={"WORKERS": "2"})``.

    All share one data directory where they are not given their own. At the end they are stopped, and none may have
    logged what nobody handled.
    """
    started: list[Daemon] = []
    ending = ExitStack()  # so that one that does not stop keeps no other from being stopped

    def start(plugin: str = "mypypi", data: Path = data, env: dict[str, str] | None = None, **more: object) -> Daemon:
        upstream = {"MYPYPI_UPSTREAM_URL": upstream_url}
        daemon = Daemon(plugin, data, upstream | (env or {}), **more)  # type: ignore[arg-type]
        started.append(daemon.start())
        ending.callback(daemon.show)
        ending.callback(daemon.sweep)
        ending.callback(daemon.stop)
        return daemon

    with ending:
        yield start
    for daemon in started:
        assert daemon.complaints == [], daemon.log


@pytest.fixture
def daemon_factory(index: FakeIndex, tmp_path: Path) -> Iterator[DaemonFactory]:
    """As `daemons`, before `index`."""
    with daemons(index.url, tmp_path / "data") as start:
        yield start


@pytest.fixture(scope="class")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    """The sites of a class of tests, each started when it is first asked for, and the same one ever after."""
    with ExitStack() as ending:

        @cache
        def make(kind: Kind, auth: tuple[str, str] | None = None, **settings: str) -> Site:
            upstream = ending.enter_context(kind.upstream(auth=auth))
            data = tmp_path_factory.mktemp("site") / "data"
            start = ending.enter_context(daemons(upstream.url, data))
            if auth is not None:
                settings |= {"UPSTREAM_USERNAME": auth[0], "UPSTREAM_PASSWORD": auth[1]}
            env = {f"MYPYPI_{name}": value for name, value in {"PACKAGE_TYPE": kind.package_type, **settings}.items()}
            return Site(kind, upstream, data, partial(start, env=env))

        yield make


@pytest.fixture
def site(sites: Sites, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The site of this class with the settings as they are by default."""
    site = sites(request.cls.kind)
    yield site
    site.upstream.mend()
    print(site.daemon.log[-_SHOWN:])  # noqa: T201 - pytest shows it when the test fails


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A Redis on a port of loopback; each cluster has a part of it for itself."""
    with Redis() as redis:
        yield redis


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server; each cluster has a part of its bucket for itself."""
    with S3Server() as s3:
        yield s3


@pytest.fixture
def cluster(redis: Redis, s3: S3Server, tmp_path: Path) -> Iterator[Cluster]:
    """Where a test starts servers and workers that share an upstream, Redis and a bucket."""
    with cluster_of(redis, s3, tmp_path) as cluster:
        yield cluster


#: Modules whose tests take long, mostly waiting: they begin first, so that nothing is waited for in the end.
_FIRST = ("test_strict_clients", "test_chaos", "test_fleet_files", "test_bucket", "test_processes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which tests are handed out."""
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
