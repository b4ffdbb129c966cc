"""Strategies for the fuzz tests: malformed requests and pages.

Most of each input is valid, so that it passes the first check; one or two parts of it are not. Knows Hypothesis, HTTP
and the two ecosystems' formats. Must never know the server.
"""

from __future__ import annotations

import gzip
import json
from typing import Any
from urllib.parse import quote

from attrs import frozen
from hypothesis import strategies as st

from tests.fuzz.world import UPSTREAM, UPSTREAM_HOST

#: Hosts to which a request alone must never cause a connection.
FORBIDDEN_HOSTS = ("evil.example", "169.254.169.254", "127.0.0.1:6379", "[::1]:80", "localhost", "up.example:8443")
#: Hosts of upstream's files.
FILE_HOSTS = ("files.example", "cdn.example:8080", UPSTREAM_HOST, "[2001:db8::1]:8443", "FILES.example:443")
PROJECT = "holy-grail"
WHEEL = "holy_grail-1.0-py3-none-any.whl"
SDIST = "holy_grail-1.0.tar.gz"
TARBALL = f"{PROJECT}-1.0.0.tgz"

Header = tuple[bytes, bytes]


def often(usual: st.SearchStrategy[Any], odd: st.SearchStrategy[Any], share: int = 6) -> st.SearchStrategy[Any]:
    """The usual strategy, except for one time in `share`."""
    return st.integers(0, share - 1).flatmap(lambda number: odd if number == share - 1 else usual)


# Requests

_ODD_SEGMENTS = (
    *("", ".", "..", "%2e%2e", "%2E.", "...", "%", "%zz", "%00", "%0d%0aX-Evil:%201", "%2f", "%5c", "a%2Fb", "\\"),
    *("~",),
    *("%ff", "%c3%a9", "%e2%80%ae", "%ed%a0%80", "\u20ac", ";a=b", ":", "a:b", "@", "%40", "@/", "@a%2f..", "*", "?"),
    *("#",),
    *("@evil.example", "x" * 300, "%41" * 200, "http:", "https://evil.example", "//", "%0a", "%7f", "con", "-"),
    *("__proto__",),
)  # fmt: skip
_SEGMENTS = (
    *("simple", PROJECT, "Holy_Grail", "holy.grail", "pypi", "json", "file", "http", "https", "1.0", "latest"),
    *("-", "npm", "v1", "security", "audits", "quick", "advisories", "bulk", "keys", "attestations", "package"),
    *("dist-tags", "search", "ping", "whoami", "health", "live", "ready", "metrics", "@acme", "@acme%2fthing"),
    *("thing",),
    *(f"{PROJECT}@1.0.0", TARBALL, "thing-1.0.0.tgz", WHEEL, f"{WHEEL}.metadata", SDIST, *FILE_HOSTS, *FORBIDDEN_HOSTS),
)
_ROUTES = (
    *("/", "/simple", "/simple/", "/simple/holy-grail/", "/simple/Holy_Grail/", "/pypi/holy-grail/json"),
    *("/pypi/Holy.Grail/1.0/json", f"/file/https/files.example/a/{WHEEL}"),
    *(f"/file/https/files.example/a/{WHEEL}.metadata",),
    *(f"/file/https/evil.example/a/{WHEEL}", f"/file/http/127.0.0.1:6379/{SDIST}"),
    *(f"/file/https/up.example:8443/{SDIST}",),
    *("/holy-grail", "/@acme/thing", "/@acme%2fthing", "/holy-grail/latest", "/holy-grail/1.0.0"),
    *(f"/holy-grail/-/{TARBALL}",),
    *("/@acme/thing/-/thing-1.0.0.tgz", "/-/package/holy-grail/dist-tags", "/-/npm/v1/keys", "/-/health/ready"),
    *("/-/npm/v1/attestations/holy-grail@1.0.0", "/-/v1/search", "/-/npm/v1/security/audits/quick", "/-/ping"),
    *("/-/npm/v1/security/advisories/bulk", "/-/npm/v1/security/audits", "/-/whoami", "/-/metrics"),
)  # fmt: skip
_ODD_TEXT = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: quote(text, safe="%@:;,"))
_SEGMENT = often(st.sampled_from(_SEGMENTS), st.sampled_from(_ODD_SEGMENTS) | _ODD_TEXT)
_QUERY = often(
    st.just(""),
    st.sampled_from([
        *("?", "?format=json", "?format=application/vnd.pypi.simple.v1%2Bjson", "?format=%ff", "?format"),
        *("?x=" + "y" * 9000,),
        *("?text=a&size=20", "?%0d%0a", "?a=\xff", "?text=%E2%82%AC#frag", "?url=https://evil.example/", "?a=b?c=d"),
        *("?[]",),
    ])
    | st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: "?" + quote(text, safe="&=?/%")),
    3,
)  # fmt: skip


