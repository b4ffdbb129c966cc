"""One of several server processes, from within: what its parent gives it, and what it gives back.

Knows descriptors and variables. Must never know how children are started, or what a server does.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from shutil import rmtree
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import FileLogObserver, ILogObserver, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mypypi.observability.logs import PROCESS, for_parent
from mypypi.observability.multiprocess import DIRECTORY

#: Its descriptors: one that ends with its parent, the listening socket, and one for a line that says that it is ready.
LIFELINE, LISTENING, REPORT = 0, 3, 4


def number() -> int | None:
    """This child's number, from 1 on; None in any other process."""
    text = os.environ.get(PROCESS, "")
    return int(text) if text.isdecimal() else None


@implementer(IReadDescriptor)
class Membership(Service):
    """Ends the process with its parent, in order, by whatever the parent ends."""

    log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def startService(self) -> None:
        super().startService()
        with suppress(PermissionError):  # it may lead a group already
            os.setpgid(0, 0)  # a Ctrl-C reaches the parent alone, which stops all of them in order
        self._reactor.addReader(self)

    def stopService(self) -> None:
        super().stopService()
        self._reactor.removeReader(self)

    def say_ready(self, words: str) -> None:
        """Tell the parent, in words for its own log."""
        with suppress(OSError):  # it is gone, which the lifeline tells as well
            os.write(REPORT, f"{words}\n".encode())
            os.close(REPORT)

    def fileno(self) -> int:
        return LIFELINE

    def logPrefix(self) -> str:
        return "lifeline"

    def doRead(self) -> None:
        if not os.read(LIFELINE, 64):
            self._orphaned()

    def connectionLost(self, reason: Failure) -> None:
        self._orphaned()

    def _orphaned(self) -> None:
        self._reactor.removeReader(self)
        if self.running:
            self.log.error("the process that started this one is gone; this one ends")
            if DIRECTORY in os.environ:  # nobody else is left to take it away
                atexit.register(rmtree, os.environ[DIRECTORY], ignore_errors=True)
            self._reactor.stop()


def to_parent() -> ILogObserver:
    """For twistd's ``--logger``: every event to the parent, which writes it where its own log goes."""
    return FileLogObserver(sys.stdout, for_parent)
