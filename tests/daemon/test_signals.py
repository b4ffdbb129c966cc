"""Tests of SIGHUP, SIGTERM, SIGINT and SIGUSR1: with each daemon, at every moment, and nothing is lost."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from mypypi.daemon.lifecycle import CannotStart
from mypypi.daemon.signals import Signals
from tests.conftest import DaemonFactory
from tests.rig.certificates import Certificate, name_at
from tests.rig.daemon import Daemon
from tests.rig.faults import Gate
from tests.rig.http import SlowReader, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_wheel
from tests.rig.redis import Redis

#: Bytes: more than sockets buffer for a client that does not read.
LARGE = 20_000_000
#: A daemon's name, and its number of server processes.
SERVERS = [("mypypi", "1"), ("mypypi-server", "1"), ("mypypi-server", "2")]
DAEMONS = ["mypypi", "mypypi-server", "mypypi-worker"]
ALL = (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)

#: Runs twistd, and sends itself signals: when a module is imported, or when the services have started.
SIGNALLED = """
import os, sys
moment, *numbers = sys.argv.pop(1).split(",")
def send():
    for number in numbers:
        os.kill(os.getpid(), int(number))
class Finder:
    def find_spec(self, name, *_):
        if name == moment:
            send()
sys.meta_path.insert(0, Finder())
from twisted.application import app
start = app.startApplication
def start_and_send(*arguments):
    start(*arguments)
    if moment == "started":
        send()
app.startApplication = start_and_send
from twisted.scripts.twistd import run
run()
"""
MOMENTS = ["mypypi.daemon.index", "started"]

#: Runs its arguments in the foreground of a terminal, which is its standard input.
IN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
terminal = os.open(sys.argv.pop(1), os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
os.dup2(terminal, 0)
os.close(terminal)
os.execv(sys.argv[1], sys.argv[1:])
"""


def path_of(index: FakeIndex, wheel: Artifact) -> str:
    return f"/file/{index.url_of(wheel.filename).replace('://', '/')}"


@pytest.fixture
def wheel(index: FakeIndex) -> Artifact:
    made = make_wheel("thing", padding=LARGE)
    index.add(made)
    return made


@pytest.fixture
def first(tmp_path: Path) -> Certificate:
    """The first certificate for the server, which lies in `tmp_path`."""
    made = Certificate.make("first.example")
    made.write(tmp_path)
    return made


@pytest.fixture
def start(daemon_factory: DaemonFactory, tmp_path: Path) -> Callable[..., Daemon]:
    """A function that starts a daemon with a long drain time; with `tls`, it listens with the certificate."""

    def start(plugin: str, workers: str = "1", *, tls: bool = False, **env: str) -> Daemon:
        env = {"WORKERS": workers, "MYPYPI_DRAIN_TIME": "30", **env}
        if plugin != "mypypi":
            env.setdefault("MYPYPI_REDIS_URL", "redis://127.0.0.1:1")
        if not tls:
            return daemon_factory(plugin, env=env)
        env["MYPYPI_LISTEN"] = f"ssl:0:privateKey={tmp_path}/key.pem:certKey={tmp_path}/cert.pem:interface=127.0.0.1"
        return daemon_factory(plugin, env=env, ready=re.compile(r"https://127\.0\.0\.1:(\d+)/"))

    return start


