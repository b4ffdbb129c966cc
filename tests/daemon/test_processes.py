"""
Tests of several server processes on one socket, seen from outside.

They cover serving, replacing, ending, sockets and logs.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest

from tests.conftest import DaemonFactory
from tests.rig.certificates import Certificate, name_at
from tests.rig.daemon import _TWISTD, Daemon
from tests.rig.faults import Gate
from tests.rig.http import Answer, SlowReader, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_wheel

TWO = {"WORKERS": "2", "MYPYPI_DRAIN_TIME": "30", "MYPYPI_REDIS_URL": "redis://127.0.0.1:1"}
ALIVE = "/-/health/live"
#: Bytes: more than sockets buffer for a client that does not read.
LARGE = 20_000_000

#: A program that runs its arguments with a listening socket, as systemd would. It prints the socket's port first.
ACTIVATE = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print("port", listener.getsockname()[1], flush=True)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
os.execv(sys.executable, sys.argv[1:])
"""


def start(make: DaemonFactory, plugin: str = "mypypi-server", **env: str) -> Daemon:
    return make(plugin, env={**TWO, **env})


def pids(daemon: Daemon) -> dict[int, int]:
    """Return each child's process id, by the last line of the log about it."""
    return {int(number): int(pid) for number, pid in re.findall(r"child (\d+) serves, pid (\d+)", daemon.log)}


def children(daemon: Daemon) -> dict[int, psutil.Process]:
    """Return the running child processes, by number."""
    return {number: psutil.Process(pid) for number, pid in pids(daemon).items()}


def fetch(daemon: Daemon, path: str = ALIVE) -> Answer:
    return get(daemon.url + path)


@contextmanager
def only_child(daemon: Daemon, number: int) -> Iterator[None]:
    """Suspend all children but this one, so that it gets every connection."""
    others = [child for each, child in children(daemon).items() if each != number]
    for child in others:
        child.suspend()
    try:
        yield
    finally:
        for child in others:
            child.resume()


