"""Runs several server processes on one socket: binds it, starts and replaces the children.

Decides when a child starts and ends. Must never accept a connection, or know what is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import Factory as Default
from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from mypypi.daemon.announcement import ServerReady
from mypypi.daemon.child_process import ChildProcess, child_environment
from mypypi.daemon.directories import check_directories
from mypypi.daemon.lifecycle import stop_with_failure
from mypypi.daemon.listening import check, listen
from mypypi.daemon.processes import RestartDelay
from mypypi.observability import metrics
from mypypi.observability.multiprocess import DIRECTORY, MetricsDirectory, NoRoom, places

if TYPE_CHECKING:
    from twisted.internet.interfaces import IListeningPort

    from mypypi.settings.settings import Settings


@define(eq=False)
class _Slot:
    """A number from 1 to WORKERS, with its child or the next start of one."""

    number: int
    child: ChildProcess | None = None
    start: IDelayedCall | None = None
    delay: RestartDelay = Default(RestartDelay)


class Supervisor(Service):
    """
    Runs `settings.workers` server processes.

    `reload` replaces them one by one. No request is lost, since each one stops only when its replacement is ready.

    `redis_url` is the Redis for the children if the settings name none. With `relay`, the children log to this
    process's log, else straight to its standard output.
    """

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any, *, redis_url: str | None = None, relay: bool = False) -> None:
        self._settings = settings
        self._reactor = reactor
        self._relay = relay
        self._environment = child_environment(settings, redis_url)
        self._redis = redis_url or settings.redis_url
        self._slots = [_Slot(number) for number in range(1, settings.workers + 1)]
        self._port: Any = None
        self._children: set[ChildProcess] = set()
        self._failures = 0
        self._served = self._announced = self._reloading = self._reload_again = False
        self._counts: MetricsDirectory | None = None
        self._gone: Deferred[None] | None = None

    def privilegedStartService(self) -> None:
        """Bind the port, before twistd drops privileges. Raises CannotStart with the reason."""
        unused = Factory()
        unused.noisy = False
        listen(self._reactor, self._settings.listen, unused, self._listening)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        self._port.stopReading()  # connections are for the children

    def startService(self) -> None:
        check_directories(self._settings)  # one message, in place of one of each child
        super().startService()
        if self._port is None:
            self.privilegedStartService()
        # While children are replaced, there are twice as many.
        try:
            self._counts = MetricsDirectory.in_first(places(self._settings.data_directory), 2 * self._settings.workers)
        except NoRoom as error:
            self.log.warn("each server process reports its own metrics, not those of all: {why}", why=error)
        else:
            self._environment[DIRECTORY] = str(self._counts.path)
        for slot in self._slots:
            self._start(slot)

    def stopService(self) -> Deferred[None]:
        """Stop all children; fires once they have ended, or were killed after MYPYPI_DRAIN_TIME."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for slot in self._slots:
            if slot.start is not None:
                slot.start.cancel()
                slot.start = None
        for child in list(self._children):
            child.stop()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)  # from here on no client can connect, while the children drain
        if self._children:
            self._gone = Deferred()
            await self._gone
        if self._counts is not None:
            self._counts.remove()

    # Start and end of a child

    def _start(self, slot: _Slot) -> None:
        slot.start = None
        slot.child = self._spawn(slot)

    def _spawn(self, slot: _Slot) -> ChildProcess:
        self._restore_counts()
        child = ChildProcess(slot.number, self._reactor, self._settings.drain_time, self._ready, self._ended)
        self._children.add(child)
        child.start(self._environment, self._port.fileno(), relay=self._relay)
        return child

    def _restore_counts(self) -> None:
        """Make the directory of the metrics again if another program has removed it."""
        try:
            if self._counts is not None and self._counts.restore():
                self.log.warn("{path} was removed; metrics of older processes are lost", path=str(self._counts.path))
        except OSError as error:
            self.log.error("the directory of the metrics can't be created again: {why}", why=error)

    def _ready(self, child: ChildProcess, words: str) -> None:
        """Note that a child serves; announce the server once all do."""
        self._served = True
        self.log.info("child {number} serves, pid {pid}", number=child.number, pid=child.pid)
        if not self._announced and all(slot.child is not None and slot.child.ready for slot in self._slots):
            self._announced = True
            ready = ServerReady.of(self._settings, self._port, f"{self._redis} {words}")
            self.log.info("{record}", several_lines=True, record=ready)

    def _ended(self, child: ChildProcess, how: str) -> None:
        """Note that a child has ended; restart it unless it was replaced or stopped."""
        self._children.discard(child)
        if self._counts is not None and child.pid is not None:
            metrics.forget_process(child.pid, self._counts.path)
        if not self.running:
            if self._gone is not None and not self._children:
                self._gone.callback(None)
            return
        slot = self._slots[child.number - 1]
        if child is not slot.child:  # its replacement serves, or `_reload` reports it
            if child.ready:
                self.log.info(
                    "child {number}, pid {pid}, has ended ({how})", number=slot.number, pid=child.pid, how=how
                )
            return
        slot.child = None
        if child.ready:
            slot.delay.ran(self._reactor.seconds() - child.ready_at)
        elif not self._served:  # else the program and the settings are usable, and the cause of this may pass
            self._failures += 1
            if self._failures > len(self._slots) and not self._children:  # so one of them failed twice
                self._fail(how)
                return
        delay = slot.delay.next()
        self.log.error(
            "child {number}, pid {pid}, ended {when}({how}); it is started again in {pause:g} s",
            number=slot.number,
            pid=child.pid,
            when="" if child.ready else "before it was ready ",
            how=how,
            pause=delay,
        )
        slot.start = self._reactor.callLater(delay, self._start, slot)

    def _fail(self, how: str) -> None:
        for slot in self._slots:
            if slot.start is not None:
                slot.start.cancel()
                slot.start = None
        self.log.critical(
            "no server process can start: {count} ended before they were ready, the last with {how}; see above for why",
            count=self._failures,
            how=how,
        )
        stop_with_failure(self._reactor)

    # Reload

    def reload(self) -> None:
        """
        Replace every child, so that the current program and certificate are used.

        Raises CannotStart, with the reason, if no child could use the certificate; then none is replaced.
        """
        check(self._settings.listen)
        if self._reloading:
            self._reload_again = True
        elif self.running:
            self._reloading = True
            done = Deferred.fromCoroutine(self._reload())
            done.addErrback(lambda failure: self.log.failure("the children could not be replaced", failure))
            done.addCallback(self._reloaded)

    async def _reload(self) -> None:
        self.log.info("the children are being replaced")
        for slot in self._slots:
            if slot.child is None or not (slot.child.ready or await slot.child.settled):
                continue  # its child will be started anew anyway
            if not self.running:
                return
            new = self._spawn(slot)
            serves = await new.settled
            if not self.running:
                return
            if not serves:
                self.log.error(
                    "child {number} was not replaced: the new one, pid {pid}, ended before it was ready; the old"
                    " children go on serving",
                    number=slot.number,
                    pid=new.pid,
                )
                return
            if slot.start is not None:
                slot.start.cancel()
                slot.start = None
            old, slot.child = slot.child, new
            if old is not None:
                old.stop()
        self.log.info("the children are new; the old ones finish their requests and end")

    def _reloaded(self, _: object) -> None:
        self._reloading = False
        if self._reload_again:
            self._reload_again = False
            self.reload()
