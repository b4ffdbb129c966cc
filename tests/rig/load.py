"""Many clients at once in one process of their own, cheap enough that a server, and not they, sets the pace.

``python -m tests.rig.load`` asks as it is told on stdin and says on stdout what came. Each client compares what it gets
with what is right while it comes, and keeps nothing of it. Knows HTTP/1.1 from the client's side, with a length. Must
never know who answers.
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

#: What is looked at should fit into the processor's cache; what is only counted may come in one go.
_PIECE, _UNSEEN = 128 * 1024, 2 * 1024 * 1024
#: To compare memory without a copy of it: Python's own ways make one, or look at each byte.
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_ROOT = Path(__file__).resolve().parents[2]
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\nlocation: *(\S+)", re.IGNORECASE)


@frozen
class Outcome:
    """
    What one client got: the last status; whether the body was all there and right, and whether any byte of it was
    wrong; where it was sent, if it was; the seconds from its start until its end.
    """

    url: str
    status: int
    whole: bool
    wrong: bool
    location: str
    seconds: float


class Storm:
    """
    Clients that have been started, and what they will have got, in as many processes as there are processors.

    `follow`: go where a redirect leads. Without `check`, bytes are counted and not looked at, which costs next to
    nothing: that is for measuring a server that shares the processors with its clients.
    """

    def __init__(self, urls: Sequence[str], expected: Path, *, follow: bool = False, check: bool = True) -> None:
        several = min(os.cpu_count() or 1, len(urls))
        order = {"expected": str(expected), "follow": follow, "check": check}
        self._parts = [_Part(order | {"urls": list(urls[number::several])}) for number in range(several)]

    def outcomes(self) -> list[Outcome]:
        """Wait for all of them to end."""
        return [outcome for part in self._parts for outcome in part.outcomes()]


class _Part:
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
        """Wait for these to end."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            told = stdout.read()
        assert self._process.wait() == 0
        return [Outcome(**each) for each in json.loads(told)]


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
            # What TCP is to truncate, it throws away without copying it.
            unseen = self.length >= 0 and not self.check
            count = self.connection.recv_into(self.buffer, 0, socket.MSG_TRUNC if unseen else 0)
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
            mine, right = ctypes.addressof(self.buffer) + start, ctypes.addressof(self.expected) + self.at
            self.wrong = self.wrong or _memcmp(mine, right, count) != 0

    def read_head(self, count: int) -> int:
        """Where in the buffer the body begins."""
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
    buffer = ctypes.create_string_buffer(_PIECE if order["check"] else _UNSEEN)
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
