"""Tests of the daemons as an operator sees them: start, messages and end."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from twisted.internet.address import IPv4Address, IPv6Address

from mypypi import __version__
from mypypi.daemon import all_tap
from mypypi.daemon.announcement import ServerReady
from mypypi.daemon.redis_program import NoRedisServer, find_server
from mypypi.settings.loading import load_settings
from mypypi.settings.reference import variables
from tests.conftest import DaemonFactory
from tests.rig.certificates import Certificate
from tests.rig.daemon import Daemon
from tests.rig.faults import Stall
from tests.rig.http import SlowReader, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.support.redis_server import redis_binary

DAEMONS = ["mypypi", "mypypi-server", "mypypi-worker"]
SERVERS = ["mypypi", "mypypi-server"]
ALL_WELL = {"status": "ok", "checks": dict.fromkeys(("redis", "storage", "upstream", "queue", "process"), "ok")}


@pytest.fixture
def used_port() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for a socket. That of a test's own may be too long."""
    with tempfile.TemporaryDirectory(prefix="mypypi-") as directory:
        yield Path(directory)


def run(daemon: Daemon) -> int:
    """Run a daemon to its end, and return its exit code. Processes that it leaves behind are ended."""
    with ExitStack() as ending:
        ending.callback(daemon.sweep)
        daemon.launch()
        ending.callback(daemon.stop)
        return daemon.wait_ended()


def errors_of(daemon: Daemon) -> list[str]:
    """Return the daemon's error messages, without time and logger."""
    return re.findall(r"\[(?:\S+ )?(?:error|critical)(?: \S+)?\] (.*)", daemon.log)


