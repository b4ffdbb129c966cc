"""Keeps ready answers: a request that came before is answered without being parsed and routed again.

A request is known by its bytes. What they mean was found out by the ordinary way, when the same bytes came before. So
there is no second parser that could disagree with the first. Knows heads of requests and responses. Must never know
what is served, or whether it is still right: the route that gave the answer gives a function that tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen
from cachetools import LRUCache
from twisted.web.http import NO_BODY_CODES, datetimeToString

from mypypi.web.memory_files import MemoryFiles
from mypypi.web.public_address import Network, is_trusted
from mypypi.web.request_log import RequestRecord, new_id, path_of

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.threads import Threads

#: Bytes of the longest head of a request that is remembered.
LONGEST_HEAD = 4096
#: Bytes of memory for answers, with their bodies, which pages in memory share; and for heads of requests.
MOST_ANSWERS, MOST_HEADS = 32 * 1024 * 1024, 4 * 1024 * 1024
#: Bytes of a body from which on it is large.
LARGE = 64 * 1024
#: Bytes of memory for an answer or a head beside what it holds; rounded up.
_OVERHEAD = 1024
#: The headers of a request that a page's answer may depend on. ``X-Forwarded-For`` only tells whose turn it is.
READ = (
    b"accept",
    b"accept-encoding",
    b"connection",
    b"forwarded",
    b"host",
    b"if-modified-since",
    b"if-none-match",
    b"x-forwarded-host",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
)
#: Headers of requests that are always answered the ordinary way: they have a body, or are like no other request.
UNSUITABLE = (b"content-length", b"expect", b"transfer-encoding", b"upgrade", b"x-request-id")
_END = b"\r\n\r\n"


@frozen
class Repeatable:
    """
    How to give the answer to a request once more.

    `seconds_left` returns the seconds for which it is fresh, or None if the request has to be answered the ordinary
    way. `changing` are the headers that depend on them: ``%(ttl)d`` stands for the seconds. A large body may be read in
    `threads`.
    """

    body: bytes
    seconds_left: Callable[[], float | None]
    changing: Mapping[bytes, bytes]
    threads: Threads


@define(eq=False)
class HotAnswer:
    """A ready answer. `head` lacks the date, the id, and the seconds of freshness."""

    method: str
    uri: bytes
    kind: str
    status: int
    head: bytes
    body: bytes
    seconds_left: Callable[[], float | None]
    threads: Threads
    path: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.path = path_of(self.uri)

    @property
    def weight(self) -> int:
        """The approximate number of bytes in memory, with the request's first line and what its others mean."""
        return len(self.head) + len(self.body) + LONGEST_HEAD // 4 + _OVERHEAD

    @property
    def is_large(self) -> bool:
        """Whether the kernel should copy the body, since that costs less than to keep it until it is sent."""
        return len(self.body) > LARGE

    @classmethod
    def of(cls, request: Request, again: Repeatable) -> HotAnswer:
        """Return the answer that this request had, for requests of the same bytes."""
        changing = {**again.changing, b"date": b"%(date)b", b"x-request-id": b"%(id)b"}
        lines = [b"%b %d %b" % (request.clientproto, request.code, request.code_message)]
        lines += [
            b"%b: %b" % (name, changing.get(name.lower()) or value.replace(b"%", b"%%"))
            for name, values in request.responseHeaders.getAllRawHeaders()
            for value in values
        ]
        head = b"\r\n".join([*lines, b"", b""])
        method, kind = request.method.decode("latin-1"), getattr(request, "kind", "other")
        return cls(method, request.uri, kind, request.code, head, again.body, again.seconds_left, again.threads)

    def go_on(self, request: Any, sent: int, request_id: str, began: float) -> None:
        """Let this be the response to a new request, of which the head and some bytes of the body were sent."""
        request.method, request.uri, request.clientproto = self.method.encode("latin-1"), self.uri, b"HTTP/1.1"
        request.client = request.channel.getPeer()
        request.code, request.startedWriting, request.sentLength = self.status, 1, sent
        request.kind, request.request_id, request.begun_at = self.kind, request_id, began
        request.responseHeaders.setRawHeaders(b"content-length", [b"%d" % len(self.body)])
        request.responseHeaders.setRawHeaders(b"cache-status", [b"MyPyPi; hit"])

    def record(self, client: str, seconds: float, request_id: str) -> RequestRecord:
        """Return the record of a request of this client that was answered in so many seconds."""
        size = len(self.body)
        return RequestRecord(
            client, self.method, self.path, self.status, size, round(seconds, 6), "hit", self.kind, request_id
        )

    def head_for(self, date: bytes, request_id: str, ttl: float) -> bytes:
        """Return the head of the response, for that many seconds of freshness."""
        return self.head % {b"date": date, b"id": request_id.encode(), b"ttl": ttl}


