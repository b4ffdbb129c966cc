"""Raw answers of upstream: status lines, heads, framing, encodings, redirects and ways to send them.

An answer that is `legal` is one that a lenient client understands, so a client of the daemon must get its content.
Knows HTTP from the server's side. Must never know how they are served.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from random import Random

from attrs import define, evolve, field, frozen

from tests.fuzz.raw.mutation import in_pieces, mutated

#: Marks bytes after the end of an answer, which no client may ever receive.
POISON = b"POISON-of-another-answer"
_EXTRA = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n" + POISON
_PAUSES = (0.0, 0.0, 0.0, 0.0, 0.01, 0.05)
_REDIRECTS = (301, 302, 303, 307, 308)

_ODD_TRAILERS = (b"no colon", b" fold", b"\x00", b"Content-Length: 5")
#: Hosts to which no connection may be made, while upstream is on loopback.
FORBIDDEN = (
    *("169.254.169.254", "10.0.0.1", "192.168.0.1", "172.16.0.1", "[fe80::1]", "[fe80::1%25lo]"),
    *("[::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::]", "0.0.0.0", "224.0.0.1"),  # noqa: S104 - nothing is bound to it
    *("255.255.255.255", "[fd00::1]", "167772161", "0x0a000001", "10.1", "012.0.0.1", "0xa9.0xfe.0xa9.0xfe"),
    *("2852039166", "0", "[ff02::1]", "[fec0::1]", "10-0-0-1.fuzz.example", "169-254-169-254.fuzz.example"),
    *("192-168-0-1.FUZZ.example.", "0-0-0-0.fuzz.example", "224-0-0-1.fuzz.example", "172-31-255-255.fuzz.example"),
    *("nowhere.example", "169\u3002254\u3002169\u3002254"),
)  # fmt: skip
_ODD_STATUS = (
    *(b"HTTP/1.1 200", b"HTTP/1.1  200 OK", b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1 -200 OK"),
    *(b"HTTP/2 200 OK", b"HTTP/1.1 \xd9\xa2\xd9\xa0\xd9\xa0 OK", b"HTTP/9.9 200 OK", b"HTTP/1.1 2e2 OK"),
    *(b"ICY 200 OK", b"", b"200 OK", b"HTTP/1.1 +200 OK", b"HTTP/1.1 200 O\x00K", b"HTTP/1.1 200 " + b"x" * 20_000),
    *(b"http/1.1 200 ok", b" HTTP/1.1 200 OK", b"HTTP/1.1 101 Switching", b"HTTP/1.1 199 x", b"HTTP/1.1 204 No"),
    *(b"HTTP/1.1 205 x", b"HTTP/1.1 206 Part", b"HTTP/1.1 304 Not", b"HTTP/1.1 400 x", b"HTTP/1.1 401 x"),
    *(b"HTTP/1.1 403 x", b"HTTP/1.1 404 x", b"HTTP/1.1 410 x", b"HTTP/1.1 416 x", b"HTTP/1.1 451 x"),
    *(b"HTTP/1.1 500 x", b"HTTP/1.1 502 x", b"HTTP/1.1 600 x", b"HTTP/1.1 999 x", b"HTTP/1.1 000 x"),
    *(b"HTTP/1.1 300 x", b"HTTP/1.1 402 x", b"HTTP/1.1 407 x", b"HTTP/1.1 421 x", b"HTTP/1.1 425 x"),
)  # fmt: skip
_LEGAL_FIELDS = (
    *(b"X-A: b", b"Server:   s  ", b"set-cookie: a=b; Path=/; Domain=example", b"VIA: 1.1 v", b"X-Empty:"),
    *(b"Age: 5", b"Cache-Control: no-store", b"Strict-Transport-Security: max-age=1", b"Keep-Alive: timeout=5"),
    *(b"X-L: " + b"v" * 4000, b"Vary: *", b"X-High: \xe9\xff", b"Date: Tue, 24 Nov 2026 21:00:00 GMT"),
    *(b'Alt-Svc: h3=":443"', b"Link: <x>; rel=y", b'ETag: "abc"', b"Last-Modified: Tue, 24 Nov 2026 21:00:00 GMT"),
    b"Accept-Ranges: bytes",
)  # fmt: skip
_ODD_FIELDS = (
    *(b"X-Fold: a\r\n b", b"X-Fold: a\r\n\tb\r\n  c", b" Leading: x", b"No colon", b": no name", b"X Y: space"),
    *(b"X\x00: nul", b"X: \x00", b"X: a\rb", b"\xff: x", b"X:" + b" " * 10_000, b"X: " + b"a" * 40_000),
    *(b"X" * 40_000 + b": a", b"\x0bX: y", b"ETag: \xff\x00", b"ETag: " + b"e" * 9000, b"Last-Modified: yesterday"),
    *(b"Content-Type: \xff", b"Content-Type: a/b;;="),
    b"Content-Type: text/html; charset=\"utf-8''x%0aforged%1b[31m\"",
    *(b"Content-Type: application/json; charset=utf-7", b"Content-Type: text/plain; charset=idna"),
    *(b"Content-Range: bytes 0-0/1", b"Content-Range: bytes 5-1/0", b"Trailer: X", b"Retry-After: " + b"9" * 5000),
    *(b"Retry-After: -1", b"Connection: Upgrade", b"Upgrade: h2c", b"Connection: x, y, close"),
    *(b"Location: http://10.0.0.1/", b"Content-Location: //x", b'Content-Disposition: attachment; filename="../x"'),
    *(b"Set-Cookie: " + b"c" * 3000 + b"=1", b"Content-Encoding: ", b"Content-Encoding: identity"),
    b"Proxy-Connection: close",
)  # fmt: skip
_ODD_LENGTHS = (
    *(b"-1", b"+5", b"0x5", b"5, 5", b"5, 6", b"5 5", b"", b" ", b"\xd9\xa5", b"99999999999999999999", b"9" * 5000),
    *(b"1e3", b"00000000000000000005", b"5;", b"five", b"1_0", b"0"),
)  # fmt: skip
_ODD_CODINGS = (
    *(b"gzip", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"identity", b"xchunked", b"chunked;a=b"),
    *(b"\xff", b"", b"chunked\x0b", b"CHUNKED, identity"),
)  # fmt: skip
_ODD_CHUNKS = (
    *(b"-1\r\nx\r\n", b"g\r\nx\r\n", b"5\nhello\n", b"5\r\nhelloX\r\n", b"fffffffffffffffff\r\nx"),
    *(b" 5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"5 ;a\r\nhello\r\n", b"\r\n", b"+5\r\nhello\r\n"),
    *(b"5;" + b"e" * 30_000 + b"\r\nhello\r\n", b"0" * 30_000 + b"5\r\nhello\r\n", b'5;a="\r\n"\r\nhello\r\n'),
    *(b"\x005\r\nhello\r\n", b"5\r\r\nhello\r\n", b"7fffffff\r\nx", b"_5\r\nhello\r\n"),
)  # fmt: skip


@frozen
class RawAnswer:
    """
    The bytes of an answer, in the pieces in which upstream sends them, with `pause` seconds between them.

    Then upstream repeats `endless` until the daemon leaves, if there is any; then it does what `end` says: ``keep``,
    ``close``, ``reset`` or ``hang``. A `legal` answer brings its content. `label` names what was chosen.
    """

    pieces: tuple[bytes, ...]
    pause: float = 0.0
    endless: bytes = b""
    end: str = "keep"
    legal: bool = True
    label: str = ""


@define
class _Draft:
    """An answer while its parts are chosen."""

    rng: Random
    body: bytes
    status: bytes = b"HTTP/1.1 200 OK"
    before: bytes = b""
    fields: list[bytes] = field(factory=list)
    framed: bytes = b""
    end: str = "keep"
    legal: bool = True
    labels: list[str] = field(factory=list)

    def note(self, label: str, *, legal: bool = False) -> None:
        self.labels.append(label)
        self.legal &= legal

    def raw(self) -> bytes:
        return self.before + b"\r\n".join([self.status, *self.fields, b"", self.framed])


def well(body: bytes, content_type: str) -> RawAnswer:
    """The plain answer with this content."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return RawAnswer((head.encode() + body,))


