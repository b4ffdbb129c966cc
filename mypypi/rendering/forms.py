"""Makes compressed forms: of what an ecosystem has rendered, and of other forms.

Knows gzip and etags. Must never know what a form has, or in which process it is made.
"""

from __future__ import annotations

import hashlib

from attrs import evolve
from isal import isal_zlib

from mypypi.model import BASE_PLACEHOLDER, Form, Part, RenderedForm
from mypypi.pieces import GZIP
from mypypi.rendering.parts import LEVEL


def compress(rendered: RenderedForm) -> Form:
    """
    Compress a form. Its etag is made from the identity bytes alone.

    So every host that renders the same page makes the same etag.
    """
    return compressed(rendered, gzip(rendered.body))


def compressed(rendered: RenderedForm, body: bytes) -> Form:
    """Return a form that is compressed already: `body` is gzip."""
    etag = hashlib.sha256(rendered.body).hexdigest()[:32]
    return Form(rendered.media_type, etag, len(rendered.body), body, rendered.based)


def gzip(data: bytes) -> bytes:
    """Compress data into the gzip format (RFC 1952), without a time: the same data gives the same bytes."""
    return isal_zlib.compress(data, LEVEL, GZIP)


def derived(form: Form, body: bytes, base: str, part: Part | None) -> Form:
    """Return the form with this body, of a form or its `part`, with `base` as the address in its links if given."""
    if form.based and base:
        body = body.replace(BASE_PLACEHOLDER, base.encode())
    etag = derived_etag(form, base, part)
    return evolve(form, etag=etag, size=len(body), body=gzip(body), based=form.based and not base)


def derived_etag(form: Form, base: str, part: Part | None) -> str:
    """Return the etag of what is derived from a form. It is known without the body."""
    return hashlib.sha256(f"{form.etag} {base} {part or ''}".encode(errors="surrogatepass")).hexdigest()[:32]
