"""A server process under a supervisor, seen from both sides.

The two sides of one protocol: three descriptors, two environment variables, one line that reports "ready". Knows how a
child is started, what it reports and how it is ended. Must never decide when to start or to end one.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import FileLogObserver, ILogObserver, Logger, eventFromJSON, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from mypypi.daemon.lifecycle import stop
from mypypi.daemon.processes import LineBuffer, how_it_ended, terminal_signals_blocked
from mypypi.observability.logs import PROCESS, for_supervisor, marked
from mypypi.observability.multiprocess import DIRECTORY

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings

#: The child's descriptors: a pipe that ends with the supervisor, the listening socket, a pipe for the "ready" line.
LIFELINE, LISTENING, REPORT = 0, 3, 4

#: The environment variable with the number of server processes. Only the supervisor's child processes have it.
PROCESSES = "_MYPYPI_PROCESSES"

#: Seconds for a child to get ready, and seconds beyond MYPYPI_DRAIN_TIME for it to end.
_START_TIME = 60.0
_END_TIME = 10.0

#: Runs twistd. A signal of the terminal, or to the group of its processes, reaches the supervisor alone, which reloads
#: or stops all children in order. ``-c`` puts the working directory first in sys.path; this removes it again.
_TWISTD = """
import sys
sys.path = [*filter(None, sys.path)]
from mypypi.daemon.processes import leave_group
leave_group()
from twisted.scripts.twistd import run
run()
"""


class ChildProcess(ProcessProtocol):
    """
    One run of server process `number`, seen by its supervisor.

    `on_ready` is called with the text of the child's report once it serves, `on_end` with how it ended. `settled` fires
    with whether it got ready, once that is known.
    """

    log = Logger()

    transport: IProcessTransport

    def __init__(
        self,
        number: int,
        reactor: Any,
        drain_time: float,
        on_ready: Callable[[ChildProcess, str], None],
        on_end: Callable[[ChildProcess, str], None],
    ) -> None:
        self.number = number
        self.pid: int | None = None
        self.ready = False
        self.ready_at = 0.0
        self.settled: Deferred[bool] = Deferred()
        self._reactor = reactor
        self._end_time = drain_time + _END_TIME
        self._on_ready = on_ready
        self._on_end = on_end
        self._report = b""
        self._output = {1: LineBuffer(self._log_line), 2: LineBuffer(self._log_line)}
        self._kill_timer: IDelayedCall | None = None
        self._stopping = False

    def start(self, environment: Mapping[str, str], port_fd: int, *, relay: bool) -> None:
        """Start the child on this listening socket. With `relay`, it logs to the supervisor's log."""
        command = [sys.executable, "-c", _TWISTD, "--nodaemon", "--pidfile="]
        if relay:
            command += ["--logger", f"{__name__}.log_to_supervisor"]
        out: dict[int, int | str] = {1: "r", 2: "r"} if relay else {1: 1, 2: 2}
        descriptors = {LIFELINE: "w", LISTENING: port_fd, REPORT: "r", **out}
        env = {**environment, PROCESS: str(self.number)}
        command += ["mypypi-server"]
        try:
            with terminal_signals_blocked():
                self._reactor.spawnProcess(self, sys.executable, command, env=env, childFDs=descriptors)
        except OSError as error:  # no process or descriptor is available
            self._reactor.callLater(0, self._ended, f"not started: {error}")

    def stop(self) -> None:
        """Ask the child to drain and end; kill it if it takes too long."""
        if not self._stopping:
            self._stopping = True
            self._signal("TERM")
            self._kill_after(self._end_time)

    def connectionMade(self) -> None:
        self.pid = self.transport.pid
        self._kill_after(_START_TIME)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - Twisted's name
        if childFD in self._output:
            self._output[childFD].add(data)
            return
        self._report += data
        if not self.settled.called and b"\n" in self._report:
            self.ready, self.ready_at = True, self._reactor.seconds()
            if not self._stopping:
                self._kill_after(None)
            self._on_ready(self, self._report.decode().strip())
            self.settled.callback(True)

    def processExited(self, reason: Failure) -> None:
        self._ended(how_it_ended(reason))

    def _ended(self, how: str) -> None:
        self._kill_after(None)
        self._on_end(self, how)
        if not self.settled.called:
            self.settled.callback(False)

    def _kill_after(self, seconds: float | None) -> None:
        """Kill the child after so many seconds, unless this is called again; None cancels."""
        if self._kill_timer is not None and self._kill_timer.active():
            self._kill_timer.cancel()
        self._kill_timer = None if seconds is None else self._reactor.callLater(seconds, self._signal, "KILL")

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready, AttributeError):  # it ended, or was never started
            self.transport.signalProcess(name)

    def _log_line(self, line: str) -> None:
        if line.startswith("\x1e"):
            with suppress(ValueError):
                event = eventFromJSON(line[1:])
                globalLogPublisher(marked(event, str(self.number)))
                return
        self.log.info("child {number}: {line}", number=self.number, line=line)


def child_environment(settings: Settings, redis_url: str | None) -> dict[str, str]:
    """
    Return the environment for children: the supervisor's, with additions.

    The additions are settings from the command line, paths that are relative to the supervisor's working directory, the
    address of an embedded Redis, and where Python found the supervisor's modules.
    """
    own = {
        "MYPYPI_LISTEN": settings.listen,
        "MYPYPI_DATA_DIRECTORY": str(settings.data_directory),
        "MYPYPI_FILE_STORAGE_DIRECTORY": str(settings.file_storage_directory),
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),  # noqa: PTH100 - "" is a path here
        "WORKERS": "1",
        PROCESSES: str(settings.workers),
    }
    if redis_url is not None:
        own["MYPYPI_REDIS_URL"] = redis_url
    return {**os.environ, **own}


# The child's side


def child_number() -> int | None:
    """Return the number (from 1) of this child process; None in any other process."""
    text = os.environ.get(PROCESS, "")
    return int(text) if text.isdecimal() else None


@implementer(IReadDescriptor)
class Lifeline(Service):
    """Runs in the child: reports "ready", and ends the child when its supervisor is gone."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def startService(self) -> None:
        super().startService()
        self._reactor.addReader(self)

    def stopService(self) -> None:
        super().stopService()
        self._reactor.removeReader(self)

    def say_ready(self, words: str) -> None:
        """Report "ready" to the supervisor, with words for its log."""
        with suppress(OSError):  # the supervisor is gone; the lifeline notices that too
            os.write(REPORT, f"{words}\n".encode())
            os.close(REPORT)

    def fileno(self) -> int:
        return LIFELINE

    def logPrefix(self) -> str:
        return "lifeline"

    def doRead(self) -> None:
        if not os.read(LIFELINE, 64):
            self._orphaned()

    def connectionLost(self, reason: Failure) -> None:
        self._orphaned()

    def _orphaned(self) -> None:
        self._reactor.removeReader(self)
        if self.running:
            self.log.error("this server process ends: its supervisor is gone")
            if DIRECTORY in os.environ:  # the supervisor can't remove it any more
                atexit.register(rmtree, os.environ[DIRECTORY], ignore_errors=True)
            stop(self._reactor)


def log_to_supervisor() -> ILogObserver:
    """For twistd's ``--logger``: send every event to the supervisor, for its own log."""
    return FileLogObserver(sys.stdout, for_supervisor)
