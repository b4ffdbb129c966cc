"""Whatever clients send and upstream says: an answer or a closed connection, no exception that nobody thought of, and
no connection to where upstream's own pages do not point.

``FUZZ_EXAMPLES=50000 pytest -n 0 --timeout=0 tests/test_fuzz.py`` looks for longer, and elsewhere each time.
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
from mypypi.model import PageId, SourceDocument
from mypypi.pages.rendering import render
from tests.fuzz import inputs
from tests.fuzz.inputs import PROJECT, SDIST, TARBALL, WHEEL, Asked, Sent
from tests.fuzz.world import UPSTREAM, UPSTREAM_HOST, Answer, Broken, Said, World, check_log, observed, read_answer
from tests.support.memory import Exchange, response

#: Examples per test where nobody asks for more.
_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
#: As a rule, what fails is made smaller, but nobody waits for an explanation of it.
_PHASES = (Phase.explicit, Phase.generate, *(() if os.environ.get("FUZZ_RAW") else (Phase.shrink,)))
_TYPES = ("pypi", "npm")
_SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

ran: Counter[str] = Counter()


def fuzz(examples: int) -> settings:
    """So many examples, the same in each run; with FUZZ_EXAMPLES so many, and others each time."""
    return settings(
        max_examples=_EXAMPLES or examples,
        derandomize=not _EXAMPLES,
        deadline=None,
        print_blob=True,
        phases=_PHASES,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def directories() -> Iterator[Generator[Path, None, None]]:
    """Empty directories, one after the other; each goes when the next one comes."""

    def fresh() -> Generator[Path, None, None]:
        while True:
            with tempfile.TemporaryDirectory() as root:
                yield Path(root)

    endless = fresh()
    yield endless
    endless.close()


@pytest.fixture(scope="module", autouse=True)
def counted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Say how many examples ran."""
    yield
    said = "fuzzed: " + ", ".join(f"{number} {name}" for name, number in sorted(ran.items()))
    capturing: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capturing.global_and_fixture_disabled():
        print(f"\n{said}")  # noqa: T201 - for whoever reads the run


@pytest.fixture(scope="module", autouse=True)
def unhandled() -> Iterator[None]:
    """Failures that nobody looked at are told when they are thrown away."""
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


def fixed_upstream(exchange: Exchange) -> Said:
    """An upstream of one package in each of the two ways, and of no other."""
    path = exchange.path.partition("?")[0]
    if exchange.origin == UPSTREAM and path in _PAGES:
        kind = _SIMPLE_JSON if path.startswith("/simple") else "application/json"
        return Said(response(200, _PAGES[path], content_type=kind))
    if exchange.value().startswith(b"POST") or path == "/-/v1/search":
        return Said(response(200, b"{}", content_type="application/json"))
    if path.endswith((WHEEL, ".metadata", SDIST)):
        return Said(response(200, b"0123456789"))
    return Said(response(200, b"abc")) if path.endswith(TARBALL) else Said(response(404))


def fixed_hosts(origin: str) -> bool:
    return origin in (UPSTREAM, "https://files.example")


def check_request(directory: Path, package_type: str, asked: Asked, **more: str) -> None:
    """Ask this, and then what a client would: no answer to the one may be in the way of the other."""
    world = World(package_type, directory, fixed_upstream, fixed_hosts, more)
    got = world.ask(*asked.pieces, leave=asked.leave)
    if got and not asked.leave:
        answer = read_answer(got, head=asked.head)
        event(f"status {answer.status}")
        if answer.status == 503:
            raise Broken(f"upstream is said to be down, and is not: {answer}")
    usual = world.get(f"/simple/{PROJECT}/" if package_type == "pypi" else f"/{PROJECT}")
    if usual.status != 200 or not usual.whole:
        raise Broken(f"the next client gets {usual}")


def get(target: str, *headers: bytes) -> Asked:
    """A request for an @example."""
    host = [] if headers and headers[0].startswith(b"Host") else [b"Host: here.example"]
    return Asked((b"\r\n".join([b"GET %s HTTP/1.1" % target.encode(), *host, *headers, b"", b""]),))


