"""The queue of jobs: its interface and its values, all frozen.

Knows nothing but them. Must never know what a job does, or how it is queued.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from hashlib import sha256

from attrs import field, frozen
from zope.interface import Interface


@frozen
class Job:
    """
    A job for a worker. `name` is unique among the jobs of a `kind`.

    `about` has the job's arguments, as text. With `disk`, only a worker with access to the data directory of this id
    can run it. `tries` counts its failed tries.
    """

    kind: str
    name: str
    about: Mapping[str, str] = field(factory=dict)
    disk: str = ""
    tries: int = 0


@frozen
class ClaimedJob:
    """A job that a worker has claimed, with its stream and its entry's id there."""

    job: Job
    stream: str
    id: str


@frozen
class DeadJob:
    """A job that failed too often and was set aside.

    `id` identifies it in the list of such jobs, `at` is when it was set aside (seconds since the epoch).
    """

    job: Job
    id: str
    why: str
    at: float


@frozen
class LaterJob:
    """A job that failed and waits for its next try, `at` a time in seconds since the epoch."""

    job: Job
    at: float
    #: The job as the queue holds it.
    entry: str = field(default="", repr=False)

    @property
    def id(self) -> str:
        """Identifies the job among those that wait. There is one of each kind, name and disk."""
        return sha256(repr((self.job.kind, self.job.name, self.job.disk)).encode()).hexdigest()[:12]


@frozen
class QueueState:
    """The number of jobs by state.

    `waiting` are queued or running, `later` wait for their next try, `dead` were set aside. Of `waiting` and `later`,
    `unattended` are jobs that no running worker can do. `oldest` is the age in seconds of the oldest of `waiting`, 0
    without one.
    """

    waiting: int
    later: int
    dead: int
    unattended: int = field(default=0, eq=False)  # changes when a worker has ended, as time passes
    oldest: float = field(default=0.0, eq=False)  # changes at every look


class IQueue(Interface):
    """
    The queue of jobs for workers. It delivers every job at least once.

    Every method raises CatalogDown if the queue can't be reached.
    """

    def put(job: Job) -> Awaitable[None]:
        """
        Queue a job.

        Does nothing while a job of the same kind, name and disk waits, runs, or waits for its next try, nor while very
        many jobs wait.
        """

    def take(count: int) -> Awaitable[list[ClaimedJob]]:
        """
        Claim up to `count` jobs for this worker.

        No other worker gets these jobs until the claim expires. If there is no job, this waits a few seconds for one;
        the list may be empty.
        """

    def renew(taken: ClaimedJob) -> Awaitable[None]:
        """Renew the claim, for its full length from now. Call this regularly while the job runs."""

    def done(taken: ClaimedJob) -> Awaitable[None]:
        """Remove a job that succeeded."""

    def failed(taken: ClaimedJob, why: str) -> Awaitable[bool]:
        """
        Record that a try of the job failed.

        The job is queued again after a delay that grows with each failure. Returns False if it has failed too often: it
        is set aside then, with `why` as the reason.
        """

    def hand_back(taken: ClaimedJob) -> Awaitable[None]:
        """Return a job to the queue, at once and without counting a failed try."""

    def dead() -> Awaitable[list[DeadJob]]:
        """Return the jobs that were set aside, oldest first."""

    def revive(dead: DeadJob) -> Awaitable[bool]:
        """
        Queue a job again that was set aside.

        It has all its tries again. If the same job is queued already, it is only removed from the list. Returns False
        if it is not in the list any more.
        """

    def later() -> Awaitable[list[LaterJob]]:
        """
        Return the jobs that wait for their next try, on all disks, soonest first.

        It is slow if Redis holds many keys: use it only for an operator's command.
        """

    def hurry(later: LaterJob) -> Awaitable[bool]:
        """
        Queue a job at once that waits for its next try. It has all its tries again.

        Returns False if it does not wait any more.
        """

    def drop(dead: DeadJob) -> Awaitable[bool]:
        """Delete a job that was set aside. Returns False if it is not in the list any more."""

    def state(*, everywhere: bool = False) -> Awaitable[QueueState]:
        """
        Count the jobs by state.

        Counts the jobs for any disk and for this queue's own disk; with `everywhere`, for all disks. With `everywhere`
        it is slow if Redis holds many keys: use it only for an operator's command.
        """

    def check() -> Awaitable[None]:
        """Raise CatalogDown, with the reason, if jobs can't be queued now."""
