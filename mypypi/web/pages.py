"""Turns the proxy's answer for a page into HTTP: form, encoding, validators, freshness.

Knows forms and headers. Must never know the contents of a form, except the placeholder for this server's address.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from mypypi.dates import parse_date
from mypypi.errors import BadRequest, NotFound
from mypypi.model import Form, PageId, Part
from mypypi.web.conditions import etag_matches
from mypypi.web.errors import sending
from mypypi.web.negotiation import accepts_gzip, choose_type, vary_on
from mypypi.web.request_log import set_kind

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.pages.page_cache import CachedPage
    from mypypi.proxy.proxy import Proxy
    from mypypi.web.public_address import Addresses

#: The longest version or tag that is looked for, in characters: npm's own limit. No release on PyPI comes near it. What
#: does not exist is remembered for a while, so its name must be short.
_LONGEST_VERSION = 256
#: Bytes of a body in one write.
_PIECE = 64 * 1024
#: Largest body, in bytes, that is written at once: the transport buffers as much anyway.
_AT_ONCE = 64 * 1024


class PageResponses:
    """
    Answers requests for pages.

    `addresses` gives the address of this server, for links that can't be relative.
    """

    def __init__(self, proxy: Proxy, addresses: Addresses) -> None:
        self._proxy = proxy
        self._addresses = addresses

    async def serve(
        self, request: Request, page: PageId, offered: Mapping[str, str], part: Part | None = None
    ) -> bytes:
        """
        Answer with a page or a part of it.

        Returns the rest of the body. `offered` maps media types to the forms that they stand for; the client chooses
        one. Where there is only one, Accept does not matter: clients send it for all they ask for. Raises
        NotAcceptable, BadRequest, NotFound, and what `Proxy.page` raises.
        """
        set_kind(request, "page")
        check_version(part.name if part is not None else page.version)
        media_type = next(iter(offered)) if len(offered) == 1 else choose_type(_accepted(request), offered)
        try:
            answer, form = await self._find(request, page, offered[media_type], part)
        except NotFound:
            if part is None and not page.version:
                raise
            # A version or a tag is asked for by its exact name. Upstream may have it since the page was fetched.
            await self._proxy.pages.revalidated(page, self._addresses.client(request))
            answer, form = await self._find(request, page, offered[media_type], part)
        request.setHeader(b"content-type", _content_type(media_type).encode())
        _set_freshness(request, answer)
        if parse_date(answer.page.modified) is not None:  # upstream's date may be malformed
            request.setHeader(b"last-modified", answer.page.modified.encode())
        return await _send_form(request, form)

    async def _find(self, request: Request, page: PageId, name: str, part: Part | None) -> tuple[CachedPage, Form]:
        """Return the page, and its form for this request."""
        answer = await self._proxy.page(page, self._addresses.client(request))
        form = answer.page.forms[name]
        if form.based or part is not None:
            base = self._addresses.base(request) if form.based else ""
            form = await self._proxy.pages.form_for(form, base, part)
        return answer, form


def check_version(version: str) -> None:
    """Raise BadRequest for a version or tag that is too long."""
    if len(version) > _LONGEST_VERSION:
        raise BadRequest(f"a version has at most {_LONGEST_VERSION} characters")


def _accepted(request: Request) -> str | None:
    """Return what the client accepts; ``?format=`` overrides Accept (PEP 691, "URL parameter")."""
    wanted = request.args.get(b"format")
    if wanted:
        return str(wanted[0].decode("latin-1"))
    header: str | None = request.getHeader("accept")
    return header


def _content_type(media_type: str) -> str:
    """
    Return the Content-Type for a media type.

    A request for the latest version gets the name of the actual version (PEP 691, "Version + Format Selection").
    """
    return "text/html; charset=utf-8" if media_type == "text/html" else media_type.replace(".latest+", ".v1+")


def _set_freshness(request: Request, answer: CachedPage) -> None:
    """
    Set the headers for caches.

    A client may cache a page for as long as it is fresh here, so that the client's cache adds nothing to its age.
    """
    vary_on(request, "Accept", "Accept-Encoding")
    request.setHeader(b"cache-control", b"public, max-age=%d" % max(0, int(answer.ttl)))
    ttl = b"; ttl=%d" % int(answer.ttl)
    if answer.forward_reason:
        request.setHeader(b"cache-status", b"MyPyPi; fwd=" + answer.forward_reason.encode() + b"; stored" + ttl)
    else:
        request.setHeader(b"cache-status", b"MyPyPi; hit" + ttl + (b"" if answer.ttl > 0 else b"; detail=stale"))


async def _send_form(request: Request, form: Form) -> bytes:
    """
    Return a small body; write a large one in pieces and return the rest.

    The gzip encoding is sent as stored. The identity encoding is decoded from it while sending.
    """
    zipped = f"{form.etag}-gzip"
    as_gzip = accepts_gzip(request.getHeader("accept-encoding"))
    request.setHeader(b"etag", b'"%s"' % (zipped if as_gzip else form.etag).encode())
    if _is_known(request, [zipped, form.etag]):
        request.setResponseCode(304)
        request.responseHeaders.removeHeader(b"content-type")
        return b""
    size = len(form.body) if as_gzip else form.size
    request.setHeader(b"content-length", b"%d" % size)
    if as_gzip:
        request.setHeader(b"content-encoding", b"gzip")
    if request.method == b"HEAD":
        return b""
    if size <= _AT_ONCE:
        return form.body if as_gzip else zlib.decompress(form.body, 31)
    await sending(request, send(request, slices(form.body) if as_gzip else inflated(form.body)))
    return b""


def _is_known(request: Request, etags: list[str]) -> bool:
    """
    Return whether the client already has this form.

    If the client names etags, only they count, else the date (RFC 9110, section 13.2.2).
    """
    named: str | None = request.getHeader("if-none-match")
    if named is not None:
        return etag_matches(named, etags)
    since = parse_date(request.getHeader("if-modified-since"))
    modified = parse_date(next(iter(request.responseHeaders.getRawHeaders("last-modified", [])), None))
    return since is not None and modified is not None and modified <= since


def slices(body: bytes) -> Iterator[bytes]:
    """Yield the body in pieces."""
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]


def inflated(body: bytes) -> Iterator[bytes]:
    """Yield the decoded gzip body in pieces, never all of it at once."""
    decoder = zlib.decompressobj(wbits=31)
    for piece in slices(body):
        rest = piece
        while rest and (data := decoder.decompress(rest, _PIECE)):
            yield data
            rest = decoder.unconsumed_tail


def send(request: Request, pieces: Iterator[bytes]) -> Deferred[None]:
    """Write all pieces at the client's pace; fires after the last one, and fails if one can't be made."""
    sender = _PieceProducer(request, pieces)
    request.registerProducer(sender, True)
    sender.resumeProducing()
    return sender.done


@implementer(IPushProducer)
class _PieceProducer:
    def __init__(self, request: Request, pieces: Iterator[bytes]) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())
        self._request = request
        self._pieces = pieces
        self._paused = False

    def resumeProducing(self) -> None:
        self._paused = False
        try:
            self._write_pieces()
        except Exception:  # noqa: BLE001 - the transport called, which can't answer the request
            self._request.unregisterProducer()
            self.done.errback(Failure())

    def _write_pieces(self) -> None:
        while not self._paused and not self.done.called:
            piece = next(self._pieces, None)
            if piece is None:
                self._request.unregisterProducer()
                self.done.callback(None)
                return
            self._request.write(piece)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._paused = True
        self._pieces = iter(())
