"""Tests of a reverse proxy's path prefix, which the proxy may strip or not, on a whole server in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.fuzz.world import UPSTREAM, Answer, Transmission, World
from tests.support.memory import Exchange, response

FILE = "/file/https/up.example/files/thing-1.0.tar.gz"
CONTENT = b"0123456789"

_SIMPLE = "application/vnd.pypi.simple.v1+json"


def page_of(path: str) -> bytes:
    """Return upstream's document at a path: the list of projects, a project's page, or a packument."""
    if path == "/simple/":
        return b'{"meta":{"api-version":"1.0"},"projects":[{"name":"thing"}]}'
    if path.startswith("/simple/"):
        file = {"filename": "thing-1.0.tar.gz", "url": f"{UPSTREAM}{FILE.removeprefix('/file/https/up.example')}"}
        return json.dumps({"meta": {"api-version": "1.0"}, "name": path, "files": [file | {"hashes": {}}]}).encode()
    name = path[1:].replace("%2f", "/")
    versions = {
        version: {"name": name, "version": version, "dist": {"tarball": f"{UPSTREAM}/{name}/-/{base}-{version}.tgz"}}
        for base in [name.rpartition("/")[2]]
        for version in ("1.0.0", "2.0.0")
    }
    return json.dumps({"name": name, "dist-tags": {"latest": "2.0.0"}, "versions": versions}).encode()


def upstream(exchange: Exchange) -> Transmission:
    path = exchange.path.partition("?")[0]
    if path.endswith((".tgz", ".tar.gz")):
        return Transmission(response(200, CONTENT))
    if path.startswith("/-/"):
        return Transmission(response(200, json.dumps({"at": exchange.path}).encode(), content_type="application/json"))
    return Transmission(
        response(200, page_of(path), content_type=_SIMPLE if path.startswith("/simple") else "application/json")
    )


Serve = Callable[..., World]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """A function that makes a server for this public URL."""

    def make(package_type: str, public_url: str, **settings: str) -> World:
        texts = {"MYPYPI_PUBLIC_URL": public_url} | {f"MYPYPI_{name}": text for name, text in settings.items()}
        return World(package_type, tmp_path, upstream, lambda _: True, texts)

    return make


def same(one: Answer, other: Answer) -> bool:
    """Return whether two answers are the same for a client. How they came about may differ."""
    ignored = {"cache-status", "x-request-id", "date", "age", "cache-control"}
    first, second = (
        {name: text for name, text in each.headers.items() if name not in ignored} for each in (one, other)
    )
    return (one.status, one.body, first) == (other.status, other.body, second)


NPM_PATHS = [
    *("/app", "/@acme/lib", "/@acme%2flib", "/@acme%2Flib", "/app/1.0.0", "/app/latest", "/@acme%2flib/latest"),
    *("/app/-/app-1.0.0.tgz", "/@acme/lib/-/lib-1.0.0.tgz", "/@acme%2flib/-/lib-1.0.0.tgz"),
    *("/-/package/app/dist-tags", "/-/v1/search?text=a%20b&size=2", "/-/npm/v1/keys", "/-/ping", "/-/whoami"),
    *("/-/npm/v1/attestations/@acme%2flib@1.0.0", "/-/health/live", "/-/"),
]  # fmt: skip
PYPI_PATHS = [
    *("/", "/simple", "/simple/", "/simple/thing/", "/simple/Thing/", "/simple/thing"),
    *(f"/simple/thing/?format={quote(_SIMPLE)}", "/pypi/Thing/json", FILE, "/-/health/live", "/-/health/ready", "/-/"),
]  # fmt: skip


class TestPrefix:
    """Each request is answered alike, whether the proxy strips the prefix or not."""

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    @pytest.mark.parametrize("path", NPM_PATHS)
    def test_npm(self, serve: Serve, path: str, method: bytes) -> None:
        """With and without the prefix, a path of npm mode has the same answer."""
        world = serve("npm", "https://packages.example/npm")
        world.get(path, method)  # whatever is cached is there for both requests
        stripped = world.get(path, method)
        assert stripped.status == (401 if path == "/-/whoami" else 200)
        assert same(world.get(f"/npm{path}", method), stripped)

    @pytest.mark.parametrize("method", [b"GET", b"HEAD"])
    @pytest.mark.parametrize("path", PYPI_PATHS)
    def test_pypi(self, serve: Serve, path: str, method: bytes) -> None:
        """With and without the prefix, a path of pypi mode has the same answer, with the same relative links."""
        world = serve("pypi", "https://packages.example/some/cache")
        world.get("/simple/thing/")
        world.get(path, method)
        stripped = world.get(path, method)
        assert stripped.status in (200, 301)
        assert same(world.get(f"/some/cache{path}", method), stripped)

    @pytest.mark.parametrize("path", ["/@acme%2flib", "/npm/@acme%2flib", "/npm/@acme/lib", "/npm/%40acme%2Flib"])
    def test_links_have_the_prefix_once(self, serve: Serve, path: str) -> None:
        """The links of a packument have the public address, however the request came, and lead to the tarball."""
        world = serve("npm", "https://packages.example/npm")
        packument = json.loads(world.get(path).body)
        link = packument["versions"]["1.0.0"]["dist"]["tarball"]
        assert link == "https://packages.example/npm/@acme/lib/-/lib-1.0.0.tgz"
        for sent in (link.removeprefix("https://packages.example"), link.removeprefix("https://packages.example/npm")):
            assert world.get(sent).body == CONTENT

    def test_ranges(self, serve: Serve) -> None:
        """A part of a file is served below the prefix as well."""
        world = serve("pypi", "https://packages.example/cache")
        world.get("/cache/simple/thing/")
        world.get(f"/cache{FILE}")
        answer = world.get(f"/cache{FILE}", Range="bytes=2-4")
        assert (answer.status, answer.body) == (206, CONTENT[2:5])

    def test_a_query_is_passed_on_to_upstream_without_the_prefix(self, serve: Serve) -> None:
        """A search or an audit below the prefix is upstream's own path and query."""
        world = serve("npm", "https://packages.example/npm")
        found = json.loads(world.get("/npm/-/v1/search?text=a%20b&size=2").body)
        assert found == {"at": "/-/v1/search?text=a%20b&size=2"}
        audit = world.get("/npm/-/npm/v1/security/audits/quick", b"POST", Content_Length="0")
        assert json.loads(audit.body) == {"at": "/-/npm/v1/security/audits/quick"}

    def test_a_write_below_the_prefix_is_refused(self, serve: Serve) -> None:
        """A write and a login below the prefix get the same answers as without it."""
        world = serve("npm", "https://packages.example/npm")
        for path, method, status in (
            ("/app", b"PUT", 405),
            ("/-/v1/login", b"POST", 501),
            ("/-/user/a/b", b"GET", 401),
        ):
            for sent in (path, f"/npm{path}"):
                answer = world.get(sent, method, Content_Length="0")
                assert (answer.status, b"read-only" in answer.body) == (status, True), sent

    @pytest.mark.parametrize("path", ["/cache", "/cache/"])
    def test_the_prefix_alone_is_the_root(self, serve: Serve, path: str) -> None:
        """The public address itself shows the root."""
        world = serve("pypi", "https://packages.example/cache")
        assert same(world.get(path), world.get("/"))

    @pytest.mark.parametrize(
        "path", ["/other/simple/thing/", "/cachesimple/thing/", "/cache/cache/simple/thing/", "/cache/../simple/thing/"]
    )
    def test_another_prefix_is_not_stripped(self, serve: Serve, path: str) -> None:
        """Only the prefix of the public address is removed, and once."""
        assert serve("pypi", "https://packages.example/cache").get(path).status in (400, 404)


