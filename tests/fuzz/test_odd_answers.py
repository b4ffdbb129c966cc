"""Generated answers of upstream that are odd: what clients accept directly, they accept through the cache, too.

Each answer says the same as an ordinary one, in another way: its type, its framing, its encoding, the form of its JSON,
redirects, headers that mean nothing. Every route of both ecosystems is asked, twice.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import PROJECT, TARBALL, WHEEL
from tests.fuzz.world import UPSTREAM, Answer, Transmission, World
from tests.support.memory import Exchange

FILES = "https://files.example"
METADATA = b"Metadata-Version: 2.1\nName: holy-grail\n"
FILE = bytes(range(256)) * 40
PAGES: dict[str, dict[str, Any]] = {
    "/simple/": {"meta": {"api-version": "1.0"}, "projects": [{"name": "Holy_Grail"}]},
    f"/simple/{PROJECT}/": {
        "meta": {"api-version": "1.0"},
        "name": PROJECT,
        "files": [{"filename": WHEEL, "url": f"{FILES}/a/{WHEEL}", "hashes": {}, "core-metadata": True}],
    },
    f"/pypi/{PROJECT}/json": {"info": {"name": PROJECT, "summary": "é"}},
    f"/pypi/{PROJECT}/1.0/json": {"info": {"name": PROJECT, "summary": "é"}},
    f"/{PROJECT}": {
        "name": PROJECT,
        "readme": "é",
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": {"version": "1.0.0", "dist": {"tarball": f"{FILES}/{PROJECT}/-/{TARBALL}"}}},
    },
    "/-/npm/v1/keys": {"keys": [{"keyid": "é"}]},
    f"/-/npm/v1/attestations/{PROJECT}@1.0.0": {"attestations": []},
    "/-/npm/v1/security/advisories/bulk": {"é": []},
    "/-/v1/search": {"objects": [], "total": 0},
}
SIMPLE = "application/vnd.pypi.simple.v1+json"


@frozen
class Route:
    """A request of a client, and what it reads from the answer."""

    package_type: str
    target: str
    read: Callable[[Answer], object]
    expected: object
    method: bytes = b"GET"
    accept: str = "*/*"


def document(answer: Answer) -> Any:
    is_zipped = answer.headers.get("content-encoding", "").lower() in ("gzip", "x-gzip")
    return json.loads(gzip.decompress(answer.body) if is_zipped else answer.body)


def version(answer: Answer) -> object:
    return document(answer)["version"]


ROUTES = [
    Route("pypi", "/simple/", lambda got: [each["name"] for each in document(got)["projects"]], ["Holy_Grail"]),
    Route(
        "pypi",
        f"/simple/{PROJECT}/",
        lambda got: [(file["filename"], file["url"]) for file in document(got)["files"]],
        [(WHEEL, f"../../file/https/files.example/a/{WHEEL}")],
    ),
    Route("pypi", f"/pypi/{PROJECT}/json", document, PAGES[f"/pypi/{PROJECT}/json"]),
    Route("pypi", f"/pypi/{PROJECT}/1.0/json", document, PAGES[f"/pypi/{PROJECT}/json"]),
    Route("pypi", f"/file/https/files.example/a/{WHEEL}", lambda got: got.body, FILE),
    Route("pypi", f"/file/https/files.example/a/{WHEEL}.metadata", lambda got: got.body, METADATA),
    Route("npm", f"/{PROJECT}", lambda got: document(got)["readme"], "é"),
    Route("npm", f"/{PROJECT}", lambda got: list(document(got)["versions"]), ["1.0.0"],
          accept="application/vnd.npm.install-v1+json"),
    Route("npm", f"/{PROJECT}/1.0.0", version, "1.0.0", accept="application/vnd.npm.install-v1+json"),
    Route("npm", f"/{PROJECT}/latest", version, "1.0.0"),
    Route("npm", f"/-/package/{PROJECT}/dist-tags", document, {"latest": "1.0.0"}),
    Route("npm", "/-/npm/v1/keys", document, PAGES["/-/npm/v1/keys"]),
    Route("npm", f"/-/npm/v1/attestations/{PROJECT}@1.0.0", document, {"attestations": []}),
    Route("npm", f"/{PROJECT}/-/{TARBALL}", lambda got: got.body, FILE),
    Route("npm", "/-/npm/v1/security/advisories/bulk", document, {"é": []}, method=b"POST"),
    Route("npm", "/-/v1/search?text=x", document, PAGES["/-/v1/search"]),
]  # fmt: skip


@frozen
class Oddity:
    """How upstream says what it says."""

    content_type: str
    framing: str
    coding: str
    before: bytes
    indent: int | None
    escaped: bool
    headers: tuple[bytes, ...]
    hops: tuple[tuple[int, str], ...]
    piece: int

    def body(self, page: dict[str, Any]) -> bytes:
        text = json.dumps(page, indent=self.indent, ensure_ascii=self.escaped)
        return self.before + text.encode()

    def answer(self, body: bytes, *, is_file: bool) -> Transmission:
        """Return the answer. A file has no encoding, which not all clients undo."""
        head = [b"HTTP/1.1 200 OK", *self.headers]
        if self.content_type:
            head.append(b"Content-Type: " + self.content_type.encode())
        if self.coding and not is_file:
            body = gzip.compress(body)
            head.append(b"Content-Encoding: " + self.coding.encode())
        if self.framing == "length":
            head.append(b"Content-Length: %d" % len(body))
        elif self.framing == "chunked":
            head.append(b"Transfer-Encoding: chunked")
            body = (
                b"".join(b"%X;x=y\r\n%s\r\n" % (len(each), each) for each in (body[:7], body[7:]) if each)
                + b"0\r\n\r\n"
            )
        return Transmission(b"\r\n".join([*head, b"", body]), self.piece, cut=self.framing == "end")


ODDITIES = st.builds(
    Oddity,
    st.sampled_from(["", "application/json", SIMPLE, "text/html", "TEXT/HTML; charset=utf-8", "text/plain", "x/y"]),
    st.sampled_from(["length", "chunked", "end"]),
    st.sampled_from(["", "", "gzip", "GZIP", "x-gzip"]),
    st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\r\n\t "]),
    st.sampled_from([None, 0, 4]),
    st.booleans(),
    st.lists(
        st.sampled_from([
            b"ETag: without-quotes", b'ETag: W/""', b"Last-Modified: yesterday", b"Cache-Control: no-store, private",
            b"Vary: *", b"Set-Cookie: a=b", b"Retry-After: never", b"Server: \xe9", b"X-Empty:", b"Age: -1",
            b"Content-Disposition: attachment; filename=../../x", b"Accept-Ranges: none", b"Connection: close",
            b"Content-Language: x", b"Expires: 0", b"Link: <x>; rel=y",
        ]),
        max_size=4, unique=True,
    ).map(tuple),
    st.lists(
        st.tuples(st.sampled_from([301, 302, 303, 307, 308]), st.sampled_from(["relative", "absolute", "elsewhere"])),
        max_size=3,
    ).map(tuple),
    st.sampled_from([1, 10, 1 << 16]),
)  # fmt: skip


def upstream(oddity: Oddity) -> Callable[[Exchange], Transmission]:
    """Return an upstream that answers each request in this odd way."""

    def answer(exchange: Exchange) -> Transmission:
        path, _, query = exchange.path.partition("?")
        hop = int(query.rpartition("hop=")[2] or 0) if "hop=" in query else 0
        is_file = path.endswith((WHEEL, ".metadata", TARBALL))
        if hop < len(oddity.hops):
            status, where = oddity.hops[hop]
            # A POST becomes a GET after the other statuses, which no registry answers well.
            status = status if exchange.method == "GET" else 308
            base = {"relative": "", "absolute": exchange.origin, "elsewhere": FILES if is_file else UPSTREAM}[where]
            location = f"Location: {base}{path}?hop={hop + 1}".encode()
            return Transmission(b"HTTP/1.1 %d x\r\n%s\r\nContent-Length: 0\r\n\r\n" % (status, location))
        if is_file:
            return oddity.answer(METADATA if path.endswith(".metadata") else FILE, is_file=True)
        return oddity.answer(oddity.body(PAGES[path]), is_file=False)

    return answer


def ask(world: World, route: Route) -> Answer:
    if route.method == b"POST":
        return world.get(route.target, b"POST", Accept=route.accept, Accept_Encoding="gzip", Content_Length="0")
    accept = SIMPLE if route.package_type == "pypi" and route.target.startswith("/simple/") else route.accept
    return world.get(route.target, Accept=accept, Accept_Encoding="gzip")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.package_type} {route.target}")
@settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
@given(oddity=ODDITIES)
def test_what_clients_accept_directly_they_accept_through_the_cache(route: Route, oddity: Oddity) -> None:
    """An odd answer is served with the same content as an ordinary one, when it comes and when it is cached."""
    with tempfile.TemporaryDirectory() as directory:
        world = World(route.package_type, Path(directory), upstream(oddity), lambda _: True)
        for _ in range(2):
            answer = ask(world, route)
            assert (answer.status, answer.whole) == (200, True), answer
            assert route.read(answer) == route.expected
