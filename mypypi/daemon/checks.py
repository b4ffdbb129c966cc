"""The checks that health is made of, one for each part: Redis, storage, upstream, queue, and the process itself.

Knows the backends and the index, and says what an operator can do. Must never know how health is reported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mypypi.daemon.child_process import PROCESSES
from mypypi.errors import Degraded
from mypypi.observability.metrics import are_in_files, count_processes

if TYPE_CHECKING:
    from mypypi.daemon.backends import Backends
    from mypypi.daemon.index import Index
    from mypypi.job import QueueState
    from mypypi.web.health import Check


def make_checks(backends: Backends, index: Index) -> dict[str, Check]:
    """Return the checks by the name of their part; each raises a MyPyPiError while its part is in trouble."""

    async def check_redis() -> None:
        await backends.catalog.check()
        backends.eviction.check()

    async def check_storage() -> None:
        await backends.storage.check()
        await index.fetches.check()
        backends.sweep.check()

    async def check_upstream() -> None:
        await index.pages.check()
        await index.upstream.check_all()

    async def check_queue() -> None:
        trouble = queue_trouble(await backends.queue.state())
        if trouble:
            raise Degraded(trouble)

    async def check_process() -> None:
        backends.own_process.check()
        backends.time_of_day.check()
        if are_in_files():
            await backends.render_threads.run(_check_other_processes)

    return {
        "redis": check_redis,
        "storage": check_storage,
        "upstream": check_upstream,
        "queue": check_queue,
        "process": check_process,
    }


def queue_trouble(state: QueueState) -> str:
    """Say what is wrong with the jobs and what to do; empty if nothing is."""
    found = []
    if state.unattended:
        found.append(
            f"{_jobs(state.unattended, 'waits', 'wait')} for a worker, and none runs that can do it: start twistd"
            " mypypi-worker with the same Redis and data directory"
        )
    if state.later:
        found.append(f"{_jobs(state.later, 'has', 'have')} failed and will be retried")
    if state.dead:
        found.append(
            f"{_jobs(state.dead, 'was', 'were')} set aside after failing too often: mypypi jobs shows the reasons, then"
            " use mypypi jobs retry or mypypi jobs drop"
        )
    return "; ".join(found)


def _jobs(number: int, one: str, several: str) -> str:
    return f"1 job {one}" if number == 1 else f"{number} jobs {several}"


def _check_other_processes() -> None:
    """Raise Degraded if another process of this server does not run, or is in trouble. Blocks on file access."""
    try:
        running, degraded = count_processes()
    except OSError as error:
        raise Degraded(f"the metrics of the server processes can't be read: {error.strerror}") from error
    if not running:  # this one does
        raise Degraded("the files with the metrics of the server processes are gone: restart the server")
    expected = int(os.environ.get(PROCESSES, "0"))
    if running < expected:
        raise Degraded(
            f"{running} of {expected} server processes run: see the supervisor's log for why the others ended"
        )
    if degraded:
        raise Degraded(f"{degraded} of {running} server processes are in trouble: see the log of each for why")