def _with_segment(path: str, at: int, segment: str) -> str:
    segments = path.split("/")
    segments[1 + at % max(1, len(segments) - 1) if len(segments) > 1 else 0] = segment
    return "/".join(segments)


_PATHS = (
    st.sampled_from(_ROUTES)
    | st.builds(_with_segment, st.sampled_from(_ROUTES), st.integers(0, 7), st.sampled_from(_ODD_SEGMENTS) | _ODD_TEXT)
    | st.lists(_SEGMENT, max_size=8).map(lambda segments: "/" + "/".join(segments))
)
_ABSOLUTE = st.builds(
    lambda scheme, host, path: f"{scheme}://{host}{path}",
    st.sampled_from(["http", "https", "ftp"]),
    st.sampled_from(["here.example", *FORBIDDEN_HOSTS]),
    _PATHS,
)
TARGETS = often(
    st.builds(lambda path, query: (path + query).encode(), _PATHS, _QUERY),
    _ABSOLUTE.map(str.encode)
    | st.binary(max_size=30)
    | st.sampled_from([b"*", b"evil.example:443", b"/" + b"a" * 20_000]),
    12,
)
METHODS = often(
    st.sampled_from([b"GET", b"GET", b"HEAD", b"POST"]),
    st.sampled_from(
        [b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"PURGE", b"G\xffT", b"A" * 200, b"PRI"]
    ),
)