@contextmanager
def load(ask: Callable[[], Any], clients: int) -> Iterator[list[Any]]:
    """Run this many clients, each of which calls `ask` in a loop. Yields the list of results and exceptions."""
    results: list[Any] = []
    stopping = Event()

    def run() -> None:
        while not stopping.is_set():
            results.append(outcome())

    def outcome() -> Any:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 - the test reports any error
            return error

    threads = [Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def url_of(daemon: Daemon, index: FakeIndex, wheel: Artifact) -> str:
    return f"{daemon.url}/file/{index.url_of(wheel.filename).replace('://', '/')}"


@pytest.fixture
def wheel(index: FakeIndex) -> Artifact:
    made = make_wheel("thing", padding=LARGE)
    index.add(made)
    return made


def stored(daemon: Daemon, index: FakeIndex, wheel: Artifact) -> str:
    """Fetch the file once, so that it is stored; return its address."""
    address = url_of(daemon, index, wheel)
    assert get(address).body == wheel.content
    return address


class TestServing:
    """Several children serve at one address."""

    def test_each_child_serves_at_the_same_address(self, daemon_factory: DaemonFactory) -> None:
        """Every child that is free accepts connections; the supervisor never does."""
        daemon = start(daemon_factory)
        assert children(daemon).keys() == {1, 2}
        for number in (1, 2):
            with only_child(daemon, number):
                assert fetch(daemon).status == 200

    def test_ready_is_logged_once_all_children_serve(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """The supervisor logs "ready" once all children serve. The line is that of a single server."""
        daemon = start(daemon_factory)
        (announcement,) = re.findall(r"\[info\] ready: ((?:.*\n)(?:\t.*\n)+)", daemon.log)
        expected = [f"listens at {daemon.url}/\n", f" {index.url} (pypi)\n", f" {daemon.data}\n", "/simple/ flask\n"]
        assert [each for each in expected if each not in announcement] == []
        assert "is not there yet" in announcement
        before = daemon.log.partition("ready: ")[0]
        assert len(re.findall(r"child \d serves", before)) == 2

    def test_a_killed_child_breaks_only_its_own_connections(
        self, index: FakeIndex, wheel: Artifact, daemon_factory: DaemonFactory
    ) -> None:
        """
        A killed child breaks only its own connections.

        The others serve on, no connection is refused, and a new child takes its place.
        """
        daemon = start(daemon_factory)
        address = stored(daemon, index, wheel)
        before = children(daemon)
        with ExitStack() as ending:
            with only_child(daemon, 1):
                broken = ending.enter_context(SlowReader(address))
            with only_child(daemon, 2):
                other = ending.enter_context(SlowReader(address))
            before[1].kill()
            statuses = [fetch(daemon).status for _ in range(20)]
            daemon.wait_for_log(rf"child 1, pid {before[1].pid}, ended \(signal 9\); it is started again in 0.1 s")
            assert not broken.rest().complete
            assert other.rest().body == wheel.content
        assert statuses == [200] * 20
        eventually(lambda: pids(daemon)[1], lambda pid: pid != before[1].pid)
        with only_child(daemon, 1):
            assert fetch(daemon).status == 200

    def test_twistd_mypypi_runs_redis_and_worker_as_well(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """The server processes of ``twistd mypypi`` use the Redis that it started."""
        index.add(make_wheel("thing"))
        daemon = start(daemon_factory, "mypypi", MYPYPI_REDIS_URL="")
        with only_child(daemon, 1):
            assert fetch(daemon, "/simple/thing/").status == 200
        with only_child(daemon, 2):
            again = fetch(daemon, "/simple/thing/")
        assert "hit" in again.headers["Cache-Status"]
        assert fetch(daemon, "/-/health/ready").json() == {
            "status": "ok",
            "checks": {"redis": "ok", "storage": "ok", "upstream": "ok", "queue": "ok", "process": "ok"},
        }
        daemon.stop()
        assert daemon.ended_in_order
        assert daemon.leftovers() == []

    def test_children_count_together(self, daemon_factory: DaemonFactory) -> None:
        """
        Children count in one directory, which is removed with them.

        A child that died keeps its counters, but not its gauges.
        """
        daemon = start(daemon_factory)
        for number in (1, 2):
            with only_child(daemon, number):
                assert fetch(daemon).status == 200
        for number in (1, 2):
            with only_child(daemon, number):
                metrics = fetch(daemon, "/-/metrics").text
            assert number_of(metrics, 'mypypi_requests_total{cache="none",kind="other",status="200"}') >= 2
        (directory,) = {child.environ()["PROMETHEUS_MULTIPROC_DIR"] for child in children(daemon).values()}
        dead = children(daemon)[1]
        assert list(Path(directory).glob(f"gauge_live*_{dead.pid}.db"))
        dead.kill()
        eventually(lambda: list(Path(directory).glob(f"gauge_live*_{dead.pid}.db")), lambda found: found == [])
        assert list(Path(directory).glob(f"counter_{dead.pid}.db"))
        daemon.stop()
        assert not Path(directory).exists()


def number_of(metrics: str, name: str) -> float:
    """Return the sum of a metric's samples."""
    return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(f"{name} "))


class TestReplacing:
    """A reload replaces the children."""

    def test_a_reload_under_load_loses_no_request(
        self, index: FakeIndex, wheel: Artifact, daemon_factory: DaemonFactory
    ) -> None:
        """
        A reload under load loses no request.

        New children serve before the old ones end, and those finish their transfers.
        """
        daemon = start(daemon_factory)
        address = stored(daemon, index, wheel)
        before = children(daemon)
        with SlowReader(address) as client:
            with load(lambda: fetch(daemon).status, clients=2) as results:
                os.kill(daemon.pid, signal.SIGHUP)
                daemon.wait_for_log("the children are new")
            assert client.rest().body == wheel.content
        assert len(results) > 20
        assert set(results) == {200}
        assert {child.pid for child in children(daemon).values()}.isdisjoint(child.pid for child in before.values())
        for number, child in before.items():
            daemon.wait_for_log(rf"child {number}, pid {child.pid}, has ended")

    def test_a_client_with_a_persistent_connection_reconnects(self, daemon_factory: DaemonFactory) -> None:
        """
        A client with a persistent connection has to reconnect.

        The response in progress says so, or the connection is closed between two requests; then clients retry.
        """
        daemon = start(daemon_factory)
        connections: list[http.client.HTTPConnection] = []

        def ask() -> int:
            if not connections:
                connections.append(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20))
            try:
                connections[0].request("GET", ALIVE)
                response = connections[0].getresponse()
                response.read()
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                connections.pop().close()
                return 0  # closed before a byte of a response
            return response.status

        with load(ask, clients=1) as results:
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("the children are new")
        for each in connections:  # none, if the last one was closed between two requests
            each.close()
        assert len(results) > 20
        assert set(results) <= {0, 200}
        assert results.count(0) <= 2

    def test_the_old_children_stay_if_new_ones_can_not_start(self, index: FakeIndex, tmp_path: Path) -> None:
        """If new children can't start, the log says so, and the old ones go on serving."""
        with daemon_with_failing_children(index, tmp_path) as (daemon, broken):
            daemon.start()
            before = children(daemon)
            broken.touch()
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("child 1 was not replaced: the new one, pid .* ended before it was ready")
            assert children(daemon) == before
            assert [fetch(daemon).status for _ in range(5)] == [200] * 5


@contextmanager
def daemon_with_failing_children(index: FakeIndex, tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon whose children can't start while the yielded file exists."""
    broken = tmp_path / "broken"
    directory = tmp_path / "first"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(
        f"import os\nif '_MYPYPI_PROCESS' in os.environ and os.path.exists({str(broken)!r}):\n    os._exit(3)\n"
    )
    env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url}
    root = Path(__file__).resolve().parents[2]
    daemon = Daemon("mypypi-server", tmp_path / "data", env, python_path=(directory, root))
    with ExitStack() as ending:
        ending.callback(daemon.show)
        ending.callback(daemon.sweep)
        ending.callback(daemon.stop)
        yield daemon, broken


class TestEnding:
    """The end of the supervisor and its children."""

    def test_a_stop_lets_a_transfer_end(self, index: FakeIndex, wheel: Artifact, daemon_factory: DaemonFactory) -> None:
        """A stop lets a transfer finish, and accepts no new connection meanwhile."""
        daemon = start(daemon_factory)
        with SlowReader(stored(daemon, index, wheel)) as client:
            os.kill(daemon.pid, signal.SIGTERM)
            eventually(lambda: refused(daemon.port), bool)
            assert client.rest().body == wheel.content
        daemon.wait_ended()
        assert daemon.ended_in_order
        assert "were broken" not in daemon.log
        assert daemon.leftovers() == []

    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_a_transfer_beyond_the_drain_time_is_visibly_broken(
        self, index: FakeIndex, wheel: Artifact, workers: str, daemon_factory: DaemonFactory
    ) -> None:
        """A transfer that outlasts MYPYPI_DRAIN_TIME is broken visibly. This holds for one process and for several."""
        daemon = start(daemon_factory, WORKERS=workers, MYPYPI_DRAIN_TIME="1")
        with SlowReader(stored(daemon, index, wheel)) as client:
            daemon.stop()
            rest = client.rest()
            assert not rest.complete
            assert len(rest.body) < len(wheel.content)
        assert "1 connections were broken: they did not end in 1 s" in daemon.log
        assert daemon.ended_in_order

    def test_a_single_server_drains_as_well(
        self, index: FakeIndex, wheel: Artifact, daemon_factory: DaemonFactory
    ) -> None:
        """A single server drains too, even a first fetch that upstream still sends."""
        gate = index.fault(index.path_of(wheel.filename), Gate())
        daemon = start(daemon_factory, WORKERS="1")
        with SlowReader(url_of(daemon, index, wheel)) as client:
            gate.allow(1_000_000)
            gate.wait_sent(1_000_000)
            os.kill(daemon.pid, signal.SIGTERM)
            eventually(lambda: refused(daemon.port), bool)
            gate.allow_all()
            assert client.rest().body == wheel.content
        daemon.wait_ended()
        assert daemon.ended_in_order

    def test_children_end_with_a_supervisor_that_is_killed(self, daemon_factory: DaemonFactory) -> None:
        """
        Children of a killed supervisor end by themselves, and in order.

        They remove the directory that they counted in.
        """
        daemon = start(daemon_factory)
        running = list(children(daemon).values())
        counts = Path(running[0].environ()["PROMETHEUS_MULTIPROC_DIR"])
        assert counts.is_dir()
        daemon.kill()
        assert psutil.wait_procs(running, 20)[1] == []
        assert not counts.exists()
        assert daemon.log.count("this server process ends: its supervisor is gone") == 2

    def test_children_end_even_if_the_supervisor_wrote_their_log(self, index: FakeIndex, tmp_path: Path) -> None:
        """Children end even if the killed supervisor was to write their log."""
        path = tmp_path / "mypypi.log"
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon("mypypi-server", tmp_path / "data", env, options=["--logfile", str(path)])
        with ExitStack() as ending:
            ending.callback(daemon.sweep)
            daemon.launch()
            ending.callback(daemon.stop)
            eventually(lambda: path.exists() and path.read_text(), lambda text: ready(text or ""))
            running = psutil.Process(daemon.pid).children()
            daemon.kill()
            assert len(running) == 2
            assert psutil.wait_procs(running, 20)[1] == []

    def test_children_that_can_not_start_end_the_supervisor(self, index: FakeIndex, tmp_path: Path) -> None:
        """If no child can start, the supervisor ends. The log says so, and the exit code is 1."""
        with daemon_with_failing_children(index, tmp_path) as (daemon, broken):
            broken.touch()
            daemon.launch()
            assert daemon.wait_ended() == 1
            assert "no server process can start" in daemon.log
            assert "the last with exit code 3" in daemon.log
            assert daemon.complaints == []

    def test_children_that_can_not_start_again_do_not_end_the_supervisor(
        self, index: FakeIndex, tmp_path: Path
    ) -> None:
        """If children have served, the supervisor goes on though none can start for a while. Then they serve again."""
        with daemon_with_failing_children(index, tmp_path) as (daemon, broken):
            daemon.start()
            broken.touch()
            for child in children(daemon).values():
                child.kill()
            daemon.wait_for_log(r"(?s)(ended before it was ready \(exit code 3\).*){5}")
            broken.unlink()
            assert fetch(daemon).status == 200  # the connection waits for a process that accepts it


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # the port was closed while this connection was made
    return False


class TestSockets:
    """The listening socket, bound by systemd or by the supervisor."""

    def test_a_socket_of_systemd_stays_open(self, index: FakeIndex, tmp_path: Path) -> None:
        """A socket from systemd stays open while children are replaced or gone. Clients that connect meanwhile wait."""
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_LISTEN": "systemd:domain=INET:index=0"}
        daemon = Daemon("mypypi-server", tmp_path / "data", env)
        daemon._command = [sys.executable, "-c", ACTIVATE, *daemon._command]
        with daemon:
            port = int(daemon.wait_for_log(r"port (\d+)").group(1))
            assert daemon.port == port
            for number in (1, 2):
                with only_child(daemon, number):
                    assert fetch(daemon).status == 200
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("the children are new")
            assert fetch(daemon).status == 200
        assert daemon.ended_in_order

    def test_a_unix_socket_belongs_to_the_supervisor(self, index: FakeIndex, tmp_path: Path) -> None:
        """
        A unix socket belongs to the supervisor, and is removed with it.

        Children that start and end leave its file and mode alone.
        """
        path = Path(f"/tmp/mypypi-{os.getpid()}.sock")  # noqa: S108 - a socket's path must be short
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_LISTEN": f"unix:{path}:mode=660"}
        daemon = Daemon("mypypi-server", tmp_path / "data", env)
        with ExitStack() as ending:
            ending.callback(daemon.show)
            ending.callback(daemon.sweep)
            daemon.launch()
            ending.callback(daemon.stop)
            daemon.wait_for_log("ready: ")
            assert response_at(path).startswith(b"HTTP/1.1 200")
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log(r"has ended[\s\S]*has ended")
            assert path.stat().st_mode & 0o777 == 0o660
            for number in (1, 2):
                with only_child(daemon, number):
                    assert response_at(path).startswith(b"HTTP/1.1 200")
        assert daemon.ended_in_order
        assert not path.exists()

    def test_children_serve_tls(self, index: FakeIndex, tmp_path: Path) -> None:
        """Children serve TLS with the certificate that the endpoint names. After a reload they use a new one."""
        Certificate.make("first.example").write(tmp_path)
        endpoint = f"ssl:0:privateKey={tmp_path}/key.pem:certKey={tmp_path}/cert.pem:interface=127.0.0.1"
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_LISTEN": endpoint}
        with Daemon(
            "mypypi-server", tmp_path / "data", env, ready=re.compile(r"https://127\.0\.0\.1:(\d+)/")
        ) as daemon:
            for number in (1, 2):
                with only_child(daemon, number):
                    assert certificate_of(daemon.port) == "first.example"
            with idle_tls(daemon.port) as idle:
                Certificate.make("second.example").write(tmp_path)
                os.kill(daemon.pid, signal.SIGHUP)
                daemon.wait_for_log(r"has ended[\s\S]*has ended")  # an idle client does not delay it
                assert idle.fileno() >= 0
            assert certificate_of(daemon.port) == "second.example"
        assert daemon.ended_in_order


def response_at(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        return client.recv(4096)


@contextmanager
def idle_tls(port: int) -> Iterator[ssl.SSLSocket]:
    """A client that has its response and keeps the connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 20) as plain, context.wrap_socket(plain) as client:
        client.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        yield client


def certificate_of(port: int) -> str:
    """Return the name in the certificate of the server on this port, which answers a request with it."""
    with idle_tls(port):
        return name_at(port)


class TestLogs:
    """The log of the supervisor and its children."""

    def test_lines_on_standard_output_have_the_childs_number(self, daemon_factory: DaemonFactory) -> None:
        """A child writes its own lines, with its number. The supervisor's lines have no number."""
        daemon = start(daemon_factory)
        for number in (1, 2):
            with only_child(daemon, number):
                assert fetch(daemon, f"{ALIVE}?{number}").status == 200
            daemon.wait_for_log(rf"\n2\S+ \[{number} info\] 127\.0\.0\.1 200 .* GET /-/health/live ")
        assert re.search(r"\n2\S+ \[info\] ready: ", daemon.log)

    @pytest.mark.parametrize("in_file", [False, True])
    def test_lines_in_json_have_the_childs_number(self, in_file: bool, index: FakeIndex, tmp_path: Path) -> None:  # noqa: FBT001
        """A line in JSON has the child's number and all fields of a request. The child or the supervisor writes it."""
        path = tmp_path / "mypypi.log"
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_LOG_FORMAT": "json"}
        options = ["--logfile", str(path)] if in_file else []
        daemon = Daemon("mypypi-server", tmp_path / "data", env, options=options)

        def log() -> str:
            return path.read_text() if in_file and path.exists() else daemon.log

        with ExitStack() as ending:
            ending.callback(daemon.sweep)
            daemon.launch()
            ending.callback(daemon.stop)
            text = eventually(log, ready)
            port = int(re.findall(r"listens at http://127\.0\.0\.1:(\d+)/", text)[0])
            assert get(f"http://127.0.0.1:{port}{ALIVE}").status == 200
            text = eventually(log, lambda text: ALIVE in text)
        (line,) = [json.loads(line) for line in text.splitlines() if ALIVE in line]
        assert line["process"] in ("1", "2")
        assert (line["logger"], line["path"], line["status"]) == ("mypypi.requests", ALIVE, 200)
        assert re.match(r"127\.0\.0\.1 200 .* GET /-/health/live ", line["message"])

    def test_the_supervisor_writes_the_log_file(self, index: FakeIndex, tmp_path: Path) -> None:
        """The supervisor writes its children's lines to the log file, with their number."""
        path = tmp_path / "mypypi.log"
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url}
        daemon = Daemon("mypypi-server", tmp_path / "data", env, options=["--logfile", str(path)])
        with ExitStack() as ending:
            ending.callback(daemon.sweep)
            daemon.launch()
            ending.callback(daemon.stop)
            log = eventually(lambda: path.read_text() if path.exists() else "", ready)
            port = int(re.findall(r"listens at http://127\.0\.0\.1:(\d+)/", log)[0])
            assert get(f"http://127.0.0.1:{port}{ALIVE}").status == 200
            eventually(path.read_text, re.compile(r"\[[12] info\] 127\.0\.0\.1 200 .* GET /-/health/live ").search)
        assert "health/live" not in daemon.log

    def test_a_daemon_in_the_background_has_children_as_well(self, index: FakeIndex, tmp_path: Path) -> None:
        """A daemon in the background starts children, although its working directory has changed."""
        (tmp_path / "away").mkdir()
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_DATA_DIRECTORY": "data"}
        daemon = Daemon("mypypi-server", tmp_path / "data", env)
        log, pid = tmp_path / "log", tmp_path / "pid"
        command = [sys.executable, "-c", _TWISTD, f"--logfile={log}", f"--pidfile={pid}", "--rundir=away"]
        subprocess.run([*command, "mypypi-server"], cwd=tmp_path, env=daemon._env, check=True, timeout=60)
        parent = psutil.Process(int(pid.read_text()))
        try:
            text = eventually(log.read_text, ready)
            port = int(re.findall(r"listens at http://127\.0\.0\.1:(\d+)/", text)[0])
            assert get(f"http://127.0.0.1:{port}{ALIVE}").status == 200
            family = [parent, *parent.children()]
            assert len(family) == 3
            assert {child.environ()["MYPYPI_DATA_DIRECTORY"] for child in family[1:]} == {str(tmp_path / "data")}
        finally:
            parent.terminate()
        assert psutil.wait_procs(family, 20)[1] == []
        assert not pid.exists()


def ready(log: str) -> bool:
    return "ready: " in log
