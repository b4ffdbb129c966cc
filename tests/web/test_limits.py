"""Tests of the limit of connections per address, over real sockets."""

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


def connect(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), BOUND)


def is_refused(daemon: Daemon) -> bool:
    """
    Return whether the server closes a new connection without a byte.

    The client may see that already while it connects.
    """
    try:
        with connect(daemon) as connection:
            return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def open_connection(daemon: Daemon) -> socket.socket | None:
    """Return an open connection with one answered request, or None if it was closed."""
    connection = connect(daemon)
    try:
        connection.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = connection.recv(1000)
    except ConnectionResetError:
        answer = b""
    if not answer:
        connection.close()
        return None
    return connection


def test_connections_per_address_are_limited(index: FakeIndex, daemon_factory: DaemonFactory) -> None:
    """
    Connections beyond the limit are closed at once, until another one ends.

    Files are served as without the limit.
    """
    wheel = make_wheel("thing", padding=2_000_000)
    index.add(wheel)
    daemon = daemon_factory(env={"MYPYPI_CONNECTIONS_PER_ADDRESS": "3"})
    assert get(f"{daemon.url}/simple/thing/").status == 200
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(daemon))
        path = f"/file/{index.url_of(wheel.filename).replace('://', '/')}"
        assert eventually(lambda: get(daemon.url + path), lambda answer: answer.complete).body == wheel.content
        daemon.wait_for_log("stored ")
        assert eventually(lambda: get(daemon.url + path), lambda answer: answer.complete).body == wheel.content
        third = eventually(
            lambda: open_connection(daemon), bool
        )  # the server may not have noticed the end of the previous one yet
        assert third is not None
        with third:
            assert [is_refused(daemon) for _ in range(5)] == [True] * 5
        assert eventually(lambda: get(daemon.url + path), lambda answer: answer.complete).body == wheel.content
    assert daemon.log.count("the limit for one address") == 1


def test_connections_over_tls_are_limited(daemon_factory: DaemonFactory, tmp_path: Path) -> None:
    """A TLS connection beyond the limit is closed before the server sends a byte."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), check=True, capture_output=True)
    listen = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    env = {"MYPYPI_CONNECTIONS_PER_ADDRESS": "1", "MYPYPI_LISTEN": listen}
    daemon = daemon_factory(env=env, ready=re.compile(r"https://127\.0\.0\.1:(\d+)/"))
    context = ssl.create_default_context(cafile=str(certificate))
    with connect(daemon) as plain, context.wrap_socket(plain, server_hostname="localhost") as first:
        assert is_refused(daemon)
        first.sendall(b"GET /-/health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert first.recv(100).startswith(b"HTTP/1.1 200 OK")