class TestAmbiguousNames:
    """The one package that has the prefix's name, as the README describes it."""

    @pytest.mark.parametrize("path", ["/npm/npm", "/npm/npm/1.0.0", "/npm/npm/-/npm-1.0.0.tgz", "/npm"])
    def test_below_the_prefix_it_is_a_package_like_others(self, serve: Serve, path: str) -> None:
        """With the prefix, the package is found; the prefix alone is the package's packument too."""
        answer = serve("npm", "https://packages.example/npm").get(path)
        assert answer.status == 200
        assert answer.body == CONTENT if path.endswith(".tgz") else json.loads(answer.body)["name"] == "npm"

    def test_its_tarball_is_found_where_the_proxy_strips(self, serve: Serve) -> None:
        """``/npm/-/npm-1.0.0.tgz`` can only be the tarball of that package."""
        assert serve("npm", "https://packages.example/npm").get("/npm/-/npm-1.0.0.tgz").body == CONTENT

    def test_a_name_below_the_prefix_is_a_package(self, serve: Serve) -> None:
        """``/npm/latest`` is the package called latest, not a version of npm."""
        answer = serve("npm", "https://packages.example/npm").get("/npm/latest")
        assert json.loads(answer.body)["name"] == "latest"

    def test_a_trusted_proxy_may_say_that_it_stripped(self, serve: Serve) -> None:
        """With X-Forwarded-Prefix from a trusted proxy, nothing is removed: ``/npm/latest`` is a version of npm."""
        world = serve("npm", "https://packages.example/npm", TRUSTED_PROXIES="192.0.2.0/24")
        answer = world.get("/npm/latest", X_Forwarded_Prefix="/npm")
        found = json.loads(answer.body)
        assert (found["name"], found["version"]) == ("npm", "2.0.0")
        assert "X-Forwarded-Prefix" in answer.headers["vary"]

    def test_other_clients_can_not_say_so(self, serve: Serve) -> None:
        """The header of a client that is no trusted proxy is ignored."""
        world = serve("npm", "https://packages.example/npm", TRUSTED_PROXIES="198.51.100.1")
        answer = world.get("/npm/latest", X_Forwarded_Prefix="/npm")
        assert json.loads(answer.body)["name"] == "latest"

    def test_a_prefix_named_as_a_route(self, serve: Serve) -> None:
        """Where the prefix is called simple, ``/simple/`` is the list of projects, not the root."""
        world = serve("pypi", "https://packages.example/simple")
        listing = world.get("/simple/", Accept=_SIMPLE)
        assert listing.headers["content-type"] == _SIMPLE
        for path in ("/simple/thing/", "/simple/simple/thing/"):
            assert world.get(path, Accept=_SIMPLE).status == 200