class TestRequests:
    """What a client may send."""

    @fuzz(350)
    @given(package_type=st.sampled_from(_TYPES), asked=inputs.REQUESTS)
    @example(package_type="pypi", asked=get("/simple/", b"Host: a..b"))
    @example(package_type="pypi", asked=get("/simple/", b"Host: \xff\xfe"))
    @example(package_type="npm", asked=get("/holy-grail", b"Host: " + b"a" * 64))
    @example(package_type="pypi", asked=get("/simple/", b"Accept: \xff, */*"))
    @example(package_type="npm", asked=get("/holy-grail", b'If-None-Match: "\xff"'))
    @example(
        package_type="pypi", asked=get("/simple/", b"If-Modified-Since: Tue, 24 Nov 99999999999999999999 21:00:00 GMT")
    )
    @example(package_type="npm", asked=get("/-/v1/search", b"User-Agent: \xe2\x82\xac"))
    @example(package_type="pypi", asked=get("/pypi/Holy.Grail/%E2%82%AC/json"))
    def test_has_an_answer(self, directories: Iterator[Path], package_type: str, asked: Asked) -> None:
        """Of this server's making, from upstream's own pages and files alone."""
        ran["requests"] += 1
        check_request(next(directories), package_type, asked)

    @fuzz(150)
    @given(package_type=st.sampled_from(_TYPES), asked=inputs.NOISE)
    def test_may_be_no_request_at_all(self, directories: Iterator[Path], package_type: str, asked: Asked) -> None:
        """Which is said, or the connection is closed."""
        ran["connections with noise"] += 1
        check_request(next(directories), package_type, asked)


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


def check_pressed(
    package_type: str, page: PageId, body: bytes, content_type: str, withheld: frozenset[str] = frozenset()
) -> None:
    """Render it and list its files; all that is listed has an address of its own."""
    ecosystem = ECOSYSTEMS[package_type](UPSTREAM)
    source = SourceDocument(body, content_type, f"{UPSTREAM}/simple/{PROJECT}/")
    try:
        rendered = ecosystem.render(page, source, withheld)
    except MyPyPiError:
        event("refused")
        return
    render(package_type, UPSTREAM, page, source, withheld)
    name = ecosystem.listing_form(page)
    if name is None:
        return
    listing = ecosystem.listing(page, {name: rendered.forms[name].body})
    event(f"{len(listing)} files")
    for link, file in listing.items():
        if file.link != link or not isinstance(link, str):
            raise Broken(f"{link!r} is called {file.link!r}")
        host = urlsplit(file.url).hostname
        if host is None or file.url.partition("://")[2].partition("/")[0].count("@"):
            raise Broken(f"a file at {file.url!r}")
        if page not in (*ecosystem.pages_for(link), *([page] if link in rendered.indexed_links else [])):
            raise Broken(f"nobody could tell that {link!r} is listed here")


class TestPressing:
    """Pages as upstream should never send them."""

    @fuzz(350)
    @given(made=_SOURCES["pypi"], kind=st.sampled_from(["", *inputs.JSON_TYPES, *inputs._ODD_TYPES, "text/html"]))
    def test_index_pages(self, made: tuple[PageId, bytes], kind: str) -> None:
        """In HTML and JSON: taken in, or refused in so many words."""
        ran["index pages"] += 1
        check_pressed("pypi", *made, kind)

    @fuzz(300)
    @given(made=_SOURCES["npm"])
    def test_packuments(self, made: tuple[PageId, bytes]) -> None:
        """Taken in, or refused in so many words."""
        ran["packuments"] += 1
        check_pressed("npm", *made, "application/json")


# Whole conversations

