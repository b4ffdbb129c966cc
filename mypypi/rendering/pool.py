"""A small pool of long-lived render processes: which one does which task, and when one is replaced.

Knows processes, time limits and which tasks are large. Must never know what a task is about.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mypypi.errors import TemporarilyUnavailable
from mypypi.rendering.process import RenderProcess
from mypypi.rendering.tasks import LARGEST_PAGE, UNDERSTATED, is_derived, is_large, restated, work_in
from mypypi.rendering.waiting import Waiting

if TYPE_CHECKING:
    from mypypi.threads import Threads

#: Seconds that a task may take before its process is killed.
TASK_SECONDS = 20.0
#: Bytes of work that large tasks may have together while they are done. One alone may have any.
MOST_LARGE_WORK = LARGEST_PAGE
#: Seconds after which a small task is stopped, and done again as a large one.
SMALL_SECONDS = 2.0
#: Tasks that may wait, and their bytes; more are refused.
_MOST_WAITING = 10_000
_MOST_WAITING_BYTES = 512 * 1024 * 1024
#: Processes that end in the middle of a task, one after the other, from which on the pages are not to blame; and the
#: seconds for which that counts.
_MANY_DEATHS = 3
_RECENT = 60.0
#: Seconds without a task after which all processes but one are ended.
_IDLE = 300.0

_STOPPED = "this server is being stopped: try again"


@define(eq=False)
class _Task:
    """An encoded task that waits for a process, or is being done."""

    data: bytes
    is_large: bool
    done: Deferred[bytes] = field(factory=lambda: Deferred(lambda _: None))

    @property
    def work(self) -> int:
        return work_in(self.data)

    @property
    def is_derived(self) -> bool:
        return is_derived(self.data)


class RenderPool(Service):
    """
    Up to `size` render processes, started when they are needed, and kept.

    Smaller tasks come before larger ones that came a little earlier. Large tasks always leave one process to small
    ones, and small ones leave one to them. Large ones have `MOST_LARGE_WORK` together, which bounds their memory. A
    small task that takes long, or has more work than it says, becomes a large one. Large tasks that derive a form take
    turns with those that render a page. A task that takes longer than `seconds` is ended with its process. A process
    that has grown is replaced after its task. `threads` has a thread for each process, and one more.
    """

    log = Logger()

    def __init__(
        self,
        threads: Threads,
        clock: Any,
        size: int,
        *,
        seconds: float = TASK_SECONDS,
        start: Callable[[], RenderProcess] = RenderProcess,
    ) -> None:
        self._threads = threads
        self._clock = clock
        self._size = size
        self._seconds = seconds
        self._start = start
        self._idle: list[RenderProcess] = []
        self._busy: dict[RenderProcess, _Task] = {}
        self._small: Waiting[_Task] = Waiting(clock.seconds)
        self._large: Waiting[_Task] = Waiting(clock.seconds)
        #: Large ones that derive a form, and whether the last large task that began was one.
        self._derived: Waiting[_Task] = Waiting(clock.seconds)
        self._derived_was_last = False
        self._waiting_bytes = 0
        self._surplus: IDelayedCall | None = None
        #: Why the last start of a process failed; empty if it did not.
        self._start_error = ""
        #: Processes that ended in the middle of a task, one after the other, and the time of the last one.
        self._deaths = 0
        self._died_at = 0.0

    def startService(self) -> None:
        """Start the first process, so that the first page does not wait for it."""
        super().startService()
        process = self._start_process()
        if process is not None:
            self._idle.append(process)

    def stopService(self) -> None:
        """Kill all processes. Tasks that wait or are being done fail."""
        super().stopService()
        if self._surplus is not None and self._surplus.active():
            self._surplus.cancel()
        for process in self._busy:
            process.kill()  # and `_ended` closes it
        for process in self._idle:
            process.close()
        self._idle.clear()
        self._refuse_all(_STOPPED, 1)

    def trouble(self) -> str:
        """
        Say what is wrong if no process can be started, or if one after the other ends in the middle of a task.

        Where the last start failed, this tries again.
        """
        if self._start_error and self.running and len(self._idle) + len(self._busy) < self._size:
            process = self._start_process()
            if process is not None:
                self._idle.append(process)
        if self._deaths >= _MANY_DEATHS and self._clock.seconds() - self._died_at < _RECENT:
            return f"the last {self._deaths} render processes ended in the middle of a page: the log has their output"
        if self._start_error:
            return f"no render process can be started, and new pages are refused: {self._start_error}"
        return ""

    def run(self, data: bytes) -> Deferred[bytes]:
        """
        Do an encoded task, and return its encoded result.

        Fails with RenderProcessEnded if the task exceeds its limits, and with TemporarilyUnavailable if too many wait.
        """
        task = _Task(data, is_large(data))
        waiting = len(self._small) + len(self._large) + len(self._derived)
        if not self.running:
            task.done.errback(TemporarilyUnavailable(_STOPPED, 1))
        elif waiting >= _MOST_WAITING or self._waiting_bytes + len(data) > _MOST_WAITING_BYTES:
            task.done.errback(TemporarilyUnavailable("too many pages wait to be rendered: try again"))
        else:
            self._enqueue(task)
            self._assign()
        return task.done

    def _enqueue(self, task: _Task) -> None:
        self._waiting_bytes += len(task.data)
        self._queue_of(task).add(task)

    def _queue_of(self, task: _Task) -> Waiting[_Task]:
        if not task.is_large:
            return self._small
        return self._derived if task.is_derived else self._large

    def _assign(self) -> None:
        """Give waiting tasks to idle processes; start another process if there are too few."""
        while (task := self._due()) is not None:
            process = self._idle_process(task)
            if process is None and len(self._busy) < self._size:
                process = self._start_process()
            if process is None:
                return
            self._queue_of(task).pop()
            if task.is_large:
                self._derived_was_last = task.is_derived
            self._waiting_bytes -= len(task.data)
            self._perform(process, task)

    def _due(self) -> _Task | None:
        """Return the next task: small ones first, except on the process that they leave to large ones."""
        small, large = self._first(self._small), self._first_large()
        if large is None or not self._is_room_for_large(large):
            return small
        is_alone = self._size > 1 and not any(task.is_large for task in self._busy.values())
        return large if small is None or is_alone else small

    def _first_large(self) -> _Task | None:
        page, derived = self._first(self._large), self._first(self._derived)
        if page is None or derived is None:
            return page or derived
        return page if self._derived_was_last else derived

    def _is_room_for_large(self, large: _Task) -> bool:
        """Whether a process remains for small tasks, and memory for this one, if this task runs too."""
        running = [task.work for task in self._busy.values() if task.is_large]
        return len(running) < max(1, self._size - 1) and (not running or sum(running) + large.work <= MOST_LARGE_WORK)

    def _first(self, tasks: Waiting[_Task]) -> _Task | None:
        """Return the first task whose caller still waits."""
        while (task := tasks.first()) is not None and task.done.called:
            self._waiting_bytes -= len(tasks.pop().data)
        return task

    def _idle_process(self, task: _Task) -> RenderProcess | None:
        """Return an idle process: preferably a slow one for a large task, and another for a small one."""
        self._idle.sort(key=lambda process: process.is_slow == task.is_large)
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            self._close(process)
        return None

    def _start_process(self) -> RenderProcess | None:
        try:
            process = self._start()
        except OSError as error:
            self._start_error = error.strerror or str(error)
            if not self._busy:
                self._refuse_all(f"no process can be started to render the page ({self._start_error}): try again")
            return None
        self._start_error = ""
        return process

    def _refuse_all(self, why: str, retry_after: int = 5) -> None:
        waiting = [*self._small, *self._large, *self._derived]
        self._small.clear()
        self._large.clear()
        self._derived.clear()
        self._waiting_bytes = 0
        for task in waiting:
            _fire(task, Failure(TemporarilyUnavailable(why, retry_after)))

    def _perform(self, process: RenderProcess, task: _Task) -> None:
        self._busy[process] = task
        if task.is_large and self._size > 1:
            process.slow_down()
        seconds = self._seconds if task.is_large else min(self._seconds, SMALL_SECONDS)
        limit = self._clock.callLater(seconds, process.kill)
        self._threads.run(process.perform, task.data).addBoth(self._ended, process, task, limit)

    def _ended(self, result: bytes | Failure, process: RenderProcess, task: _Task, limit: IDelayedCall) -> None:
        was_killed = not limit.active()
        if not was_killed:
            limit.cancel()
        del self._busy[process]
        failed = isinstance(result, Failure)
        if not failed:
            self._deaths = 0
        elif not was_killed:
            self._deaths += 1
            self._died_at = self._clock.seconds()
        if not self.running:
            process.close()
        elif process.has_grown or failed or was_killed:
            self._close(process)
        else:
            self._idle.append(process)
        self._end_surplus_later()
        if failed and not self.running:  # that is no fault of the page
            _fire(task, Failure(TemporarilyUnavailable(_STOPPED, 1)))
        elif failed and was_killed and not task.is_large:
            task.is_large = True
            self._enqueue(task)
        elif result == UNDERSTATED and task.work < LARGEST_PAGE:
            task.data, task.is_large = restated(task.data), True
            self._enqueue(task)
        else:
            _fire(task, result)
        self._assign()

    def _close(self, process: RenderProcess) -> None:
        self._threads.run(process.close).addErrback(
            lambda failure: self.log.failure("a render process could not be ended", failure)
        )

    def _end_surplus_later(self) -> None:
        if self._surplus is not None and self._surplus.active():
            self._surplus.cancel()
        self._surplus = self._clock.callLater(_IDLE, self._end_surplus) if self.running else None

    def _end_surplus(self) -> None:
        """End all idle processes but one."""
        while len(self._idle) > 1:
            self._close(self._idle.pop())


def _fire(task: _Task, result: bytes | Failure) -> None:
    if not task.done.called:  # its waiter may have left
        task.done.callback(result)
