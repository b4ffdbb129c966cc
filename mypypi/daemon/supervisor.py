"""Several server processes on one socket: binds it, starts the children that serve there, and replaces those that end.

Knows when a child is to start and to end. Must never accept a connection, or know what is served.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from attrs import define
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from mypypi.daemon.child_process import Run, child_environment
from mypypi.daemon.listening import CannotStart, listen
from mypypi.daemon.server import give_up, ready_line
from mypypi.observability import metrics
from mypypi.observability.multiprocess import DIRECTORY, make_directory

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    from twisted.internet.interfaces import IListeningPort

    from mypypi.settings.settings import Settings

#: Seconds between the end of a child and its next start: doubled each time, and the first again after a good run.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0
_GOOD_RUN = 60.0


@define(eq=False)
class _Place:
    """What there is one of for each number: the child that serves, or the call that starts one."""

    number: int
    run: Run | None = None
    start: IDelayedCall | None = None
    pause: float = _FIRST_PAUSE


class ServerProcesses(Service):
    """
    `settings.workers` servers. SIGHUP replaces them one by one, each by one that is ready, without a request lost.

    `redis_url` is for them, where the settings do not name it. With `relay` what they log goes to this process's log,
    else straight to its standard output.
    """

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any, *, redis_url: str | None = None, relay: bool = False) -> None:
        self._settings = settings
        self._reactor = reactor
        self._relay = relay
        self._environment = child_environment(settings, redis_url)
        self._places = [_Place(number) for number in range(1, settings.workers + 1)]
        self._port: Any = None
        self._runs: set[Run] = set()
        self._failures = 0
        self._announced = self._reloading = self._reload_again = False
        self._counts: TemporaryDirectory[str] | None = None
        self._gone: Deferred[None] | None = None
        self._old_handler: Any = None

    def privilegedStartService(self) -> None:
        """Bind, before twistd gives up privileges. Raises CannotStart with what keeps it from listening."""
        nobody = Factory()
        nobody.noisy = False
        listen(self._reactor, self._settings.listen, nobody, self._listening)

    def _listening(self, port: IListeningPort) -> None:
        self._port = port
        self._port.stopReading()  # connections are for the children

    def startService(self) -> None:
        super().startService()
        if self._port is None:
            self.privilegedStartService()
        try:
            self._counts = make_directory()
        except OSError as error:
            raise CannotStart(f"no directory can be made for what the server processes count: {error}") from error
        self._environment[DIRECTORY] = self._counts.name
        self._old_handler = signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))
        for place in self._places:
            self._start(place)

    def stopService(self) -> Deferred[None]:
        """Fires once all children have ended: in order, or killed when MYPYPI_DRAIN_TIME is long over."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._old_handler is not None:
            signal.signal(signal.SIGHUP, self._old_handler)
        for place in self._places:
            if place.start is not None:
                place.start.cancel()
                place.start = None
        for run in list(self._runs):
            run.stop()
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)  # after that nobody can connect, whatever the children are still at
        if self._runs:
            self._gone = Deferred()
            await self._gone
        if self._counts is not None:
            self._counts.cleanup()

    # Children come and go

    def _start(self, place: _Place) -> None:
        place.start = None
        place.run = self._spawn(place)

    def _spawn(self, place: _Place) -> Run:
        run = Run(self, place.number, self._reactor, self._settings.drain_time)
        self._runs.add(run)
        run.start(self._environment, self._port.fileno(), relay=self._relay)
        return run

    def ready(self, run: Run, words: str) -> None:
        """A child serves."""
        self._failures = 0
        self.log.info("child {number} serves, pid {pid}", number=run.number, pid=run.pid)
        if not self._announced and all(place.run is not None and place.run.ready for place in self._places):
            self._announced = True
            self.log.info("ready: {ready}; {words}", ready=ready_line(self._settings, self._port), words=words)

    def ended(self, run: Run, how: str) -> None:
        """A child has ended, asked or not."""
        self._runs.discard(run)
        if self._counts is not None and run.pid is not None:
            metrics.forget_process(run.pid, self._counts.name)
        if not self.running:
            if self._gone is not None and not self._runs:
                self._gone.callback(None)
            return
        place = self._places[run.number - 1]
        if run is not place.run:  # the one that took its place serves, or else whoever started it tells
            if run.ready:
                self.log.info("child {number}, pid {pid}, has ended ({how})", number=place.number, pid=run.pid, how=how)
            return
        place.run = None
        if run.ready:
            if self._reactor.seconds() - run.ready_at >= _GOOD_RUN:
                place.pause = _FIRST_PAUSE
        else:
            self._failures += 1
            if self._failures > len(self._places) and not self._runs:  # and none had but one try
                self._give_up(how)
                return
        self.log.error(
            "child {number}, pid {pid}, ended {when}({how}); it is started again in {pause:g} s",
            number=place.number,
            pid=run.pid,
            when="" if run.ready else "before it was ready ",
            how=how,
            pause=place.pause,
        )
        place.start = self._reactor.callLater(place.pause, self._start, place)
        place.pause = min(place.pause * 2, _LONGEST_PAUSE)

    def _give_up(self, how: str) -> None:
        for place in self._places:
            if place.start is not None:
                place.start.cancel()
                place.start = None
        self.log.critical(
            "no server process can start: {count} ended before they were ready, the last with {how}; see above for why",
            count=self._failures,
            how=how,
        )
        give_up(self._reactor)

    # All are replaced

    def reload(self) -> None:
        """Replace every child by a new one, which has the program and the certificate as they are now."""
        if self._reloading:
            self._reload_again = True
        elif self.running:
            self._reloading = True
            done = Deferred.fromCoroutine(self._reload())
            done.addErrback(lambda failure: self.log.failure("could not replace the children", failure))
            done.addCallback(self._reloaded)

    async def _reload(self) -> None:
        self.log.info("the children are replaced")
        for place in self._places:
            if place.run is None or not place.run.ready:
                continue  # the next one to start there is new
            new = self._spawn(place)
            serves = await new.settled
            if not self.running:
                return
            if not serves:
                self.log.error(
                    "child {number} was not replaced: the new one, pid {pid}, ended before it was ready; those that"
                    " serve go on",
                    number=place.number,
                    pid=new.pid,
                )
                return
            if place.start is not None:
                place.start.cancel()
                place.start = None
            old, place.run = place.run, new
            if old is not None:
                old.stop()
        self.log.info("the children are new, those before them end with what they are at")

    def _reloaded(self, _: object) -> None:
        self._reloading = False
        if self._reload_again:
            self._reload_again = False
            self.reload()
