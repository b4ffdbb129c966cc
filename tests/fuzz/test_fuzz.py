"""Fuzz tests of the whole server: random requests, pages and upstream responses.

Every client gets an answer or a closed connection. The server raises no unexpected exception, and connects only to
hosts that upstream's own pages name.

``FUZZ_EXAMPLES=50000 pytest -n 0 --timeout=0 tests/fuzz/test_fuzz.py`` runs longer, with other examples each time.
"""

from __future__ import annotations

import gc
import html
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import pytest
from hypothesis import HealthCheck, Phase, event, example, given, settings
from hypothesis import strategies as st
from twisted.logger import LogEvent

from mypypi.ecosystems import ECOSYSTEMS
from mypypi.errors import MyPyPiError
from mypypi.model import PageId, PageRules, SourceDocument
from mypypi.rendering.tasks import RenderTask, encode_task, perform
from tests.fuzz import inputs
from tests.fuzz.inputs import PROJECT, SDIST, TARBALL, WHEEL, RawRequest, RawResponse
from tests.fuzz.world import (
    UPSTREAM,
    UPSTREAM_HOST,
    Answer,
    Transmission,
    Violation,
    World,
    check_log,
    observed,
    read_answer,
)
from tests.support.memory import Exchange, response

#: Examples per test; 0 means each test's own number.
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
#: Failing examples are shrunk (unless FUZZ_RAW is set), but not explained, which would take long.
_PHASES = (Phase.explicit, Phase.generate, *(() if os.environ.get("FUZZ_RAW") else (Phase.shrink,)))
_TYPES = ("pypi", "npm")
_SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

example_counts: Counter[str] = Counter()


def fuzz(examples: int) -> settings:
    """
    Settings with this number of examples, the same in each run.

    With FUZZ_EXAMPLES, it runs that number, with other examples each time.
    """
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        print_blob=True,
        phases=_PHASES,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def directories() -> Iterator[Generator[Path, None, None]]:
    """Empty directories; each is deleted when the next one is requested."""

    def fresh() -> Generator[Path, None, None]:
        while True:
            with tempfile.TemporaryDirectory() as root:
                yield Path(root)

    endless = fresh()
    yield endless
    endless.close()


