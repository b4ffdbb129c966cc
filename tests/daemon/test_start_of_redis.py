"""Tests of the start of a daemon whose Redis starts slowly: clients wait for it, within limits."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from twisted.internet.task import deferLater

from mypypi.daemon.announcement import REDIS_WAIT, Announcement
from mypypi.errors import CatalogDown, RedisTooSlow
from tests.conftest import DaemonFactory
from tests.rig.daemon import ROOT, Daemon
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.rig.redis import free_port
from tests.rig.wire import BOUND
from tests.support.memory import MemoryTestCase
from tests.support.redis_server import redis_binary

REQUEST = b"GET /simple/thing/ HTTP/1.1\r\nHost: here\r\n\r\n"
#: A redis-server that starts when its pipe is opened for writing.
HELD_SERVER = """#!/bin/sh
read line < {pipe}
exec {server} "$@"
"""


class HeldServer:
    """A directory for PATH with a redis-server that starts on `release` only."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._pipe = directory / "pipe"
        os.mkfifo(self._pipe)
        program = directory / "redis-server"
        program.write_text(HELD_SERVER.format(pipe=self._pipe, server=redis_binary()))
        program.chmod(0o755)
        self.path = f"{directory}{os.pathsep}{os.environ['PATH']}"

    def release(self) -> None:
        """Let the server start. Blocks until it has begun to wait."""
        self._pipe.write_text("go\n")


@pytest.fixture
def held(tmp_path: Path) -> HeldServer:
    return HeldServer(tmp_path / "bin")


@contextmanager
def launched(data: Path, **settings: Any) -> Iterator[Daemon]:
    """A daemon that is starting."""
    with ExitStack() as ending:
        daemon = Daemon("mypypi", data, **settings)
        daemon.launch()
        ending.callback(daemon.show)
        ending.callback(daemon.sweep)
        ending.callback(daemon.stop)
        yield daemon
    assert daemon.complaints == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_client_waits_for_the_embedded_redis(
    workers: str, index: FakeIndex, held: HeldServer, daemon_factory: DaemonFactory
) -> None:
    """
    A client that connects during the start gets the page that Redis has, although upstream is down.

    The port is bound at once, and the client waits until the embedded Redis answers.
    """
    index.add(make_wheel("thing"))
    first = daemon_factory()
    assert get(f"{first.url}/simple/thing/").status == 200
    first.stop()
    port = free_port()
    env = {
        "PATH": held.path,
        "WORKERS": workers,
        "MYPYPI_UPSTREAM_URL": index.url,
        "MYPYPI_LISTEN": f"tcp:{port}:interface=127.0.0.1",
    }
    with index.refusing(), launched(first.data, env=env) as daemon:
        daemon.wait_for_log("starting .*redis-server")
        with connect(port) as client:
            client.sendall(REQUEST)
            held.release()
            daemon.wait_ready()
            assert client.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        daemon.wait_for_log("GET /simple/thing/")
        ready, served = (daemon.log.index(words) for words in ("ready: ", "GET /simple/thing/"))
        assert ready < served or workers != "1"  # the log of a child comes on a way of its own


def test_a_daemon_serves_without_an_embedded_redis_that_starts_slowly(
    index: FakeIndex, held: HeldServer, tmp_path: Path
) -> None:
    """
    A daemon whose embedded Redis takes long to start serves without it, and says so.

    It uses Redis once it answers.
    """
    index.add(make_wheel("thing"))
    (tmp_path / "patched").mkdir()
    (tmp_path / "patched" / "sitecustomize.py").write_text(
        "from mypypi.daemon import all_tap\nall_tap._EMBEDDED_WAIT = 0.1\n"
    )
    env = {"PATH": held.path, "MYPYPI_UPSTREAM_URL": index.url}
    with launched(tmp_path / "data", env=env, python_path=(ROOT, tmp_path / "patched")) as daemon:
        daemon.wait_ready()
        assert "is not there yet" in daemon.log
        assert get(f"{daemon.url}/simple/thing/").status == 200
        assert '"status":"degraded"' in get(f"{daemon.url}/-/health/ready").text
        held.release()
        daemon.wait_for_log("redis-server is back")
        eventually(lambda: get(f"{daemon.url}/-/health/ready").text, lambda health: '"status":"ok"' in health)


