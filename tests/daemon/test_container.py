"""What the image runs: the right daemon, and a health check that tells the truth about each of them."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from tempfile import TemporaryDirectory
from threading import Thread

import pytest

from mypypi.daemon import container
from mypypi.settings.loading import load_settings
from tests.conftest import DaemonFactory
from tests.redis.test_catalog import certificate_for
from tests.rig.daemon import ROOT
from tests.support.redis_server import free_port, redis_binary


def check_server(listen: str) -> None:
    container.check(load_settings({"MYPYPI_LISTEN": listen}))


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As the image runs it, in an environment with nothing else of ours."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MYPYPI_")}
    return subprocess.run(
        [sys.executable, "-m", "mypypi.daemon.container", *arguments],
        cwd=ROOT,
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class _Standin(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/-/health/live" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Unix(ThreadingMixIn, UnixStreamServer):
    pass


@contextmanager
def served(server: HTTPServer | UnixStreamServer) -> Iterator[None]:
    with server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def standin() -> Iterator[int]:
    """The port of something on 127.0.0.1 that is alive."""
    server = HTTPServer(("127.0.0.1", 0), _Standin)
    with served(server):
        yield server.server_port


@pytest.fixture
def redis_url() -> Iterator[Callable[[str], str]]:
    """The URL of a Redis with the password "secret", for a given password."""
    with TemporaryDirectory(prefix="redis-") as directory:
        options = ("--port", "0", "--unixsocket", "redis.sock", "--save", "", "--requirepass", "secret")
        process = subprocess.Popen([redis_binary(), *options], cwd=directory, stdout=subprocess.PIPE, text=True)
        with process:
            assert process.stdout is not None
            try:
                assert any("ready to accept connections" in line.lower() for line in process.stdout)
                yield lambda password: f"unix://:{password}@{directory}/redis.sock"
            finally:
                process.terminate()


@pytest.mark.parametrize("mode", ["server", "worker"])
def test_the_mode_chooses_the_daemon(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process becomes twistd, the one of its own environment, without a pid file: its directory is read-only."""
    became: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append((path, arguments)))
    container.run(load_settings({"MYPYPI_MODE": mode}))
    twistd = Path(sys.executable).with_name("twistd")
    assert became == [(twistd, [str(twistd), "--nodaemon", "--pidfile=", f"mypypi-{mode}"])]


def test_a_server_that_runs_is_well_and_one_that_ended_is_not(daemon_factory: DaemonFactory) -> None:
    """Whether or not it has a Redis: it serves all the same, and restarting it would bring none."""
    daemon = daemon_factory("mypypi-server", env={"MYPYPI_REDIS_URL": "unix:///nowhere/redis.sock"})
    listen = f"tcp:{daemon.port}:interface=127.0.0.1"
    assert command("check", MYPYPI_LISTEN=listen).returncode == 0
    daemon.stop()
    ended = command("check", MYPYPI_LISTEN=listen)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "refused" in ended.stderr


@pytest.mark.parametrize("listen", ["tcp:{}", "tcp:port={}", "tcp:{}:interface=127.0.0.1", "tcp:{}:interface=0.0.0.0"])
def test_the_check_asks_where_the_server_listens(listen: str, standin: int) -> None:
    """In each way in which that can be said."""
    check_server(listen.format(standin))


@pytest.mark.parametrize("listen", ["unix:{}", "unix:address={}:mode=660"])
def test_the_check_asks_at_a_unix_socket(listen: str) -> None:
    """And says so where nobody listens there any more."""
    with TemporaryDirectory() as directory:
        place = str(Path(directory) / "a:b.sock")
        escaped = listen.format(place.replace(":", r"\:"))
        with served(_Unix(place, _Standin)):
            check_server(escaped)
        with pytest.raises(ConnectionRefusedError):
            check_server(escaped)


def test_the_check_asks_over_tls(tmp_path: Path) -> None:
    """Whoever the certificate is for: it is for the name that clients use."""
    pem = certificate_for("192.0.2.1", tmp_path / "server.pem")
    server = HTTPServer(("127.0.0.1", 0), _Standin)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with served(server):
        check_server(f"ssl:{server.server_port}:privateKey={pem}")


def test_the_check_asks_no_proxy(standin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for the way out, which many containers are given, has nothing to say about the server."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    check_server(f"tcp:{standin}")


def test_a_server_that_answers_with_an_error_is_not_well(standin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is not enough."""
    monkeypatch.setattr(_Standin, "status", 500)
    with pytest.raises(OSError, match="answered 500"):
        check_server(f"tcp:{standin}")


def test_an_endpoint_that_nobody_can_ask_at_is_told() -> None:
    """No guess is made where systemd's socket leads to."""
    with pytest.raises(OSError, match="systemd: can't be asked"):
        check_server("systemd:domain=INET6:name=http")


def test_a_worker_is_well_while_redis_answers(redis_url: Callable[[str], str]) -> None:
    """It connects as the worker does, with its password."""
    done = command("check", MYPYPI_MODE="worker", MYPYPI_REDIS_URL=redis_url("secret"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_whose_redis_refuses_it_is_not_well(redis_url: Callable[[str], str]) -> None:
    """The reason is one line, and holds no password."""
    done = command("check", MYPYPI_MODE="worker", MYPYPI_REDIS_URL=redis_url("wrong-one"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "wrong-one" not in done.stderr


def test_a_worker_without_redis_is_not_well() -> None:
    """There is nothing that it could do."""
    done = command("check", MYPYPI_MODE="worker", MYPYPI_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "Redis can't be reached" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("walk",), ("run", "check")])
def test_what_it_does_not_understand_it_says(arguments: tuple[str, ...]) -> None:
    """With a line of usage."""
    done = command(*arguments)
    assert (done.returncode, done.stderr) == (1, "usage: python -m mypypi.daemon.container run|check\n")


def test_settings_that_are_wrong_start_nothing() -> None:
    """Their problems are told as the daemons tell them."""
    done = command("run", MYPYPI_MODE="both")
    assert done.returncode == 1
    assert "MYPYPI_MODE holds 'both'; expected server or worker" in done.stderr
