"""
The embedded Redis: a redis-server that runs as long as the daemon.

It listens on a unix socket only. Knows the server's command line and its output. Must never know what is stored in
Redis: its users get a URL.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import IO, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.daemon.processes import RestartDelay
from mypypi.daemon.redis_process import ServerProcess, end_orphan
from mypypi.daemon.redis_program import EmbeddedRedisError, NoRedisServer, arguments, find_server, socket_of, url_of

#: Seconds between two looks whether the server's socket is still there.
_LOOK_EVERY = 5.0


class DirectoryInUse(EmbeddedRedisError):
    """Another daemon runs on the same data directory."""


class EmbeddedRedis(Service):
    """
    Runs a redis-server in `data_directory`/redis, and restarts it when it dies or its directory is removed.

    `url` is valid from the start, in the form of MYPYPI_REDIS_URL. `when_ready` reports a first start that fails. Later
    ones are tried again and again, and the log has the reason.
    """

    _log = Logger()

    def __init__(self, reactor: Any, data_directory: Path) -> None:
        self._reactor = reactor
        self._data_directory = data_directory.absolute()
        self._directory = self._data_directory / "redis"
        self.socket = socket_of(self._data_directory)
        self.url = url_of(self.socket)
        self._lock: IO[bytes] | None = None
        self._starting: Deferred[None] | None = None
        self._server: ServerProcess | None = None
        self._restart: IDelayedCall | None = None
        self._look: IDelayedCall | None = None
        self._place: tuple[int, int] | None = None
        self._delay = RestartDelay()
        self._retries = False
        self._logged = False
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

    def keep_trying(self) -> None:
        """Try again from now on if the first start fails, since the daemon serves without Redis."""
        self._retries = True

    def startService(self) -> None:
        super().startService()
        self._error, self._retries, self._delay = None, False, RestartDelay()
        self._begin()

    def stopService(self) -> Deferred[None]:
        """Stop the server and unlock the data directory. A server that takes too long is killed."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def _begin(self) -> None:
        self._restart = None
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._not_started)

    async def _start(self) -> None:
        server = find_server()
        if server is None:
            raise NoRedisServer
        self._prepare_directory()
        await end_orphan(self._reactor, self.socket)
        if not self._retries:
            self._log.info("starting {server} in {directory}", server=str(server), directory=str(self._directory))
        process = ServerProcess(self._server_ready, self._server_ended)
        process.start(self._reactor, [str(server), *arguments(self._directory, self.socket)])
        self._server = process

    def _prepare_directory(self) -> None:
        """Create the directories that are missing, and lock the server's. Raises EmbeddedRedisError."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.socket.parent != self._directory:
                _make_private(self.socket.parent)
            self._lock_directory()
        except OSError as error:
            raise EmbeddedRedisError(f"Redis can't be started in {self._directory}: {error}") from error

    def _lock_directory(self) -> None:
        """
        Lock the directory for the life of this process.

        The lock keeps a second server from writing to the same files.
        """
        path = self._directory / "lock"
        path.touch(mode=0o600)
        if self._lock is not None and os.path.samestat(os.fstat(self._lock.fileno()), path.stat()):
            return
        lock = path.open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise DirectoryInUse(f"another mypypi is using this data directory: {self._data_directory}") from None
        self._release_directory()
        self._lock = lock

    def _server_ready(self, server: ServerProcess) -> None:
        if self._retries:
            self._log.info("redis-server is back")
        self._retries, self._logged = True, False
        server.ready_at = self._reactor.seconds()
        self._place = _identity(self.socket)
        self._look = self._reactor.callLater(_LOOK_EVERY, self._look_at_socket, server)
        for waiter in self._take_waiting():
            waiter.callback(None)

    def _look_at_socket(self, server: ServerProcess) -> None:
        """
        Stop the server if its socket was removed, so that it is started anew.

        A server whose directory was removed answers on open connections only, and its data is lost when it ends.
        """
        self._look = None
        if _identity(self.socket) != self._place:
            try:
                self._prepare_directory()
            except EmbeddedRedisError as error:
                self._log_failure(f"{self._directory} was removed: {error}")
            else:
                server.stopped_because = f"{self._directory} was removed, and is created again"
                Deferred.fromCoroutine(server.stop(self._reactor)).addErrback(
                    lambda failure: self._log.failure("redis-server could not be stopped", failure)
                )
                return
        self._look = self._reactor.callLater(_LOOK_EVERY, self._look_at_socket, server)

    def _server_ended(self, server: ServerProcess, how: str) -> None:
        self._server = None
        self._stop_looking()
        said = server.last_output()
        if not self.running:
            return
        if not server.ready:
            self._not_started(Failure(EmbeddedRedisError(f"redis-server ended before it was ready ({how}): {said}")))
            return
        why = server.stopped_because or how
        self._log.error("redis-server ended ({why}) and is restarted; its last output: {said}", why=why, said=said)
        self._delay.ran(self._reactor.seconds() - server.ready_at)
        self._restart = self._reactor.callLater(self._delay.next(), self._begin)

    def _not_started(self, failure: Failure) -> None:
        error = failure.value
        if not self.running or error is None:  # the start was cancelled
            return
        if not self._retries:
            self._fail(error)
            return
        if not isinstance(error, EmbeddedRedisError):
            self._log.failure("redis-server could not be started", failure)
        self._log_failure(str(error))
        self._restart = self._reactor.callLater(self._delay.next(), self._begin)

    def _log_failure(self, why: str) -> None:
        """Log why Redis does not work. This is logged once, until it works again."""
        if not self._logged:
            self._logged = True
            self._log.error("the embedded Redis can't be started again, this is tried until it can: {why}", why=why)

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
        self._stop_looking()
        if self._server is not None:
            await self._server.stop(self._reactor)
        self._release_directory()
        for waiter in self._take_waiting():
            waiter.errback(EmbeddedRedisError("Redis was stopped before it was ready"))

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _release_directory(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_waiting(self) -> list[Deferred[None]]:
        waiting, self._waiting = self._waiting, []
        return waiting


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells this file from a later one at the same path; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_private(directory: Path) -> None:
    """
    Create a private directory in a place where other users can write.

    Raises OSError, also if the directory exists and is not private to this user.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{directory} is not a private directory of this user")