@pytest.fixture(scope="module", autouse=True)
def print_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the number of examples at the end of the module."""
    yield
    summary = "fuzzed: " + ", ".join(f"{number} {name}" for name, number in sorted(example_counts.items()))
    capturing: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capturing.global_and_fixture_disabled():
        print(f"\n{summary}")  # noqa: T201 - part of the test run's output


@pytest.fixture(scope="module", autouse=True)
def no_unhandled_errors() -> Iterator[None]:
    """
    Check that no Deferred ends with an unhandled error.

    Twisted logs such errors when the Deferred is garbage-collected.
    """
    logged: list[LogEvent] = []
    with observed(logged):
        yield
        gc.collect()
    check_log([event for event in logged if "Unhandled error in Deferred" in str(event.get("log_format"))])


# Requests

_INTEGRITY = {
    "integrity": "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw=="
}
_PAGES: dict[str, bytes] = {
    "/simple/": json.dumps({"meta": {"api-version": "1.0"}, "projects": [{"name": "Holy_Grail"}]}).encode(),
    f"/simple/{PROJECT}/": json.dumps({
        "meta": {"api-version": "1.0"},
        "name": PROJECT,
        "files": [
            {"filename": WHEEL, "url": f"https://files.example/a/{WHEEL}", "hashes": {}, "core-metadata": True},
            {"filename": SDIST, "url": f"{UPSTREAM}/a/{SDIST}", "hashes": {}},
        ],
    }).encode(),
    f"/pypi/{PROJECT}/json": b'{"info":{}}',
    f"/pypi/{PROJECT}/1.0/json": b'{"info":{}}',
    f"/{PROJECT}": json.dumps({
        "name": PROJECT,
        "dist-tags": {"latest": "1.0.0"},
        "versions": {"1.0.0": {"dist": {"tarball": f"https://files.example/{PROJECT}/-/{TARBALL}"} | _INTEGRITY}},
    }).encode(),
    "/-/npm/v1/keys": b'{"keys":[]}',
}  # fmt: skip


def fixed_upstream(exchange: Exchange) -> Transmission:
    """An upstream with one package per ecosystem, and no other."""
    path = exchange.path.partition("?")[0]
    if exchange.origin == UPSTREAM and path in _PAGES:
        kind = _SIMPLE_JSON if path.startswith("/simple") else "application/json"
        return Transmission(response(200, _PAGES[path], content_type=kind))
    if exchange.value().startswith(b"POST") or path == "/-/v1/search":
        return Transmission(response(200, b"{}", content_type="application/json"))
    if path.endswith((WHEEL, ".metadata", SDIST)):
        return Transmission(response(200, b"0123456789"))
    return Transmission(response(200, b"abc")) if path.endswith(TARBALL) else Transmission(response(404))


def fixed_hosts(origin: str) -> bool:
    return origin in (UPSTREAM, "https://files.example")


def check_request(directory: Path, package_type: str, raw_request: RawRequest, **more: str) -> None:
    """
    Send this request, and then a normal one, which must succeed.

    No request may affect the next client.
    """
    world = World(package_type, directory, fixed_upstream, fixed_hosts, more)
    got = world.ask(*raw_request.pieces, leave=raw_request.leave)
    if got and not raw_request.leave:
        answer = read_answer(got, head=raw_request.head)
        event(f"status {answer.status}")
        if answer.status == 503:
            raise Violation(f"the server reports that upstream is down, but it is not: {answer}")
    next_answer = world.get(f"/simple/{PROJECT}/" if package_type == "pypi" else f"/{PROJECT}")
    if next_answer.status != 200 or not next_answer.whole:
        raise Violation(f"the next client gets {next_answer}")


def get(target: str, *headers: bytes) -> RawRequest:
    """A GET request for an @example."""
    host = [] if headers and headers[0].startswith(b"Host") else [b"Host: here.example"]
    return RawRequest((b"\r\n".join([b"GET %s HTTP/1.1" % target.encode(), *host, *headers, b"", b""]),))


class TestRequests:
    """Tests of the requests that a client can send."""

    @fuzz(350)
    @given(package_type=st.sampled_from(_TYPES), raw_request=inputs.REQUESTS)
    @example(package_type="pypi", raw_request=get("/simple/", b"Host: a..b"))
    @example(package_type="pypi", raw_request=get("/simple/", b"Host: \xff\xfe"))
    @example(package_type="npm", raw_request=get("/holy-grail", b"Host: " + b"a" * 64))
    @example(package_type="pypi", raw_request=get("/simple/", b"Accept: \xff, */*"))
    @example(package_type="npm", raw_request=get("/holy-grail", b'If-None-Match: "\xff"'))
    @example(
        package_type="pypi",
        raw_request=get("/simple/", b"If-Modified-Since: Tue, 24 Nov 99999999999999999999 21:00:00 GMT"),
    )
    @example(package_type="npm", raw_request=get("/-/v1/search", b"User-Agent: \xe2\x82\xac"))
    @example(package_type="pypi", raw_request=get("/pypi/Holy.Grail/%E2%82%AC/json"))
    def test_every_request_gets_an_answer(
        self, directories: Iterator[Path], package_type: str, raw_request: RawRequest
    ) -> None:
        """Every request gets an answer, and connections go only to upstream's own hosts."""
        example_counts["requests"] += 1
        check_request(next(directories), package_type, raw_request)

    @fuzz(150)
    @given(package_type=st.sampled_from(_TYPES), raw_request=inputs.NOISE)
    def test_noise_gets_an_answer_or_a_closed_connection(
        self, directories: Iterator[Path], package_type: str, raw_request: RawRequest
    ) -> None:
        """Random bytes get an error answer or a closed connection."""
        example_counts["connections with noise"] += 1
        check_request(next(directories), package_type, raw_request)


# Pages

_SOURCES = {
    "pypi": st.one_of(
        st.tuples(
            st.just(PageId("simple", PROJECT)),
            inputs.damaged(inputs.SIMPLE.map(inputs.as_json)) | inputs.damaged(inputs.HTML),
        ),
        st.tuples(
            st.just(PageId("root")), inputs.damaged(inputs.ROOT.map(inputs.as_json)) | inputs.damaged(inputs.HTML)
        ),
        st.tuples(st.just(PageId("json", PROJECT)), inputs.damaged(inputs.PROJECT_JSON.map(inputs.as_json))),
    ),
    "npm": st.one_of(
        st.tuples(st.just(PageId("packument", PROJECT)), inputs.damaged(inputs.PACKUMENT.map(inputs.as_json))),
        st.tuples(st.just(PageId("keys")), inputs.damaged(inputs.JUNK.map(inputs.as_json))),
    ),
}