#: What is asked for of each kind of page, and what upstream may send for it.
_ASKED: dict[str, tuple[tuple[str, str], st.SearchStrategy[Sent]]] = {
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
_ASKING = st.sampled_from(_KINDS).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(_ASKED[kind][1], min_size=1, max_size=2))
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
    """Sends each of these for its page, the last one ever after; files likewise."""

    def __init__(self, page_paths: set[str], pages: list[Sent], files: list[Sent], piece: int) -> None:
        self._page_paths = page_paths
        self._pages = list(pages)
        self._files = list(files)
        self._piece = piece
        self._said = ""

    def __call__(self, exchange: Exchange) -> Said:
        here = urlsplit(exchange.origin).hostname == UPSTREAM_HOST
        queue = self._pages if here and exchange.path.partition("?")[0] in self._page_paths else self._files
        sent = queue.pop(0) if len(queue) > 1 else queue[0]
        said = html.unescape(re.sub(r"[\t\r\n]|\\[trn]", "", sent.says)).lower()
        self._said += re.sub(":0+(?=[0-9])", ":", said)
        return Said(sent.data, self._piece, sent.cut)

    def allows(self, origin: str) -> bool:
        """Whether this is upstream's own, or upstream said so, in a page or in a redirect."""
        parts = urlsplit(origin)
        place = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
        return origin in (UPSTREAM, f"{UPSTREAM}:443") or place in self._said


def links_of(kind: str, answer: Answer, page_url: str) -> list[str]:
    """The targets of the files on a page, as clients ask for them."""
    if answer.status != 200 or not answer.whole:
        return []
    try:
        document = json.loads(answer.body.decode(errors="replace"))  # as JavaScript reads it
    except RecursionError:
        return []
    if kind == "simple":
        urls = [file["url"] for file in document["files"] if file["url"].startswith("../../file/")]
    else:
        # "tarball" may be of any type where upstream's was
        dists = [version.get("dist") for version in document.get("versions", {}).values() if isinstance(version, dict)]
        urls = [dist.get("tarball") for dist in dists if isinstance(dist, dict)]
    found = []
    for url in urls:
        with suppress(ValueError):  # no address: no client could ask for it
            whole = urljoin(page_url, url) if kind == "simple" else str(url)  # npm's clients want it whole
            if whole.startswith("http://here.example/"):
                found.append(whole.removeprefix("http://here.example"))
    return found


def check_files(world: World, links: list[str]) -> None:
    """What a page lists can be asked for."""
    for link in links:
        target = quote(link, safe="/%?:@!$&'()*+,;=~-._[]")
        for method in (b"HEAD", b"GET", b"GET"):
            file = world.get(target, method)
            event(f"file {file.status}")
            if file.status == 400 or b"no page of upstream's lists" in file.body:
                raise Broken(f"{link!r} is listed, and then {file}")
        world.get(target + ".metadata", Range="bytes=0-1")


def check_conversation(
    directory: Path, kind: str, pages: list[Sent], files: list[Sent], piece: int, policy: Mapping[str, str]
) -> None:
    """Ask for a page twice, a while apart, and for the files that it lists."""
    (package_type, path), _ = _ASKED[kind]
    upstream_path = {"version": f"/{PROJECT}", "dist-tags": f"/{PROJECT}"}.get(kind, path.partition("?")[0])
    upstream = Upstream({upstream_path}, pages, files, piece)
    world = World(package_type, directory, upstream, upstream.allows, dict(policy))
    accept = _SIMPLE_JSON if kind in ("simple", "root") else "application/json"
    first = world.get(path, Accept=accept)
    event(f"{kind} {first.status}")
    if not first.status:
        raise Broken("no answer for a page")
    if kind == "search":
        return
    if kind in ("simple", "root"):
        other = world.get(path, Accept="text/html")
        if first.status == 200 and (other.status, other.whole) != (200, True):
            raise Broken(f"in HTML: {other}")
    if kind == "packument":
        world.get(path, Accept="application/vnd.npm.install-v1+json")
        world.get(f"{path}/latest")
    if kind in ("simple", "packument"):
        check_files(world, links_of(kind, first, f"http://here.example{path}")[:3])
    world.reactor.advance(1000)
    again = world.get(path, Accept=accept)
    if first.status == 200 and again.status not in (200, 404, 502, 503):
        raise Broken(f"after a while: {again}")


class TestConversations:
    """What upstream may say."""

    @fuzz(180)
    @given(
        asking=_ASKING,
        files=st.lists(inputs.FILE_ANSWERS, min_size=1, max_size=3),
        piece=st.sampled_from([1 << 16, 1 << 16, 100, 7]),
        policy=_POLICIES,
    )
    def test_end_well(
        self,
        directories: Iterator[Path],
        asking: tuple[str, list[Sent]],
        files: list[Sent],
        piece: int,
        policy: dict[str, str],
    ) -> None:
        """With an answer for the client, and no connection to where upstream did not send us."""
        ran["conversations"] += 1
        check_conversation(next(directories), *asking, files, piece, policy)