def make_answer(rng: Random, body: bytes, content_type: str, targets: Targets) -> RawAnswer:
    """Return a random answer with, or instead of, this content."""
    kind = rng.random()
    if kind < 0.22:
        return make_redirect(rng, targets)
    if kind < 0.28:
        return make_endless(rng, body)
    draft = _Draft(rng, body, fields=[f"Content-Type: {content_type}".encode()])
    odd = set(rng.sample(range(len(_STEPS)), rng.choice((0, 0, 0, 1, 1, 1, 2))))
    for number, (usual, unusual) in enumerate(_STEPS):
        (unusual if number in odd else usual)(draft)
    rng.shuffle(draft.fields)
    raw = draft.raw()
    if rng.random() < 0.2:
        draft.note("mutated")
        raw = mutated(rng, raw, [well(draft.body, "text/plain").pieces[0]])
    elif rng.random() < 0.1 and draft.end == "keep" and draft.legal:
        draft.note("extra answer")
        raw += _EXTRA
    return _delivered(draft, raw)


def _delivered(draft: _Draft, raw: bytes) -> RawAnswer:
    rng, answer = draft.rng, RawAnswer((), _pause(draft.rng), end=draft.end)
    if rng.random() < 0.15:
        draft.note("cut")
        raw, answer = (
            raw[: rng.randint(0, len(raw))],
            evolve(answer, end=rng.choice(("close", "reset", "close", "hang"))),
        )
    elif answer.end == "keep" and rng.random() < 0.3:
        answer = evolve(answer, end="close")
    pieces = in_pieces(rng, raw)
    return evolve(answer, pieces=pieces, legal=draft.legal, label=", ".join(draft.labels) or "well")