class TestCommandLine:
    """The options and the settings."""

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_help_is_short_and_points_to_the_settings(self, plugin: str, tmp_path: Path) -> None:
        """``twistd <daemon> --help`` fits on a screen and names ``--settings``."""
        daemon = Daemon(plugin, tmp_path / "data", arguments=["--help"])
        assert run(daemon) == 0
        assert len(daemon.log.splitlines()) < 24
        assert "--settings" in daemon.log

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_settings_are_described_on_request(self, plugin: str, tmp_path: Path) -> None:
        """``twistd <daemon> --settings`` describes every setting, and succeeds."""
        daemon = Daemon(plugin, tmp_path / "data", arguments=["--settings"])
        assert run(daemon) == 0
        described = re.findall(r"^[A-Z_0-9]+$", daemon.log, re.MULTILINE)
        assert described == [variable.name for variable in variables()]

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_wrong_settings_are_reported_all_at_once(self, plugin: str, tmp_path: Path) -> None:
        """A daemon does not start with wrong settings. It names each of them, and shows no secret."""
        wrong = {
            "MYPYPI_CACHE_TIME": "soon",
            "MYPYPI_UPSTREAM_PASWORD": "hush",
            "MYPYPI_REDIS_URL": "http://user:hush@redis.example",
            "WORKERS": "0",
        }
        daemon = Daemon(plugin, tmp_path / "data", wrong)
        assert run(daemon) == 1
        problems = daemon.log.partition("the settings in the environment can't be used:")[2]
        assert {line.split()[0] for line in problems.strip().splitlines()} == set(wrong)
        assert "hush" not in daemon.log
        assert daemon.complaints == []
        assert daemon.log.startswith(f"twistd {plugin}: the settings in the environment can't be used:\n")
        assert len(daemon.log.splitlines()) == 1 + len(wrong)

    def test_listen_overrides_its_variable(self, daemon_factory: DaemonFactory) -> None:
        """``--listen`` overrides MYPYPI_LISTEN."""
        elsewhere = {"MYPYPI_LISTEN": "unix:/no/such/directory/socket"}
        daemon = daemon_factory(env=elsewhere, arguments=["--listen", "tcp:0:interface=127.0.0.1"])
        assert get(f"{daemon.url}/-/health/live").status == 200

    @pytest.mark.parametrize("plugin", SERVERS)
    def test_a_malformed_listen_is_reported(self, plugin: str, tmp_path: Path) -> None:
        """A malformed ``--listen`` is reported as a problem of MYPYPI_LISTEN."""
        daemon = Daemon(plugin, tmp_path / "data", arguments=["--listen", "everywhere"])
        assert run(daemon) == 1
        assert "MYPYPI_LISTEN holds 'everywhere'; expected" in daemon.log
        assert "Usage:" not in daemon.log

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_an_excluded_log_format_is_reported_in_one_line(self, plugin: str, tmp_path: Path) -> None:
        """A log format that an option of twistd excludes is reported in one line, without the help."""
        daemon = Daemon(plugin, tmp_path / "data", {"MYPYPI_LOG_FORMAT": "json"}, options=["--syslog"])
        assert run(daemon) == 1
        (line,) = daemon.log.splitlines()
        assert line.startswith(f"twistd {plugin}: ")
        assert "MYPYPI_LOG_FORMAT" in line

    def test_a_missing_redis_server_is_reported_without_the_help(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a Redis in the settings and on the machine, the daemon ends with the reason alone."""
        monkeypatch.setattr(all_tap, "find_server", lambda: None)
        monkeypatch.setattr(os, "environ", {"MYPYPI_REDIS_URL": ""})
        with pytest.raises(SystemExit) as caught:
            all_tap.Options().parseOptions([])
        assert caught.value.code == f"mypypi: {NoRedisServer()}"

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_a_wrong_option_shows_the_options(self, plugin: str, tmp_path: Path) -> None:
        """An unknown option on the command line is answered with the help, as by every program of twistd."""
        daemon = Daemon(plugin, tmp_path / "data", arguments=["--no-such-option"])
        assert run(daemon) == 1
        assert "Usage:" in daemon.log
        assert "option --no-such-option not recognized" in daemon.log


class FakePort:
    """A listening port that has the number 1."""

    def __init__(self, host: str) -> None:
        self._host = host

    def getHost(self) -> IPv4Address | IPv6Address:
        return IPv6Address("TCP", self._host, 1) if ":" in self._host else IPv4Address("TCP", self._host, 1)


class TestStart:
    """The start of a daemon, and the reasons for which it fails."""

    def test_ready_line_has_a_command_to_copy(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """The ready line has address, upstream, data directory, Redis, and a command to copy."""
        daemon = daemon_factory()
        (announcement,) = re.findall(r"\[info\] ready: ((?:.*\n)(?:\t.*\n)+)", daemon.log)
        first, *rows = announcement.splitlines()
        assert first == f"MyPyPi {__version__} listens at {daemon.url}/"
        assert [row.split(maxsplit=1) for row in rows] == [
            ["serves", f"{index.url} (pypi)"],
            ["data", str(daemon.data)],
            ["Redis", f"a private one, in {daemon.data}/redis, answers"],
            ["try", f"pip install --index-url {daemon.url}/simple/ flask"],
        ]

    def test_little_else_is_logged(self, daemon_factory: DaemonFactory) -> None:
        """A daemon logs little else. The output of Redis and Twisted is not for the operator."""
        daemon = daemon_factory()
        daemon.stop()
        starts = re.findall(r"^\S+ \[.*?\] (\S+ ?\S*)", daemon.log, re.MULTILINE)
        assert starts == [f"starting {find_server()}", "ready: MyPyPi", "received SIGTERM,", "Server Shut"]

    def test_debug_shows_everything(self, daemon_factory: DaemonFactory) -> None:
        """MYPYPI_LOG_LEVEL=debug shows the output of Redis and Twisted."""
        daemon = daemon_factory(env={"MYPYPI_LOG_LEVEL": "debug"})
        daemon.stop()
        assert re.search(r"\[debug mypypi\.\S+\] .*eady to accept connections", daemon.log)
        assert re.search(r"\[debug twisted\.\S+\] reactor class", daemon.log)

    @pytest.mark.parametrize("plugin", SERVERS)
    def test_a_port_in_use_is_reported_in_one_line(self, plugin: str, used_port: int, tmp_path: Path) -> None:
        """
        A port in use is reported in one line.

        The daemon ends in order: no traceback, exit code 1, and no Redis left behind.
        """
        listen = f"tcp:{used_port}:interface=127.0.0.1"
        daemon = Daemon(plugin, tmp_path / "data", {"MYPYPI_LISTEN": listen})
        assert run(daemon) == 1
        (line,) = errors_of(daemon)
        assert line.startswith(f"can't listen at {listen}: ")
        assert "already in use" in line
        assert daemon.complaints == []

    @pytest.mark.parametrize(
        ("listen", "reason"),
        [
            ("unix:/no/such/directory/socket", "No such file or directory"),
            ("ssl:0:privateKey=/no/such/key.pem", "No such file or directory"),
        ],
    )
    def test_an_endpoint_that_can_not_listen_is_reported(self, listen: str, reason: str, tmp_path: Path) -> None:
        """Every kind of endpoint that can't listen is reported in one line."""
        daemon = Daemon("mypypi-server", tmp_path / "data", {"MYPYPI_LISTEN": listen})
        assert run(daemon) == 1
        (line,) = errors_of(daemon)
        assert line.startswith(f"can't listen at {listen}: ")
        assert reason in line

    @pytest.mark.parametrize(
        ("plugin", "env", "in_the_way"),
        [
            ("mypypi", {}, "data"),
            ("mypypi-server", {}, "data"),
            ("mypypi-server", {"WORKERS": "2"}, "data"),
            ("mypypi-server", {"MYPYPI_FILE_STORAGE_DIRECTORY": "elsewhere"}, "data/elsewhere"),
            ("mypypi-worker", {}, "data"),
            ("mypypi-worker", {"MYPYPI_FILE_STORAGE_DRIVER": "s3", "MYPYPI_S3_BUCKET": "wheels"}, "data/waiting"),
        ],
    )
    def test_a_directory_that_is_none_is_reported_in_one_line(
        self, plugin: str, env: dict[str, str], in_the_way: str, tmp_path: Path
    ) -> None:
        """A file in place of a directory is reported with path, reason and setting, and the exit code is 1."""
        path = tmp_path / in_the_way
        path.parent.mkdir(exist_ok=True)
        path.write_text("in the way")
        daemon = Daemon(plugin, tmp_path / "data", env)
        assert run(daemon) == 1
        (line,) = errors_of(daemon)
        assert line.startswith(f"the directory {path} can't be written by user ")
        assert re.search(
            ": Not a directory; let this user write there, or set MYPYPI_(DATA|FILE_STORAGE)_DIRECTORY", line
        )
        assert daemon.complaints == []

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_a_directory_that_can_not_be_written_is_reported_in_one_line(self, plugin: str, tmp_path: Path) -> None:
        """A data directory of another user is reported with the name of the daemon's own, in one line."""
        data = tmp_path / "data"
        data.mkdir(mode=0o500)
        options = ["--uid", "nobody"] if os.geteuid() == 0 else []
        daemon = Daemon(plugin, data, options=options)
        assert run(daemon) == 1
        (line,) = errors_of(daemon)
        name = "nobody" if options else pwd.getpwuid(os.geteuid()).pw_name
        assert line.startswith(
            f"the directory {data} can't be written by user {name}: Permission denied; let this user"
        )
        assert daemon.complaints == []

    def test_a_server_on_a_unix_socket_says_what_works(self, short_path: Path, tmp_path: Path) -> None:
        """The message of a server on a unix socket has a command that works, and says that clients need a proxy."""
        path = short_path / "server.sock"
        env = {"MYPYPI_LISTEN": f"unix:{path}", "MYPYPI_UPSTREAM_URL": "http://127.0.0.1:1"}
        daemon = Daemon("mypypi", tmp_path / "data", env)
        with ExitStack() as ending:
            daemon.launch()
            ending.callback(daemon.sweep)
            ending.callback(daemon.stop)
            first, *_, last = daemon.wait_for_log(r"ready: .*(\n\t.*){4}").group().splitlines()
            assert first.endswith(f" listens at unix:{path}, for a proxy in front of it, which package clients need")
            command = last.removeprefix("\t  try ").strip()
            assert command == f"curl --unix-socket {path} http://localhost/-/health/ready"
            if shutil.which("curl") is not None:
                answer = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=20, check=True)
                assert json.loads(answer.stdout)["checks"]["redis"] == "ok"

    @pytest.mark.parametrize(
        ("listen", "settings", "address", "example"),
        [
            ("ssl:0:{files}:interface=127.0.0.1", {}, "https://127.0.0.1:1/", "https://here.example:1/simple/ flask"),
            ("tls:{directory}:port=0", {}, "https://127.0.0.1:1/", "https://here.example:1/simple/ flask"),
            (
                "haproxy:tcp:0:interface=127.0.0.1",
                {},
                ", for a proxy in front",
                "--haproxy-protocol http://127.0.0.1:1/-/",
            ),
            (
                "haproxy:tcp:0",
                {"MYPYPI_PUBLIC_URL": "https://a.example/x"},
                ", for a proxy",
                "https://a.example/x/simple/",
            ),
            ("tcp6:0:interface=\\:\\:1", {}, "http://[::1]:1/", "--index-url http://[::1]:1/simple/ flask"),
        ],
    )
    def test_the_message_fits_the_endpoint(
        self, listen: str, settings: dict[str, str], address: str, example: str, tmp_path: Path
    ) -> None:
        """The command to copy has a host that the certificate names, and is of a client that can connect."""
        files = Certificate.make("here.example").write(tmp_path)
        loaded = load_settings(settings | {"MYPYPI_LISTEN": listen.format(files=files, directory=tmp_path)})
        port = FakePort("::1" if listen.startswith("tcp6") else "127.0.0.1")
        ready = ServerReady.of(loaded, port, "answers")  # type: ignore[arg-type]
        assert address in ready.address
        assert example in ready.example

    def test_a_second_daemon_on_the_same_data_is_refused(self, daemon_factory: DaemonFactory) -> None:
        """A second daemon on the same data ends, and the first goes on. Both would write to the same files."""
        first = daemon_factory()
        second = Daemon("mypypi", first.data)
        assert run(second) == 1
        assert errors_of(second) == [f"another mypypi is using this data directory: {first.data}"]
        assert get(f"{first.url}/-/health/ready").json() == ALL_WELL

    def test_the_server_starts_without_redis(
        self, index: FakeIndex, short_path: Path, daemon_factory: DaemonFactory
    ) -> None:
        """A server whose Redis is down serves all the same. It says so, and uses Redis as soon as it is up."""
        index.add(make_wheel("thing"))
        daemon = daemon_factory("mypypi-server", env={"MYPYPI_REDIS_URL": f"unix://{short_path}/redis.sock"})
        daemon.wait_for_log(r"ready: ")
        assert "is not there yet" in daemon.log
        assert get(f"{daemon.url}/simple/thing/").status == 200
        assert "degraded" in get(f"{daemon.url}/-/health/ready").text
        command = [redis_binary(), "--port", "0", "--unixsocket", "redis.sock", "--save", ""]
        with subprocess.Popen(command, cwd=short_path, stdout=subprocess.DEVNULL) as redis:
            try:
                daemon.wait_for_log(r"Redis at \S+ is back")
                assert get(f"{daemon.url}/-/health/ready").json() == ALL_WELL
            finally:
                redis.terminate()

    def test_the_worker_sweeps_abandoned_drafts(self, daemon_factory: DaemonFactory, tmp_path: Path) -> None:
        """``twistd mypypi-worker`` removes the draft of a process that was killed."""
        draft = tmp_path / "data" / "drafts" / "abandoned.draft"
        draft.parent.mkdir(parents=True)
        draft.write_bytes(b"half a file")
        os.utime(draft, (0, 0))
        worker = Daemon("mypypi-worker", tmp_path / "data")
        with ExitStack() as ending:
            worker.launch()
            ending.callback(worker.sweep)
            ending.callback(worker.stop)
            worker.wait_for_log("swept 1 drafts")
            worker.wait_for_log("ready: ")
        assert not draft.exists()
        assert worker.ended_in_order


