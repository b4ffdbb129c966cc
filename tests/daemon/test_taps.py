"""The daemons as whoever runs them sees them: how they start, what they say when they can't, and how they end."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mypypi import __version__
from mypypi.daemon.redis_server import find_server
from mypypi.settings.reference import variables
from tests.conftest import DaemonFactory
from tests.rig.daemon import Daemon
from tests.rig.faults import Stall
from tests.rig.http import SlowReader, eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.support.redis_server import redis_binary

DAEMONS = ["mypypi", "mypypi-server", "mypypi-worker"]
SERVERS = ["mypypi", "mypypi-server"]
ALL_WELL = {"status": "ok", "checks": {"redis": "ok", "storage": "ok", "upstream": "ok", "queue": "ok"}}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory in which a socket's path is not too long, as it may be in a test's own."""
    with tempfile.TemporaryDirectory(prefix="mypypi-") as directory:
        yield Path(directory)


def run(daemon: Daemon) -> int:
    """Let it run to its end, and return its exit code; whatever it started is gone."""
    with ExitStack() as ending:
        ending.callback(daemon.sweep)
        daemon.launch()
        ending.callback(daemon.stop)
        return daemon.wait_ended()


def said(daemon: Daemon) -> list[str]:
    """What it said at the level of errors, without the time and the place."""
    return re.findall(r"\[(?:\S+ )?(?:error|critical)(?: \S+)?\] (.*)", daemon.log)


class TestCommandLine:
    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_help_is_short_and_points_to_the_settings(self, plugin: str, tmp_path: Path) -> None:
        """``twistd <daemon> --help`` fits on a screen."""
        daemon = Daemon(plugin, tmp_path / "data", arguments=["--help"])
        assert run(daemon) == 0
        assert len(daemon.log.splitlines()) < 24
        assert "--settings" in daemon.log

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_settings_are_described_on_request(self, plugin: str, tmp_path: Path) -> None:
        """``twistd <daemon> --settings`` tells all there is to set, and ends well."""
        daemon = Daemon(plugin, tmp_path / "data", arguments=["--settings"])
        assert run(daemon) == 0
        described = re.findall(r"^[A-Z_0-9]+$", daemon.log, re.MULTILINE)
        assert described == [variable.name for variable in variables()]

    @pytest.mark.parametrize("plugin", DAEMONS)
    def test_wrong_settings_are_told_all_at_once(self, plugin: str, tmp_path: Path) -> None:
        """A daemon does not start with settings that it can't use: it names each, and shows no secret."""
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

    def test_listen_wins_over_its_variable(self, daemon_factory: DaemonFactory) -> None:
        """``--listen`` says where to listen, whatever MYPYPI_LISTEN says."""
        elsewhere = {"MYPYPI_LISTEN": "unix:/no/such/directory/socket"}
        daemon = daemon_factory(env=elsewhere, arguments=["--listen", "tcp:0:interface=127.0.0.1"])
        assert get(f"{daemon.url}/-/health/live").status == 200

    @pytest.mark.parametrize("plugin", SERVERS)
    def test_a_malformed_listen_is_told(self, plugin: str, tmp_path: Path) -> None:
        """What ``--listen`` can't mean is a problem with the setting that it stands for."""
        daemon = Daemon(plugin, tmp_path / "data", arguments=["--listen", "everywhere"])
        assert run(daemon) == 1
        assert "MYPYPI_LISTEN holds 'everywhere'; expected" in daemon.log


