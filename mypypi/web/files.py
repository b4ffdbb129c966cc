"""Turns the proxy's answer for a file into HTTP: status, ranges, validators, body.

Knows the kinds of answers that the proxy gives. Must never decide what is served.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from attrs import frozen
from twisted.internet.defer import Deferred

from mypypi.errors import StorageDown
from mypypi.file_keys import as_uri
from mypypi.proxy.answers import (
    FileDescription,
    FileRequest,
    LocalContent,
    PassThrough,
    RedirectToUpstream,
    StoredElsewhere,
)
from mypypi.proxy.proxy import Proxy
from mypypi.upstream.responses import FileRange
from mypypi.web.conditions import Unsatisfiable, etag_matches, needs_total, one_range, range_applies, ranges_of
from mypypi.web.content_reader import Reader, Span
from mypypi.web.errors import answer, sending
from mypypi.web.pass_through import pass_on, pass_through
from mypypi.web.request_log import set_kind

if TYPE_CHECKING:
    from twisted.web.http import Request

    from mypypi.digests import Digest
    from mypypi.model import Link
    from mypypi.proxy.bucket_reader import BucketReader
    from mypypi.threads import Threads
    from mypypi.upstream.client import Upstream
    from mypypi.web.public_address import Addresses

_IMMUTABLE = b"public, max-age=31536000, immutable"


@frozen
class Files:
    """
    Answers requests for package files.

    `bucket` reads files from the bucket, for clients that can't be redirected there.
    """

    proxy: Proxy
    upstream: Upstream
    bucket: BucketReader
    addresses: Addresses
    threads: Threads
    reactor: Any

    async def serve(self, request: Request, link: str, *, failure: StorageDown | None = None) -> bytes:
        """
        Answer with the file behind a link of our pages.

        Returns the rest of the body. `failure` is set when the file could just not be read from the bucket, and is
        looked for once more. Raises what `Proxy.file` raises, and BadRequest.
        """
        set_kind(request, "file")
        client = self.addresses.client(request)
        found = await self.proxy.file(link, _wanted(request, client, failure))
        if isinstance(found, LocalContent):
            return await self._serve_local(request, found)
        if isinstance(found, FileDescription):
            return _answer_head(request, found)
        if isinstance(found, FileRange):
            return _answer_range(request, found)
        if isinstance(found, StoredElsewhere):
            return await self._serve_from_bucket(request, link, found, failure)
        request.setHeader(b"cache-status", b"MyPyPi; fwd=bypass")
        if isinstance(found, RedirectToUpstream):
            body = answer(request, 302, "the file is at upstream")
            request.setHeader(b"location", as_uri(found.url).encode())
            return body
        assert isinstance(found, PassThrough)
        await pass_through(request, found.file, self.upstream, self.reactor, client)
        return b""

    async def _serve_from_bucket(
        self, request: Request, link: str, linked: StoredElsewhere, failure: StorageDown | None
    ) -> bytes:
        stored = linked.stored
        before = request.responseHeaders.copy()
        _describe(request, stored.digest, immutable=linked.immutable)
        request.setHeader(b"cache-status", b"MyPyPi; hit")
        etag = str(stored.digest)
        if etag_matches(request.getHeader("if-none-match"), [etag]):
            request.setResponseCode(304)
            return b""
        if not linked.proxied:
            return _redirect(request, linked.link, immutable=linked.immutable)
        try:
            span = _one_part(request, stored.size, etag)
            await pass_on(
                request,
                linked,
                span,
                self.bucket,
                self.reactor,
                self.addresses.client(request),
                lambda: Deferred.fromCoroutine(self.proxy.stored.delete_corrupt(stored)),
            )
        except Unsatisfiable as error:
            return _unsatisfiable(request, error)
        except StorageDown as error:
            if failure is not None:
                raise
            request.responseHeaders = before
            request.setResponseCode(200)
            return await self.serve(request, link, failure=error)
        return b""

    async def _serve_local(self, request: Request, served: LocalContent) -> bytes:
        content = served.content
        handed_over = False
        try:
            header = request.getHeader("range")
            if content.total is None and (needs_total(header) or request.clientproto != b"HTTP/1.1"):
                await content.wait_until(lambda: content.ended)
                if content.error is not None:
                    raise content.error
            _describe(request, served.digest, immutable=served.immutable)
            request.setHeader(b"cache-status", b"MyPyPi; hit" if served.hit else b"MyPyPi; fwd=miss; stored")
            etag = str(served.digest) if served.digest is not None else None
            if etag is not None and etag_matches(request.getHeader("if-none-match"), [etag]):
                request.setResponseCode(304)
                return b""
            try:
                parts = _parts(request, content.total, etag)
            except Unsatisfiable as error:
                return _unsatisfiable(request, error)
            if request.method == b"HEAD":
                return b""
            handed_over = True
            await sending(request, Reader(request, content, parts, self.threads, self.reactor).run())
        finally:
            if not handed_over:
                content.close()
        return b""


def _wanted(request: Request, client: str, unreadable: StorageDown | None) -> FileRequest:
    """Return what a request asks for. With If-Range, the client has a part of the file, and wants the rest of it."""
    if request.method == b"HEAD":
        return FileRequest(client, describe=True, unreadable=unreadable)
    asked = one_range(request.getHeader("range")) if request.getHeader("if-range") is None else None
    return FileRequest(client, range=asked, unreadable=unreadable)


def _answer_range(request: Request, found: FileRange) -> bytes:
    """Answer with bytes that are not checked: they have no ETag, and are not kept."""
    request.setHeader(b"cache-status", b"MyPyPi; fwd=partial")
    if not found.content:
        return _unsatisfiable(request, Unsatisfiable(found.total))
    _describe(request, None, immutable=False)
    stop = found.start + len(found.content)
    if (found.start, stop) != (0, found.total):
        request.setResponseCode(206)
        request.setHeader(b"content-range", b"bytes %d-%d/%d" % (found.start, stop - 1, found.total))
    request.setHeader(b"content-length", b"%d" % len(found.content))
    return found.content


def _answer_head(request: Request, found: FileDescription) -> bytes:
    _describe(request, found.digest, immutable=found.immutable)
    request.setHeader(b"cache-status", b"MyPyPi; hit" if found.hit else b"MyPyPi; fwd=miss; detail=described")
    if found.digest is not None and etag_matches(request.getHeader("if-none-match"), [str(found.digest)]):
        request.setResponseCode(304)
    else:
        request.setHeader(b"content-length", b"%d" % found.size)
    return b""


def _redirect(request: Request, link: Link, *, immutable: bool) -> bytes:
    """Redirect to the bucket; cacheable for as long as the link is valid."""
    for_ever = immutable and link.max_age is None
    body = answer(request, 301 if for_ever else 302, "the file is in the bucket")
    request.setHeader(b"location", link.url.encode())
    if immutable:
        request.setHeader(b"cache-control", _IMMUTABLE if for_ever else b"public, max-age=%d" % (link.max_age or 0))
    request.setHeader(b"cache-status", b"MyPyPi; hit")
    return body


def _unsatisfiable(request: Request, error: Unsatisfiable) -> bytes:
    body = answer(request, error.status, str(error))
    request.setHeader(b"content-range", b"bytes */%d" % error.total)
    return body


def _one_part(request: Request, total: int, etag: str) -> Span:
    """Like `_parts`, but one part: several ranges get the whole file."""
    header = request.getHeader("range")
    if header is not None and "," in header:
        request.requestHeaders.removeHeader("range")
    (part,) = _parts(request, total, etag)
    assert isinstance(part, Span)
    return part


def _describe(request: Request, digest: Digest | None, *, immutable: bool) -> None:
    request.setHeader(b"content-type", b"application/octet-stream")
    request.setHeader(b"accept-ranges", b"bytes")
    request.setHeader(b"cache-control", _IMMUTABLE if immutable else b"no-cache")
    if digest is not None:
        request.setHeader(b"etag", b'"%s"' % str(digest).encode())


def _parts(request: Request, total: int | None, etag: str | None) -> list[bytes | Span]:
    """Return the parts to send; set status and headers for them. Raises BadRequest, Unsatisfiable."""
    header = request.getHeader("range")
    ranges = None
    if total is not None and request.method == b"GET" and range_applies(request.getHeader("if-range"), etag):
        ranges = ranges_of(header, total)  # Range is defined for GET only (RFC 9110, section 14.2)
    if ranges is None or total is None:
        if total is not None:
            request.setHeader(b"content-length", b"%d" % total)
        return [Span(0, total)]
    request.setResponseCode(206)
    if len(ranges) == 1:
        start, stop = ranges[0]
        request.setHeader(b"content-range", b"bytes %d-%d/%d" % (start, stop - 1, total))
        request.setHeader(b"content-length", b"%d" % (stop - start))
        return [Span(start, stop)]
    return _multipart(request, ranges, total)


def _multipart(request: Request, ranges: list[tuple[int, int]], total: int) -> list[bytes | Span]:
    """Return several ranges as the parts of one body (RFC 9110, section 14.6)."""
    boundary = secrets.token_hex(16).encode()
    parts: list[bytes | Span] = []
    for start, stop in ranges:
        parts.append(
            b"\r\n--%s\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes %d-%d/%d\r\n\r\n"
            % (boundary, start, stop - 1, total)
        )
        parts.append(Span(start, stop))
    parts.append(b"\r\n--%s--\r\n" % boundary)
    length = sum(len(part) if isinstance(part, bytes) else (part.stop or 0) - part.start for part in parts)
    request.setHeader(b"content-type", b"multipart/byteranges; boundary=" + boundary)
    request.setHeader(b"content-length", b"%d" % length)
    return parts
