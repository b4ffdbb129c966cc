"""Tests of thread pools that run as a service."""

from __future__ import annotations

from threading import Event
from typing import cast

from twisted.internet.interfaces import IReactorFromThreads

from mypypi.errors import TemporarilyUnavailable
from mypypi.threads import Threads
from tests.rendering.processes import Loop


def test_too_much_work_is_refused() -> None:
    """A pool with a limit refuses what is beyond it with a 503, and takes work again when it has ended some."""
    loop, release = Loop(), Event()
    threads = Threads(cast("IReactorFromThreads", loop), "decoding", 1, most=3)
    threads.startService()
    try:
        running = [threads.run(lambda: b"%d" % release.wait(30)) for _ in range(3)]
        (refused,) = loop.wait(threads.run(bytes))
        assert isinstance(refused, TemporarilyUnavailable)
        assert "decoding threads" in str(refused)
        release.set()
        assert loop.wait(*running) == [b"1"] * 3
        assert loop.wait(threads.run(lambda: b"again")) == [b"again"]
    finally:
        release.set()
        threads.stopService()