def check_rendering(
    package_type: str, page: PageId, body: bytes, content_type: str, rules: PageRules | None = None
) -> None:
    """
    Render the page and list its files.

    Each listed file must have its own link, and a page that is known to list it.
    """
    ecosystem = ECOSYSTEMS[package_type](UPSTREAM)
    source = SourceDocument(body, content_type, f"{UPSTREAM}/simple/{PROJECT}/")
    try:
        rendered = ecosystem.render(page, source, rules or PageRules())
    except MyPyPiError:
        event("refused")
        return
    perform(encode_task(package_type, UPSTREAM, RenderTask(page, source, rules or PageRules())))
    name = ecosystem.listing_form(page, rendered.forms)
    if name is None:
        return
    listing = ecosystem.listing(page, {name: rendered.forms[name].body})
    event(f"{len(listing)} files")
    for link, file in listing.items():
        if file.link != link or not isinstance(link, str):
            raise Violation(f"the file at link {link!r} has the link {file.link!r}")
        host = urlsplit(file.url).hostname
        if host is None or file.url.partition("://")[2].partition("/")[0].count("@"):
            raise Violation(f"a listed file has the URL {file.url!r}")
        if page not in (*ecosystem.pages_for(link), *([page] if link in rendered.indexed_links else [])):
            raise Violation(f"{link!r} is listed, but can't be traced to its page")


class TestRendering:
    """Tests of malformed pages."""

    @fuzz(350)
    @given(
        page_and_body=_SOURCES["pypi"], kind=st.sampled_from(["", *inputs.JSON_TYPES, *inputs._ODD_TYPES, "text/html"])
    )
    def test_index_pages(self, page_and_body: tuple[PageId, bytes], kind: str) -> None:
        """An index page is rendered or refused with a MyPyPiError."""
        example_counts["index pages"] += 1
        check_rendering("pypi", *page_and_body, kind)

    @fuzz(300)
    @given(page_and_body=_SOURCES["npm"])
    def test_packuments(self, page_and_body: tuple[PageId, bytes]) -> None:
        """A packument is rendered or refused with a MyPyPiError."""
        example_counts["packuments"] += 1
        check_rendering("npm", *page_and_body, "application/json")


# Whole conversations

#: The request for each kind of page, and the responses that upstream may send for it.
_REQUESTS_AND_RESPONSES: dict[str, tuple[tuple[str, str], st.SearchStrategy[RawResponse]]] = {
    "simple": (("pypi", f"/simple/{PROJECT}/"), inputs.SIMPLE_ANSWERS),
    "root": (("pypi", "/simple/"), inputs.ROOT_ANSWERS),
    "json": (("pypi", f"/pypi/{PROJECT}/json"), inputs.PROJECT_ANSWERS),
    "packument": (("npm", f"/{PROJECT}"), inputs.PACKUMENT_ANSWERS),
    "version": (("npm", f"/{PROJECT}/1.0.0"), inputs.PACKUMENT_ANSWERS),
    "dist-tags": (("npm", f"/-/package/{PROJECT}/dist-tags"), inputs.PACKUMENT_ANSWERS),
    "keys": (("npm", "/-/npm/v1/keys"), inputs.OTHER_ANSWERS),
    "search": (("npm", "/-/v1/search?text=x"), inputs.OTHER_ANSWERS),
}
_KINDS = [*["simple"] * 4, *["packument"] * 4, "root", "json", "version", "dist-tags", "keys", "search"]
_CONVERSATIONS = st.sampled_from(_KINDS).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(_REQUESTS_AND_RESPONSES[kind][1], min_size=1, max_size=2))
)
_POLICIES = st.sampled_from(
    [
        {},
        {},
        {"MYPYPI_UPSTREAM_STRICT": "true"},
        {"MYPYPI_COLD_FILES": "redirect"},
        {"MYPYPI_DRAFTS_MAX_BYTES": "1000000"},
    ]
)


