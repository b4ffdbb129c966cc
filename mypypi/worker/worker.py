"""Takes jobs from the queue and runs them, several at once.

The worker renews the claim of each running job. A job that fails is tried again later. When the worker stops, it hands
unfinished jobs back. Knows the queue. Must never know what a job does.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from mypypi.errors import CatalogDown, MyPyPiError
from mypypi.job import ClaimedJob, Job
from mypypi.worker.jobs import SWEEP

if TYPE_CHECKING:
    from mypypi.job import IQueue
    from mypypi.worker.jobs import Jobs

#: Seconds between two renewals of a job's claim: a third of the claim.
_RENEW = 5.0
#: Seconds between two sweeps of the disk, and between two sweeps of the records of stored files.
_SWEEP = 600.0
_RECORDS = 86_400.0
#: Seconds until the next try when the queue can't be reached.
_PAUSE = 1.0
#: Seconds after the queue is back until a sweep is queued. The servers need some time to reconnect as well.
_SETTLE = 3.0
#: When the worker stops, jobs may run on for this many seconds; then they are interrupted.
_LAST_CHANCE = 10.0
#: Seconds that interrupted jobs have to end; then they are cancelled.
_INTERRUPTED = 5.0


class Worker(Service):
    """Runs up to `concurrency` jobs at once. `disk` is the id of the data directory that it has access to."""

    log = Logger()

    def __init__(self, queue: IQueue, jobs: Jobs, clock: Any, *, concurrency: int, disk: str) -> None:
        self._queue = queue
        self._jobs = jobs
        self._clock = clock
        self._concurrency = concurrency
        self._disk = disk
        self._running: dict[tuple[str, str], Deferred[None]] = {}
        self._loop: Deferred[None] | None = None
        self._room: Deferred[None] | None = None
        self._timers = [LoopingCall(self._queue_sweep, records=False), LoopingCall(self._queue_sweep, records=True)]
        self._stopping = False

    def startService(self) -> None:
        super().startService()
        self._stopping = False
        for timer, seconds in zip(self._timers, (_SWEEP, _RECORDS), strict=True):
            timer.clock = self._clock
            timer.start(seconds)
        self._loop = Deferred.fromCoroutine(self._take_jobs())
        self._loop.addErrback(lambda failure: self.log.failure("the worker stopped unexpectedly", failure))

    def stopService(self) -> Deferred[None]:
        """
        Take no more jobs. Fires once every running job has ended or was handed back.

        Jobs take at most 15 seconds to end; after that, only the queue can cause a delay.
        """
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        for timer in self._timers:
            if timer.running:
                timer.stop()
        self._make_room()
        late = [
            self._clock.callLater(_LAST_CHANCE, self._jobs.interrupt),
            self._clock.callLater(_LAST_CHANCE + _INTERRUPTED, self._cancel),
        ]
        if self._loop is not None:
            await self._loop
        await DeferredList([_when_ended(job) for job in self._running.values()])
        for call in late:
            if call.active():
                call.cancel()

    def _cancel(self) -> None:
        for job in list(self._running.values()):
            job.cancel()

    async def _take_jobs(self) -> None:
        lost = False
        while not self._stopping:
            room = self._concurrency - len(self._running)
            if room <= 0:
                self._room = Deferred()
                await self._room
                continue
            try:
                taken = await self._queue.take(room)
            except CatalogDown:
                lost = True
                await deferLater(self._clock, _PAUSE)
                continue
            if lost:
                lost = False
                self._clock.callLater(_SETTLE, self._find_lost_jobs)
            for each in taken:
                job = Deferred.fromCoroutine(self._do(each))
                self._running[each.stream, each.id] = job
                job.addErrback(lambda failure: self.log.failure("a job's result could not be recorded", failure))
                job.addBoth(self._ended, (each.stream, each.id))

    def _ended(self, result: object, identity: tuple[str, str]) -> None:
        self._running.pop(identity, None)
        self._make_room()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)

    async def _do(self, taken: ClaimedJob) -> None:
        job = taken.job
        renewing = LoopingCall(self._renew, taken)
        renewing.clock = self._clock
        renewing.start(_RENEW, now=False)
        try:
            await self._attempt(taken)
        except CatalogDown as error:  # the job runs again; only debug, since the Redis client logs that Redis is down
            self.log.debug("result of {kind} {name} was not recorded: {why}", kind=job.kind, name=job.name, why=error)
        finally:
            renewing.stop()

    async def _attempt(self, taken: ClaimedJob) -> None:
        job = taken.job
        try:
            await self._handle(job)
        except Exception as error:  # noqa: BLE001 - after any error, the job is tried again
            if self._stopping:
                await self._queue.hand_back(taken)
                return
            why = str(error) if isinstance(error, MyPyPiError) else f"{type(error).__name__}: {error}"
            if job.tries == 0 and not isinstance(error, MyPyPiError):
                self.log.failure("{kind} {name} failed", kind=job.kind, name=job.name)
            elif job.tries == 0:
                self.log.warn("{kind} {name} is tried again: {why}", kind=job.kind, name=job.name, why=why)
            if not await self._queue.failed(taken, why):
                self.log.error("{kind} {name} is set aside: {why}", kind=job.kind, name=job.name, why=why)
        else:
            await self._queue.done(taken)

    async def _handle(self, job: Job) -> None:
        if self._stopping:
            raise MyPyPiError("the worker is stopping")
        handler = self._jobs.handlers.get(job.kind)
        if handler is None:
            raise MyPyPiError(f"there is no job of this kind: {job.kind}")
        await handler(job)

    async def _renew(self, taken: ClaimedJob) -> None:
        with suppress(CatalogDown):  # the next renewal tries again; without any, the claim expires
            await self._queue.renew(taken)

    def _find_lost_jobs(self) -> None:
        """
        Queue a sweep, which queues missing jobs.

        Jobs could not be queued while the queue was down, or were lost with its data.
        """
        if not self._stopping:
            Deferred.fromCoroutine(self._queue_sweep(records=False)).addErrback(
                lambda failure: self.log.failure("a sweep could not be queued", failure)
            )

    async def _queue_sweep(self, *, records: bool) -> None:
        about = {"records": "yes"} if records else {}
        with suppress(CatalogDown):  # the timer queues the next sweep
            await self._queue.put(Job(SWEEP, "records" if records else "disk", about, self._disk))


def _when_ended(job: Deferred[None]) -> Deferred[None]:
    """Return a new Deferred that fires when the job has ended."""
    waiting: Deferred[None] = Deferred()

    def ended(result: Any) -> Any:
        waiting.callback(None)
        return result

    job.addBoth(ended)
    return waiting


__all__ = ["Worker"]
