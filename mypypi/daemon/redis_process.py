"""One process of the embedded Redis: how it is started, when it is ready, and how it ends.

Knows the server's output and signals. Must never decide when to start or to end one.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ProcessExitedAlready
from twisted.internet.interfaces import IProcessTransport, ITCPTransport
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.daemon.processes import LineBuffer, how_it_ended, terminal_signals_blocked
from mypypi.daemon.redis_program import EmbeddedRedisError

#: Seconds for a server to stop, before it is killed or, if it is of an earlier run, the start fails.
_STOP_TIMEOUT = 10.0

#: The program that becomes the server. It leaves the terminal's process group, so that a Ctrl-C or a closed terminal
#: reaches only the daemon, which then stops the server in order. On Linux the kernel ends it when the daemon dies
#: (prctl(2), PR_SET_PDEATHSIG is 1). If the daemon died before that call, the parent process is another one by now.
_LAUNCH = """
import os, signal, sys
os.setsid()
for number in signal.SIGINT, signal.SIGHUP:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.umask(0o077)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the daemon is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

#: What Redis writes before each message: its process, its role, the time and the level.
_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \S ")


class ServerProcess(ProcessProtocol):
    """One run of the server: its output and its end."""

    _log = Logger()
    transport: IProcessTransport

    def __init__(self, on_ready: Callable[[ServerProcess], None], on_end: Callable[[ServerProcess, str], None]) -> None:
        self._on_ready = on_ready
        self._on_end = on_end
        self._output = LineBuffer(self._printed)
        self._last: deque[str] = deque(maxlen=5)
        self._ended: Deferred[None] = Deferred()
        self.ready = False
        self.ready_at = 0.0
        #: Why this daemon stops it, if it does.
        self.stopped_because = ""

    def start(self, reactor: Any, command: Sequence[str]) -> None:
        """Start the server. Raises EmbeddedRedisError if no process can be started."""
        launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]
        try:
            with terminal_signals_blocked():
                reactor.spawnProcess(self, sys.executable, launch, env=None)
        except OSError as error:  # there is no process or descriptor left
            raise EmbeddedRedisError(f"no process can be started for redis-server: {error.strerror}") from error

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
            self._last.append(_PREFIX.sub("", line))
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


async def end_orphan(reactor: Any, socket: Path) -> None:
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