class TestReload:
    """SIGHUP."""

    @pytest.mark.parametrize(("plugin", "workers"), SERVERS)
    def test_new_connections_get_the_new_certificate(
        self,
        plugin: str,
        workers: str,
        index: FakeIndex,
        wheel: Artifact,
        first: Certificate,
        start: Callable[..., Daemon],
        tmp_path: Path,
    ) -> None:
        """New connections get the certificate that is on the disk by now. A response in progress goes on."""
        daemon = start(plugin, workers, tls=True)
        with SlowReader(f"https://127.0.0.1:{daemon.port}{path_of(index, wheel)}") as client:
            head = client.read(100_000)
            Certificate.make("second.example").write(tmp_path)
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("the children are new" if workers == "2" else "SIGHUP: files were read again")
            eventually(lambda: name_at(daemon.port), lambda name: name == "second.example")
            rest = client.rest()
        assert (rest.complete, head + rest.body == wheel.content) == (True, True)
        assert daemon.log.count("listens at") == 1

    @pytest.mark.parametrize(("plugin", "workers"), SERVERS[1:])
    def test_a_certificate_that_can_not_be_used_changes_nothing(
        self, plugin: str, workers: str, first: Certificate, start: Callable[..., Daemon], tmp_path: Path
    ) -> None:
        """If a file can't be used, the log names it with the reason, and the old certificate stays in use."""
        daemon = start(plugin, workers, tls=True)
        (tmp_path / "key.pem").write_bytes(Certificate.make("other.example").key_pem())
        os.kill(daemon.pid, signal.SIGHUP)
        line = daemon.wait_for_log(r"\[error\] SIGHUP: .*").group()
        assert f"{tmp_path}/cert.pem: the certificate does not belong to the private key in {tmp_path}/key.pem" in line
        assert name_at(daemon.port) == "first.example"
        Certificate.make("second.example").write(tmp_path)
        os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: name_at(daemon.port), lambda name: name == "second.example")
        assert daemon.log.count("not replaced") == 0

    def test_a_worker_goes_on_with_its_jobs(
        self, index: FakeIndex, wheel: Artifact, redis: Redis, start: Callable[..., Daemon], tmp_path: Path
    ) -> None:
        """A worker finishes the job that it runs when SIGHUP arrives."""
        gate = index.fault(index.path_of(wheel.filename), Gate())
        shared = {"MYPYPI_REDIS_URL": redis.url, "MYPYPI_REDIS_PREFIX": "reload", "MYPYPI_COLD_FILES": "redirect"}
        server = start("mypypi-server", **shared)
        worker = Daemon("mypypi-worker", tmp_path / "data", {**shared, "MYPYPI_UPSTREAM_URL": index.url})
        worker.launch()
        try:
            worker.wait_for_log("ready: ")
            assert get(server.url + path_of(index, wheel)).status == 302
            gate.allow(1_000_000)
            gate.wait_sent(1_000_000)
            os.kill(worker.pid, signal.SIGHUP)
            worker.wait_for_log("SIGHUP: files were read again")
            gate.allow_all()
            worker.wait_for_log("stored ")
        finally:
            worker.stop()
        assert get(server.url + path_of(index, wheel)).body == wheel.content
        assert (worker.ended_in_order, worker.complaints) == (True, [])

    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_a_log_file_that_was_moved_is_opened_again(self, workers: str, index: FakeIndex, tmp_path: Path) -> None:
        """After logrotate has moved the log file, SIGHUP begins a new one. No line is lost."""
        file, moved = tmp_path / "log", tmp_path / "log.1"
        env = {"WORKERS": workers, "MYPYPI_REDIS_URL": "redis://127.0.0.1:1", "MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon("mypypi-server", tmp_path / "data", env, options=["--logfile", str(file)])
        daemon.launch()
        try:
            text = eventually(lambda: file.read_text() if file.exists() else "", lambda text: "ready: " in text)
            port = int(re.findall(r"listens at http://127\.0\.0\.1:(\d+)/", text)[0])
            file.rename(moved)
            assert get(f"http://127.0.0.1:{port}/-/health/live", {"X-Request-ID": "before"}).status == 200
            eventually(moved.read_text, lambda text: "before" in text)
            os.kill(daemon.pid, signal.SIGHUP)
            eventually(file.exists, bool)
            assert get(f"http://127.0.0.1:{port}/-/health/live", {"X-Request-ID": "after"}).status == 200
            eventually(file.read_text, lambda text: "after" in text)
        finally:
            daemon.stop()
        assert "after" not in moved.read_text()
        assert file.read_text().rstrip().endswith("Server Shut Down.")


class TestStart:
    """Signals that arrive before the reactor runs."""

    @pytest.mark.parametrize("moment", MOMENTS)
    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_a_stop_before_the_reactor_runs_ends_in_order(self, plugin: str, moment: str, tmp_path: Path) -> None:
        """A daemon that is stopped while it starts ends in order, without a traceback. It ignores further signals."""
        with signalled(plugin, moment, ALL, tmp_path) as daemon:
            assert daemon.wait_ended() in (-signal.SIGINT, -signal.SIGTERM)
        assert len(re.findall(r"received SIG\w+, stopping", daemon.log)) == 1
        assert daemon.log.count("again: this daemon stops already") == 1
        assert "Server Shut Down." in daemon.log
        assert daemon.complaints == []

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_a_hangup_during_the_start_does_not_end_it(self, plugin: str, tmp_path: Path) -> None:
        """A daemon that gets SIGHUP and SIGUSR1 while it starts gets ready."""
        with signalled(plugin, MOMENTS[0], (signal.SIGHUP, signal.SIGUSR1), tmp_path) as daemon:
            daemon.wait_for_log("ready: ")
            daemon.wait_for_log("SIGHUP: files were read again")
            daemon.stop()
        assert (daemon.ended_in_order, daemon.complaints) == (True, [])


@contextmanager
def signalled(plugin: str, moment: str, numbers: tuple[int, ...], tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that sends itself signals at this moment of its start."""
    env = {"MYPYPI_UPSTREAM_URL": "http://127.0.0.1:1"} | (
        {"MYPYPI_REDIS_URL": "redis://127.0.0.1:1"} if plugin != "mypypi" else {}
    )
    daemon = Daemon(plugin, tmp_path / "data", env)
    daemon._command = [
        sys.executable, "-c", SIGNALLED, ",".join([moment, *(str(int(number)) for number in numbers)]),
        *daemon._command[3:],
    ]  # fmt: skip
    daemon.launch()
    try:
        yield daemon
    finally:
        daemon.stop()
        daemon.sweep()


class TestStop:
    """SIGTERM and SIGINT."""

    @pytest.mark.parametrize(
        ("plugin", "workers", "number"),
        [
            ("mypypi", "1", signal.SIGINT),
            ("mypypi-server", "1", signal.SIGTERM),
            ("mypypi-server", "2", signal.SIGINT),
        ],
    )
    def test_no_further_signal_shortens_a_drain(
        self,
        plugin: str,
        workers: str,
        number: signal.Signals,
        index: FakeIndex,
        wheel: Artifact,
        start: Callable[..., Daemon],
    ) -> None:
        """A response in progress is sent to its end, whatever signals follow the first."""
        gate = index.fault(index.path_of(wheel.filename), Gate())
        daemon = start(plugin, workers)
        with SlowReader(daemon.url + path_of(index, wheel)) as client:
            gate.allow(1_000_000)
            gate.wait_sent(1_000_000)
            os.kill(daemon.pid, number)
            daemon.wait_for_log(f"received {number.name}, stopping")
            for each in ALL:
                os.kill(daemon.pid, each)
            daemon.wait_for_log(r"(?s)(stops already.*){2}")
            gate.allow_all()
            assert client.rest().body == wheel.content
        assert daemon.wait_ended() == -number
        assert "Server Shut Down." in daemon.log
        assert daemon.leftovers() == []


class TestTerminal:
    """A daemon in the foreground of a terminal, whose signals all processes of the group get."""

    @pytest.mark.parametrize(("way", "workers"), [("ctrl-c", "2"), ("closed", "1"), ("closed", "2")])
    def test_the_terminal_ends_all_in_order(
        self, way: str, workers: str, index: FakeIndex, wheel: Artifact, tmp_path: Path
    ) -> None:
        """Ctrl-C, or the end of the terminal, ends the daemon after the response in progress, and all that it runs."""
        gate = index.fault(index.path_of(wheel.filename), Gate())
        env = {"WORKERS": workers, "MYPYPI_DRAIN_TIME": "30", "MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon("mypypi", tmp_path / "data", env)
        ours, terminal = pty.openpty()
        daemon._command = [sys.executable, "-c", IN_TERMINAL, os.ttyname(terminal), *daemon._command]
        try:
            daemon.start()
            daemon._remember_children()
            os.close(terminal)
            with SlowReader(daemon.url + path_of(index, wheel)) as client:
                gate.allow(1_000_000)
                gate.wait_sent(1_000_000)
                if way == "ctrl-c":
                    os.write(ours, b"\x03")
                else:
                    os.close(ours)
                daemon.wait_for_log("received SIGINT" if way == "ctrl-c" else "its terminal is gone")
                gate.allow_all()
                assert client.rest().body == wheel.content
            daemon.wait_ended()
            assert daemon.leftovers() == []
            assert (daemon.complaints, "error" in daemon.log) == ([], False)
        finally:
            daemon.kill()
            daemon.sweep()
            if way == "ctrl-c":
                os.close(ours)

    def test_a_signal_for_the_group_reaches_the_supervisor_alone(self, index: FakeIndex, tmp_path: Path) -> None:
        """A SIGHUP for the whole group, even while children start, is a reload: no child dies of it."""
        env = {"WORKERS": "2", "MYPYPI_REDIS_URL": "redis://127.0.0.1:1", "MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon("mypypi-server", tmp_path / "data", env)
        daemon._command = [
            sys.executable, "-c", "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])", *daemon._command,
        ]  # fmt: skip
        with daemon:
            os.killpg(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("the children are being replaced")
            os.killpg(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log(r"(?s)(the children are new.*){2}")
            assert get(f"{daemon.url}/-/health/live").status == 200
        assert not re.search(r"before it was ready|not replaced|is started again", daemon.log)
        assert daemon.ended_in_order


class FakeReactor(Clock):
    """A reactor that calls at once, and records its stops."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0

    def callFromThread(self, function: Any, *arguments: Any) -> None:
        function(*arguments)

    def stop(self) -> None:
        self.stops += 1


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """The lines that are logged."""
    logged: list[str] = []

    def observe(event: LogEvent) -> None:
        logged.append(formatEvent(event))

    observer: Any = observe
    globalLogPublisher.addObserver(observer)
    yield logged
    globalLogPublisher.removeObserver(observer)


def test_a_reload_that_fails_does_not_stop_the_others(lines: list[str]) -> None:
    """Of several files, each that can be used is read. The log has a line for each of the others."""

    def missing() -> None:
        raise CannotStart("a.pem: no such file")

    async def forbidden() -> None:
        raise PermissionError(13, "Permission denied", "b.pem")

    read: list[str] = []
    signals = Signals(FakeReactor(), [missing, forbidden, lambda: read.append("c")])
    signals.received(signal.SIGHUP)
    assert read == ["c"]
    assert lines == [
        "SIGHUP: a.pem: no such file; what was read before stays in use",
        "SIGHUP: [Errno 13] Permission denied: 'b.pem'; what was read before stays in use",
    ]


def test_a_stop_happens_once(lines: list[str]) -> None:
    """Of several signals to stop, the first counts. After it, nothing is read again."""
    reactor, read = FakeReactor(), list[str]()
    signals = Signals(reactor, [lambda: read.append("x")])
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signals.received(number)
    assert (reactor.stops, read, len(lines)) == (1, [], 4)
