"""Fixtures for the tests with real processes. Everything they start is theirs, and ended with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rig.daemon import Daemon
from tests.rig.index import FakeIndex

#: Starts a `Daemon` as that class is made, with the data directory and the upstream filled in where they are not given.
DaemonFactory = Callable[..., Daemon]


@pytest.fixture
def index() -> Iterator[FakeIndex]:
    """An upstream index of this test's own."""
    with FakeIndex() as fresh:
        yield fresh


@pytest.fixture
def daemon_factory(index: FakeIndex, tmp_path: Path) -> Iterator[DaemonFactory]:
    """
    Starts daemons before `index`: ``daemon_factory("mypypi", env={"WORKERS": "2"})``.

    All share one data directory where they are not given their own. At the end they are stopped, and none may have
    logged what nobody handled.
    """
    started: list[Daemon] = []

    def start(
        plugin: str = "mypypi", data: Path | None = None, env: dict[str, str] | None = None, **more: object
    ) -> Daemon:
        upstream = {"MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon(plugin, data or tmp_path / "data", upstream | (env or {}), **more)  # type: ignore[arg-type]
        started.append(daemon.start())
        return daemon

    with ExitStack() as ending:  # so that one that does not stop keeps no other from being stopped
        yield start
        for daemon in started:
            ending.callback(daemon.show)
            ending.callback(daemon.sweep)
            ending.callback(daemon.stop)
    for daemon in started:
        assert daemon.complaints == [], daemon.log