class TestStart:
    def test_it_says_what_to_copy(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """Where it listens, what it serves, where data lies, which Redis it has, and a command that uses it."""
        daemon = daemon_factory()
        (said,) = re.findall(r"\[info\] ready: ((?:.*\n)(?:\t.*\n)+)", daemon.log)
        first, *rows = said.splitlines()
        assert first == f"MyPyPi {__version__} listens at {daemon.url}/"
        assert [row.split(maxsplit=1) for row in rows] == [
            ["serves", f"{index.url} (pypi)"],
            ["data", str(daemon.data)],
            ["Redis", f"a private one, in {daemon.data}/redis"],
            ["try", f"pip install --index-url {daemon.url}/simple/ flask"],
        ]

    def test_it_says_little_else(self, daemon_factory: DaemonFactory) -> None:
        """What Redis and Twisted say of themselves is not for the person who starts the daemon."""
        daemon = daemon_factory()
        daemon.stop()
        starts = re.findall(r"^\S+ \[.*?\] (\S+ ?\S*)", daemon.log, re.MULTILINE)
        assert starts == [f"starting {find_server()}", "ready: MyPyPi", "Received SIGTERM,", "Server Shut"]

    def test_debug_shows_everything(self, daemon_factory: DaemonFactory) -> None:
        """With MYPYPI_LOG_LEVEL=debug."""
        daemon = daemon_factory(env={"MYPYPI_LOG_LEVEL": "debug"})
        daemon.stop()
        assert re.search(r"\[debug mypypi\.\S+\] .*eady to accept connections", daemon.log)
        assert re.search(r"\[debug twisted\.\S+\] reactor class", daemon.log)

    @pytest.mark.parametrize("plugin", SERVERS)
    def test_a_taken_port_is_told_in_one_line(self, plugin: str, taken: int, tmp_path: Path) -> None:
        """It ends, in vain but in order: no traceback, a non-zero exit code, and no Redis left behind."""
        listen = f"tcp:{taken}:interface=127.0.0.1"
        daemon = Daemon(plugin, tmp_path / "data", {"MYPYPI_LISTEN": listen})
        assert run(daemon) == 1
        (line,) = said(daemon)
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
    def test_wherever_it_can_not_listen_it_says_so(self, listen: str, reason: str, tmp_path: Path) -> None:
        """Each kind of endpoint fails in its own way, and all are told in one line."""
        daemon = Daemon("mypypi-server", tmp_path / "data", {"MYPYPI_LISTEN": listen})
        assert run(daemon) == 1
        (line,) = said(daemon)
        assert line.startswith(f"can't listen at {listen}: ")
        assert reason in line

    def test_an_unusable_data_directory_is_told_in_one_line(self, tmp_path: Path) -> None:
        """A regular file in its place: one line with the path and the reason, and a non-zero exit code."""
        data = tmp_path / "data"
        data.write_text("in the way")
        daemon = Daemon("mypypi", data)
        assert run(daemon) == 1
        (line,) = said(daemon)
        assert line.startswith(f"Redis can't be started in {data}/redis: ")
        assert "Not a directory" in line
        assert daemon.complaints == []

    def test_a_second_daemon_on_the_same_data_says_so(self, daemon_factory: DaemonFactory) -> None:
        """Two would write to the same files: the second ends, and the first goes on."""
        first = daemon_factory()
        second = Daemon("mypypi", first.data)
        assert run(second) == 1
        assert said(second) == [f"another mypypi is using this data directory: {first.data}"]
        assert get(f"{first.url}/-/health/ready").json() == ALL_WELL

    def test_the_server_starts_without_redis(
        self, index: FakeIndex, short_path: Path, daemon_factory: DaemonFactory
    ) -> None:
        """Where Redis is not there yet it serves all the same, says so, and uses Redis as soon as it comes."""
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

    def test_the_worker_sweeps_what_nobody_fills(self, daemon_factory: DaemonFactory, tmp_path: Path) -> None:
        """``twistd mypypi-worker`` runs by itself; a draft of a process that was killed is gone."""
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
    def test_a_stop_leaves_no_child_behind(self, daemon_factory: DaemonFactory) -> None:
        """Its Redis ends with it, having written out what it holds, and takes its socket along."""
        daemon = daemon_factory()
        daemon.stop()
        assert daemon.ended_in_order
        assert daemon.leftovers() == []
        assert not (daemon.data / "redis" / "redis.sock").exists()

    def test_a_stop_while_a_transfer_runs_ends_in_order(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """It does not wait for an upstream that says nothing; the client sees that its transfer broke."""
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

    def test_what_a_stop_interrupted_is_gone_on_with(self, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """Nothing half-done is in sight of clients: the next run asks upstream for the rest, and checks all of it."""
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
        """Asked to end before it is ready, it does, and leaves nothing behind."""
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
