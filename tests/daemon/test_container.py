"""Tests of the image's commands: the right daemon, and a correct health check for each."""

from __future__ import annotations

import os
import signal
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
    """Run the image's command, without other settings of ours."""
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


class _FakeServer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/-/health/live" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _UnixServer(ThreadingMixIn, UnixStreamServer):
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
def fake_server() -> Iterator[int]:
    """The port of a healthy fake server on 127.0.0.1."""
    server = HTTPServer(("127.0.0.1", 0), _FakeServer)
    with served(server):
        yield server.server_port


@pytest.fixture
def redis_url() -> Iterator[Callable[[str], str]]:
    """A function from a password to a Redis URL. The Redis has the password "secret"."""
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
def test_the_mode_selects_the_daemon(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    MYPYPI_MODE selects the daemon that replaces the process. twistd is that of the same environment, and gets no pid
    file: the working directory is read-only. A SIGHUP does not end it before it handles signals.
    """
    became: list[tuple[Path, list[str]]] = []
    handled: list[tuple[int, object]] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: handled.append((number, handler)))
    monkeypatch.setattr(os, "execv", lambda path, arguments: became.append((path, arguments)))
    container.run(load_settings({"MYPYPI_MODE": mode}))
    twistd = Path(sys.executable).with_name("twistd")
    assert became == [(twistd, [str(twistd), "--nodaemon", "--pidfile=", f"mypypi-{mode}"])]
    assert handled == [(signal.SIGHUP, signal.SIG_IGN)]


def test_a_running_server_is_healthy_and_an_ended_one_is_not(daemon_factory: DaemonFactory) -> None:
    """
    A server is healthy while it runs, even without Redis.

    It serves without Redis, and a restart would not bring Redis back.
    """
    daemon = daemon_factory("mypypi-server", env={"MYPYPI_REDIS_URL": "unix:///nowhere/redis.sock"})
    listen = f"tcp:{daemon.port}:interface=127.0.0.1"
    assert command("check", MYPYPI_LISTEN=listen).returncode == 0
    daemon.stop()
    ended = command("check", MYPYPI_LISTEN=listen)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert "refused" in ended.stderr


@pytest.mark.parametrize("listen", ["tcp:{}", "tcp:port={}", "tcp:{}:interface=127.0.0.1", "tcp:{}:interface=0.0.0.0"])
def test_the_check_reaches_tcp_endpoints(listen: str, fake_server: int) -> None:
    """The check reaches a server at any form of TCP endpoint."""
    check_server(listen.format(fake_server))


@pytest.mark.parametrize("listen", ["unix:{}", "unix:address={}:mode=660"])
def test_the_check_reaches_a_unix_socket(listen: str) -> None:
    """The check reaches a server on a unix socket. It fails once no server listens there."""
    with TemporaryDirectory() as directory:
        path = str(Path(directory) / "a:b.sock")
        escaped = listen.format(path.replace(":", r"\:"))
        with served(_UnixServer(path, _FakeServer)):
            check_server(escaped)
        with pytest.raises(ConnectionRefusedError):
            check_server(escaped)


def test_the_check_accepts_any_certificate(tmp_path: Path) -> None:
    """The check accepts any certificate, since it is issued for the name that clients use."""
    pem = certificate_for("192.0.2.1", tmp_path / "server.pem")
    server = HTTPServer(("127.0.0.1", 0), _FakeServer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with served(server):
        check_server(f"ssl:{server.server_port}:privateKey={pem}")
        check_server(f"tls:{tmp_path}:port={server.server_port}:interface=127.0.0.1")


def test_the_check_uses_no_proxy(fake_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check uses no HTTP proxy. Many containers have one for outgoing requests."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    check_server(f"tcp:{fake_server}")


def test_a_server_that_answers_with_an_error_is_not_healthy(fake_server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers with an error status is not healthy."""
    monkeypatch.setattr(_FakeServer, "status", 500)
    with pytest.raises(OSError, match="answered 500"):
        check_server(f"tcp:{fake_server}")


@pytest.mark.parametrize("listen", ["systemd:domain=INET6:name=http", "haproxy:tcp:80", "haproxy:unix:/run/x.sock"])
def test_an_endpoint_that_can_not_be_checked_is_reported(listen: str) -> None:
    """An endpoint fails the check if its address is unknown, or if it expects a proxy."""
    with pytest.raises(OSError, match=f"{listen.partition(':')[0]}: can't be asked"):
        check_server(listen)


def test_a_worker_is_healthy_while_redis_answers(redis_url: Callable[[str], str]) -> None:
    """A worker is healthy while its Redis answers. The check logs in with the configured password."""
    done = command("check", MYPYPI_MODE="worker", MYPYPI_REDIS_URL=redis_url("secret"))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_whose_redis_refuses_it_is_not_healthy(redis_url: Callable[[str], str]) -> None:
    """A wrong password for Redis fails the check. The reason is one line, without the password."""
    done = command("check", MYPYPI_MODE="worker", MYPYPI_REDIS_URL=redis_url("wrong-one"))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "wrong-one" not in done.stderr


def test_a_worker_without_redis_is_not_healthy() -> None:
    """A worker without Redis is not healthy, since it can do no work."""
    done = command("check", MYPYPI_MODE="worker", MYPYPI_REDIS_URL=f"redis://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "Redis can't be reached" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("walk",), ("run", "check")])
def test_a_wrong_command_line_prints_the_usage(arguments: tuple[str, ...]) -> None:
    """A wrong command line prints one line of usage."""
    done = command(*arguments)
    assert (done.returncode, done.stderr) == (1, "usage: python -m mypypi.daemon.container run|check\n")


def test_wrong_settings_start_no_daemon() -> None:
    """Wrong settings start no daemon, and are reported as by a daemon."""
    done = command("run", MYPYPI_MODE="both")
    assert done.returncode == 1
    assert "MYPYPI_MODE holds 'both'; expected server or worker" in done.stderr
