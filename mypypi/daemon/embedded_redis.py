"""
The embedded Redis: a redis-server that runs as long as the daemon.

It listens on a unix socket only. Knows the server's command line and its output. Must never know what is stored in
Redis: its users get a URL.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, ITCPTransport
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.daemon.processes import LineBuffer, RestartDelay, how_it_ended
from mypypi.daemon.redis_program import EmbeddedRedisError, NoRedisServer, arguments, find_server, socket_of, url_of

#: Seconds for a server to stop, before it is killed or, if it is of an earlier run, the start fails.
_STOP_TIMEOUT = 10.0

#: The program that becomes the server. It leaves the terminal's process group, so that a Ctrl-C reaches only the
#: daemon, which then stops the server in order. On Linux the kernel ends it when the daemon dies (prctl(2),
#: PR_SET_PDEATHSIG is 1). If the daemon died before that call, the parent process is another one by now.
_LAUNCH = """
import os, signal, sys
os.setsid()
os.umask(0o077)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the daemon is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class DirectoryInUse(EmbeddedRedisError):
    """Another daemon runs on the same data directory."""


class EmbeddedRedis(Service):
    """
    Runs a redis-server in `data_directory`/redis, and restarts it when it dies.

    `url` is valid from the start, in the form of MYPYPI_REDIS_URL. `when_ready` reports failures.
    """

    _log = Logger()

    def __init__(self, reactor: Any, data_directory: Path) -> None:
        self._reactor = reactor
        self._data_directory = data_directory.absolute()
        self._directory = self._data_directory / "redis"
        self.socket = socket_of(self._data_directory)
        self.url = url_of(self.socket)
        self._command: list[str] = []
        self._lock: IO[bytes] | None = None
        self._starting: Deferred[None] | None = None
        self._server: _Server | None = None
        self._restart: IDelayedCall | None = None
        self._delay = RestartDelay()
        self._was_ready = False
        self._error: BaseException | None = None
        self._waiting: list[Deferred[None]] = []

    def when_ready(self) -> Deferred[None]:
        """
        Return a Deferred that fires once the server answers.

        It fires now, or after the start or restart under way. It fails with an EmbeddedRedisError if the server can't
        be started, or is stopped first.
        """
        if self._error is not None:
            return fail(self._error)
        if self._server is not None and self._server.ready:
            return succeed(None)
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter

    def startService(self) -> None:
        super().startService()
        self._error, self._was_ready, self._delay = None, False, RestartDelay()
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._not_started)

    def stopService(self) -> Deferred[None]:
        """Stop the server and unlock the data directory. A server that takes too long is killed."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        server = find_server()
        if server is None:
            raise NoRedisServer
        self._command = [str(server), *arguments(self._directory, self.socket)]
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.socket.parent != self._directory:
                _make_private(self.socket.parent)
            self._lock_directory()
        except OSError as error:
            raise EmbeddedRedisError(f"Redis can't be started in {self._directory}: {error}") from error
        await _end_orphan(self._reactor, self.socket)
        self._log.info("starting {server} in {directory}", server=str(server), directory=str(self._directory))
        self._spawn()

    def _lock_directory(self) -> None:
        """
        Lock the directory for the life of this process.

        The lock keeps a second server from writing to the same files.
        """
        path = self._directory / "lock"
        path.touch(mode=0o600)
        lock = path.open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise DirectoryInUse(f"another mypypi is using this data directory: {self._data_directory}") from None
        self._lock = lock

    def _spawn(self) -> None:
        self._restart = None
        self._server = _Server(self._server_ready, self._server_ended)
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *self._command]
        self._reactor.spawnProcess(self._server, sys.executable, launch, env=None)

    def _server_ready(self, server: _Server) -> None:
        if self._was_ready:
            self._log.info("redis-server is back")
        self._was_ready = True
        server.ready_at = self._reactor.seconds()
        for waiter in self._take_waiting():
            waiter.callback(None)

    def _server_ended(self, server: _Server, how: str) -> None:
        self._server = None
        said = server.last_output()
        if not self.running:
            return
        if not self._was_ready:
            self._fail(EmbeddedRedisError(f"redis-server ended before it was ready ({how}): {said}"))
            return
        if server.ready:  # else a restart failed, and the first end is in the log
            self._log.error("redis-server ended ({how}) and is restarted; its last output: {said}", how=how, said=said)
            self._delay.ran(self._reactor.seconds() - server.ready_at)
        self._restart = self._reactor.callLater(self._delay.next(), self._spawn)

    def _not_started(self, why: Failure) -> None:
        if self.running and why.value is not None:  # else the start was cancelled
            self._fail(why.value)

    def _fail(self, error: BaseException) -> None:
        """Report that the first start failed. A retry would not help: such a cause does not pass."""
        self._error = error
        self._release_directory()
        if not self._waiting:
            self._log.error("{error}", error=error)
        for waiter in self._take_waiting():
            waiter.errback(error)

    async def _stop(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._server is not None:
            await self._server.stop(self._reactor)
        self._release_directory()
        for waiter in self._take_waiting():
            waiter.errback(EmbeddedRedisError("Redis was stopped before it was ready"))

    def _release_directory(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_waiting(self) -> list[Deferred[None]]:
        waiting, self._waiting = self._waiting, []
        return waiting


class _Server(ProcessProtocol):
    """One run of the server: its output and its end."""

    _log = Logger()
    transport: IProcessTransport

    def __init__(self, on_ready: Callable[[_Server], None], on_end: Callable[[_Server, str], None]) -> None:
        self._on_ready = on_ready
        self._on_end = on_end
        self._output = LineBuffer(self._printed)
        self._last: deque[str] = deque(maxlen=5)
        self._ended: Deferred[None] = Deferred()
        self.ready = False
        self.ready_at = 0.0

    def last_output(self) -> str:
        """Return the last lines of output, as one line."""
        return " / ".join(self._last)

    async def stop(self, reactor: Any) -> None:
        """Stop the server, with SIGTERM first, so that it writes its data to disk."""
        self._signal("TERM")
        kill_timer = reactor.callLater(_STOP_TIMEOUT, self._signal, "KILL")
        await self._ended
        if kill_timer.active():
            kill_timer.cancel()

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def connectionMade(self) -> None:
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        self._output.add(data)

    def errReceived(self, data: bytes) -> None:
        self.outReceived(data)

    def _printed(self, line: str) -> None:
        line = line.strip()
        self._log.debug("{line}", line=line)
        if line:
            self._last.append(line)
        # Redis 6: "The server is now ready to accept connections at …", 7: "Ready to accept connections unix".
        if not self.ready and "ready to accept connections" in line.lower():
            self.ready = True
            self._on_ready(self)

    def processEnded(self, reason: Failure) -> None:
        self._on_end(self, how_it_ended(reason))
        self._ended.callback(None)


class _Shutdown(Protocol):
    """Sends SHUTDOWN to a server; `gone` fires when the server has ended."""

    transport: ITCPTransport

    def __init__(self) -> None:
        self.gone: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(b"SHUTDOWN\r\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.gone.callback(None)


async def _end_orphan(reactor: Any, socket: Path) -> None:
    """
    End a server that outlived its daemon.

    There can be one where the kernel does not end it with the daemon. The caller must hold the lock of the directory.
    Raises EmbeddedRedisError if the server does not end.
    """
    try:
        endpoint = UNIXClientEndpoint(reactor, str(socket))
        factory = Factory.forProtocol(_Shutdown)
        factory.noisy = False
        orphan = await endpoint.connect(factory)
    except ConnectError:
        return
    try:
        await orphan.gone.addTimeout(_STOP_TIMEOUT, reactor)
    except DeferredTimeout:
        orphan.transport.abortConnection()
        raise EmbeddedRedisError(f"a redis-server of an earlier run answers at {socket} and can't be stopped") from None


def _make_private(directory: Path) -> None:
    """
    Create a private directory in a place where other users can write.

    Raises OSError, also if the directory exists and is not private to this user.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{directory} is not a private directory of this user")
