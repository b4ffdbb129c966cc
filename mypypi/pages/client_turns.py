"""Runs work for clients: a few pieces at a time for each of them, so that one can't keep the others waiting.

Knows the names of clients. Must never know what the work does.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import DeferredSemaphore

from mypypi.coalescing import Coalescer
from mypypi.errors import TemporarilyUnavailable

T = TypeVar("T")

#: Pieces of work of one client that are done at once, and that wait besides.
MOST_AT_ONCE = 4
MOST_WAITING = 256


class ClientTurns:
    """Pieces of work of each client, done in the order of their arrival."""

    def __init__(self) -> None:
        self._clients: dict[str, DeferredSemaphore] = {}
        self._running: Coalescer[Any] = Coalescer()

    def is_full(self, client: str) -> bool:
        """Whether no more work of this client may wait."""
        turns = self._clients.get(client)
        return turns is not None and len(turns.waiting) >= MOST_WAITING

    async def run(self, client: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """
        Do the work when it is this client's turn. Raises TemporarilyUnavailable if too much of it waits.

        Work that has begun goes on if its caller cancels it, and it keeps its turn until it is done.
        """
        if self.is_full(client):
            raise TemporarilyUnavailable("too many requests of this client wait: try again")
        turns = self._clients.setdefault(client, DeferredSemaphore(MOST_AT_ONCE))
        await turns.acquire()

        async def do() -> T:
            try:
                return await work()
            finally:
                turns.release()
                if turns.tokens == turns.limit:
                    del self._clients[client]

        result: T = await self._running.run(object(), do)
        return result
