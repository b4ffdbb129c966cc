"""A TCP relay between two programs that delays the answers on demand.

Knows bytes and sockets. Must never know their meaning.
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
    Relays connections from one port of loopback to another, and delays the answers.

    `delay` is in seconds. `delayed` counts the pieces of answers that were delayed. Use as a context manager.
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
        for opened in self._sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        self._thread.join(BOUND)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._relay, args=ends, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:  # noqa: FBT001 - one of two directions
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if is_answer and self.delay:
                    time.sleep(self.delay)  # simulates latency; no test waits here
                    self.delayed += 1
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
