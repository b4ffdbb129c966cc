"""Makes compressed forms: of what an ecosystem has rendered, and of other forms.

Knows gzip and etags. Must never know what a form has, or in which process it is made.
"""

from __future__ import annotations

import hashlib
import re

from attrs import evolve
from isal import isal_zlib

from mypypi.model import BASE_PLACEHOLDER, Form, Part, RenderedForm
from mypypi.pieces import GZIP
from mypypi.rendering.parts import LEVEL

#: An address that is put into links before they are compressed. Nothing in it has to be quoted in JSON or HTML, and it
#: does not end as it begins: if it did not stand in a form before, it stands there only where the placeholder stood.
_USUAL_BASE = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+(?:/[A-Za-z0-9._~\-]+)*")


def compress(rendered: RenderedForm, base: str = "") -> Form:
    """Compress a form, with `base` in its links where that can be undone."""
    stands, identity = with_base(rendered, base)
    return Form(rendered.media_type, etag_of(rendered), len(identity), gzip(identity), stands)


def with_base(rendered: RenderedForm, base: str) -> tuple[str, bytes]:
    """
    Put `base` into the links of a form. Returns the address that stands in them then, and the identity bytes.

    The placeholder stays if another address could not be put in its place later on.
    """
    if not rendered.based:
        return "", rendered.body
    if _USUAL_BASE.fullmatch(base) is None or base.encode() in rendered.body:
        return BASE_PLACEHOLDER.decode(), rendered.body
    return base, rendered.body.replace(BASE_PLACEHOLDER, base.encode())


def with_placeholder(form: Form, body: bytes) -> bytes:
    """Return the identity bytes of a form as its ecosystem has rendered them."""
    return body.replace(form.base.encode(), BASE_PLACEHOLDER) if form.based else body


def etag_of(rendered: RenderedForm) -> str:
    """Return a form's etag. Every host that renders the same page makes the same one."""
    return hashlib.sha256(rendered.body).hexdigest()[:32]


def gzip(data: bytes) -> bytes:
    """Compress data into the gzip format (RFC 1952), without a time: the same data gives the same bytes."""
    return isal_zlib.compress(data, LEVEL, GZIP)


def derived(form: Form, body: bytes, base: str, part: Part | None) -> Form:
    """Return the form with this body, of a form or its `part`, with `base` as the address in its links if given."""
    if form.based and base:
        body = body.replace(form.base.encode(), base.encode())
    etag = derived_etag(form, base, part)
    return evolve(form, etag=etag, size=len(body), body=gzip(body), base="" if base else form.base)


def derived_etag(form: Form, base: str, part: Part | None) -> str:
    """Return the etag of what is derived from a form. It is known without the body."""
    return hashlib.sha256(f"{form.etag} {base} {part or ''}".encode(errors="surrogatepass")).hexdigest()[:32]