def listing(*urls: str) -> dict[str, bytes]:
    """Upstream's page of files at these addresses, by its path."""
    files = [{"filename": WHEEL, "url": url, "hashes": {}} for url in urls]
    return {f"/simple/{PROJECT}/": json.dumps({"meta": {"api-version": "1.0"}, "files": files}).encode()}


def packument(
    version: str = "1.0.0", url: str = f"https://files.example/{TARBALL}", **more: object
) -> dict[str, bytes]:
    """Upstream's packument of one version, by its path."""
    document = {"name": PROJECT, "versions": {version: {"dist": {"tarball": url}}}, **more}
    return {f"/{PROJECT}": json.dumps(document).encode()}


class TestFound:
    """What these tests have found so far, as a user met it."""

    @pytest.fixture
    def serving(self, tmp_path: Path) -> Callable[..., World]:
        """A server before an upstream that has these pages and headers, and ten bytes at any other address."""

        def make(package_type: str, pages: dict[str, bytes], **headers: str) -> World:
            def upstream(exchange: Exchange) -> Said:
                if exchange.path in pages:
                    kind = _SIMPLE_JSON if package_type == "pypi" else "application/json"
                    return Said(response(200, pages[exchange.path], **({"content_type": kind} | headers)))
                return Said(response(200, b"0123456789"))

            more = {"MYPYPI_COLD_FILES": headers.pop("cold", "stream")}
            return World(package_type, tmp_path, upstream, lambda _: True, more)

        return make

    @pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "a b", "h/../x"])
    def test_a_host_that_is_none_is_a_bad_request(self, serving: Callable[..., World], host: str) -> None:
        """And not an error of the server's."""
        answer = serving("pypi", listing()).get("/simple/", Host=host)
        assert (answer.status, answer.body) == (400, b'{"error":"the Host header is not a host"}\n')

    def test_headers_need_not_be_utf_8(self, serving: Callable[..., World]) -> None:
        """A client's name in Latin-1 reaches upstream as it is."""
        world = serving("npm", {"/-/v1/search": b"{}"})
        asked = [
            b"GET /-/v1/search HTTP/1.1",
            b"Host: here.example",
            b"User-Agent: caf\xe9",
            b"Accept: \xff, */*",
            b"",
            b"",
        ]
        assert read_answer(world.ask(b"\r\n".join(asked))).status == 200
        assert b"User-Agent: caf\xe9\r\n" in world.wire.last.value()

    @pytest.mark.parametrize("modified", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
    def test_a_package_of_the_first_day_is_served(self, serving: Callable[..., World], modified: str) -> None:
        """Without a date, where there is none in our time zone."""
        answer = serving("npm", packument(time={"modified": modified})).get(f"/{PROJECT}")
        assert (answer.status, "last-modified" in answer.headers) == (200, False)

    @pytest.mark.parametrize("date", ["yesterday", "Tue, 24 Nov 99999999999999999999 21:00:00 GMT", "\xff"])
    def test_what_is_no_date_is_not_handed_on_as_one(self, serving: Callable[..., World], date: str) -> None:
        """And a client that sends one gets the page."""
        world = serving("pypi", listing(), last_modified=date)
        answer = world.get(f"/simple/{PROJECT}/", If_Modified_Since="Tue, 99999999999999999999 Nov 2026 21:00:00 GMT")
        assert (answer.status, "last-modified" in answer.headers) == (200, False)

    @pytest.mark.parametrize("inside", [b"\xb3", b'"\xff"', b"[" * 5000])
    def test_a_packument_that_is_no_json_is_upstreams_fault(self, serving: Callable[..., World], inside: bytes) -> None:
        """502 with the reason."""
        body = b'{"name":"holy-grail","versions":{},"time":%s}' % inside
        assert serving("npm", {f"/{PROJECT}": body}).get(f"/{PROJECT}").status == 502

    def test_a_version_whose_scripts_are_no_utf_8_is_served(self, serving: Callable[..., World]) -> None:
        """As upstream wrote it."""
        body = b'{"name":"holy-grail","versions":{"1.0.0":{"scripts":{"\xff":1}}}}'
        assert serving("npm", {f"/{PROJECT}": body}).get(f"/{PROJECT}").body == body

    def test_redirects_to_upstream_are_in_ascii(self, serving: Callable[..., World]) -> None:
        """As a Location has to be, whatever the page has."""
        world = serving("pypi", listing(f"https://files.example/\u00e9 /{WHEEL}"), cold="redirect")
        answer = world.get(f"/file/https/files.example/%C3%A9%20/{WHEEL}")
        assert (answer.status, answer.headers["location"]) == (302, f"https://files.example/%C3%A9%20/{WHEEL}")

    @pytest.mark.parametrize("query", ["\u00e9", "a b", "x=%2F", "a|b", "%zz"])
    def test_a_query_is_found_as_clients_encode_it(self, serving: Callable[..., World], query: str) -> None:
        """A link with more than ASCII behind its question mark can be fetched."""
        world = serving("pypi", listing(f"https://files.example/{WHEEL}?{query}"))
        page = json.loads(world.get(f"/simple/{PROJECT}/", Accept=_SIMPLE_JSON).body)
        link = page["files"][0]["url"].removeprefix("../..")
        assert world.get(quote(link, safe="%/:?=")).body == b"0123456789"

    @pytest.mark.parametrize("path", ["a\\b/x.whl", "a\u2028b/x.whl", "a%5Cb/x.whl", "%00/x.whl", "a/.?x=1"])
    def test_a_link_that_this_server_would_refuse_stays_upstreams(
        self, serving: Callable[..., World], path: str
    ) -> None:
        """Where the client finds the file."""
        url = f"https://files.example/{path}"
        page = json.loads(serving("pypi", listing(url)).get(f"/simple/{PROJECT}/", Accept=_SIMPLE_JSON).body)
        assert [file["url"] for file in page["files"]] == [url]

    @pytest.mark.parametrize("version", ["a/b", "a\\b", "1.0.0\u2028"])
    def test_a_version_that_is_no_path_keeps_its_tarballs_link(
        self, serving: Callable[..., World], version: str
    ) -> None:
        """As above, for npm."""
        page = json.loads(serving("npm", packument(version)).get(f"/{PROJECT}").body)
        assert page["versions"][version]["dist"]["tarball"] == f"https://files.example/{TARBALL}"

    def test_a_percent_sign_that_encodes_nothing_is_encoded(self, serving: Callable[..., World]) -> None:
        """Since no path with one is let in."""
        world = serving("pypi", listing(f"https://files.example/100%/{WHEEL}"))
        page = json.loads(world.get(f"/simple/{PROJECT}/", Accept=_SIMPLE_JSON).body)
        assert page["files"][0]["url"] == f"../../file/https/files.example/100%25/{WHEEL}"
        assert world.get(f"/file/https/files.example/100%25/{WHEEL}").body == b"0123456789"

    def test_a_redirect_with_a_user_in_it_is_not_followed(self, tmp_path: Path) -> None:
        """Our credentials would go with it, to a host of a name that nobody meant."""
        moved = Said(response(302, location=f"https://evil.example@{UPSTREAM_HOST}/x"))
        world = World("pypi", tmp_path, lambda _: moved, fixed_hosts)
        assert world.get("/simple/").status == 502
        assert len(world.wire.exchanges) == 1

    def test_a_type_with_more_than_ascii_is_not_handed_on(self, serving: Callable[..., World]) -> None:
        """The answer to a search is, without it."""
        answer = serving("npm", {"/-/v1/search": b"{}"}, content_type="text/\xff").get("/-/v1/search")
        assert (answer.status, answer.body) == (200, b"{}")

    def test_a_status_that_is_none_is_not_handed_on(self, tmp_path: Path) -> None:
        """Upstream's search answered 999."""
        world = World("npm", tmp_path, lambda _: Said(response(999, b"{}")), fixed_hosts)
        assert world.get("/-/v1/search").status == 502