def test_a_daemon_whose_data_directory_was_removed(index: FakeIndex, daemon_factory: DaemonFactory) -> None:
    """Pages and files are served and stored again after the data directory was emptied and the embedded Redis died."""
    wheel = make_wheel("thing")
    index.add(wheel)
    daemon = daemon_factory()
    page, file = f"{daemon.url}/simple/thing/", f"{daemon.url}/file/{index.url_of(wheel.filename).replace('://', '/')}"
    assert [get(page).status, get(file).body] == [200, wheel.content]
    daemon.wait_for_log("stored ")
    shutil.rmtree(daemon.data)
    daemon.data.mkdir()
    for child in psutil.Process(daemon.pid).children():
        if any("unixsocket" in word for word in child.cmdline()):
            child.kill()
    daemon.wait_for_log("redis-server is back")
    assert [get(page).status, get(file).body] == [200, wheel.content]
    daemon.wait_for_log("(?s)stored .*stored ")
    eventually(lambda: get(f"{daemon.url}/-/health/ready").text, lambda health: '"status":"ok"' in health)
    assert (daemon.data / "redis" / "redis.sock").exists()


def test_a_port_that_is_taken_is_reported_before_redis_starts(held: HeldServer, tmp_path: Path) -> None:
    """The port is bound before Redis starts, so that an error about it comes at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        daemon = Daemon("mypypi", tmp_path / "data", {"PATH": held.path, "MYPYPI_LISTEN": f"tcp:{port}"})
        daemon.launch()
        try:
            assert daemon.wait_ended() == 1
        finally:
            daemon.sweep()
    assert "in use" in daemon.log
    assert "redis-server" not in daemon.log


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), BOUND)


class FakeRedis:
    """A Redis that takes some seconds for each check, and fails or is slow as told."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self.seconds = 0.0
        self.trouble: CatalogDown | None = None
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1
        await deferLater(self._clock, self.seconds)
        if self.trouble is not None:
            raise self.trouble


class AnnouncementTest(MemoryTestCase):
    """The wait for a Redis that the settings name."""

    def setUp(self) -> None:
        super().setUp()
        self.redis = FakeRedis(self.clock)
        self.ready: list[str] = []
        self.announcement = Announcement(self.redis, self.clock, self.ready.append)  # type: ignore[arg-type]

    def start_and_wait(self, seconds: float) -> None:
        self.announcement.startService()
        for _ in range(round(seconds / 0.05)):
            self.clock.advance(0.05)

    def test_a_redis_that_answers_is_not_waited_for(self) -> None:
        """A daemon is ready as soon as Redis answers."""
        self.start_and_wait(0.05)
        assert self.ready == ["answers"]
        assert self.redis.checks == 1

    def test_a_redis_that_starts_is_waited_for(self) -> None:
        """A daemon waits for a Redis that was started together with it."""
        self.redis.trouble = CatalogDown("Redis can't be reached: connection refused")
        self.start_and_wait(REDIS_WAIT / 2)
        assert self.ready == []
        self.redis.trouble = None
        self.clock.pump([0.1, 0.1])
        assert self.ready == ["answers"]

    def test_a_redis_that_is_down_is_waited_for_within_limits(self) -> None:
        """A daemon serves without Redis if there is none after two seconds, and says so."""
        for self.redis.seconds, why in ((0.0, "connection refused"), (60.0, "no answer within 2 s")):
            self.redis.trouble = CatalogDown("connection refused")
            self.start_and_wait(REDIS_WAIT - 0.2)
            assert self.ready == []
            self.clock.pump([0.1] * 4)
            assert self.ready == [f"is not there yet ({why}), and is used as soon as it is"]
            self.ready.clear()

    def test_a_slow_redis_is_not_waited_for(self) -> None:
        """A daemon is ready if Redis answers slowly, since waiting would not help."""
        self.redis.trouble = RedisTooSlow("Redis takes 1.9 s to answer")
        self.start_and_wait(0.05)
        assert self.ready == ["answers, but slowly (Redis takes 1.9 s to answer)"]

    def test_a_stop_ends_the_wait(self) -> None:
        """A daemon that is stopped while it waits does not get ready."""
        self.redis.trouble = CatalogDown("connection refused")
        self.start_and_wait(0.5)
        self.announcement.stopService()
        self.clock.advance(5)
        assert self.ready == []
        assert self.clock.getDelayedCalls() == []
