"""Promises about connections, over real sockets: how many there may be, and that files go through them as ever."""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.conftest import DaemonFactory
from tests.rig.daemon import Daemon
from tests.rig.http import eventually, get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_wheel
from tests.rig.wire import BOUND


def connected(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), BOUND)


def is_turned_away(daemon: Daemon) -> bool:
    """Whether the server ends a new connection without a word, which may be before we know that we have it."""
    try:
        with connected(daemon) as connection:
            return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def try_to_stay(daemon: Daemon) -> socket.socket | None:
    """A connection on which the server has answered, and which is kept."""
    connection = connected(daemon)
    try:
        connection.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = connection.recv(1000)
    except ConnectionResetError:
        answer = b""
    if not answer:
        connection.close()
        return None
    return connection


def test_one_address_may_have_so_many_connections(index: FakeIndex, daemon_factory: DaemonFactory) -> None:
    """More are closed at once, and counted out again when one ends; files come as they do without the limit."""
    wheel = make_wheel("thing", padding=2_000_000)
    index.add(wheel)
    daemon = daemon_factory(env={"MYPYPI_CONNECTIONS_PER_ADDRESS": "3"})
    assert get(f"{daemon.url}/simple/thing/").status == 200
    with ExitStack() as ending:
        for _ in range(2):
            ending.enter_context(connected(daemon))
        path = f"/file/{index.url_of(wheel.filename).replace('://', '/')}"
        assert eventually(lambda: get(daemon.url + path), lambda answer: answer.complete).body == wheel.content
        daemon.wait_for_log("stored ")
        assert eventually(lambda: get(daemon.url + path), lambda answer: answer.complete).body == wheel.content
        third = eventually(lambda: try_to_stay(daemon), bool)  # the one before it may have to be seen to end
        assert third is not None
        with third:
            assert [is_turned_away(daemon) for _ in range(5)] == [True] * 5
        assert eventually(lambda: get(daemon.url + path), lambda answer: answer.complete).body == wheel.content
    assert daemon.log.count("the limit for one address") == 1


def test_connection_too_many_over_tls(daemon_factory: DaemonFactory, tmp_path: Path) -> None:
    """It is closed before anything is said on it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), check=True, capture_output=True)
    listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    env = {"MYPYPI_CONNECTIONS_PER_ADDRESS": "1", "MYPYPI_LISTEN": listen}
    daemon = daemon_factory(env=env, ready=re.compile(r"https://127\.0\.0\.1:(\d+)/"))
    trusting = ssl.create_default_context(cafile=str(certificate))
    with connected(daemon) as plain, trusting.wrap_socket(plain, server_hostname="localhost") as first:
        assert is_turned_away(daemon)
        first.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert first.recv(100).startswith(b"HTTP/1.1 200 OK")
