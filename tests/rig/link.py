"""A wire between two programs that a test can make slow: everything comes, only later.

Knows bytes and sockets. Must never know what they say.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from typing_extensions import Self

from .wire import BOUND

_PIECE = 64 * 1024


class SlowLink:
    """
    Accepts connections on a port of loopback and carries them to another, its answers `delay` seconds late. Use as a
    context manager. `delayed` counts the answers that came late.
    """

    def __init__(self, port: int) -> None:
        self.delay = 0.0
        self.delayed = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = [self._listener]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._thread.join(BOUND)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, late: bool) -> None:  # noqa: FBT001 - one of two ways
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if late and self.delay:
                    time.sleep(self.delay)  # a wire that is long, not a test that waits
                    self.delayed += 1
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
