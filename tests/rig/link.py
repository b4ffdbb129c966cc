"""A TCP relay between two programs that delays the answers on demand.

Knows bytes and sockets. Must never know their meaning.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from functools import partial
from queue import Queue

from typing_extensions import Self

from .wire import BOUND

_PIECE = 64 * 1024


class SlowLink:
    """
    Relays connections from one port of loopback to another, and delays the answers.

    Each piece of an answer arrives `delay` seconds later, whether others are under way or not. `delayed` counts the
    pieces that were delayed. Use as a context manager.
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
                answers: Queue[tuple[float, bytes]] = Queue()
                for work in (
                    partial(self._relay, client, server),
                    partial(self._receive, server, answers),
                    partial(self._deliver, answers, client),
                ):
                    threading.Thread(target=work, daemon=True).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(_PIECE):
                server.sendall(piece)
            server.shutdown(socket.SHUT_WR)

    def _receive(self, server: socket.socket, answers: Queue[tuple[float, bytes]]) -> None:
        """Queue each piece of the answers with the time at which it is due; an empty one is the end."""
        piece = b"-"
        while piece:
            try:
                piece = server.recv(_PIECE)
            except OSError:
                piece = b""
            self.delayed += bool(piece and self.delay)
            answers.put((time.monotonic() + self.delay, piece))

    def _deliver(self, answers: Queue[tuple[float, bytes]], client: socket.socket) -> None:
        with suppress(OSError):
            while True:
                due, piece = answers.get()
                time.sleep(max(0.0, due - time.monotonic()))  # simulates latency; no test waits here
                if not piece:
                    break
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
