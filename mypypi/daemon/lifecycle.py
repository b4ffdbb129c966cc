"""Starts and stops the services of a daemon in order, or ends the daemon on failure.

Knows the order of services, and twistd's way to end. Must never know what a service does.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ReactorNotRunning


class CannotStart(SystemExit, Exception):
    """
    The daemon can't start, for a reason that the operator can fix. twistd prints the message and ends with status 1.

    twistd removes its pid file only after an Exception; Python prints a SystemExit without a traceback. So it is both.
    """


class OrderedServices(Service):
    """
    Starts services one after the other, and stops them in reverse order, waiting for each.

    The objects that exist when all have started stay until the end, so the garbage collector is told to ignore them: a
    full collection would otherwise stop the reactor for 25 to 60 ms.
    """

    def __init__(self, services: Sequence[IService]) -> None:
        self._services = services

    def privilegedStartService(self) -> None:
        for service in self._services:
            service.privilegedStartService()

    def startService(self) -> None:
        super().startService()
        for service in self._services:
            service.startService()
        gc.freeze()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for service in reversed(self._services):
            await maybeDeferred(service.stopService)


def stop_with_failure(reactor: Any) -> None:
    """Stop the daemon with exit status 1. The caller has logged the reason."""
    # twistd has no exit code of its own for this. By then it has removed its pid file and closed its log.
    atexit.register(os._exit, 1)
    reactor.callWhenRunning(lambda: stop(reactor))  # a failure during the start comes before the reactor runs


def stop(reactor: Any) -> None:
    """Stop a running reactor. This does nothing if it stops already, for another reason."""
    with suppress(ReactorNotRunning):
        reactor.stop()