_WEIRD_VALUES = st.binary(max_size=40).map(lambda raw: raw.replace(b"\r", b"").replace(b"\n", b"")) | st.sampled_from([
    *(b"", b"\xff\xfe", b"\xe2\x82\xac", b"*", b",,,,", b";;;=", b'"', b"=?utf-8?q?x?=", b"x" * 3000, b"\x00"),
    *(b"a\tb", b"9" * 5000),
])  # fmt: skip
_TYPES = st.sampled_from([
    *("application/json", "application/vnd.npm.install-v1+json", "text/html", "*/*", "application/*"),
    *("application/vnd.pypi.simple.v1+json", "application/vnd.pypi.simple.v1+html"),
    *("application/vnd.pypi.simple.latest+json",),
    *("text/plain", "text/html;level=1", "a/b;c=d;e=f", "/", "text/", "*", "application/*+json"),
])  # fmt: skip
_WEIGHTS = st.sampled_from(
    ["", ";q=1", ";q=0", "; q=0.5", ";q=-1", ";q=2", ";q=nan", ";q=1e9", ";q=", ";q=\u0664", ";q=0.5;x"]
)
_ACCEPTS = st.lists(st.builds(lambda kind, weight: kind + weight, _TYPES, _WEIGHTS), max_size=5).map(
    lambda parts: ", ".join(parts).encode()
)
_VALUES: dict[str, st.SearchStrategy[bytes]] = {
    "Accept": _ACCEPTS,
    "Accept-Encoding": st.sampled_from(
        [b"gzip", b"gzip;q=0", b"*", b"*;q=0, gzip", b"identity", b"br, zstd", b"gzip;q=x"]
    ),
    "If-None-Match": st.sampled_from(
        [b"*", b'"a"', b'W/"a", "b"', b'"', b"a", b'"a" "b"', b'"a",' * 500, b'"\xff"', b", *"]
    ),
    "If-Modified-Since": st.sampled_from(
        [
            *(b"Tue, 24 Nov 2026 21:00:00 GMT", b"Tue, 99999999999999999999 Nov 2026 21:00:00 GMT", b"0"),
            *(b"Sat, 31 Dec 9999 23:59:59 -2359",),
            *(b"Mon, 01 Jan 0001 00:00:00 +2359", b"Tue, 24 Nov 99999999999999999999 21:00:00 GMT"),
            *(b"Tue, 24 Nov 2026 21:00:00 +99999999999999",),
        ]
    ),
    "Range": st.sampled_from(
        [
            *(
                b"bytes=0-1",
                b"bytes=-1",
                b"bytes=5-",
                b"bytes=9999999-",
                b"bytes=1-0",
                b"bytes=0-1,2-3",
                b"bytes=0-0,-1",
            ),
            *(b"bytes=-",),
            *(b"lines=1-2", b"bytes", b"bytes=" + b"0-0," * 100, b"bytes=" + b"9" * 5000 + b"-", b"bytes=\xd9\xa1-"),
            *(b"bytes=0-1, 1-3 , -2",),
        ]
    ),
    "If-Range": st.sampled_from([b'"x"', b'W/"x"', b"Tue, 24 Nov 2026 21:00:00 GMT", b"*"]),
    "Host": st.sampled_from(
        [
            *(b"here.example", b"here.example:8080", b"[::1]:80", b"evil.example/\x2e.", b"a@b", b"\xff\xfe"),
            *(b"\xe2\x82\xac", b"a" * 300),
            *(b"xn--", b"a..b", b".", b"", b"a b", b"here:99999999", b"-", b"a" * 64 + b".example", b"[", b"]:["),
            *(b"h\x00st",),
        ]
    ),
    "Forwarded": st.sampled_from(
        [
            *(
                b"for=1;host=outside.example;proto=https",
                b"proto=javascript",
                b'host="a;b"',
                b"host=\xff",
                b"host=a\tb",
            ),
            *(b'host="', b"=,;=,"),
            *(b"for=1, host=x*y", b"host*=utf-8''%e2%82%ac", b"host*=x'y'z;proto*0=h", b"host*0=a;host*1=b"),
        ]
    ),
    "X-Forwarded-Host": st.sampled_from([b"outside.example", b"a, b", b",", b"\xff", b"a/../b"]),
    "X-Forwarded-Proto": st.sampled_from([b"https", b"HTTP", b"ftp", b"https,http", b"\xff"]),
    "X-Forwarded-Prefix": st.sampled_from(
        [b"/cache", b"/..", b"//evil.example", b"/a/", b"cache", b"\xff", b"/a" * 900]
    ),
    "X-Forwarded-For": st.sampled_from([b"192.0.2.9", b"a, b", b"::1"]),
    "X-Request-ID": st.sampled_from(
        [b"0af7651916cd43dd8448eb211c80319c", b"a b", b"{x}", b"%s {0} {boom!r}", b"\xff", b"x" * 2000]
    ),
    "Content-Type": st.sampled_from(
        [
            *(b"application/json", b"application/x-www-form-urlencoded", b"multipart/form-data"),
            *(b"multipart/form-data; boundary=", b"\xff/\xff"),
            *(b"multipart/form-data; boundary=x", b"multipart/form-data; boundary=\xff", b";"),
        ]
    ),
    "Content-Encoding": st.sampled_from([b"gzip", b"identity", b"br", b"gzip, gzip", b"x\xff"]),
    "User-Agent": st.sampled_from([b"npm/11.0.0 node/v22.0.0 linux x64", b"pip/26.0", b"{user}", b"\xe2\x82\xac"]),
    "npm-command": st.sampled_from([b"audit", b"\xc3\xa9"]),
    "Expect": st.sampled_from([b"100-continue", b"200-ok"]),
    "Connection": st.sampled_from([b"close", b"keep-alive", b"Upgrade, close", b"close, keep-alive"]),
    "Upgrade": st.sampled_from([b"h2c", b"websocket"]),
    "Authorization": st.sampled_from(
        [b"Basic !!!", b"Basic c29tZWJvZHk6cGFzcw==", b"Basic \xff", b"Bearer x", b"Basic"]
    ),
    "Cookie": st.sampled_from([b"a=b", b"\xff=\xff;", b"a"]),
}
_NAMED = st.sampled_from(sorted(_VALUES)).flatmap(
    lambda name: st.tuples(st.just(name.encode()), often(_VALUES[name], _WEIRD_VALUES))
)
_STRANGE = st.tuples(st.sampled_from([b"X", b"x-a", b"", b"a b", b"\xff", b":", b" Host", b"Host "]), _WEIRD_VALUES)
HEADERS: st.SearchStrategy[list[Header]] = st.lists(often(_NAMED, _STRANGE, 10), max_size=6)
_CONTENTS = st.sampled_from(
    [b"", b"{}", b'{"holy-grail":["1.0.0"]}', b"\x00" * 100, b"a=b&c=d", b"[" * 1000, b"x" * 70_000]
)


def _with_length(body: bytes) -> tuple[list[Header], bytes]:
    return [(b"Content-Length", b"%d" % len(body))], body


def _chunked(body: bytes) -> tuple[list[Header], bytes]:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:]) if part)
    return [(b"Transfer-Encoding", b"chunked")], chunks + b"0\r\n\r\n"


def _zipped(body: bytes) -> tuple[list[Header], bytes]:
    headers, packed = _with_length(gzip.compress(body))
    return [*headers, (b"Content-Encoding", b"gzip")], packed


