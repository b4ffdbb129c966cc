"""The tasks that wait for a render process, and which one is next.

Knows when a task came, and how much work it has. Must never know processes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count
from typing import Generic, Protocol, TypeVar

#: Bytes of work for which a task lets those pass that come up to a second later. So small pages do not wait for large
#: ones, and no page waits for ever.
WORK_PER_SECOND = 2 * 1024 * 1024


class _HasWork(Protocol):
    @property
    def work(self) -> int: ...


T = TypeVar("T", bound=_HasWork)


class Waiting(Generic[T]):
    """Tasks that wait. `seconds` is the time."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._number = count()
        self._tasks: list[tuple[float, int, T]] = []

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[T]:
        return (task for _, _, task in sorted(self._tasks, key=lambda each: each[:2]))

    def add(self, task: T) -> None:
        """Let a task wait."""
        turn = self._seconds() + task.work / WORK_PER_SECOND
        heapq.heappush(self._tasks, (turn, next(self._number), task))

    def first(self) -> T | None:
        """Return the task whose turn it is."""
        return self._tasks[0][2] if self._tasks else None

    def pop(self) -> T:
        """Remove and return the task whose turn it is."""
        return heapq.heappop(self._tasks)[2]

    def clear(self) -> None:
        """Remove all tasks."""
        self._tasks.clear()
