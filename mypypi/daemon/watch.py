"""Looks again and again whether something is in trouble, and logs the begin and the end of the trouble.

Knows a clock and the log. Must never know what it looks at.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mypypi.errors import Degraded, MyPyPiError


class Watch(Service):
    """
    Calls `look` at the start and then after every `seconds`, and remembers the trouble that it found.

    `look` returns the trouble in words, for the log and the health; an empty text means none. If it raises a
    MyPyPiError, nothing was found out, and the last result stays. `ended` is the log's line for the end of the trouble.
    """

    log = Logger()

    def __init__(self, look: Callable[[], Awaitable[str]], seconds: float, clock: Any, *, ended: str) -> None:
        self._look = look
        self._seconds = seconds
        self._ended = ended
        self._looking = LoopingCall(self._look_again)
        self._looking.clock = clock
        self._trouble = ""

    def startService(self) -> None:
        super().startService()
        self._looking.start(self._seconds)

    def stopService(self) -> None:
        super().stopService()
        if self._looking.running:
            self._looking.stop()

    def check(self) -> None:
        """Raise Degraded with the trouble, if the last look found one."""
        if self._trouble:
            raise Degraded(self._trouble)

    def _look_again(self) -> Deferred[None]:
        looked = Deferred.fromCoroutine(self._note_trouble())
        looked.addErrback(lambda failure: self.log.failure("a health check failed unexpectedly", failure))
        return looked

    async def _note_trouble(self) -> None:
        try:
            trouble = await self._look()
        except MyPyPiError:
            return
        if trouble and not self._trouble:
            self.log.error("{trouble}", trouble=trouble)
        elif self._trouble and not trouble:
            self.log.info("{ended}", ended=self._ended)
        self._trouble = trouble
