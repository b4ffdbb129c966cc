"""Several server processes on one socket, as clients and whoever runs them see it: who serves, who is replaced, how all
of them end."""

from __future__ import annotations

import datetime as dt
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
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import DaemonFactory
from tests.rig.daemon import _TWISTD, Daemon
from tests.rig.faults import Gate
from tests.rig.http import Answer, SlowReader, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_wheel

TWO = {"WORKERS": "2", "MYPYPI_DRAIN_TIME": "30", "MYPYPI_REDIS_URL": "redis://127.0.0.1:1"}
ALIVE = "/-/health/live"
#: More than sockets take in for a client that does not read.
LARGE = 20_000_000

#: Starts what follows with a listening socket, as systemd would; its port comes first on standard output.
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
    """The process that serves under each number, by what the log says last."""
    return {int(number): int(pid) for number, pid in re.findall(r"child (\d+) serves, pid (\d+)", daemon.log)}


def children(daemon: Daemon) -> dict[int, psutil.Process]:
    """Those processes, which run."""
    return {number: psutil.Process(pid) for number, pid in pids(daemon).items()}


def served(daemon: Daemon, path: str = ALIVE) -> Answer:
    return get(daemon.url + path)


@contextmanager
def only(daemon: Daemon, number: int) -> Iterator[None]:
    """Nobody but this child takes connections meanwhile."""
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
    """So many clients ask again and again meanwhile; what they got, or what they met."""
    got: list[Any] = []
    over = Event()

    def run() -> None:
        while not over.is_set():
            got.append(outcome())

    def outcome() -> Any:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            return error

    threads = [Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        over.set()
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
    """The address of the file, which is here by now."""
    address = url_of(daemon, index, wheel)
    assert get(address).body == wheel.content
    return address


class TestServing:
    def test_each_child_serves_at_the_same_address(self, daemon_factory: DaemonFactory) -> None:
        """The one that is free takes the connection; the parent never does."""
        daemon = start(daemon_factory)
        assert children(daemon).keys() == {1, 2}
        for number in (1, 2):
            with only(daemon, number):
                assert served(daemon).status == 200

    def test_the_line_that_says_it_is_ready_is_said_once_all_are(
        self, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """In the words of a single server."""
        daemon = start(daemon_factory)
        (said,) = re.findall(r"\[info\] ready: ((?:.*\n)(?:\t.*\n)+)", daemon.log)
        words = [f"listens at {daemon.url}/\n", f" {index.url} (pypi)\n", f" {daemon.data}\n", "/simple/ flask\n"]
        assert [each for each in words if each not in said] == []
        assert "is not there yet" in said
        before = daemon.log.partition("ready: ")[0]
        assert len(re.findall(r"child \d serves", before)) == 2

    def test_one_that_is_killed_strands_its_own_connections_alone(
        self, index: FakeIndex, wheel: Artifact, daemon_factory: DaemonFactory
    ) -> None:
        """The others serve on, nobody is refused, and another one takes its place."""
        daemon = start(daemon_factory)
        address = stored(daemon, index, wheel)
        before = children(daemon)
        with ExitStack() as ending:
            with only(daemon, 1):
                stranded = ending.enter_context(SlowReader(address))
            with only(daemon, 2):
                other = ending.enter_context(SlowReader(address))
            before[1].kill()
            got = [served(daemon).status for _ in range(20)]
            daemon.wait_for_log(rf"child 1, pid {before[1].pid}, ended \(signal 9\); it is started again in 0.1 s")
            assert not stranded.rest().complete
            assert other.rest().body == wheel.content
        assert got == [200] * 20
        eventually(lambda: pids(daemon)[1], lambda pid: pid != before[1].pid)
        with only(daemon, 1):
            assert served(daemon).status == 200

    def test_twistd_mypypi_has_redis_and_worker_besides(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """Its server processes use the Redis that it started."""
        index.add(make_wheel("thing"))
        daemon = start(daemon_factory, "mypypi", MYPYPI_REDIS_URL="")
        with only(daemon, 1):
            assert served(daemon, "/simple/thing/").status == 200
        with only(daemon, 2):
            again = served(daemon, "/simple/thing/")
        assert "hit" in again.headers["Cache-Status"]
        assert served(daemon, "/-/health/ready").json() == {
            "status": "ok",
            "checks": {"redis": "ok", "storage": "ok", "upstream": "ok", "queue": "ok"},
        }
        daemon.stop()
        assert daemon.ended_in_order
        assert daemon.leftovers() == []

    def test_they_count_together(self, daemon_factory: DaemonFactory) -> None:
        """In one directory, made for them and gone with them; one that died counts with what it did, and no more."""
        daemon = start(daemon_factory)
        for number in (1, 2):
            with only(daemon, number):
                assert served(daemon).status == 200
        for number in (1, 2):
            with only(daemon, number):
                counted = served(daemon, "/-/metrics").text
            assert number_of(counted, 'mypypi_requests_total{cache="none",kind="other",status="200"}') >= 2
        (directory,) = {child.environ()["PROMETHEUS_MULTIPROC_DIR"] for child in children(daemon).values()}
        dead = children(daemon)[1]
        assert list(Path(directory).glob(f"gauge_live*_{dead.pid}.db"))
        dead.kill()
        eventually(lambda: list(Path(directory).glob(f"gauge_live*_{dead.pid}.db")), lambda found: found == [])
        assert list(Path(directory).glob(f"counter_{dead.pid}.db"))
        daemon.stop()
        assert not Path(directory).exists()


def number_of(counted: str, name: str) -> float:
    """What Prometheus is told of this."""
    return sum(float(line.rpartition(" ")[2]) for line in counted.splitlines() if line.startswith(f"{name} "))


class TestReplacing:
    def test_a_reload_under_load_loses_no_request(
        self, index: FakeIndex, wheel: Artifact, daemon_factory: DaemonFactory
    ) -> None:
        """New ones serve before the old ones end, and those end with what they are at."""
        daemon = start(daemon_factory)
        address = stored(daemon, index, wheel)
        before = children(daemon)
        with SlowReader(address) as client:
            with load(lambda: served(daemon).status, clients=2) as got:
                os.kill(daemon.pid, signal.SIGHUP)
                daemon.wait_for_log("the children are new")
            assert client.rest().body == wheel.content
        assert len(got) > 20
        assert set(got) == {200}
        assert {child.pid for child in children(daemon).values()}.isdisjoint(child.pid for child in before.values())
        for number, child in before.items():
            daemon.wait_for_log(rf"child {number}, pid {child.pid}, has ended")

    def test_a_client_that_keeps_its_connection_is_told_to_make_another(self, daemon_factory: DaemonFactory) -> None:
        """By the answer that is under way, or by a close between two: then it asks again, as clients do."""
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
                return 0  # before a byte of an answer
            return response.status

        with load(ask, clients=1) as got:
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("the children are new")
        for each in connections:  # none, where the last one was closed between two requests
            each.close()
        assert len(got) > 20
        assert set(got) <= {0, 200}
        assert got.count(0) <= 2

    def test_when_the_new_ones_can_not_start_the_old_ones_stay(self, index: FakeIndex, tmp_path: Path) -> None:
        """A broken update is told, and nobody is the worse for it."""
        with failing(index, tmp_path) as (daemon, broken):
            daemon.start()
            before = children(daemon)
            broken.touch()
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("child 1 was not replaced: the new one, pid .* ended before it was ready")
            assert children(daemon) == before
            assert [served(daemon).status for _ in range(5)] == [200] * 5


@contextmanager
def failing(index: FakeIndex, tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon whose children can't start while this file exists."""
    broken = tmp_path / "broken"
    place = tmp_path / "first"
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        f"import os\nif '_MYPYPI_PROCESS' in os.environ and os.path.exists({str(broken)!r}):\n    os._exit(3)\n"
    )
    env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url}
    root = Path(__file__).resolve().parents[2]
    daemon = Daemon("mypypi-server", tmp_path / "data", env, python_path=(place, root))
    with ExitStack() as ending:
        ending.callback(daemon.show)
        ending.callback(daemon.sweep)
        ending.callback(daemon.stop)
        yield daemon, broken


class TestEnding:
    def test_a_stop_lets_a_transfer_end(self, index: FakeIndex, wheel: Artifact, daemon_factory: DaemonFactory) -> None:
        """It takes no new connection meanwhile."""
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
    def test_a_transfer_that_takes_longer_is_visibly_broken(
        self, index: FakeIndex, wheel: Artifact, workers: str, daemon_factory: DaemonFactory
    ) -> None:
        """Of one process or several, after MYPYPI_DRAIN_TIME."""
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
        """A first fetch too, which goes on while upstream sends."""
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

    def test_children_end_with_a_parent_that_is_killed(self, daemon_factory: DaemonFactory) -> None:
        """By themselves, and in order; what they counted in is taken away."""
        daemon = start(daemon_factory)
        running = list(children(daemon).values())
        counts = Path(running[0].environ()["PROMETHEUS_MULTIPROC_DIR"])
        assert counts.is_dir()
        daemon.kill()
        assert psutil.wait_procs(running, 20)[1] == []
        assert not counts.exists()
        assert daemon.log.count("this server process ends: its supervisor is gone") == 2

    def test_children_end_also_where_their_log_goes_with_the_parent(self, index: FakeIndex, tmp_path: Path) -> None:
        """There is nobody left to tell, and they end all the same."""
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

    def test_children_that_can_not_start_end_the_parent(self, index: FakeIndex, tmp_path: Path) -> None:
        """With a line that says so, and an exit code that whoever started it understands."""
        with failing(index, tmp_path) as (daemon, broken):
            broken.touch()
            daemon.launch()
            assert daemon.wait_ended() == 1
            assert "no server process can start" in daemon.log
            assert "the last with exit code 3" in daemon.log
            assert daemon.complaints == []


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


class TestSockets:
    def test_systemd_hands_the_socket_over(self, index: FakeIndex, tmp_path: Path) -> None:
        """And keeps it: a client that comes while all are replaced, or gone, waits."""
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_LISTEN": "systemd:domain=INET:index=0"}
        daemon = Daemon("mypypi-server", tmp_path / "data", env)
        daemon._command = [sys.executable, "-c", ACTIVATE, *daemon._command]
        with daemon:
            port = int(daemon.wait_for_log(r"port (\d+)").group(1))
            assert daemon.port == port
            for number in (1, 2):
                with only(daemon, number):
                    assert served(daemon).status == 200
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("the children are new")
            assert served(daemon).status == 200
        assert daemon.ended_in_order

    def test_a_unix_socket_is_the_parents(self, index: FakeIndex, tmp_path: Path) -> None:
        """Children that come and go leave the file and its mode alone; it goes with the parent."""
        path = Path(f"/tmp/mypypi-{os.getpid()}.sock")  # noqa: S108 - a socket's path must be short
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_LISTEN": f"unix:{path}:mode=660"}
        daemon = Daemon("mypypi-server", tmp_path / "data", env)
        with ExitStack() as ending:
            ending.callback(daemon.show)
            ending.callback(daemon.sweep)
            daemon.launch()
            ending.callback(daemon.stop)
            daemon.wait_for_log("ready: ")
            assert asked_at(path).startswith(b"HTTP/1.1 200")
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log(r"has ended[\s\S]*has ended")
            assert path.stat().st_mode & 0o777 == 0o660
            for number in (1, 2):
                with only(daemon, number):
                    assert asked_at(path).startswith(b"HTTP/1.1 200")
        assert daemon.ended_in_order
        assert not path.exists()

    def test_tls_is_the_childrens(self, index: FakeIndex, tmp_path: Path) -> None:
        """With the certificate that the endpoint names, and a new one after a reload."""
        make_certificate(tmp_path, "first.example")
        endpoint = f"ssl:0:privateKey={tmp_path}/key.pem:certKey={tmp_path}/cert.pem:interface=127.0.0.1"
        env = {**TWO, "MYPYPI_UPSTREAM_URL": index.url, "MYPYPI_LISTEN": endpoint}
        with Daemon(
            "mypypi-server", tmp_path / "data", env, ready=re.compile(r"https://127\.0\.0\.1:(\d+)/")
        ) as daemon:
            for number in (1, 2):
                with only(daemon, number):
                    assert certificate_of(daemon.port) == "first.example"
            with idle_tls(daemon.port) as idle:
                make_certificate(tmp_path, "second.example")
                os.kill(daemon.pid, signal.SIGHUP)
                daemon.wait_for_log(r"has ended[\s\S]*has ended")  # and does not wait for a client that says nothing
                assert idle.fileno() >= 0
            assert certificate_of(daemon.port) == "second.example"
        assert daemon.ended_in_order


def asked_at(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        client.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        return client.recv(4096)


def make_certificate(place: Path, name: str) -> None:
    """A key and a certificate for it, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (place / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (place / "cert.pem").write_bytes(certificate.public_bytes(pem))


@contextmanager
def idle_tls(port: int) -> Iterator[ssl.SSLSocket]:
    """A client that has its answer and keeps the connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 20) as plain, context.wrap_socket(plain) as client:
        client.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        yield client


def certificate_of(port: int) -> str:
    """The name in the certificate that is shown there, over which a request was answered."""
    with idle_tls(port) as client:
        der = client.getpeercert(binary_form=True)
    assert der is not None
    (name,) = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(name.value)


class TestLogs:
    def test_lines_on_standard_output_name_the_child(self, daemon_factory: DaemonFactory) -> None:
        """Which writes them itself; those of the parent do not."""
        daemon = start(daemon_factory)
        for number in (1, 2):
            with only(daemon, number):
                assert served(daemon, f"{ALIVE}?{number}").status == 200
            daemon.wait_for_log(rf"\n2\S+ \[{number} info\] 127\.0\.0\.1 200 .* GET /-/health/live ")
        assert re.search(r"\n2\S+ \[info\] ready: ", daemon.log)

    @pytest.mark.parametrize("in_file", [False, True])
    def test_lines_in_json_have_the_child(self, in_file: bool, index: FakeIndex, tmp_path: Path) -> None:  # noqa: FBT001
        """Written by itself or by the parent, with all the fields of a request."""
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

    def test_a_log_file_is_the_parents(self, index: FakeIndex, tmp_path: Path) -> None:
        """What children say is written there by it, with their number."""
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
        """Whose working directory is another one than where it was started."""
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