class Upstream:
    """
    An upstream that sends these responses in order, for pages and for files.

    The last response of each is repeated.
    """

    def __init__(self, page_paths: set[str], pages: list[RawResponse], files: list[RawResponse], piece: int) -> None:
        self._page_paths = page_paths
        self._pages = list(pages)
        self._files = list(files)
        self._piece = piece
        self._sent_text = ""
        #: The different pages that it has sent.
        self.page_texts: set[str] = set()

    def __call__(self, exchange: Exchange) -> Transmission:
        here = urlsplit(exchange.origin).hostname == UPSTREAM_HOST
        queue = self._pages if here and exchange.path.partition("?")[0] in self._page_paths else self._files
        sent = queue.pop(0) if len(queue) > 1 else queue[0]
        if queue is self._pages:
            self.page_texts.add(sent.text)
        text = html.unescape(re.sub(r"[\t\r\n]|\\[trn]", "", sent.text)).lower()
        self._sent_text += re.sub(":0+(?=[0-9])", ":", text)
        return Transmission(sent.data, self._piece, sent.cut)

    def allows(self, origin: str) -> bool:
        """Whether this origin is upstream's own, or is named in a response."""
        parts = urlsplit(origin)
        place = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
        return origin in (UPSTREAM, f"{UPSTREAM}:443") or place in self._sent_text


def links_of(kind: str, answer: Answer, page_url: str) -> list[str]:
    """The request targets of the files on a page, as clients resolve them."""
    if answer.status != 200 or not answer.whole:
        return []
    try:
        document = json.loads(answer.body.decode(errors="replace"))  # as JavaScript reads it
    except RecursionError:
        return []
    if kind == "simple":
        urls = [file["url"] for file in document["files"] if file["url"].startswith("../../file/")]
    else:
        # "tarball" has any type that upstream gave it
        dists = [version.get("dist") for version in document.get("versions", {}).values() if isinstance(version, dict)]
        urls = [dist.get("tarball") for dist in dists if isinstance(dist, dict)]
    found = []
    for url in urls:
        with suppress(ValueError):  # not a URL: no client could request it
            whole = urljoin(page_url, url) if kind == "simple" else str(url)  # npm's clients need an absolute URL
            if whole.startswith("http://here.example/"):
                found.append(whole.removeprefix("http://here.example"))
    return found


def check_files(world: World, upstream: Upstream, links: list[str]) -> None:
    """
    Check that the server serves the links of a page.

    A file that fails leads to another look at its page. If upstream sends another page then, that one may lack it.
    """
    for link in links:
        target = quote(link, safe="/%?:@!$&'()*+,;=~-._[]")
        for method in (b"HEAD", b"GET", b"GET"):
            file = world.get(target, method)
            event(f"file {file.status}")
            if file.status == 400 or (b"no page of upstream lists" in file.body and len(upstream.page_texts) == 1):
                raise Violation(f"{link!r} is listed, but its answer is {file}")
        world.get(target + ".metadata", Range="bytes=0-1")


def check_conversation(
    directory: Path,
    kind: str,
    pages: list[RawResponse],
    files: list[RawResponse],
    piece: int,
    policy: Mapping[str, str],
) -> None:
    """Request a page twice, with a delay, and the files that it lists."""
    (package_type, path), _ = _REQUESTS_AND_RESPONSES[kind]
    upstream_path = {"version": f"/{PROJECT}", "dist-tags": f"/{PROJECT}"}.get(kind, path.partition("?")[0])
    upstream = Upstream({upstream_path}, pages, files, piece)
    world = World(package_type, directory, upstream, upstream.allows, dict(policy))
    accept = _SIMPLE_JSON if kind in ("simple", "root") else "application/json"
    first = world.get(path, Accept=accept)
    event(f"{kind} {first.status}")
    if not first.status:
        raise Violation("a page request got no answer")
    if kind == "search":
        return
    if kind in ("simple", "root"):
        other = world.get(path, Accept="text/html")
        if first.status == 200 and (other.status, other.whole) != (200, True):
            raise Violation(f"the page in HTML: {other}")
    if kind == "packument":
        world.get(path, Accept="application/vnd.npm.install-v1+json")
        world.get(f"{path}/latest")
    if kind in ("simple", "packument"):
        check_files(world, upstream, links_of(kind, first, f"http://here.example{path}")[:3])
    world.reactor.advance(1000)
    again = world.get(path, Accept=accept)
    if first.status == 200 and again.status not in (200, 404, 502, 503):
        raise Violation(f"the page after 1000 seconds: {again}")