def _pause(rng: Random) -> float:
    return rng.choice(_PAUSES)


# Steps: each has a usual form, which is legal, and an odd one


def _usual_status(draft: _Draft) -> None:
    draft.status = draft.rng.choice((draft.status, draft.status, b"HTTP/1.1 200 ", b"HTTP/1.1 200 Fine \xe9"))


def _odd_status(draft: _Draft) -> None:
    draft.status = draft.rng.choice(_ODD_STATUS)
    draft.note(f"status {draft.status[:20]!r}")


def _usual_interim(draft: _Draft) -> None:
    if draft.rng.random() < 0.1:
        interim = draft.rng.choice((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: <x>\r\n\r\n"))
        draft.before = interim * draft.rng.randint(1, 3)
        draft.note("1xx", legal=True)


def _odd_interim(draft: _Draft) -> None:
    draft.before = draft.rng.choice((
        *(b"HTTP/1.1 100 Continue\r\n\r\n" * 500, b"HTTP/1.1 101 Switching\r\n\r\n", b"HTTP/1.1 199\r\n\r\n"),
        *(b"\r\n" * 50, b"HTTP/1.1 103 H\r\nContent-Length: 5\r\n\r\nhello"),
        *(b"HTTP/1.1 100 C\r\n" + b"a: b\r\n" * 3000 + b"\r\n", b"junk\r\n", b"\x16\x03\x01\x02\x00"),
        *(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\xef\xbb\xbf"),
    ))  # fmt: skip
    draft.note(f"before {draft.before[:20]!r}")


def _usual_fields(draft: _Draft) -> None:
    draft.fields += draft.rng.sample(_LEGAL_FIELDS, draft.rng.randint(0, 5))


def _odd_fields(draft: _Draft) -> None:
    chosen = draft.rng.sample(_ODD_FIELDS, draft.rng.randint(1, 3))
    draft.fields += chosen * draft.rng.choice((1, 1, 1, 2, 200))
    draft.note(f"fields {[each[:20] for each in chosen]}")


def _usual_encoding(_draft: _Draft) -> None:
    """Leave the content as it is."""


def _odd_encoding(draft: _Draft) -> None:
    rng, body = draft.rng, draft.body
    packed = gzip.compress(body, 1)
    forms: dict[str, tuple[bytes, bytes]] = {
        "gzip": (b"gzip", packed),
        "x-gzip": (b"X-GZip", packed),
        "two members": (b"gzip", gzip.compress(body[:9]) + gzip.compress(body[9:])),
        "empty members": (b"gzip", gzip.compress(b"") * 5000 + packed),
        "only empty members": (b"gzip", gzip.compress(b"") * 20_000),
        "cut gzip": (b"gzip", packed[: rng.randint(0, len(packed))]),
        "damaged gzip": (b"gzip", mutated(rng, packed)),
        "bytes after gzip": (b"gzip", packed + b"junk" * 100),
        "zeros after gzip": (b"gzip", packed + bytes(70_000)),
        "no gzip": (b"gzip", body),
        "gzip of nothing": (b"gzip", b""),
        "swollen": (b"gzip", gzip.compress(body + b" " * 30_000_000, 1)),
        "deflate": (b"deflate", zlib.compress(body)),
        "br": (b"br", body),
        "zstd": (b"zstd", b"\x28\xb5\x2f\xfd" + body),
        "gzip twice": (b"gzip, gzip", gzip.compress(packed)),
        "many": (b"gzip, " * 200 + b"gzip", packed),
        "unknown": (b"\xff\x00", body),
        "unmarked gzip": (b"", packed),
    }
    name = rng.choice(list(forms))
    coding, draft.body = forms[name]
    if coding:
        draft.fields.append(b"Content-Encoding: " + coding)
    draft.note(name)


def _usual_framing(draft: _Draft) -> None:
    rng, body = draft.rng, draft.body
    kind = rng.randrange(4)
    if kind < 2:
        draft.fields.append(b"content-LENGTH:%d " % len(body) if kind else b"Content-Length: %d" % len(body))
        draft.framed = body
    elif kind == 2:
        draft.fields.append(rng.choice((b"Transfer-Encoding: chunked", b"transfer-encoding:Chunked")))
        draft.framed = _chunks(rng, body) + rng.choice((b"", b"", b"X-T: 1\r\n", b"A: b\r\nC: d\r\n")) + b"\r\n"
        draft.note("chunked", legal=True)
    else:
        draft.fields.append(b"Connection: close")
        draft.framed, draft.end = body, "close"


def _chunks(rng: Random, body: bytes) -> bytes:
    out, at = b"", 0
    while at < len(body):
        size = rng.choice((1, 2, 7, 100, 5000, 70_000, len(body)))
        piece = body[at : at + size]
        mark = rng.choice((b"%x", b"%X", b"00%x")) % len(piece)
        out += mark + rng.choice((b"", b"", b";a=b", b';q="v"')) + b"\r\n" + piece + b"\r\n"
        at += size
        if len(out) > 5_000 and size < 100:
            piece = body[at:]
            return out + (b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b"") + b"0\r\n"
    return out + b"0\r\n"


def _odd_framing(draft: _Draft) -> None:
    rng, body = draft.rng, draft.body
    length = b"Content-Length: %d" % len(body)
    chunked = b"Transfer-Encoding: chunked"
    whole = _chunks(rng, body) + b"\r\n"
    small = b"".join(b"1\r\n%c\r\n" % byte for byte in body[:20_000])
    forms: dict[str, tuple[list[bytes], bytes]] = {
        "odd length": ([b"Content-Length: " + rng.choice(_ODD_LENGTHS)], body),
        "short": ([b"Content-Length: %d" % (len(body) + rng.choice((1, 7, 10**6, 10**12)))], body),
        "long": ([b"Content-Length: %d" % max(0, len(body) - rng.choice((1, 7, 100)))], body),
        "two lengths": ([length, b"Content-Length: %d" % (len(body) + rng.choice((0, 1)))], body),
        "both": ([length, chunked], rng.choice((body, whole))),
        "twice chunked": ([chunked, chunked], whole),
        "odd coding": ([b"Transfer-Encoding: " + rng.choice(_ODD_CODINGS)], rng.choice((body, whole))),
        "odd chunk": ([chunked], rng.choice(_ODD_CHUNKS) + whole),
        "odd chunk later": ([chunked], whole[:-5] + rng.choice(_ODD_CHUNKS) + whole),
        "no last chunk": ([chunked], whole[:-5]),
        "small chunks": ([chunked], small + b"0\r\n\r\n"),
        "long trailer": ([chunked], whole[:-2] + b"T: " + b"t" * 100_000 + b"\r\n\r\n"),
        "many trailers": ([chunked], whole[:-2] + b"T: t\r\n" * 20_000 + b"\r\n"),
        "odd trailer": ([chunked], whole[:-2] + rng.choice(_ODD_TRAILERS) + b"\r\n\r\n"),
        "long extension": ([chunked], b"1;" + b"x" * 200_000 + b"\r\nx\r\n0\r\n\r\n"),
        "not framed": ([], body),
    }  # fmt: skip
    name = rng.choice(list(forms))
    fields, draft.framed = forms[name]
    draft.fields += fields
    draft.end = rng.choice(("keep", "close", "close", "reset"))
    draft.note(name)


_STEPS: tuple[tuple[Callable[[_Draft], None], Callable[[_Draft], None]], ...] = (
    (_usual_status, _odd_status),
    (_usual_interim, _odd_interim),
    (_usual_fields, _odd_fields),
    (_usual_encoding, _odd_encoding),
    (_usual_framing, _odd_framing),
)


def make_endless(rng: Random, body: bytes) -> RawAnswer:
    """Return an answer that does not end."""
    head, chunked = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
    forms = {
        "endless head": (head, b"X-n: " + b"a" * 1000 + b"\r\n"),
        "endless line": (head + b"X: ", b"a" * 10_000),
        "endless short lines": (head, b"a:b\r\n" * 1000),
        "endless fold": (head + b"X: a\r\n", b" a\r\n" * 1000),
        "endless status": (b"HTTP/1.1 200 ", b"O" * 10_000),
        "endless 1xx": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        "endless extension": (head + chunked + b"5;", b"e" * 10_000),
        "endless chunk size": (head + chunked, b"0" * 10_000),
        "endless trailer": (head + chunked + b"%x\r\n%s\r\n0\r\n" % (len(body), body), b"T: t\r\n" * 1000),
        "endless body": (head + b"\r\n", b" " * 60_000),
        "endless chunks": (head + chunked, b"1\r\n \r\n" * 1000),
        "endless gzip": (head + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"") * 1000),
        "endless lines before": (b"", b"\r\n" * 1000),
        "endless body of nothing": (b"HTTP/1.1 204 No\r\n\r\n", b"x" * 10_000),
    }
    name = rng.choice(list(forms))
    start, repeated = forms[name]
    return RawAnswer((start,), endless=repeated, end="close", legal=False, label=name)


@frozen
class Targets:
    """
    Where redirects of one answer lead.

    `good` is the URL with the content, `loop` one that redirects to itself, `back` one of another
    host that redirects back to upstream, `marker` the path of the case, and `others` are the addresses of other hosts.
    """

    good: str
    loop: str
    back: str
    marker: str
    others: tuple[str, ...]


def make_redirect(rng: Random, targets: Targets) -> RawAnswer:
    """Return a redirect: to the content, in a loop, or to an odd or forbidden place."""
    kind, code = rng.random(), rng.choice(_REDIRECTS)
    legal = False
    if kind < 0.25:
        location, legal, label = targets.good.encode(), True, "redirect"
    elif kind < 0.3:
        location, label = targets.loop.encode(), "redirect in a loop"
    elif kind < 0.4:
        location, label = targets.back.encode(), "redirect back"
    elif kind < 0.75:
        host = rng.choice(FORBIDDEN)
        scheme = rng.choice(("http://", "http://", "https://", "//", "http://user:pw@", "HTTP://"))
        port = rng.choice(("", ":80", ":" + targets.good.split(":")[2].partition("/")[0]))
        location, label = f"{scheme}{host}{port}{targets.marker}".encode(), f"redirect to {host}"
    else:
        location = rng.choice(_odd_locations(targets))
        label = f"redirect to {location[:40]!r}"
        if rng.random() < 0.3:
            location = mutated(rng, location)
    fields = [b"Location: " + location]
    if not legal and rng.random() < 0.1:
        fields = rng.choice(([], fields * 2, [*fields, b"Location: " + targets.loop.encode()]))
    if not legal and rng.random() < 0.1:
        code = rng.choice((300, 304, 305, 306, 399, 201))
    body = rng.choice((b"", b"moved", b"m" * 100_000))
    framing = rng.choice((b"Content-Length: %d" % len(body), b"Connection: close"))
    raw = b"\r\n".join([b"HTTP/1.1 %d Moved" % code, *fields, framing, b"", body])
    end = "keep" if framing.startswith(b"Content") else "close"
    return RawAnswer(in_pieces(rng, raw), _pause(rng), end=end, legal=legal, label=label)


def _odd_locations(targets: Targets) -> tuple[bytes, ...]:
    other = targets.others[0].encode()
    marker = targets.marker.encode()
    return (
        *(b"", b" ", b"?", b"#", b"?x=1", b"//", b"///x", b"http:", b"http://", b"https://", b"http:/x"),
        *(b"http:///x", b"ftp://127.0.0.1/x", b"file:///etc/passwd", b"gopher://127.0.0.1:6379/_x"),
        *(b"javascript:x", b"data:,x", b"dict://x/", other + marker, b"https" + other[4:] + marker),
        *(b"http://127.0.0.1:0/", b"http://127.0.0.1:99999/", b"http://[::1]:9/", b"http://127.0.0.1:9" + marker),
        *(b"http://127.1:9/", b"http://2130706433:9/", b"http://localhost:9/", b"http://[/"),
        *(b"http://127.0.0.1:x/", b"http://[::1%25eth0]/", b"http://a\x00b/", b"http://\xff/", b"\xe2\x82\xac"),
        *(b"http://a b/", other.replace(b"//", b"//user:pw@") + marker, b"/" + b"l" * 70_000, b"/..//../" + marker),
        *(b"http://" + b"h" * 70_000, b"\\\\10.0.0.1\\x", b"http:\\\\10.0.0.1\\", b"/\\10.0.0.1/"),
        *(b"http://127.0.0.1\\@10.0.0.1/", b"http://10.0.0.1#@127.0.0.1/", b"/x\r\n X-Fold: y", b"/x\ty"),
        *(b"http://" + b"a." * 200 + b"example/", b"unix:/run/x", b"*", b":", b"http://.", b"http://-/"),
    )  # fmt: skip
