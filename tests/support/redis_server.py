"""A real redis-server for tests that use the reactor, in its own directory.

Must never know the code under test.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.process import Process
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from mypypi.settings.types import RedisUrl, Secret
from tests.rig.redis import free_port, redis_binary

__all__ = ["RedisServer", "free_port", "redis_binary"]


class RedisServer:
    """
    A redis-server with an append-only file, which can be started, stopped and killed.

    It listens on a unix socket or, with `tcp`, on a free port. `options` are added to its command line, such as
    ``("--requirepass", "secret")``. Its data survives `stop` and `kill`, and is deleted by `clean_up`.
    """

    def __init__(self, reactor: Any, *options: str, tcp: bool = False) -> None:
        self._reactor = reactor
        self._options = options
        self._port = free_port() if tcp else 0
        # A unix socket's path may have about a hundred bytes, which a test's own directory often exceeds.
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: _RedisProcess | None = None

    def url(self, *, password: str | None = None, username: str | None = None, db: int = 0) -> RedisUrl:
        secret = None if password is None else Secret(password)
        if self._port:
            return RedisUrl("tcp", "127.0.0.1", self._port, "", db, username, secret)
        return RedisUrl("unix", path=str(self.directory / "redis.sock"), db=db, username=username, password=secret)

    async def start(self) -> None:
        """
        Start it, and return when it accepts connections.

        Raises RuntimeError, with its output, if it ends instead.
        """
        place = ("--bind", "127.0.0.1") if self._port else ("--unixsocket", "redis.sock")
        # Every write is on the disk before it is answered, so that `kill` loses none.
        kept = ("--dir", str(self.directory), "--save", "", "--appendonly", "yes", "--appendfsync", "always")
        command = [redis_binary(), "--port", str(self._port), *place, *kept, *self._options]
        self._process = _RedisProcess()
        self._reactor.spawnProcess(self._process, command[0], command, env=dict(os.environ), path=str(self.directory))
        await self._process.ready

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop the process (SIGSTOP): the kernel accepts connections, but nothing answers."""
        pid = self._running().pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        os.kill(self._running().pid, signal.SIGCONT)

    async def clean_up(self) -> None:
        await self.kill()
        shutil.rmtree(self.directory)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and not process.ended.called:
            os.kill(process.pid, number)
            await process.ended

    def _running(self) -> _RedisProcess:
        if self._process is None:
            raise RuntimeError("redis-server is not running")
        return self._process


class _RedisProcess(ProcessProtocol):
    def __init__(self) -> None:
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[None] = Deferred()
        self._printed = b""

    def connectionMade(self) -> None:
        self.pid = cast("int", cast("Process", self.transport).pid)

    def outReceived(self, data: bytes) -> None:
        self._printed += data
        if not self.ready.called and b"ready to accept connections" in self._printed.lower():
            self.ready.callback(None)

    def errReceived(self, data: bytes) -> None:
        self._printed += data

    def processEnded(self, reason: Failure) -> None:
        if not self.ready.called:
            self.ready.errback(RuntimeError(f"redis-server ended: {self._printed.decode(errors='replace')}"))
        self.ended.callback(None)