class TestEnd:
    """The end of a daemon."""

    def test_a_stop_leaves_no_child_behind(self, daemon_factory: DaemonFactory) -> None:
        """The embedded Redis ends with its daemon. It has saved its data and removed its socket."""
        daemon = daemon_factory()
        daemon.stop()
        assert daemon.ended_in_order
        assert daemon.leftovers() == []
        assert not (daemon.data / "redis" / "redis.sock").exists()

    def test_a_stop_while_a_transfer_runs_ends_in_order(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """A stop does not wait for a stalled upstream. The client sees that its transfer broke."""
        wheel = make_wheel("thing", padding=300_000)
        index.add(wheel)
        stall = index.fault(index.path_of(wheel.filename), Stall(after=200_000))
        daemon = daemon_factory()
        with SlowReader(f"{daemon.url}/file/{index.url_of(wheel.filename).replace('://', '/')}") as client:
            assert client.status == 200
            received = client.read(50_000)
            stall.wait_served()
            daemon.stop()
            assert not client.rest().complete
        assert received == wheel.content[:50_000]
        assert daemon.ended_in_order
        assert daemon.leftovers() == []
        assert daemon.complaints == []

    def test_a_fetch_that_a_stop_interrupted_is_resumed(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """
        The next run resumes a fetch that a stop interrupted.

        It requests the rest from upstream, and checks the whole file. Clients see no partial file.
        """
        wheel = make_wheel("thing", padding=300_000)
        index.add(wheel)
        stall = index.fault(index.path_of(wheel.filename), Stall(after=200_000), times=1)
        path = f"/file/{index.url_of(wheel.filename).replace('://', '/')}"
        daemon = daemon_factory()
        with SlowReader(daemon.url + path):
            stall.wait_served()
            daemon.stop()
        index.mend()
        again = daemon_factory()
        answer = get(again.url + path)
        assert (answer.status, answer.body) == (200, wheel.content)
        first, second = index.seen(index.path_of(wheel.filename))
        assert first.headers["Range"] is None
        assert second.headers["Range"] is not None
        eventually(lambda: list((again.data / "drafts").iterdir()), lambda left: left == [])

    def test_a_stop_while_redis_is_starting_ends_in_order(self, tmp_path: Path) -> None:
        """A stop before the daemon is ready ends it, and leaves nothing behind."""
        daemon = Daemon("mypypi", tmp_path / "data")
        with ExitStack() as ending:
            daemon.launch()
            ending.callback(daemon.sweep)
            ending.callback(daemon.kill)
            daemon.wait_for_log("starting .*server")
            daemon.stop()
        assert daemon.ended_in_order
        assert daemon.leftovers() == []
        assert daemon.complaints == []
