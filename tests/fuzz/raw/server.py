"""A server on loopback that sends exactly the bytes it is told, for each request.

Knows sockets, and enough of HTTP to find the end of a request. Must never know what it serves, or why.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Thread

from attrs import field, frozen
from typing_extensions import Self

from tests.fuzz.raw.answers import RawAnswer

#: Bytes of a request that are read at most.
_LARGEST = 1 << 20
#: Seconds for which a connection stays open without a request, or is hung, and after which an endless answer ends.
PATIENCE = 6.0
#: Bytes of an endless answer, so that a daemon without a limit is found by its memory.
_MOST_ENDLESS = 60_000_000
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@frozen
class Received:
    """A request: the address at which it came in, and its parts. The names of its headers are in lower case."""

    address: str
    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class RawServer:
    """
    Listens on the same port of several addresses of loopback. `answer` tells the answer to a request, and `patience` is
    the seconds for which a connection stays open without a byte.

    Use as a context manager.
    """

    def __init__(self, answer: Callable[[Received], RawAnswer], patience: float) -> None:
        self._answer, self._patience = answer, patience
        first = _listening((ADDRESSES[0], 0))
        self.port = int(first.getsockname()[1])
        self._listeners = [first, *(_listening((address, self.port)) for address in ADDRESSES[1:])]
        self.urls = tuple(f"http://{address}:{self.port}" for address in ADDRESSES)

    def __enter__(self) -> Self:
        for listener in self._listeners:
            Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        address = listener.getsockname()[0]
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: str) -> None:
        connection.settimeout(self._patience)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(OSError):
            unread = b""
            while True:
                request, unread = _read_request(connection, address, unread)
                if request is None or not self._send(connection, self._answer(request)):
                    return

    def _send(self, connection: socket.socket, answer: RawAnswer) -> bool:
        """Send the answer. Returns False if the connection is to be closed."""
        for piece in answer.pieces:
            connection.sendall(piece)
            if answer.pause:
                time.sleep(answer.pause)
        sent, until = 0, time.monotonic() + self._patience
        while answer.endless and sent < _MOST_ENDLESS and time.monotonic() < until:
            connection.sendall(answer.endless)
            sent += len(answer.endless)
        if answer.end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif answer.end == "hang":
            while connection.recv(65_536):
                pass
        return answer.end == "keep"


def _listening(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen(256)
    return listener


def _read_request(connection: socket.socket, address: str, data: bytes) -> tuple[Received | None, bytes]:
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65_536)
        if not piece or len(data) > _LARGEST:
            return None, b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", "0"))
    while len(rest) < length:
        piece = connection.recv(65_536)
        if not piece:
            return None, b""
        rest += piece
    method, target, _ = first.split(" ")
    return Received(address, method, target, headers, rest[:length]), rest[length:]