@frozen
class _Meaning:
    """What the lines of a head after the first mean for an answer: the fields in `READ`. `weight`: bytes in memory."""

    fields: bytes
    weight: int


class HotAnswers:
    """
    The answers that were given lately, by the first line of the request and what its other lines mean.

    Many clients, whose requests differ in headers that no answer depends on, share an answer. `trusted` are the
    networks of proxies whose forwarding headers count. Both memories are bounded, and forget what was least recently
    used.
    """

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = trusted
        #: For the lines of a head after the first one: what they mean for an answer.
        self._meanings: LRUCache[bytes, _Meaning] = LRUCache(MOST_HEADS, lambda meaning: meaning.weight)
        self._answers: LRUCache[tuple[bytes, bytes, str], HotAnswer] = LRUCache(MOST_ANSWERS, lambda each: each.weight)
        #: The large bodies of answers.
        self.files = MemoryFiles()
        self._date = (0, b"")

    def side(self, host: str | None, *, secure: bool) -> str:
        """Return what an answer depends on beside the request: whether the client is trusted, and the scheme."""
        return f"{secure} {is_trusted(host, self._trusted)}"

    def find(self, asked: bytes, side: str) -> HotAnswer | None:
        """Return the answer to a request of these bytes, if it came before."""
        line, _, rest = asked.partition(b"\r\n")
        meaning = self._meanings.get(rest)
        return None if meaning is None else self._answers.get((line, meaning.fields, side))

    def keep(self, asked: bytes, side: str, request: Request, again: Repeatable) -> None:
        """Keep the answer that a request of these bytes has just had, if all requests like it can have the same."""
        headers = request.requestHeaders
        if any(map(headers.hasHeader, UNSUITABLE)) or not _is_whole(request):
            return
        line, _, rest = asked.partition(b"\r\n")
        fields = b"\n".join(b"%b:%b" % (name, value) for name in READ for value in headers.getRawHeaders(name, ()))
        meaning, answer = _Meaning(fields, len(rest) + len(fields) + _OVERHEAD), HotAnswer.of(request, again)
        if answer.weight <= self._answers.maxsize and meaning.weight <= self._meanings.maxsize:
            self._meanings[rest] = meaning
            self._answers[line, fields, side] = answer

    def head_of(self, answer: HotAnswer, ttl: float) -> tuple[bytes, str]:
        """Return the head of this answer, with the date and the age of now, and the id of the response."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, datetimeToString(now))
        request_id = new_id()
        return answer.head_for(self._date[1], request_id, ttl), request_id


def offer(request: Request, again: Repeatable) -> None:
    """Offer the answer that this request is about to have to later requests."""
    marked: Any = request
    marked.again = again


def is_one_head(data: bytes) -> bool:
    """Whether these are the bytes of one request without a body, as far as they tell, and not too many."""
    return len(data) <= LONGEST_HEAD and data.endswith(_END) and data.find(_END) == len(data) - len(_END)


def _is_whole(request: Request) -> bool:
    """Whether the response to a request tells its length, if it has a body."""
    has_length = request.responseHeaders.hasHeader(b"content-length")
    return request.clientproto == b"HTTP/1.1" and (has_length or request.code in NO_BODY_CODES)
