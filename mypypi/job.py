"""The values of the queue, all frozen: a job, a job that a worker holds or that failed, and the queue's state.

Knows nothing but them. Must never know what a job does, or how it is queued.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen


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
class QueueState:
    """The number of jobs by state.

    `waiting` are queued or running, `later` wait for their next try, `dead` were set aside. `oldest` is the
    age in seconds of the oldest of `waiting`, 0 without one.
    """

    waiting: int
    later: int
    dead: int
    oldest: float = field(default=0.0, eq=False)  # changes at every look
