"""Says in HTTP what the proxy answered for a page: form, encoding, validators, freshness.

Knows forms and headers. Must never know what is in a form beyond the placeholder for this server's address.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from attrs import evolve

from mypypi.errors import BadRequest
from mypypi.model import BASE_PLACEHOLDER, Form, PageId
from mypypi.once import Once
from mypypi.press import gzip
from mypypi.web.conditions import accepts_gzip, choose_type, etag_matches
from mypypi.web.sending import inflated, send, slices

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.pages import PageAnswer
    from mypypi.proxy import Proxy
    from mypypi.threads import Threads

#: A body up to this size (bytes) is written at once: it fits into what the transport buffers anyway.
_AT_ONCE = 64 * 1024
_BASED_BYTES = 64 * 1024 * 1024
_HOST = re.compile(r"[A-Za-z0-9.\-_]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


class PageResponses:
    """Answers requests for pages. `public_url` is the address that clients use, None where each request tells it."""

    def __init__(self, proxy: Proxy, threads: Threads, public_url: str | None) -> None:
        self._proxy = proxy
        self._threads = threads
        self._public_url = public_url
        self._based: OrderedDict[tuple[str, str], Form] = OrderedDict()
        self._basing: Once[Form] = Once()

    async def serve(self, request: Request, page: PageId, offered: Mapping[str, str]) -> bytes:
        """
        Answer with a page, in the best of the media types `offered` (each with the form it stands for); what is
        returned is the rest of the body.

        Raises NotAcceptable, BadRequest, and what `Proxy.page` does.
        """
        media_type = choose_type(_wanted(request), offered)
        answer = await self._proxy.page(page)
        form = answer.page.forms[offered[media_type]]
        if form.based:
            form = await self._with_base(form, self._base(request))
        charset = "; charset=utf-8" if media_type == "text/html" else ""
        request.setHeader(b"content-type", (media_type + charset).encode())
        _set_freshness(request, answer)
        return await _send_form(request, form)

    def _base(self, request: Request) -> str:
        """This server's address as this client sees it, without a trailing slash. Raises BadRequest."""
        if self._public_url is not None:
            return self._public_url
        host = request.getHeader("host") or ""
        if not _HOST.fullmatch(host):
            raise BadRequest("the Host header is not a host name")
        return f"{'https' if request.isSecure() else 'http'}://{host}"

    async def _with_base(self, form: Form, base: str) -> Form:
        """The form with our address in its links, made once for each address."""
        name = (form.etag, base)
        based = self._based.get(name)
        if based is None:
            based = await self._basing.run(name, lambda: self._put_base(form, base))
            self._based[name] = based
        self._based.move_to_end(name)
        while len(self._based) > 1 and sum(len(each.body) for each in self._based.values()) > _BASED_BYTES:
            self._based.popitem(last=False)
        return based

    async def _put_base(self, form: Form, base: str) -> Form:
        return await self._threads.run(_replace_base, form, base)


def _replace_base(form: Form, base: str) -> Form:
    body = zlib.decompress(form.body, 31).replace(BASE_PLACEHOLDER, base.encode())
    etag = hashlib.sha256(f"{form.etag} {base}".encode()).hexdigest()[:32]
    return evolve(form, etag=etag, size=len(body), body=gzip(body, 1))


def _wanted(request: Request) -> str | None:
    """What the client accepts; ``?format=`` goes before the header (PEP 691, "URL parameter")."""
    wanted = request.args.get(b"format")
    if wanted:
        return str(wanted[0].decode("latin-1"))
    header: str | None = request.getHeader("accept")
    return header


def _set_freshness(request: Request, answer: PageAnswer) -> None:
    """A client may keep a page for as long as it is fresh here, so that its own cache adds nothing to our age."""
    request.setHeader(b"vary", b"Accept, Accept-Encoding")
    request.setHeader(b"cache-control", b"public, max-age=%d" % max(0, int(answer.ttl)))
    ttl = b"; ttl=%d" % int(answer.ttl)
    if answer.why and answer.ttl > 0:
        request.setHeader(b"cache-status", b"MyPyPi; fwd=" + answer.why.encode() + b"; stored" + ttl)
    else:
        request.setHeader(b"cache-status", b"MyPyPi; hit" + ttl + (b"" if answer.ttl > 0 else b"; detail=stale"))


async def _send_form(request: Request, form: Form) -> bytes:
    """The body, or what starts it: gzip as it is kept, identity made from that piece by piece."""
    zipped = f"{form.etag}-gzip"
    as_gzip = accepts_gzip(request.getHeader("accept-encoding"))
    request.setHeader(b"etag", b'"%s"' % (zipped if as_gzip else form.etag).encode())
    if etag_matches(request.getHeader("if-none-match"), [zipped, form.etag]):
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