class TestConversations:
    """Tests of the responses that upstream can send."""

    @fuzz(180)
    @given(
        conversation=_CONVERSATIONS,
        files=st.lists(inputs.FILE_ANSWERS, min_size=1, max_size=3),
        piece=st.sampled_from([1 << 16, 1 << 16, 100, 7]),
        policy=_POLICIES,
    )
    def test_every_client_gets_an_answer(
        self,
        directories: Iterator[Path],
        conversation: tuple[str, list[RawResponse]],
        files: list[RawResponse],
        piece: int,
        policy: dict[str, str],
    ) -> None:
        """Every client gets an answer, and connections go only to hosts that upstream named."""
        example_counts["conversations"] += 1
        check_conversation(next(directories), *conversation, files, piece, policy)


def listing(*urls: str) -> dict[str, bytes]:
    """Upstream's project page with files at these URLs, by its path."""
    files = [{"filename": WHEEL, "url": url, "hashes": {}} for url in urls]
    return {f"/simple/{PROJECT}/": json.dumps({"meta": {"api-version": "1.0"}, "files": files}).encode()}


def packument(
    version: str = "1.0.0", url: str = f"https://files.example/{TARBALL}", **more: object
) -> dict[str, bytes]:
    """Upstream's packument with one version, by its path."""
    document = {"name": PROJECT, "versions": {version: {"dist": {"tarball": url}}}, **more}
    return {f"/{PROJECT}": json.dumps(document).encode()}


