"""A client of raw bytes, and strict parsing of all answers on its connection.

Knows sockets and HTTP. Must never know what was requested.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

from attrs import frozen

from tests.fuzz.world import Answer, Violation, read_answers

#: Seconds without a byte, after which a client that has sent everything closes its own side.
_SILENCE = 0.6


@frozen
class Talk:
    """
    What a client sends, and how.

    `leave` is the number of bytes of the answer after which it disconnects, with `reset` by a reset; None: it stays.
    `half_close`: it closes its side once everything is sent. Else it does so once an answer came and nothing follows;
    with `impatient`, also if no answer comes.
    """

    pieces: Sequence[bytes]
    pause: float = 0.0
    leave: int | None = None
    reset: bool = False
    half_close: bool = False
    impatient: bool = False


def talk(port: int, what: Talk, timeout: float) -> bytes:
    """
    Send these bytes, and return everything that the daemon sends until it closes the connection.

    Raises Violation if the connection is still open after `timeout` seconds.
    """
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if what.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            for piece in what.pieces:
                connection.sendall(piece)
                if what.pause:
                    time.sleep(what.pause)
            if what.half_close:
                connection.shutdown(socket.SHUT_WR)
            _receive(connection, what, received, timeout)
        except OSError:  # the daemon closed the connection, perhaps with a reset
            with suppress(OSError):
                while data := connection.recv(65_536):
                    received += data
    return bytes(received)


def _receive(connection: socket.socket, what: Talk, received: bytearray, timeout: float) -> None:
    until, is_closed = time.monotonic() + timeout, what.half_close
    while what.leave is None or len(received) < what.leave:
        if time.monotonic() >= until:
            raise Violation(f"the connection is open after {timeout} s; got {bytes(received[:200])!r}")
        connection.settimeout(_SILENCE)
        try:
            data = connection.recv(65_536)
        except TimeoutError:
            if not is_closed and (received or what.impatient):
                connection.shutdown(socket.SHUT_WR)
                is_closed = True
            continue
        if not data:
            return
        received += data


def ask(
    port: int, target: str, *, method: str = "GET", accept: str = "*/*", body: bytes = b"", timeout: float
) -> Answer:
    """
    Send one well-formed request, and return its answer.

    Its status is 0 if the daemon closes the connection without one. Raises Violation if the answer is malformed, or if
    there is neither an answer nor an end within `timeout` seconds.
    """
    length = f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n" if body else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: here.example\r\nAccept: {accept}\r\nConnection: close\r\n{length}\r\n"
    received = talk(port, Talk((head.encode() + body,)), timeout)
    found = read_answers(received, [method == "HEAD"])
    if len(found) > 1:
        raise Violation(f"{len(found)} answers to one request: {received[-300:]!r}")
    return found[0] if found else Answer(0, {}, b"", whole=False)
