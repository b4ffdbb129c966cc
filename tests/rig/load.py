"""Many clients at once in one process of their own, cheap enough that a server, and not they, sets the pace.

``python -m tests.rig.load`` asks as it is told on stdin and says on stdout what came. Each client compares what it gets
with what is right while it comes, and keeps nothing of it. Knows HTTP/1.1 from the client's side, with a length. Must
never know who answers.
"""

from __future__ import annotations

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

_PIECE = 256 * 1024
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
    """Clients that have been started, and what they will have got. `follow`: go where a redirect leads."""

    def __init__(self, urls: Sequence[str], expected: Path, *, follow: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.load"],
            cwd=_ROOT,
            env=dict(os.environ, PYTHONPATH=str(_ROOT)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        assert self._process.stdin is not None
        json.dump({"urls": list(urls), "expected": str(expected), "follow": follow}, self._process.stdin)
        self._process.stdin.close()
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "connected\n"

    def outcomes(self) -> list[Outcome]:
        """Wait for all of them to end."""
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            told = stdout.read()
        assert self._process.wait() == 0
        return [Outcome(**each) for each in json.loads(told)]


@define(eq=False)
class _Client:
    url: str
    expected: bytes
    follow: bool
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
            data = self.connection.recv(_PIECE)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.end()
            return
        if self.length < 0:
            data = self.read_head(data)
        if self.status == 200 and data:
            self.wrong = self.wrong or not self.expected.startswith(data, self.at)
        self.at += len(data)
        if 0 <= self.length <= self.at:
            self.end()

    def read_head(self, data: bytes) -> bytes:
        """What of this is body."""
        self.head += data
        head, found, body = self.head.partition(b"\r\n\r\n")
        if not found:
            return b""
        self.status = int(head.split(b" ", 2)[1])
        length, location = _LENGTH.search(head), _LOCATION.search(head)
        self.length = int(length[1]) if length else sys.maxsize
        self.location = location[1].decode() if location else self.location
        return body

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
    expected = Path(order["expected"]).read_bytes()
    selector = selectors.DefaultSelector()
    began = time.monotonic()
    clients = [_Client(url, expected, order["follow"], began, selector) for url in order["urls"]]
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
