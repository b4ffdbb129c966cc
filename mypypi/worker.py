"""What happens behind the requests, once here and once there: for now, the housekeeping of one data directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.application.internet import TimerService
from twisted.logger import Logger

if TYPE_CHECKING:
    from mypypi.drafts import Drafts

_EVERY = 600


class Worker(TimerService):
    """Sweeps drafts that nobody fills any more, now and every ten minutes."""

    log = Logger()

    def __init__(self, drafts: Drafts, reactor: Any) -> None:
        super().__init__(_EVERY, self._sweep)
        self.clock = reactor
        self._drafts = drafts

    def _sweep(self) -> None:
        try:
            self._drafts.sweep()
        except OSError as error:  # a timer that fails once never comes again
            self.log.error("the drafts can't be swept: {why}", why=error)