class TestFoundBugs:
    """Tests of bugs that the fuzz tests have found."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Callable[..., World]:
        """
        A function that makes a server whose upstream has these pages and headers.

        Upstream answers ten bytes at any other path.
        """

        def make(package_type: str, pages: dict[str, bytes], **headers: str) -> World:
            def upstream(exchange: Exchange) -> Transmission:
                if exchange.path in pages:
                    kind = _SIMPLE_JSON if package_type == "pypi" else "application/json"
                    return Transmission(response(200, pages[exchange.path], **({"content_type": kind} | headers)))
                return Transmission(response(200, b"0123456789"))

            more = {"MYPYPI_COLD_FILES": headers.pop("cold", "stream")}
            return World(package_type, tmp_path, upstream, lambda _: True, more)

        return make

    @pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "a b", "h/../x"])
    def test_an_invalid_host_is_a_bad_request(self, server: Callable[..., World], host: str) -> None:
        """An invalid Host header gets a 400, and not a 500."""
        answer = server("pypi", listing()).get("/simple/", Host=host)
        assert (answer.status, answer.body) == (400, b'{"error":"the Host header is not a host"}\n')

    def test_headers_need_not_be_utf_8(self, server: Callable[..., World]) -> None:
        """A User-Agent in Latin-1 is passed on to upstream unchanged."""
        world = server("npm", {"/-/v1/search": b"{}"})
        raw_request = [
            b"GET /-/v1/search HTTP/1.1",
            b"Host: here.example",
            b"User-Agent: caf\xe9",
            b"Accept: \xff, */*",
            b"",
            b"",
        ]
        assert read_answer(world.ask(b"\r\n".join(raw_request))).status == 200
        assert b"User-Agent: caf\xe9\r\n" in world.wire.last.value()

    @pytest.mark.parametrize("modified", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
    def test_a_date_out_of_range_is_left_out(self, server: Callable[..., World], modified: str) -> None:
        """A date that is out of range in UTC is not sent as Last-Modified."""
        answer = server("npm", packument(time={"modified": modified})).get(f"/{PROJECT}")
        assert (answer.status, "last-modified" in answer.headers) == (200, False)

    @pytest.mark.parametrize("date", ["yesterday", "Tue, 24 Nov 99999999999999999999 21:00:00 GMT", "\xff"])
    def test_an_invalid_date_is_not_passed_on(self, server: Callable[..., World], date: str) -> None:
        """
        An invalid Last-Modified is not passed on.

        A client that sends an invalid If-Modified-Since gets the page.
        """
        world = server("pypi", listing(), last_modified=date)
        answer = world.get(f"/simple/{PROJECT}/", If_Modified_Since="Tue, 99999999999999999999 Nov 2026 21:00:00 GMT")
        assert (answer.status, "last-modified" in answer.headers) == (200, False)

    @pytest.mark.parametrize("inside", [b"\xb3", b'"\n"', b"[" * 5000])
    def test_an_invalid_packument_is_a_502(self, server: Callable[..., World], inside: bytes) -> None:
        """A packument that is not valid JSON gets a 502."""
        body = b'{"name":"holy-grail","versions":{},"time":%s}' % inside
        assert server("npm", {f"/{PROJECT}": body}).get(f"/{PROJECT}").status == 502

    def test_invalid_utf_8_in_a_version_is_served(self, server: Callable[..., World]) -> None:
        """A version whose scripts are not UTF-8 is served unchanged."""
        dist = b'"dist":{"tarball":"http://"}'
        body = b'{"name":"holy-grail","versions":{"1.0.0":{"scripts":{"\xff":1},%s}}}' % dist
        assert server("npm", {f"/{PROJECT}": body}).get(f"/{PROJECT}").body == body

    def test_redirects_to_upstream_are_in_ascii(self, server: Callable[..., World]) -> None:
        """A Location is in ASCII, even if the page's URL is not."""
        world = server("pypi", listing(f"https://files.example/\u00e9 /{WHEEL}"), cold="redirect")
        answer = world.get(f"/file/https/files.example/%C3%A9%20/{WHEEL}")
        assert (answer.status, answer.headers["location"]) == (302, f"https://files.example/%C3%A9%20/{WHEEL}")

    @pytest.mark.parametrize("query", ["\u00e9", "a b", "x=%2F", "a|b", "%zz"])
    def test_a_query_is_found_as_clients_encode_it(self, server: Callable[..., World], query: str) -> None:
        """A link with non-ASCII characters in its query can be fetched."""
        world = server("pypi", listing(f"https://files.example/{WHEEL}?{query}"))
        page = json.loads(world.get(f"/simple/{PROJECT}/", Accept=_SIMPLE_JSON).body)
        link = page["files"][0]["url"].removeprefix("../..")
        assert world.get(quote(link, safe="%/:?=")).body == b"0123456789"

    @pytest.mark.parametrize("path", ["a\\b/x.whl", "a\u2028b/x.whl", "a%5Cb/x.whl", "%00/x.whl", "a/.?x=1"])
    def test_a_link_that_this_server_would_refuse_is_kept(self, server: Callable[..., World], path: str) -> None:
        """
        A link that this server would refuse stays upstream's URL.

        Clients can fetch the file from there.
        """
        url = f"https://files.example/{path}"
        page = json.loads(server("pypi", listing(url)).get(f"/simple/{PROJECT}/", Accept=_SIMPLE_JSON).body)
        assert [file["url"] for file in page["files"]] == [url]

    @pytest.mark.parametrize("version", ["a/b", "a\\b", "1.0.0\u2028"])
    def test_a_version_that_is_not_a_path_keeps_its_tarball_url(
        self, server: Callable[..., World], version: str
    ) -> None:
        """A version that can't be part of a path keeps upstream's tarball URL."""
        page = json.loads(server("npm", packument(version)).get(f"/{PROJECT}").body)
        assert page["versions"][version]["dist"]["tarball"] == f"https://files.example/{TARBALL}"

    def test_a_lone_percent_sign_is_encoded(self, server: Callable[..., World]) -> None:
        """
        A percent sign that encodes nothing is encoded in the link.

        The server refuses a path with a lone percent sign.
        """
        world = server("pypi", listing(f"https://files.example/100%/{WHEEL}"))
        page = json.loads(world.get(f"/simple/{PROJECT}/", Accept=_SIMPLE_JSON).body)
        assert page["files"][0]["url"] == f"../../file/https/files.example/100%25/{WHEEL}"
        assert world.get(f"/file/https/files.example/100%25/{WHEEL}").body == b"0123456789"

    def test_a_redirect_with_a_user_in_it_is_not_followed(self, tmp_path: Path) -> None:
        """
        A redirect with a user in its URL is not followed.

        The server's credentials would be sent to an unintended host.
        """
        moved = Transmission(response(302, location=f"https://evil.example@{UPSTREAM_HOST}/x"))
        world = World("pypi", tmp_path, lambda _: moved, fixed_hosts)
        assert world.get("/simple/").status == 502
        assert len(world.wire.exchanges) == 1

    def test_a_non_ascii_content_type_is_not_passed_on(self, server: Callable[..., World]) -> None:
        """A search response is served without a non-ASCII Content-Type."""
        answer = server("npm", {"/-/v1/search": b"{}"}, content_type="text/\xff").get("/-/v1/search")
        assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"{}", "application/json")

    def test_an_invalid_status_is_not_passed_on(self, tmp_path: Path) -> None:
        """The status 999 of upstream's search gets a 502."""
        world = World("npm", tmp_path, lambda _: Transmission(response(999, b"{}")), fixed_hosts)
        assert world.get("/-/v1/search").status == 502
