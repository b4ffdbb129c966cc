"""A connection that gives the answer to a request which came before at once, and the end of a large one later.

Knows Twisted's channel, and whether a request comes alone on it. Must never know what an answer is made of.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.web.http import Request

from mypypi.files.content import Content
from mypypi.web.content_reader import Reader, Span
from mypypi.web.copiers import send_at_once
from mypypi.web.draining import DrainingChannel
from mypypi.web.errors import respond_to
from mypypi.web.hot_answers import HotAnswer, is_one_head
from mypypi.web.senders import is_plain_and_empty, write_now


class RepeatingChannel(DrainingChannel):
    """A connection of a site with `HotAnswers`."""

    #: The bytes of the request that is being answered, if it came alone.
    _asked: bytes | None = None
    #: The client's address, and `HotAnswers.side`.
    _host: str | None = None
    _side = ""

    def connectionMade(self) -> None:
        """Note what answers depend on beside the request."""
        super().connectionMade()
        site: Any = self.factory
        self._host = getattr(self.getPeer(), "host", None)
        self._side = site.hot.side(self._host, secure=ISSLTransport.providedBy(self.transport))

    def repeat_answer(self, data: bytes) -> bool:
        """
        Give the answer that a request of these bytes had before, if it is the only one, and the client reads.

        Returns whether there is such an answer, and it is right now.
        """
        if not (is_one_head(data) and self._is_free()):
            return False
        site: Any = self.factory
        began = site.now()
        answer = site.hot.find(data, self._side)
        ttl = None if answer is None else answer.seconds_left()
        if ttl is None or not self._repeat(answer, ttl, began):
            self._asked = data
            return False
        return True

    def requestDone(self, request: Request) -> None:
        """Note that a request is answered. Its answer may do for others."""
        again, asked, self._asked = getattr(request, "again", None), self._asked, None
        if again is not None and asked is not None and self.persistent:
            site: Any = self.factory
            site.hot.keep(asked, self._side, request, again)
        super().requestDone(request)

    def _is_free(self) -> bool:
        """
        Whether nothing is under way: no answer, no part of another request, and no end of the connection.

        Twisted keeps a part of a request that came with an earlier one in `_buffer`, and goes through that while it is
        `_busyReceiving`.
        """
        is_between = not (self.requests or self._buffer or self._busyReceiving)
        return is_between and bool(self.persistent) and not (self._draining or self._waitingForTransport)

    def answer_begun(self) -> None:
        """Note that a response is under way."""

    def answer_ended(self) -> None:
        """Note that a request was answered at once."""
        self._answered = True

    def _repeat(self, answer: HotAnswer, ttl: float, began: float) -> bool:
        site: Any = self.factory
        content = None
        if answer.is_large:
            content = site.hot.files.content(answer.body) if is_plain_and_empty(self.transport) else None
            if content is None:
                return False
        head, request_id = site.hot.head_of(answer, ttl)
        if content is None:
            write_now(self.transport, head + answer.body)
        else:
            sent = send_at_once(self.transport, head, content)
            if sent < content.length:
                self._send_rest(answer, content, sent, request_id, began)
                return True
        self.answer_ended()
        site.log_record(answer.record(self._host or "-", site.now() - began, request_id))
        return True

    def _send_rest(self, answer: HotAnswer, content: Content, sent: int, request_id: str, began: float) -> None:
        """Send what the socket does not take at once, as that of any other request: at the client's pace."""
        site: Any = self.factory
        request: Any = self.requestFactory(self, len(self.requests))
        answer.go_on(request, sent, request_id, began)
        self.requests.append(request)
        # What `HTTPChannel.allContentReceived` does: the next request waits, and the time limit with it.
        self._pending = self._handlingRequest = True
        self._savedTimeOut = self.setTimeout(None)
        self.setRawMode()
        self.answer_begun()
        reader = Reader(request, content.open(), [Span(sent, content.length)], answer.threads, site.reactor)
        sending: Deferred[None] = reader.run()
        request.notifyFinish().addErrback(lambda _: sending.cancel())
        sending.addCallbacks(lambda _: request.finish(), lambda failure: respond_to(request, failure))
