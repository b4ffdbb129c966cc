"""Raw requests of clients: well-formed ones in odd forms, malformed ones, and ways to send them.

Knows HTTP from the client's side, and the daemon's routes. Must never know what is done with an answer.
"""

from __future__ import annotations

import gzip
from random import Random

from attrs import field, frozen

from tests.fuzz import inputs
from tests.fuzz.raw.content import SIMPLE, Package
from tests.fuzz.raw.mutation import in_pieces, mutated
from tests.fuzz.raw.talk import Talk

_ROUTES = tuple(route.replace(inputs.PROJECT, "probe") for route in inputs._ROUTES)
_METHODS = (
    *(b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"PURGE", b"G\xffT", b"A" * 20_000, b"PRI", b""),
    *(b"GET\x00", b"HEAD", b"POST", b" GET", b"GET\t"),
)  # fmt: skip
_VERSIONS = (
    *(b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9", b"", b"XTTP/1.1", b"HTTP/1.1 x", b"HTTP/1.1\x00"),
    *(b"HTTP/1.", b"http/1.1", b"HTTP/1.1" + b"1" * 5000, b"HTTP/-1.1"),
)  # fmt: skip
_ODD_TARGETS = (
    *(b"*", b"", b"evil.example:443", b"/" + b"a" * 20_000, b"http://evil.example/simple/", b"http://"),
    *(b"https://here.example", b"http://10.0.0.1/simple/probe/", b"http://here.example/simple/probe/"),
    *(b"//evil.example/simple/", b"http:/x"),
    *(b"/simple/probe/?" + b"q" * 9000, b"/\x00", b"/\xff\xfe", b"?", b"/../../../etc/passwd"),
    *(b"/simple/%2e%2e/%2e%2e/etc/passwd", b"/file/http/10.0.0.1/x-1.0.tar.gz", b"/file/http/127.0.0.1:6379/x.whl"),
    *(b"/pypi/" + b"n" * 8000 + b"/json", b"/probe/9.9.9", b"/probe/" + b"9" * 3000, b"/pypi/probe/9.9.9/json"),
    *(b"/-/package/probe/dist-tags", b"/probe/dist-tags", b"/%2d/metrics", b"/-%2fmetrics", b"/-/metrics;x"),
    *(b"/simple/probe/\x85", b"ftp://here.example/", b"/@a/b/c/d/e", b"/file/http/host/directory"),
    *(b"/file/" + b"d/" * 4000 + b"x.whl", b"/simple/" + b"%41" * 3000 + b"/", b"/simple/probe/#x"),
    b"/simple/\xe2\x82\xac/",
)  # fmt: skip
_FIELDS = (
    *(b"Host: [....]", b"Host: a..b", b"Host:", b"Host: evil.example", b"Host: " + b"h" * 5000),
    *(b"Host: here.example:99999999", b"Host: [::1", b"Forwarded: host=evil.example;proto=javascript"),
    *(b"X-Forwarded-Host: evil.example", b"X-Forwarded-Proto: \xff", b"Forwarded: " + b"for=x," * 900),
    *(b"X-Forwarded-For: " + b"1.2.3.4, " * 900, b"X-Forwarded-Prefix: //evil.example"),
    *(b"Accept: " + b"a/b;q=0.1," * 700, b"Accept: \xff, */*", b"Accept: text/html;q=nan"),
    *(b"Accept-Encoding: gzip;q=x, *;q=0", b"Range: bytes=0-0,-1", b"Range: bytes=" + b"0-0," * 900),
    *(b"Range: bytes=" + b"9" * 5000 + b"-", b"Range: bytes=5-1", b'If-Range: "x"', b"If-None-Match: *"),
    *(b"If-None-Match: " + b'"a",' * 2000, b"If-Modified-Since: Tue, 99999999999999999999 Nov 2026 21:00:00 GMT"),
    *(b"Expect: 100-continue", b"Expect: 200-ok", b"Expect: " + b"e" * 5000, b"Upgrade: h2c"),
    *(b"Upgrade: websocket", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    *(b"X-Request-ID: {boom!r} %s", b"X-Request-ID: " + b"x" * 3000, b"User-Agent: \x1b[31m\xff{user}"),
    *(b"Authorization: Basic !!!", b"Authorization: Basic " + b"A" * 5000, b"Cookie: " + b"c" * 8000),
    *(b"X: " + b"a" * 20_000, b"X" * 20_000 + b": a", b"No colon", b": empty", b" fold: x", b"X Y: z", b"X\x00: y"),
    *(b"X: \x00", b"X: a\rb", b"Te: trailers, chunked", b"Trailer: Host", b"Content-Encoding: gzip"),
    *(b"Content-Encoding: br", b"Content-Type: multipart/form-data; boundary="),
    *(b"Content-Type: multipart/form-data; boundary=\xff", b"Proxy-Connection: keep-alive"),
    *(b"Keep-Alive: timeout=99999", b"Connection: close, keep-alive", b"Content-MD5: x", b"Max-Forwards: -1"),
    b"Via: " + b"1.1 x, " * 900,
)  # fmt: skip
_AUDIT = b'{"probe":["1.0.0"]}'
_BODIES = (
    b"",
    b"{}",
    _AUDIT,
    b"x" * 70_000,
    bytes(100),
    b"[" * 5000,
    gzip.compress(_AUDIT),
    gzip.compress(b" " * 20_000_000),
)
_LENGTHS = (
    *(b"-1", b"+5", b"99999999999999999999", b"9" * 5000, b"\xd9\xa5", b"5, 5", b"0x5", b"", b"5 5", b"1e3"),
    *(b"00005", b"_5"),
)  # fmt: skip
_CODINGS = (
    b"gzip, chunked",
    b"identity",
    b"\xff",
    b"chunked, chunked",
    b"xchunked",
    b"chunked, gzip",
    b"",
    b"Chunked ",
    b"chunked;q=1",
)
_CHUNKS = (
    *(b"-1\r\n\r\n", b"g\r\n", b"fffffffffffffffff\r\n", b"5\r\nhelloX", b"0" * 20_000 + b"\r\n"),
    *(b"5;" + b"e" * 20_000 + b"\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n"),
    *(b"0\r\n" + b"T: t\r\n" * 5000 + b"\r\n", b"0\r\nT: " + b"t" * 50_000 + b"\r\n\r\n"),
    *(b"1\r\n{\r\n" * 20_000 + b"0\r\n\r\n", b"0x2\r\n{}\r\n0\r\n\r\n"),
)  # fmt: skip
#: A second request, hidden in the body of one whose framing is ambiguous.
_HIDDEN = b"GET /-/health/live HTTP/1.1\r\nHost: here.example\r\nX-Hidden: 1\r\n\r\n"
_AMBIGUOUS: tuple[tuple[bytes, ...], ...] = (
    (b"Content-Length: 0", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Content-Length: 0"),
    (b"Content-Length: 0", b"Content-Length: 70"),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    (b"Transfer-Encoding : chunked",),
    (b"Transfer-Encoding: xchunked",),
    (b"Content-Length: 0x0",),
    (b"Content-Length: +0",),
)


@frozen
class Sent:
    """
    What a client sends. `heads` tells of each request whether it is HEAD.

    `expected` are the bytes that each answer with status 200 must have, if all requests are well-formed. A `damaged`
    request may be anything. `most` is the number of answers that there may be.
    """

    talk: Talk = field(repr=False)
    heads: tuple[bool, ...]
    label: str
    expected: tuple[bytes, ...] = ()
    damaged: bool = False
    most: int = 1


@frozen
class Known:
    """A request, and bytes of its answer with status 200."""

    target: bytes
    answer: bytes
    method: bytes = b"GET"
    accept: bytes = b"*/*"
    body: bytes = b""


def known_requests(package_type: str, package: Package) -> tuple[Known, ...]:
    """Requests whose answers are known."""
    both = (Known(b"/-/health/live", b""), Known(b"/-/metrics", b"mypypi_"))
    if package_type == "pypi":
        wheel = package.wheel.encode()
        return (
            *both,
            Known(b"/simple/probe/", wheel, accept=SIMPLE.encode()),
            Known(b"/simple/probe/", wheel, accept=b"text/html"),
            Known(b"/pypi/probe/json", b'"probe"'),
            Known(package.wheel_target.encode(), package.content),
        )
    return (
        *both,
        Known(b"/probe", b'"1.0.0"'),
        Known(b"/probe", b'"1.0.0"', accept=b"application/vnd.npm.install-v1+json"),
        Known(b"/probe/1.0.0", b'"1.0.0"'),
        Known(package.tarball_path.encode(), package.content),
        Known(b"/-/npm/v1/security/advisories/bulk", b"", b"POST", body=_AUDIT),
        Known(b"/-/ping", b"{}"),
    )


def make_sent(rng: Random, known: tuple[Known, ...]) -> Sent:
    """Return what one client sends."""
    kind = rng.random()
    if kind < 0.35:
        return _well_formed(rng, known)
    if kind < 0.42:
        return _ambiguous(rng)
    if kind < 0.47:
        return _endless(rng)
    if kind < 0.75:
        return _odd(rng)
    corpus = [_raw(rng, each, close=rng.random() < 0.5) for each in known]
    raw = rng.choice([*corpus, rng.randbytes(rng.randint(1, 300))])
    raw = mutated(rng, raw * rng.choice((1, 1, 1, 2, 5)), corpus)
    return Sent(_delivered(rng, raw), (), f"mutated {raw[:200]!r}", damaged=True)


def _raw(rng: Random, request: Known, *, close: bool) -> bytes:
    """A well-formed request, in one of its forms."""
    fields = [
        rng.choice((b"Host: here.example", b"host:here.example", b"HOST: here.example")),
        b"Accept: " + request.accept,
    ]
    fields += rng.sample(
        (b"User-Agent: pip/26.0", b"X-A: b", b"DNT: 1", b"Accept-Encoding: identity", b"Te: trailers"),
        rng.randint(0, 3),
    )
    body = request.body
    if body:
        fields.append(b"Content-Type: application/json")
        form = rng.randrange(4)
        if form == 0:
            body = gzip.compress(body)
            fields.append(b"Content-Encoding: gzip")
        if form == 1:
            half = len(body) // 2
            fields.append(b"Transfer-Encoding: chunked")
            body = b"%x;a=b\r\n%s\r\n%X\r\n%s\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
        else:
            fields.append(b"Content-Length: %d" % len(body))
        if form == 2:
            fields.append(b"Expect: 100-continue")
    if close:
        fields.append(b"Connection: close")
    rng.shuffle(fields)
    return b"\r\n".join([b"%s %s HTTP/1.1" % (request.method, request.target), *fields, b"", body])


def _well_formed(rng: Random, known: tuple[Known, ...]) -> Sent:
    chosen = [rng.choice(known) for _ in range(rng.choice((1, 1, 1, 2, 3, 8)))]
    if rng.random() < 0.2:
        chosen = [
            Known(each.target, b"", b"HEAD" if not each.body else b"POST", each.accept, each.body) for each in chosen
        ]
    raw = b"".join(_raw(rng, each, close=number == len(chosen) - 1) for number, each in enumerate(chosen))
    pieces = in_pieces(rng, raw)
    pause = rng.choice((0.0, 0.0, 0.001, 0.01)) if len(pieces) > 1 else 0.0
    heads = tuple(each.method == b"HEAD" for each in chosen)
    return Sent(
        Talk(pieces, pause), heads, f"well-formed {raw!r}", tuple(each.answer for each in chosen), most=len(chosen)
    )


def _ambiguous(rng: Random) -> Sent:
    fields = rng.choice(_AMBIGUOUS)
    method = rng.choice((b"POST", b"GET"))
    body = rng.choice((_HIDDEN, b"0\r\n\r\n" + _HIDDEN, b"%x\r\n%s\r\n0\r\n\r\n" % (len(_HIDDEN), _HIDDEN)))
    head = [b"%s /-/ping HTTP/1.1" % method, b"Host: here.example", *fields, b"", body]
    return Sent(Talk(in_pieces(rng, b"\r\n".join(head)), impatient=True), (False,), f"ambiguous {fields}")


def _endless(rng: Random) -> Sent:
    """Requests of a megabyte, where a few kilobytes are usual."""
    head = b"POST /-/npm/v1/security/advisories/bulk HTTP/1.1\r\nHost: here.example\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    size = 1_000_000
    forms = {
        "many fields": head + b"X-n: a\r\n" * (size // 8),
        "long field": head + b"X: " + b"a" * size,
        "long target": b"GET /" + b"a" * size,
        "empty lines": b"\r\n" * (size // 2),
        "long extension": chunked + b"5;" + b"e" * size,
        "long size": chunked + b"0" * size,
        "long trailer": chunked + b"0\r\nT: " + b"t" * size,
        "many trailers": chunked + b"0\r\n" + b"T: t\r\n" * (size // 6),
        "long body": head + b"Content-Length: 999999999\r\n\r\n" + b" " * (20 * size),
        "no line end": b"\xff" * size,
    }
    name = rng.choice(list(forms))
    return Sent(Talk((forms[name],), half_close=rng.random() < 0.3, impatient=True), (False,), name, damaged=True)


def _odd(rng: Random) -> Sent:
    method = rng.choice(_METHODS) if rng.random() < 0.2 else rng.choice((b"GET", b"GET", b"HEAD", b"POST"))
    fields = [b"Host: here.example", *rng.sample(_FIELDS, rng.choice((0, 1, 1, 2, 4)))]
    if rng.random() < 0.1:
        fields *= rng.choice((2, 300))
    if rng.random() < 0.1:
        del fields[0]
    fields, body = _odd_body(rng, fields) if rng.random() < 0.4 else (fields, b"")
    if rng.random() < 0.7:
        fields.append(b"Connection: close")
    version = rng.choice(_VERSIONS) if rng.random() < 0.15 else b"HTTP/1.1"
    newline = b"\n" if rng.random() < 0.05 else b"\r\n"
    raw = newline.join([b" ".join([method, _target(rng), version]), *fields, b"", body])
    damaged = method not in (b"GET", b"HEAD", b"POST") or bool(body) or newline == b"\n"
    return Sent(_delivered(rng, raw), (method == b"HEAD",), f"odd {raw[:300]!r}", damaged=damaged)


def _target(rng: Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(_ODD_TARGETS)
    path = rng.choice(_ROUTES)
    if kind > 1:
        segments = path.split("/")
        segments[rng.randrange(len(segments))] = rng.choice(inputs._ODD_SEGMENTS)
        path = "/".join(segments)
    return path.encode("utf-8", "surrogatepass")


def _odd_body(rng: Random, fields: list[bytes]) -> tuple[list[bytes], bytes]:
    body = rng.choice(_BODIES)
    form = rng.randrange(4)
    if form == 0:
        return [*fields, b"Content-Length: " + rng.choice(_LENGTHS)], body
    if form == 1:
        return [*fields, b"Content-Length: %d" % max(0, len(body) + rng.choice((-1, 1, 0, 10**9)))], body
    if form == 2:
        return [*fields, b"Transfer-Encoding: " + rng.choice(_CODINGS)], rng.choice(_CHUNKS)
    return [*fields, b"Transfer-Encoding: chunked"], rng.choice(
        (*_CHUNKS, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
    )


def _delivered(rng: Random, raw: bytes) -> Talk:
    pieces = in_pieces(rng, raw)
    leave = rng.choice((0, 1, 100, 5000)) if rng.random() < 0.15 else None
    return Talk(pieces, rng.choice((0.0, 0.0, 0.005)), leave, rng.random() < 0.3, rng.random() < 0.15, impatient=True)
