"""Runs many clients at once in separate processes.

They are cheap enough that the server is the bottleneck. ``python -m tests.rig.load`` reads its order from stdin and
writes the outcomes to stdout. Each client compares the body with the expected content while it arrives, and keeps
nothing of it. Knows HTTP/1.1 from the client's side, with a Content-Length. Must never know which server answers.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from attrs import asdict, define, field, frozen

#: Bytes per read. Compared bytes should fit into the processor's cache; bytes that are only counted need not.
_PIECE, _UNCHECKED_PIECE = 128 * 1024, 2 * 1024 * 1024
#: Compares memory without copying it. Python's own ways copy it, or compare byte by byte.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_ROOT = Path(__file__).resolve().parents[2]
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\nlocation: *(\S+)", re.IGNORECASE)


@frozen
class Outcome:
    """
    The result of one client.

    `status` is that of its last response. `whole`: the body was complete and right. `wrong`: at least one byte of it
    was wrong. `location` is the target of a redirect, if there was one. `seconds` is the time from the client's start
    until its end.
    """

    url: str
    status: int
    whole: bool
    wrong: bool
    location: str
    seconds: float


class Storm:
    """
    Many running clients, in one process per processor.

    With `follow` the clients follow redirects. Without `check`, bytes are counted but not compared, which costs next to
    nothing: this is for measuring a server that shares the processors with its clients.
    """

    def __init__(self, urls: Sequence[str], expected: Path, *, follow: bool = False, check: bool = True) -> None:
        process_count = min(os.cpu_count() or 1, len(urls))
        order = {"expected": str(expected), "follow": follow, "check": check}
        self._processes = [
            _LoadProcess(order | {"urls": list(urls[number::process_count])}) for number in range(process_count)
        ]

    def outcomes(self) -> list[Outcome]:
        """Wait for all clients to end, and return their outcomes."""
        return [outcome for process in self._processes for outcome in process.outcomes()]


class _LoadProcess:
    """The clients of one process."""

    def __init__(self, order: dict[str, object]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.load"],
            cwd=_ROOT,
            env=dict(os.environ, PYTHONPATH=str(_ROOT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self._process.stdin is not None
        json.dump(order, self._process.stdin)
        self._process.stdin.close()
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "connected\n"

    def outcomes(self) -> list[Outcome]:
        """Wait for the clients to end, and return their outcomes."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            printed = stdout.read()
        assert self._process.wait() == 0
        return [Outcome(**each) for each in json.loads(printed)]


@define(eq=False)
class _Client:
    url: str
    expected: ctypes.Array[ctypes.c_char]
    buffer: ctypes.Array[ctypes.c_char]
    follow: bool
    check: bool
    began: float
    selector: selectors.DefaultSelector
    connection: socket.socket = field(init=False)
    head: bytes = b""
    status: int = 0
    length: int = -1
    at: int = 0
    wrong: bool = False
    location: str = ""
    outcome: Outcome | None = None

    def connect(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = socket.create_connection((parts.hostname or "", parts.port or 80), 60)
        self.connection.setblocking(False)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        self.connection.send(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        self.head, self.length, self.at = b"", -1, 0
        self.selector.register(self.connection, selectors.EVENT_READ, self)

    def read(self) -> None:
        try:
            # With MSG_TRUNC, the kernel discards the bytes without copying them.
            unchecked = self.length >= 0 and not self.check
            count = self.connection.recv_into(self.buffer, 0, socket.MSG_TRUNC if unchecked else 0)
        except BlockingIOError:
            return
        except ConnectionError:
            count = 0
        if not count:
            self.end()
            return
        start = self.read_head(count) if self.length < 0 else 0
        if self.status == 200 and self.check:
            self.compare(start, count - start)
        self.at += count - start
        if 0 <= self.length <= self.at:
            self.end()

    def compare(self, start: int, count: int) -> None:
        if self.at + count > len(self.expected):
            self.wrong = True
        elif count:
            received, right = ctypes.addressof(self.buffer) + start, ctypes.addressof(self.expected) + self.at
            self.wrong = self.wrong or _memcmp(received, right, count) != 0

    def read_head(self, count: int) -> int:
        """Read the head, and return where in the buffer the body begins."""
        before = len(self.head)
        self.head += ctypes.string_at(self.buffer, count)
        head, found, _ = self.head.partition(b"\r\n\r\n")
        if not found:
            return count
        self.status = int(head.split(b" ", 2)[1])
        length, location = _LENGTH.search(head), _LOCATION.search(head)
        self.length = int(length[1]) if length else sys.maxsize
        self.location = location[1].decode() if location else self.location
        return len(head) + 4 - before

    def end(self) -> None:
        self.selector.unregister(self.connection)
        self.connection.close()
        if self.follow and self.status in (301, 302) and self.at == self.length:
            self.connect(self.location)
            return
        whole = self.status == 200 and self.at == self.length == len(self.expected) and not self.wrong
        seconds = time.monotonic() - self.began
        self.outcome = Outcome(self.url, self.status, whole, self.wrong, self.location, seconds)


def main() -> None:
    order = json.load(sys.stdin)
    content = Path(order["expected"]).read_bytes()
    expected = ctypes.create_string_buffer(content, len(content))
    buffer = ctypes.create_string_buffer(_PIECE if order["check"] else _UNCHECKED_PIECE)
    selector = selectors.DefaultSelector()
    began = time.monotonic()
    clients = [
        _Client(url, expected, buffer, order["follow"], order["check"], began, selector) for url in order["urls"]
    ]
    for client in clients:
        client.connect(client.url)
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    while any(client.outcome is None for client in clients):
        for key, _ in selector.select(60):
            key.data.read()
    json.dump([asdict(client.outcome) for client in clients if client.outcome is not None], sys.stdout)


if __name__ == "__main__":
    main()
