"""Takes file descriptors away from processes, and gives them back. Linux only.

Knows the limits of processes. Must never know what a process does with its descriptors.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def open_numbers(pid: int) -> set[int]:
    """The numbers of the descriptors that a process has open."""
    place = Path(f"/proc/{pid}/fd")
    return {int(name) for name in os.listdir(place) if (place / name).is_symlink()}  # without that of the listing


def free_descriptors(pid: int) -> int:
    """The number of descriptors that a process may still open."""
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    return limit - sum(number < limit for number in open_numbers(pid))


@contextmanager
def few_descriptors(pids: Sequence[int], free: int) -> Iterator[None]:
    """Lower the limits of processes, so that each may open `free` more descriptors. Raise them again at the end."""
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    try:
        for pid, (_, hard) in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (_limit_for(open_numbers(pid), free), hard))
        yield
    finally:
        for pid, limit in limits.items():
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)


def _limit_for(numbers: set[int], free: int) -> int:
    """Return the limit below which `free` numbers are not in use."""
    limit = 0
    while free:
        free -= limit not in numbers
        limit += 1
    while limit in numbers:
        limit += 1
    return limit


@contextmanager
def started_with(soft: int) -> Iterator[None]:
    """Lower this process's own limit, which the processes that it starts meanwhile inherit and keep."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
