"""One run of a server process, seen from its parent: how it is started, what it says, how it is ended.

Knows its command, its descriptors and its environment. Must never know when one is to start or to end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from attrs import define
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger, eventFromJSON, globalLogPublisher
from twisted.python.failure import Failure

from mypypi.daemon.child import LIFELINE, LISTENING, REPORT
from mypypi.observability.logs import PROCESS, marked

if TYPE_CHECKING:
    from mypypi.settings.settings import Settings

#: Seconds that a child has to get ready, and beyond MYPYPI_DRAIN_TIME to end.
_START_TIME = 60.0
_END_TIME = 10.0

#: Without the working directory, which ``-c`` puts first among the places where modules are looked for.
_TWISTD = "import sys; sys.path = [*filter(None, sys.path)]; from twisted.scripts.twistd import run; run()"


class Parent(Protocol):
    """Whoever wants to know how a run fares."""

    def ready(self, run: Run, words: str) -> None:
        """It serves. The words are for the log."""

    def ended(self, run: Run, how: str) -> None:
        """It has ended, asked or not."""


class Run(ProcessProtocol):
    """The run of child `number`. `settled` fires with whether it got ready, once that is known."""

    log = Logger()

    transport: IProcessTransport

    def __init__(self, parent: Parent, number: int, reactor: Any, drain_time: float) -> None:
        self.number = number
        self.pid: int | None = None
        self.ready = False
        self.ready_at = 0.0
        self.settled: Deferred[bool] = Deferred()
        self._parent = parent
        self._reactor = reactor
        self._end_time = drain_time + _END_TIME
        self._report = b""
        self._said = {1: _Lines(self._log), 2: _Lines(self._log)}
        self._patience: IDelayedCall | None = None
        self._stopping = False

    def start(self, environment: Mapping[str, str], port_fd: int, *, relay: bool) -> None:
        """Have it serve at this socket. With `relay`, it logs to this process's log."""
        command = [sys.executable, "-c", _TWISTD, "--nodaemon", "--pidfile="]
        if relay:
            command += ["--logger", "mypypi.daemon.child.to_parent"]
        out: dict[int, int | str] = {1: "r", 2: "r"} if relay else {1: 1, 2: 2}
        descriptors = {LIFELINE: "w", LISTENING: port_fd, REPORT: "r", **out}
        env = {**environment, PROCESS: str(self.number)}
        command += ["mypypi-server"]
        try:
            self._reactor.spawnProcess(self, sys.executable, command, env=env, childFDs=descriptors)
        except OSError as error:  # no process, no descriptor to be had
            self._reactor.callLater(0, self._ended, f"not started: {error}")

    def stop(self) -> None:
        """Let it end what it is at; where it does not end, kill it."""
        if not self._stopping:
            self._stopping = True
            self._signal("TERM")
            self._be_patient(self._end_time)

    def connectionMade(self) -> None:
        self.pid = self.transport.pid
        self._be_patient(_START_TIME)

    def childDataReceived(self, childFD: int, data: bytes) -> None:  # noqa: N803 - Twisted's name
        if childFD in self._said:
            self._said[childFD].add(data)
            return
        self._report += data
        if not self.settled.called and b"\n" in self._report:
            self.ready, self.ready_at = True, self._reactor.seconds()
            if not self._stopping:
                self._be_patient(None)
            self._parent.ready(self, self._report.decode().strip())
            self.settled.callback(True)

    def processExited(self, reason: Failure) -> None:
        signal, code = getattr(reason.value, "signal", None), getattr(reason.value, "exitCode", None)
        self._ended(f"exit code {code}" if signal is None else f"signal {signal}")

    def _ended(self, how: str) -> None:
        self._be_patient(None)
        self._parent.ended(self, how)
        if not self.settled.called:
            self.settled.callback(False)

    def _be_patient(self, seconds: float | None) -> None:
        if self._patience is not None and self._patience.active():
            self._patience.cancel()
        self._patience = None if seconds is None else self._reactor.callLater(seconds, self._signal, "KILL")

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready, AttributeError):  # or never started
            self.transport.signalProcess(name)

    def _log(self, line: str) -> None:
        if line.startswith("\x1e"):
            with suppress(ValueError):
                event = eventFromJSON(line[1:])
                globalLogPublisher(marked(event, str(self.number)))
                return
        self.log.info("child {number}: {line}", number=self.number, line=line)


@define
class _Lines:
    """Takes what comes apart into lines, for `each`."""

    each: Callable[[str], None]
    rest: bytes = b""

    def add(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.each(line.decode("utf-8", "replace"))


def child_environment(settings: Settings, redis_url: str | None) -> dict[str, str]:
    """
    This process's environment, with what it does not tell: settings from elsewhere, paths that were taken from another
    working directory, and where this process's modules lie.
    """
    own = {
        "MYPYPI_LISTEN": settings.listen,
        "MYPYPI_DATA_DIRECTORY": str(settings.data_directory),
        "MYPYPI_FILE_STORAGE_DIRECTORY": str(settings.file_storage_directory),
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),  # noqa: PTH100 - "" is a path here
        "WORKERS": "1",
    }
    if redis_url is not None:
        own["MYPYPI_REDIS_URL"] = redis_url
    return {**os.environ, **own}