_MISFRAMED = st.tuples(
    st.sampled_from(
        [
            [(b"Content-Length", b"-1")],
            [(b"Content-Length", b"+5")],
            [(b"Content-Length", b"99999999999999999999")],
            [(b"Content-Length", b"5"), (b"Content-Length", b"6")],
            [(b"Content-Length", b"\xd9\xa5")],
            [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
            [(b"Transfer-Encoding", b"gzip, chunked")],
            [(b"Transfer-Encoding", b"chunked")],
            [(b"Transfer-Encoding", b"identity")],
            [(b"Transfer-Encoding", b"\xff")],
        ]
    ),
    st.sampled_from(
        [
            b"",
            b"hello",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"5;x=y\r\nhello\r\n0\r\nT: x\r\n\r\n",
            b"-1\r\n\r\n",
            b"g\r\n",
            b"fffffffffffffffff\r\n",
            b"5\r\nhelloX",
            b"0" * 5000,
            b"5 \r\nhello\r\n0\r\n\r\n",
        ]
    ),
)
_FRAMED: st.SearchStrategy[tuple[list[Header], bytes]] = st.just(([], b"")) | st.sampled_from(
    [_with_length, _chunked, _zipped]
).flatmap(_CONTENTS.map)
BODIES: st.SearchStrategy[tuple[list[Header], bytes]] = often(_FRAMED, _MISFRAMED, 5)


@frozen
class RawRequest:
    """
    A request's bytes, in the pieces in which the client sends them.

    `head`: the answer has no body. `leave`: the client disconnects during the answer.
    """

    pieces: tuple[bytes, ...]
    head: bool = False
    leave: bool = False


def _request(
    method: bytes,
    target: bytes,
    version: bytes,
    headers: list[Header],
    body: tuple[list[Header], bytes],
    at: int,
    leave: bool,  # noqa: FBT001
) -> RawRequest:
    fields = [*headers, *body[0]]
    if not any(name == b"Host" for name, _ in fields):
        fields.insert(0, (b"Host", b"here.example"))
    top = [b" ".join([method, target, version]), *(name + b": " + value for name, value in fields)]
    raw = b"\r\n".join([*top, b"", body[1]])
    return RawRequest(tuple(part for part in (raw[:at], raw[at:]) if part), head=method == b"HEAD", leave=leave)


REQUESTS = st.builds(
    _request,
    METHODS,
    TARGETS,
    often(
        st.just(b"HTTP/1.1"),
        st.sampled_from([b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/9", b"", b"XTTP/1.1", b"HTTP/1.1 x"]),
        10,
    ),
    HEADERS,
    BODIES,
    st.integers(0, 400),
    often(st.just(False), st.just(True), 8),
)


def _damaged_request(raw_request: RawRequest, at: int, inserted: bytes, removed: int) -> RawRequest:
    raw = b"".join(raw_request.pieces)
    at %= len(raw) + 1
    return RawRequest((raw[:at] + inserted + raw[at + removed :],))


#: Random bytes, and requests with damaged bytes.
NOISE = st.binary(max_size=200).map(lambda raw: RawRequest((raw,))) | st.builds(
    _damaged_request,
    REQUESTS,
    st.integers(0, 500),
    st.binary(max_size=6) | st.sampled_from([b"\r\n", b"\n", b"\r", b"\x00", b"\r\n\r\n"]),
    st.integers(0, 8),
)

# Pages

_NUMBERS = st.sampled_from([0, -1, 2**63, 2**64, 10**40, 1.5, 1e308, float("nan"), float("inf"), True, -0.0])
_WORDS = st.sampled_from(
    ["", "x", "\ud800", "\udfff\ud800", "\x00", "\u20ac", "</a>", '"><script>', "a\r\nX-Evil: 1", "\u202e", "null"]
)
_LEAVES = st.none() | _NUMBERS | _WORDS | st.text(st.characters(), max_size=8)
_DEEP = st.sampled_from([10, 200, 480, 900, 3000]).map(lambda depth: _nested([], depth))
JUNK: st.SearchStrategy[Any] = often(
    st.recursive(
        _LEAVES,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(_WORDS | st.sampled_from(["url", "sha256"]), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    _DEEP,
    8,
)


@frozen
class RawJson:
    """JSON text that json.dumps would not write."""

    text: str


def _nested(inner: Any, depth: int) -> RawJson:
    del inner
    return RawJson("[" * depth + "]" * depth)


def as_json(value: Any) -> str:
    """
    Encode a value as JSON.

    `RawJson` is written as it is, and half of a surrogate pair as an escape.
    """
    if isinstance(value, RawJson):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{as_json(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_json, value)) + "]"
    return json.dumps(value)


def _url(scheme: str, host: str, path: str, name: str, tail: str) -> str:
    return f"{scheme}{host}{path}{name}{tail}"


_FILE_NAMES = often(
    st.sampled_from([WHEEL, SDIST, TARBALL, "other-2.0.tar.gz"]),
    st.sampled_from([
        *("", ".", "..", "a b.whl", "a%2Fb.whl", "a%zz.whl", "%", "a\tb.whl", "a\nb", "caf\u00e9-1.0.tar.gz"),
        *("x" * 300 + ".whl",),
        *("a%00b.whl", "a\\b.whl", "%C3%A9.whl", "%ff.whl", "a;b=c.whl", 'a"b.whl', "a<b>.whl", "%2e%2e"),
        *("holy_grail-1.0%2Blocal.tar.gz",),
        *("holy_grail-1.0+local.tar.gz", "a\u2028b.whl", "a\x7fb.whl", "%25.whl", "a|b.whl", "a[b].whl"),
        *("a^b`c{d}.whl", "a\ud800.whl"),
    ]),
    3,
)  # fmt: skip
_PLACES = st.sampled_from(
    [
        "/",
        "/a/",
        "/packages/../a/",
        "//",
        "/a//b/",
        "/%2e%2e/",
        "/a/./",
        "/\u00e9/",
        "",
        "/a\\b/",
        "/" + "d" * 250 + "/",
    ]
)
_TAILS = often(
    st.just(""),
    st.sampled_from(
        ["?x=1", "?", "#frag", "#sha256=" + "a" * 64, "?a=/../b", "?a?b#c", "?\u00e9", "?%zz", "?a b", ";x"]
    ),
)
_HOSTS = often(
    st.sampled_from(FILE_HOSTS),
    st.sampled_from([
        *("user:pw@files.example", "@files.example", "files.example:", "files.example:0", "files.example:99999"),
        *("files.example:x",),
        *("", "[", "[::1", "[::1%25eth0]", "fi\tles.example", "files\u3002example", "files.example\\@up.example"),
        *("up.example@files.example",),
        *("%66iles.example", "files.example.", "\u24d5iles.example", "-", "a" * 300, "files.example:080"),
        *("127.0.0.1", "0x7f.1", "up.example:443"),
    ]),
    4,
)  # fmt: skip
_SCHEMES = often(
    st.sampled_from(["https://", "https://", "http://"]),
    st.sampled_from(
        [
            "",
            "//",
            "ftp://",
            "file://",
            "javascript:",
            "HTTPS://",
            "https:",
            "https:/",
            "https:///",
            "data:",
            "\thttps://",
            "htt\nps://",
        ]
    ),
)
_WHOLE_URLS = st.builds(_url, _SCHEMES, _HOSTS, _PLACES, _FILE_NAMES, _TAILS)
_RELATIVE = st.builds(
    _url, st.just(""), st.just(""), st.sampled_from(["", "../../packages/", "/f/", "../" * 30]), _FILE_NAMES, _TAILS
)
URLS = often(
    _WHOLE_URLS,
    _RELATIVE
    | st.sampled_from(
        ["", " ", "?", "#", "//", "///", "\x00", f"{UPSTREAM}/f/{WHEEL}", "http://base.mypypi.invalid/x"]
    ),
    4,
)
_HASHES = st.sampled_from(
    [
        {"sha256": "a" * 64},
        {},
        {"sha512": "b" * 128, "md5": "c" * 32},
        {"sha256": "A" * 64},
        {"sha256": "zz"},
        {"crc32": "1"},
    ]
)
_TRUTH = st.sampled_from([True, False, {"sha256": "a" * 64}, {}, {"sha256": 5}])

_FILE_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "filename": _FILE_NAMES,
    "url": URLS,
    "hashes": _HASHES,
    "requires-python": st.sampled_from([">=3.8", ">=3.8,<4", '"']),
    "yanked": st.sampled_from([True, False, "broken & <gone>"]),
    "size": st.sampled_from([0, 10, 10**12]),
    "upload-time": st.just("2026-01-01T00:00:00.000000Z"),
    "core-metadata": _TRUTH,
    "dist-info-metadata": _TRUTH,
    "data-dist-info-metadata": _TRUTH,
    "provenance": st.just("https://up.example/provenance") | URLS,
    "gpg-sig": st.booleans(),
}
_FILES = st.fixed_dictionaries(
    {name: often(_FILE_FIELDS[name], JUNK, 12) for name in ("filename", "url", "hashes")},
    optional={
        name: often(strategy, JUNK, 6)
        for name, strategy in _FILE_FIELDS.items()
        if name not in ("filename", "url", "hashes")
    },
)
_LIST_OF_FILES = st.lists(often(_FILES, JUNK, 15), max_size=4)
_META = often(
    st.just({"api-version": "1.1"}),
    st.sampled_from([{}, {"api-version": "2.0"}, {"api-version": 1}, {"api-version": "1.1", "tracks": ["a", 1]}])
    | JUNK,
)
SIMPLE = st.fixed_dictionaries(
    {"meta": _META, "name": often(st.just(PROJECT), JUNK, 12), "files": often(_LIST_OF_FILES, JUNK, 15)},
    optional={
        "versions": often(st.just(["1.0"]), JUNK, 3),
        "alternate-locations": often(st.just(["https://other.example/"]), JUNK, 3),
        "project-status": often(st.just({"status": "archived", "reason": "x"}), JUNK, 3),
        "odd": JUNK,
    },
)  # fmt: skip
_NAMES = often(st.sampled_from(["Holy_Grail", "thing", "a.b"]), JUNK, 4)
ROOT = st.fixed_dictionaries(
    {
        "meta": _META,
        "projects": often(st.lists(often(st.fixed_dictionaries({"name": _NAMES}), JUNK), max_size=4), JUNK),
    }
)
PROJECT_JSON = st.fixed_dictionaries(
    {
        "info": often(st.just({"name": "Holy_Grail", "version": "1.0"}), JUNK),
        "urls": often(_LIST_OF_FILES, JUNK),
        "releases": often(
            st.dictionaries(st.sampled_from(["1.0", "", "2.0"]), often(_LIST_OF_FILES, JUNK), max_size=2), JUNK
        ),
    }
)
_DISTS = st.fixed_dictionaries(
    {"tarball": often(URLS, JUNK, 12)},
    optional={
        "integrity": often(
            st.sampled_from(
                [
                    f"sha512-{'A' * 86}==",
                    "sha1-x",
                    "sha512-!!",
                    "sha512-A",
                    "sha256-" + "A" * 43 + "= sha1-" + "A" * 27 + "=",
                ]
            ),
            JUNK,
            4,
        ),
        "shasum": often(st.sampled_from(["a" * 40, "A" * 40, "x"]), JUNK, 4),
        "signatures": JUNK,
        "odd": JUNK,
    },
)
_VERSIONS = st.fixed_dictionaries(
    {"name": often(st.just(PROJECT), JUNK), "version": often(st.just("1.0.0"), JUNK), "dist": often(_DISTS, JUNK, 12)},
    optional={
        "scripts": often(st.just({"install": "x"}), JUNK, 3),
        "hasInstallScript": JUNK,
        "bin": JUNK,
        "dependencies": JUNK,
        "_id": JUNK,
    },
)
_VERSION_NAMES = often(
    st.sampled_from(["1.0.0", "2.0.0-rc.1", "1.0.0+build.7"]),
    st.sampled_from(
        [
            "",
            "latest",
            "..",
            "a/b",
            "-",
            "1.0.0\r\nX: y",
            "\u20ac",
            "x" * 300,
            "%2e",
            "?",
            "#",
            " ",
            "\ud800",
            "__proto__",
            "a%b",
            "a\\b",
            "\x7f",
        ]
    ),
)
_TIMES = st.sampled_from([
    *("2026-01-01T00:00:00.000Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026", "x"),
    *("2026-01-01T00:00:00+00:00:00.5",),
])  # fmt: skip
PACKUMENT = st.fixed_dictionaries(
    {
        "name": often(st.just(PROJECT), JUNK, 15),
        "versions": often(st.dictionaries(_VERSION_NAMES, often(_VERSIONS, JUNK, 15), max_size=3), JUNK, 15),
        "dist-tags": often(st.just({"latest": "1.0.0"}), JUNK),
    },
    optional={
        "time": often(st.fixed_dictionaries({"modified": often(_TIMES, JUNK)}), JUNK),
        "readme": JUNK,
        "odd": JUNK,
    },
)


def _attribute(name: str, value: Any, quoted: bool) -> str:  # noqa: FBT001
    text = value if isinstance(value, str) else as_json(value)
    return f'{name}="{text.replace(chr(34), "&quot;")}"' if quoted else f"{name}={text}"


_DATA = st.sampled_from([
    *("data-requires-python", "data-yanked", "data-core-metadata", "data-dist-info-metadata", "data-gpg-sig"),
    *("data-size", "data-x", "DATA-Yanked"),
    *("data-url", "data-hashes", "data-", "data-filename", "onclick", "rel"),
])  # fmt: skip
_ANCHORS = st.builds(
    lambda url, attributes, text: f"<a {_attribute('href', url, True)} {' '.join(attributes)}>{text}</a>",
    URLS,
    st.lists(
        st.builds(
            _attribute,
            _DATA,
            st.sampled_from(["", "true", "sha256=" + "a" * 64, "false", ">=3", "9" * 5000]) | JUNK,
            st.booleans(),
        ),
        max_size=3,
    ),
    _FILE_NAMES,
)
_SOUP = st.sampled_from([
    *("<", "<a", "<a href", "</a>", "<!--", "-->", "<![CDATA[", "<!DOCTYPE", "<?x", "&#xd800;", "&#0;", "&amp"),
    *("&#99999999999;", "<a href=>"),
    *("<base href='https://cdn.example:8080/b/'>", "<base href='//['>", "<base>"),
    *("<meta name='pypi:repository-version' content='2.0'>", "\x00"),
    *("<meta name='pypi:repository-version' content='1.4'>", "<meta name='pypi:project-status' content='\"'>"),
    *("<meta name='pypi:'>", "<a>x</a>"),
    *("<script><a href='x.whl'>", "<a href='x-1.0.tar.gz' href='y-1.0.tar.gz'>", "<title>", "<textarea>"),
    *("<a\nhref\n=\n'x-1.0.zip'\n>", "\ufeff"),
])  # fmt: skip
HTML = st.lists(often(_ANCHORS, _SOUP | st.text(max_size=6), 3), max_size=5).map(
    lambda parts: "<!DOCTYPE html><html><body>" + "\n".join(parts) + "</body></html>"
)


def _cut(text: bytes, at: int, removed: int, inserted: bytes) -> bytes:
    at %= len(text) + 1
    return text[:at] + inserted + text[at + removed :]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def damaged(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """The encoded texts, sometimes with bytes inserted, removed or cut off."""
    whole = texts.map(_bytes)
    insert = st.binary(max_size=4) | st.sampled_from(
        [b'"', b"\\", b"\\ud83d", b"{", b"]", b",", b'"files":1,', b'"tarball":"', b"\xff"]
    )
    return often(whole, st.builds(_cut, whole, st.integers(0, 3000), st.sampled_from([0, 1, 5, 10_000]), insert), 5)


JSON_TYPES = ("application/json", "application/vnd.pypi.simple.v1+json")
_ODD_TYPES = (
    *("", "text/html", "text/plain", "application/json; charset=utf-16", "application/json; charset=rot13"),
    *("text/html; charset=unicode_escape",),
    *("application/json; charset*=utf-8''x", "text/html; charset=\xff", "x", "text/html; charset=idna"),
    *("application/json; charset=utf-7", ";;="),
    *("text/html; charset=punycode", "application/json; charset=raw_unicode_escape", 'text/html;charset="a'),
    *("image/png",),
)  # fmt: skip
_ENVELOPES = st.sampled_from([
    *([], [("ETag", '"1"')], [("ETag", "\xff\xe9")], [("ETag", "x" * 5000)], [("Last-Modified", "yesterday")]),
    *([("Last-Modified", "\xff")],),
    *([("Last-Modified", "Tue, 99999999999999999999 Nov 2026 21:00:00 GMT")], [("Retry-After", "9" * 5000)]),
    *([("Retry-After", "-1")],),
    *([("Retry-After", "Tue, 99999999999999999999 Nov 2026 21:00:00 GMT")],),
    *([("Retry-After", "Fri, 31 Dec 9999 23:59:59 -2359")],),
    *([("Set-Cookie", "a=b")], [("Content-Range", "bytes 0-1/2")], [("Content-Range", "bytes \xff")]),
    *([("Trailer", "x")], [("X", "")]),
    *([("Last-Modified", "Tue, 24 Nov 2026 21:00:00 GMT")], [("Connection", "close")]),
    *([("Content-Type", "a"), ("Content-Type", "b")],),
    *([("Last-Modified", "Mon, 01 Jan 0001 00:00:00 +2359")], [("Last-Modified", "a\tb\x0bc")]),
    *([("Retry-After", "Mon, 01 Jan 0001 00:00:00 GMT")],),
])  # fmt: skip
_STATUSES = often(
    st.just(200), st.sampled_from([204, 206, 299, 304, 400, 401, 403, 404, 407, 410, 416, 429, 500, 503, 999, 100]), 10
)
LOCATIONS = st.sampled_from([
    *("https://cdn.example:8080/x", "//files.example/x", "/elsewhere", "http://files.example/x"),
    *("ftp://files.example/", "https://", "\xff", ""),
    *("https://files.example:99999/", "https://[", "https://somebody@up.example/x", "https://files.example/\xe9 x"),
    *("?", "javascript:x", "https:///x"),
])  # fmt: skip


@frozen
class RawResponse:
    """
    A response of upstream.

    `cut`: upstream closes the connection afterwards. `text` is all text that may name a host. `valid`: status and
    framing are correct. `location` is its redirect.
    """

    data: bytes
    cut: bool
    text: str
    valid: bool
    location: str = ""


def _framed(body: bytes, framing: str) -> tuple[list[tuple[str, str]], bytes, bool]:
    """The framing headers, the body, and whether the connection ends after it."""
    packed = gzip.compress(body, mtime=0)
    sized, chunked, zipped = (
        ("Content-Length", str(len(body))),
        ("Transfer-Encoding", "chunked"),
        ("Content-Encoding", "gzip"),
    )
    chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    ways: dict[str, tuple[list[tuple[str, str]], bytes, bool]] = {
        "length": ([sized], body, False),
        "chunked": ([chunked], chunk + b"0\r\n\r\n", False),
        "gzip": ([zipped, ("Content-Length", str(len(packed)))], packed, False),
        "open chunk": ([chunked], b"%x\r\n%s" % (len(body) + 5, body), True),
        "no length": ([], body, True),
        "long": ([("Content-Length", str(len(body) + 7))], body, True),
        "short": ([("Content-Length", str(max(0, len(body) - 3)))], body, False),
        "nonsense": ([("Content-Length", "x")], body, True),
        "huge": ([("Content-Length", "9" * 30)], body, True),
        "half a gzip": ([zipped, ("Content-Length", str(len(packed) - 6))], packed[:-6], False),
        "no gzip": ([zipped, sized], body, False),
        "brotli": ([("Content-Encoding", "br"), sized], body, False),
    }
    return ways[framing]


_FRAMINGS = often(
    st.sampled_from(["length", "gzip", "chunked"]),
    st.sampled_from(
        ["open chunk", "no length", "long", "short", "nonsense", "huge", "half a gzip", "no gzip", "brotli"]
    ),
    8,
)


def _sent(
    body: bytes, kind: str, status: int, envelope: list[tuple[str, str]], framing: str, location: str
) -> RawResponse:
    framed, content, cut = _framed(body, framing)
    fields = [*envelope, *framed, *([("Content-Type", kind)] if kind else [])]
    if location:
        status = 302
        fields.append(("Location", location))
    lines = [f"HTTP/1.1 {status} Because", *(f"{name}: {value}" for name, value in fields), "", ""]
    valid = status == 200 and framing in ("length", "gzip", "chunked") and not location
    data = "\r\n".join(lines).encode("latin-1") + content
    return RawResponse(data, cut, body.decode("utf-8", "replace") + location, valid, location)


def answers(bodies: st.SearchStrategy[bytes], *types: str) -> st.SearchStrategy[RawResponse]:
    """Responses of upstream with these bodies."""
    well = st.builds(
        _sent,
        bodies,
        often(st.sampled_from(types), st.sampled_from(_ODD_TYPES), 10),
        _STATUSES,
        often(st.just([]), _ENVELOPES, 4),
        _FRAMINGS,
        often(st.just(""), LOCATIONS, 15),
    )
    noise = st.binary(max_size=60) | st.sampled_from(
        [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n", b"HTTP/1.1 xyz\r\n\r\n"]
    )
    return often(well, noise.map(lambda raw: RawResponse(raw, True, "", valid=False)), 25)


SIMPLE_ANSWERS = answers(damaged(SIMPLE.map(as_json)), *JSON_TYPES[1:]) | answers(
    damaged(HTML), "text/html", "application/vnd.pypi.simple.v1+html"
)
ROOT_ANSWERS = answers(damaged(ROOT.map(as_json)), *JSON_TYPES[1:]) | answers(damaged(HTML), "text/html")
PROJECT_ANSWERS = answers(damaged(PROJECT_JSON.map(as_json)), "application/json")
PACKUMENT_ANSWERS = answers(damaged(PACKUMENT.map(as_json)), "application/json")
#: The bodies of files, of a few bytes, or of more bytes than the server holds back.
FILE_ANSWERS = answers(
    st.sampled_from([b"", b"0123456789", b"x" * 5000, b"y" * 70_000]), "application/octet-stream", "application/x-tar"
)
OTHER_ANSWERS = answers(damaged(JUNK.map(as_json)), "application/json")
