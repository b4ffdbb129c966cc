"""Turns the proxy's answer for a page into HTTP: form, encoding, validators, freshness.

Knows forms and headers. Must never know the contents of a form, except this server's address in it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mypypi.dates import parse_date
from mypypi.errors import BadRequest, NotFound, StorageDown
from mypypi.model import Form, Page, PageId, Part
from mypypi.pieces import inflated, replaced, slices
from mypypi.web.conditions import etag_matches
from mypypi.web.errors import sending
from mypypi.web.hot_answers import Repeatable, offer
from mypypi.web.negotiation import accepts_gzip, choose_type, vary_on
from mypypi.web.request_log import set_kind
from mypypi.web.senders import send

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.pages.derived import Wanted
    from mypypi.pages.page_cache import CachedPage
    from mypypi.proxy.proxy import Proxy
    from mypypi.threads import Threads
    from mypypi.web.public_address import Addresses

#: The longest version or tag that is looked for, in characters: npm's own limit. No release on PyPI comes near it. What
#: does not exist is remembered for a while, so its name must be short.
_LONGEST_VERSION = 256
#: Headers of a page that is served from the cache, with its seconds of freshness.
_MAX_AGE, _HIT = b"public, max-age=%(ttl)d", b"MyPyPi; hit; ttl=%(ttl)d"
_OF_BODY = (b"content-encoding", b"content-length")
#: Largest body, in bytes, that is written at once: the transport buffers as much anyway.
_AT_ONCE = 64 * 1024


class PageResponses:
    """
    Answers requests for pages.

    `addresses` gives the address of this server, for links that can't be relative. Pages are decoded, and addresses are
    put into them, in `threads` while they are sent.
    """

    def __init__(self, proxy: Proxy, addresses: Addresses, threads: Threads) -> None:
        self._proxy = proxy
        self._addresses = addresses
        self._threads = threads

    async def serve(
        self,
        request: Request,
        page: PageId,
        offered: Mapping[str, str],
        part: Part | None = None,
        *,
        repeatable: bool = True,
    ) -> bytes:
        """
        Answer with a page or a part of it.

        Returns the rest of the body. `offered` maps media types to the forms that they stand for; the client chooses
        one. Where there is only one, Accept does not matter: clients send it for all they ask for. Unless the response
        is `repeatable`, each request has to come here. Raises NotAcceptable, BadRequest, NotFound, and what
        `Proxy.page` raises.
        """
        set_kind(request, "page")
        check_version(part.name if part is not None else page.version)
        media_type = next(iter(offered)) if len(offered) == 1 else choose_type(_accepted(request), offered)
        try:
            answer, wanted = await self._find(request, page, offered[media_type], part)
        except NotFound:
            if part is None and not page.version:
                raise
            # A version or a tag is asked for by its exact name. Upstream may have it since the page was fetched.
            await self._proxy.pages.revalidated(page, self._addresses.client(request))
            answer, wanted = await self._find(request, page, offered[media_type], part)
        request.setHeader(b"content-type", _content_type(media_type).encode())
        _set_freshness(request, answer)
        if parse_date(answer.page.modified) is not None:  # upstream's date may be malformed
            request.setHeader(b"last-modified", answer.page.modified.encode())
        body = await self._send(request, wanted)
        form = self._proxy.pages.derived.kept(wanted) if repeatable else None
        if form is not None and (not request.startedWriting or _was_sent(request, form)):
            self._offer(request, answer.page, wanted, form.body if request.startedWriting else body)
        return body

    def _offer(self, request: Request, page: Page, wanted: Wanted, body: bytes) -> None:
        """Let requests that are like this one have the same response, for as long as the page is fresh."""
        pages, client = self._proxy.pages, self._addresses.client(request)
        identity, version, base = page.id, page.version, wanted.base

        def seconds_left() -> float | None:
            pages.derived.use(base, client)
            return pages.seconds_left(identity, version)

        offer(
            request, Repeatable(body, seconds_left, {b"cache-control": _MAX_AGE, b"cache-status": _HIT}, self._threads)
        )

    async def _find(self, request: Request, page: PageId, name: str, part: Part | None) -> tuple[CachedPage, Wanted]:
        """Return the page, and what of it this request is for."""
        answer = await self._proxy.page(page, self._addresses.client(request))
        derived = self._proxy.pages.derived
        base = self._addresses.base(request) if derived.is_based(answer.page, name) else ""
        return answer, await derived.find(answer.page, name, base, part)

    async def _send(self, request: Request, wanted: Wanted) -> bytes:
        """
        Return a small body; write a large one in pieces and return the rest.

        Validators come first: what is derived is not made for a client that has it. A large form is not made for HEAD
        either, whose Content-Length is left out then (RFC 9110, section 9.3.2).
        """
        derived, client = self._proxy.pages.derived, self._addresses.client(request)
        as_gzip = derived.is_complete(wanted, client) and accepts_gzip(request.getHeader("accept-encoding"))
        identity_etag = wanted.etag
        gzip_etag = f"{identity_etag}-gzip"
        request.setHeader(b"etag", b'"%s"' % (gzip_etag if as_gzip else identity_etag).encode())
        if _is_known(request, [gzip_etag, identity_etag]):
            request.setResponseCode(304)
            request.responseHeaders.removeHeader(b"content-type")
            return b""
        if as_gzip:
            request.setHeader(b"content-encoding", b"gzip")
        if request.method == b"HEAD" and wanted.form.size > _AT_ONCE and derived.kept(wanted) is None:
            return b""
        form = await derived.make(wanted, client)
        if form.based:
            return await self._send_with_base(request, form, wanted.base)
        return await self._send_form(request, form, as_gzip=as_gzip)

    async def _send_with_base(self, request: Request, form: Form, base: str) -> bytes:
        """Send a form decoded, with `base` as the address in its links. The length of a large one is not known."""
        pieces = _with_base(form, base)
        if form.size > _AT_ONCE:
            await sending(request, send(request, pieces, self._threads))
            return b""
        body = b"".join(pieces)
        request.setHeader(b"content-length", b"%d" % len(body))
        return b"" if request.method == b"HEAD" else body

    async def _send_form(self, request: Request, form: Form, *, as_gzip: bool) -> bytes:
        """Send a form: the gzip encoding as stored, the identity encoding decoded from it while sending."""
        size = len(form.body) if as_gzip else form.size
        request.setHeader(b"content-length", b"%d" % size)
        if request.method == b"HEAD":
            return b""
        if size <= _AT_ONCE:
            return form.body if as_gzip else zlib.decompress(form.body, 31)
        sent = send(request, slices(form.body)) if as_gzip else send(request, inflated(form.body), self._threads)
        await sending(request, sent)
        return b""


def _was_sent(request: Request, form: Form) -> bool:
    """Whether the whole response was the form as it is."""
    encoding, length = (next(iter(request.responseHeaders.getRawHeaders(name, ())), None) for name in _OF_BODY)
    return request.method == b"GET" and encoding == b"gzip" and length == b"%d" % len(form.body)


def _with_base(form: Form, base: str) -> Iterator[bytes]:
    """Yield the form's decoded body with `base` as the address in its links. Raises StorageDown if it is damaged."""
    return replaced(_checked(form), form.base.encode(), base.encode())


def _checked(form: Form) -> Iterator[bytes]:
    """Yield the form's decoded body. No Content-Length shows the client that it is incomplete, so an error does."""
    size = 0
    for piece in inflated(form.body):
        size += len(piece)
        yield piece
    if size != form.size:
        raise StorageDown(f"the page has {size} bytes instead of {form.size}")


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
    request.setHeader(b"cache-control", _MAX_AGE % {b"ttl": max(0, int(answer.ttl))})
    if answer.forward_reason:
        status = b"MyPyPi; fwd=%b; stored; ttl=%d" % (answer.forward_reason.encode(), int(answer.ttl))
    else:
        status = _HIT % {b"ttl": int(answer.ttl)} + (b"" if answer.ttl > 0 else b"; detail=stale")
    request.setHeader(b"cache-status", status)


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
