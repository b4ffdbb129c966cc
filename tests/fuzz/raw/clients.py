"""The fuzzer of requests: what random clients send, in front of an upstream that works."""

from __future__ import annotations

from random import Random

from typing_extensions import Self

from tests.fuzz.raw.answers import RawAnswer, well
from tests.fuzz.raw.campaign import Fuzzer, probe_package
from tests.fuzz.raw.content import SIMPLE, Package, name_in
from tests.fuzz.raw.requests import Sent, known_requests, make_sent
from tests.fuzz.raw.server import PATIENCE, RawServer, Received
from tests.fuzz.raw.talk import ask, talk
from tests.fuzz.world import PASSWORD, Answer, Violation, read_answers

#: Seconds within which every connection has ended.
TIMEOUT = 30.0
#: Statuses that a client may get for an odd request while upstream works.
_STATUSES = frozenset((
    *(200, 206, 301, 302, 304, 308, 400, 401, 403, 404, 405, 406, 408, 411, 413, 414, 415, 416, 417, 431),
    *(501, 502, 503, 505),
))  # fmt: skip
_REFUSED = (b"400", b"413", b"414", b"431", b"505")
_NOT_FOUND = RawAnswer((b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",))
_KNOWN_NAMES = ("probe", "cold")


class ClientFuzzer(Fuzzer):
    """Clients send random bytes. Use as a context manager."""

    def __init__(self, patience: float = PATIENCE) -> None:
        super().__init__()
        self.server = RawServer(self.answer, patience)
        self.url = self.server.urls[0]
        self.only = f"127.0.0.1 {self.server.port}"

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    def answer(self, request: Received) -> RawAnswer:
        """Return the answer to a request of a daemon. Only some names exist."""
        if request.target.startswith("/-/npm/v1/security/"):
            return well(b'{"advisories":{}}', "application/json")
        name = name_in(request.target)
        package = Package(name, self.url)
        found = package.at(request.target, request.headers.get("accept", ""))
        if found is None or name.partition("-")[0] not in _KNOWN_NAMES:
            return _NOT_FOUND
        return well(*found)

    def run(self, number: int, rng: Random, package_type: str, port: int) -> None:
        sent = make_sent(rng, known_requests(package_type, probe_package(self.url)))
        try:
            received = talk(port, sent.talk, TIMEOUT)
            self._check(sent, received)
        except Violation as error:
            raise Violation(f"{error}\nafter {sent.label}") from None
        if number % 5 == 0:
            self._check_cold(f"cold-{number}", package_type, port)

    def _check(self, sent: Sent, received: bytes) -> None:
        if PASSWORD.encode() in received:
            raise Violation("a client received the password")
        if b"HTTP/1.1 500" in received or b"internal error: see the server's log" in received:
            raise Violation(f"an internal error: {received[:500]!r}")
        if sent.talk.leave is not None:
            self.counts["left"] += 1
            return
        if sent.damaged:
            if received and not received.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")):
                raise Violation(f"no answer: {received[:200]!r}")
            self.counts[f"damaged {received[9:12].decode('latin-1') or 'closed'}"] += 1
            return
        self._check_answers(sent, received)

    def _check_answers(self, sent: Sent, received: bytes) -> None:
        # A request that is refused before its method counts gets the reason, even if it was HEAD.
        is_refused = not sent.expected and received[9:12] in _REFUSED
        found = read_answers(received, () if is_refused else sent.heads)
        if sent.talk.half_close and found and not found[-1].whole:
            # A client that closes its side has left, for Twisted as for nginx: the last answer may be cut anywhere.
            found.pop()
            self.counts["left"] += 1
        for answer in found:
            self.counts[f"{sent.label.split()[0]} {answer.status}"] += 1
            is_whole = answer.whole or (is_refused and not answer.body)
            if answer.status not in _STATUSES or not is_whole:
                raise Violation(f"an unexpected answer: {answer.status}, whole: {answer.whole}, {answer.body[:300]!r}")
        if len(found) > sent.most:
            raise Violation(f"{len(found)} answers, where {sent.most} are to be: {received[-500:]!r}")
        if sent.expected and not sent.talk.half_close:
            _check_expected(sent, found)

    def _check_cold(self, name: str, package_type: str, port: int) -> None:
        target, accept = (f"/simple/{name}/", SIMPLE) if package_type == "pypi" else (f"/{name}", "*/*")
        answer = ask(port, target, accept=accept, timeout=TIMEOUT)
        self.counts[f"cold {answer.status}"] += 1
        if answer.status != 200 or name.encode() not in answer.body:
            raise Violation(f"a cold page gets {answer.status}, {answer.body[:300]!r}")


def _check_expected(sent: Sent, found: list[Answer]) -> None:
    """Every well-formed request gets the answer that it asked for."""
    if len(found) != len(sent.expected):
        raise Violation(f"{len(found)} answers to {len(sent.expected)} requests: {found}")
    for answer, expected in zip(found, sent.expected, strict=True):
        if answer.status != 200 or expected not in answer.body:
            raise Violation(f"a well-formed request gets {answer.status}, {answer.body[:300]!r}")
