"""Says in HTTP what the proxy answered for a page: form, encoding, validators, freshness.

Knows forms and headers. Must never know what is in a form beyond the placeholder for this server's address.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from attrs import evolve, field, frozen
from cachetools import LRUCache

from mypypi.coalescing import Once
from mypypi.dates import parse_date
from mypypi.model import BASE_PLACEHOLDER, Form, PageId
from mypypi.observability import metrics
from mypypi.pages.rendering import gzip
from mypypi.web.negotiation import accepts_gzip, choose_type, etag_matches
from mypypi.web.request_log import mark
from mypypi.web.sending import inflated, send, slices

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.pages.page_cache import PageAnswer
    from mypypi.proxy.proxy import Proxy
    from mypypi.threads import Threads
    from mypypi.web.public_address import Addresses

#: A body up to this size (bytes) is written at once: it fits into what the transport buffers anyway.
_AT_ONCE = 64 * 1024


@frozen
class Cut:
    """A part of a page that is asked for by itself. `cut` makes it of the form's identity bytes; it may take long, and
    raises NotFound where the page has no such part."""

    name: str
    cut: Callable[[bytes], bytes] = field(eq=False)


class PageResponses:
    """Answers requests for pages. Forms that are made for one address, or cut out, take up to `derived_bytes`."""

    def __init__(self, proxy: Proxy, threads: Threads, addresses: Addresses, derived_bytes: int) -> None:
        self._proxy = proxy
        self._threads = threads
        self._addresses = addresses
        self._derived: LRUCache[tuple[str, str, Cut | None], Form] = LRUCache(derived_bytes, _weight)
        self._deriving: Once[Form] = Once()

    async def serve(self, request: Request, page: PageId, offered: Mapping[str, str], cut: Cut | None = None) -> bytes:
        """
        Answer with a page, or a part of it, in the best of the media types `offered` (each with the form it stands
        for); what is returned is the rest of the body.

        Raises NotAcceptable, BadRequest, NotFound, and what `Proxy.page` does.
        """
        mark(request, "page")
        media_type = choose_type(_wanted(request), offered)
        answer = await self._proxy.page(page)
        form = answer.page.forms[offered[media_type]]
        if form.based or cut is not None:
            form = await self._derive(form, self._addresses.base(request) if form.based else "", cut)
        request.setHeader(b"content-type", _content_type(media_type).encode())
        _set_freshness(request, answer)
        if parse_date(answer.page.modified) is not None:  # upstream may say anything
            request.setHeader(b"last-modified", answer.page.modified.encode())
        return await _send_form(request, form)

    async def _derive(self, form: Form, base: str, cut: Cut | None) -> Form:
        """The form with our address in its links, or a part of it; made once for each address and part."""
        name = (form.etag, base, cut)
        derived = self._derived.get(name)
        if derived is None:
            derived = await self._deriving.run(name, lambda: self._make(form, base, cut))
            if _weight(derived) < self._derived.maxsize:
                before = self._derived.currsize
                self._derived[name] = derived
                metrics.HOT_PAGES_BYTES.inc(self._derived.currsize - before)
        return derived

    async def _make(self, form: Form, base: str, cut: Cut | None) -> Form:
        return await self._threads.run(_derived, form, base, cut)


def _weight(form: Form) -> int:
    return len(form.body) + 1024


def _derived(form: Form, base: str, cut: Cut | None) -> Form:
    body = zlib.decompress(form.body, 31)
    if cut is not None:
        body = cut.cut(body)
    if form.based:
        body = body.replace(BASE_PLACEHOLDER, base.encode())
    etag = hashlib.sha256(f"{form.etag} {base} {cut.name if cut else ''}".encode()).hexdigest()[:32]
    return evolve(form, etag=etag, size=len(body), body=gzip(body))


def _wanted(request: Request) -> str | None:
    """What the client accepts; ``?format=`` goes before the header (PEP 691, "URL parameter")."""
    wanted = request.args.get(b"format")
    if wanted:
        return str(wanted[0].decode("latin-1"))
    header: str | None = request.getHeader("accept")
    return header


def _content_type(media_type: str) -> str:
    """Whoever asks for the latest version is told which one it is (PEP 691, "Version + Format Selection")."""
    return "text/html; charset=utf-8" if media_type == "text/html" else media_type.replace(".latest+", ".v1+")


def _set_freshness(request: Request, answer: PageAnswer) -> None:
    """A client may keep a page for as long as it is fresh here, so that its own cache adds nothing to our age."""
    request.setHeader(b"vary", b"Accept, Accept-Encoding")
    request.setHeader(b"cache-control", b"public, max-age=%d" % max(0, int(answer.ttl)))
    ttl = b"; ttl=%d" % int(answer.ttl)
    if answer.why:
        request.setHeader(b"cache-status", b"MyPyPi; fwd=" + answer.why.encode() + b"; stored" + ttl)
    else:
        request.setHeader(b"cache-status", b"MyPyPi; hit" + ttl + (b"" if answer.ttl > 0 else b"; detail=stale"))


async def _send_form(request: Request, form: Form) -> bytes:
    """The body, or what starts it: gzip as it is kept, identity made from that piece by piece."""
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
    await send(request, slices(form.body) if as_gzip else inflated(form.body))
    return b""


def _is_known(request: Request, etags: list[str]) -> bool:
    """Whether the client holds this already: by etag where it names any, else by date (RFC 9110, section 13.2.2)."""
    named: str | None = request.getHeader("if-none-match")
    if named is not None:
        return etag_matches(named, etags)
    since = parse_date(request.getHeader("if-modified-since"))
    modified = parse_date(next(iter(request.responseHeaders.getRawHeaders("last-modified", [])), None))
    return since is not None and modified is not None and modified <= since
