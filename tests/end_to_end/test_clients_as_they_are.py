"""Tests clients with registries that are slow, that redirect, or whose place the daemon has taken.

Each test does with a client directly what it does through the daemon. Directly it works, so it must work here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import define, evolve

from mypypi.ecosystems.npm import ABBREVIATED
from tests.conftest import Sites, daemons
from tests.rig.clients import Client, Npm, Pip, Uv, installed_modules
from tests.rig.faults import Fault, Hang, Redirect, Unsized
from tests.rig.http import get
from tests.rig.index import FakeIndex
from tests.rig.packages import make_sdist, make_tarball, make_wheel
from tests.rig.registry import FakeRegistry
from tests.rig.wire import Reply, Request, Wire
from tests.support.kinds import Kind, NPMKind, PyPIKind
from tests.support.site import Site

BULK = "/-/npm/v1/security/advisories/bulk"
#: The same kinds for all tests of a class, which share their sites.
PYPI, NPM = PyPIKind(), NPMKind()
#: How npm repeats a request: soon.
RETRIES = ("--fetch-retries=4", "--fetch-retry-mintimeout=500", "--fetch-retry-maxtimeout=1000")


@define(eq=False)
class WithHeaders(Fault):
    """Adds these headers to each answer."""

    headers: dict[str, str]

    def serve(self, reply: Reply, wire: Wire) -> None:
        wire.reply(evolve(reply, headers={**reply.headers, **self.headers}))
        self._happened()


class Unconditional(FakeRegistry):
    """A registry that refuses conditional requests with the status `code`, `refused` times so far."""

    code = 412
    refused = 0

    def answer(self, request: Request) -> Reply:
        if request.headers["If-None-Match"] is None and request.headers["If-Modified-Since"] is None:
            return super().answer(request)
        self.refused += 1
        return Reply.text(self.code)


def vulnerable(output: str) -> list[str]:
    """Return the packages that ``npm audit --json`` reports, or the status of an audit that failed."""
    failed = re.search(r"npm warn audit (\d+) ", output)
    return [failed[1]] if failed else list(json.loads(output)["vulnerabilities"])


class TestSlowUpstream:
    """Upstream's first byte takes longer than MYPYPI_UPSTREAM_TIMEOUT, which is one second here."""

    @pytest.fixture
    def python_site(self, sites: Sites) -> Site:
        return sites(PYPI, UPSTREAM_TIMEOUT="1")

    @pytest.fixture
    def npm_site(self, sites: Sites) -> Site:
        return sites(NPM, UPSTREAM_TIMEOUT="1")

    def install_slowly(
        self, site: Site, path: str, name: str, client: Client, *options: str, direct: bool
    ) -> dict[str, str]:
        """
        Install a package while its upstream holds this path back for longer than a request waits.

        Returns what was installed. Upstream is asked for the path once.
        """
        start = len(site.daemon.log)
        before, hang = site.upstream.count(path), site.upstream.fault(path, Hang())
        with ThreadPoolExecutor(1) as pool:
            server = site.upstream.url if direct else site.daemon.url
            installing = pool.submit(client.install, server, *options, name)
            hang.wait_served()
            if not direct:
                site.daemon.wait_for_log(r"(?s) 503 .* 503 ", start=start)  # two tries: the second joined the request
            hang.release()
            result = installing.result()
        site.upstream.mend()
        assert (hang.served, site.upstream.count(path) - before) == (1, 1)
        return result

    @pytest.mark.parametrize("make", [Pip, Uv])
    @pytest.mark.parametrize("held", ["page", "file"])
    def test_python_packages_are_installed(
        self, python_site: Site, make: Callable[[Path], Client], held: str, tmp_path: Path
    ) -> None:
        """Pip and uv install from a slow index, as they do directly."""
        for direct in (True, False):
            site, client = python_site, make(tmp_path / str(direct))
            thing = site.publish(padding=9000, seen=False)
            path = site.kind.upstream_page_path(thing.name) if held == "page" else thing.upstream_path
            found = self.install_slowly(site, path, thing.name, client, direct=direct)
            assert found == {thing.name: "1.0"}

    @pytest.mark.parametrize("held", ["page", "file"])
    def test_npm_packages_are_installed(self, npm_site: Site, held: str, tmp_path: Path) -> None:
        """Npm installs from a slow registry, as it does directly."""
        for direct in (True, False):
            site, npm = npm_site, Npm(tmp_path / str(direct), patient=True)
            thing = site.publish(padding=9000, seen=False)
            path = site.kind.upstream_page_path(thing.name) if held == "page" else thing.upstream_path
            found = self.install_slowly(site, path, thing.name, npm, "--no-audit", *RETRIES, direct=direct)
            assert found == {thing.name: "1.0"}

    def test_slow_audit_is_answered(self, npm_site: Site, tmp_path: Path) -> None:
        """Npm sends an audit once, and waits for its answer."""
        site, npm = npm_site, Npm(tmp_path)
        assert isinstance(site.upstream, FakeRegistry)
        site.upstream.add(make_tarball("slowly"))
        site.upstream.advise("slowly", "<2")
        for server in (site.upstream.url, site.daemon.url):
            project = npm.project(server, {"slowly": "1"})
            npm.run("install", "--prefix", project, "--no-audit")
            hang = site.upstream.fault(BULK, Hang())
            with ThreadPoolExecutor(1) as pool:
                auditing = pool.submit(npm.fail, "audit", "--prefix", project, "--json")
                hang.wait_served()
                if server == site.daemon.url:
                    assert get(f"{server}/slowly").status == 200
                with pytest.raises(TimeoutError):
                    auditing.result(2)
                hang.release()
                assert vulnerable(auditing.result()) == ["slowly"]
            assert hang.served == 1
            site.upstream.mend()


class TestRedirectedAudit:
    """Upstream redirects audits to another server, as GitLab does."""

    @pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
    def test_npm_gets_what_it_gets_directly(self, code: int, tmp_path: Path) -> None:
        """An audit ends as it does directly: 307 and 308 are followed with method and body."""
        npm = Npm(tmp_path)
        with FakeRegistry() as registry, FakeRegistry() as auditor, daemons(registry.url, tmp_path / "data") as start:
            registry.add(make_tarball("holey"))
            auditor.advise("holey", "<2")
            redirect = registry.fault(BULK, Redirect(auditor.url + "{path}", code))
            daemon, reports = start(env={"MYPYPI_PACKAGE_TYPE": "npm"}), []
            for server in (registry.url, daemon.url):
                project = npm.project(server, {"holey": "1"})
                npm.run("install", "--prefix", project, "--no-audit")
                reports.append(vulnerable(npm.fail("audit", "--prefix", project, "--json")))
            assert redirect.served == 2
            if code in (307, 308):
                assert reports == [["holey"]] * 2
                assert auditor.audits == [{"holey": ["1.0.0"]}] * 2
            else:  # a GET, to which the other server has no answer
                assert reports == [["404"]] * 2


class TestValidatorsOfAnotherServer:
    """The daemon takes over the address of a server whose validators are not quoted."""

    def test_npm_goes_on_with_its_cache(self, tmp_path: Path) -> None:
        """Npm, whose cache has pages of the other server, installs what this one has."""
        npm, cache = Npm(tmp_path), f"--cache={tmp_path / 'cache'}"
        old, new = make_tarball("app", "1.0.0"), make_tarball("app", "1.1.0")
        with FakeRegistry() as before:
            before.add(old)
            odd = before.fault(
                "/app", WithHeaders({"ETag": "abc", "Last-Modified": "then", "Cache-Control": "max-age=0"})
            )
            project = npm.project(before.url)
            npm.run("install", "--prefix", project, cache, "--no-audit", "app")
            odd.wait_served()
            port = before.port
        with FakeRegistry() as registry, daemons(registry.url, tmp_path / "data") as start:
            registry.add(new)
            address = f"tcp:{port}:interface=127.0.0.1"
            daemon = start(env={"MYPYPI_PACKAGE_TYPE": "npm", "MYPYPI_LISTEN": address})
            project = npm.project(daemon.url)
            npm.run("install", "--prefix", project, cache, "--no-audit", "app")
            assert installed_modules(project) == {"app": "1.1.0"}
            assert " 400 " not in daemon.log


class TestOpenEnd:
    """Upstream's files have no digest and no length: they end with their connection."""

    @pytest.mark.parametrize("make", [Pip, Uv])
    def test_python_packages_are_installed(self, make: Callable[[Path], Client], tmp_path: Path) -> None:
        """A wheel and an sdist are installed as they are directly. These archives show their end, so they are kept."""
        with FakeIndex(html_only=True) as index, daemons(index.url, tmp_path / "data") as start:
            daemon = start()
            for name, make_artifact in (("openwheel", make_wheel), ("opensdist", make_sdist)):
                url = index.add(make_artifact(name), extra={"hashes": {}})
                fault = index.fault(url.removeprefix(index.url), Unsized(chunked=False))
                assert make(tmp_path / f"{name}-directly").install(index.url, name) == {name: "1.0"}
                directly = fault.served
                for number in range(2):
                    assert make(tmp_path / f"{name}-{number}").install(daemon.url, name) == {name: "1.0"}
                daemon.wait_for_log(f"stored .*/{name}-1.0")
                assert fault.served == directly + 1


class TestOddHeaders:
    """Headers that clients send, and that a server must not mind."""

    @pytest.mark.parametrize("accept", [ABBREVIATED, "text/html", "image/png", "*/*;q=0", "x"])
    def test_accept_does_not_matter_where_there_is_one_form(self, sites: Sites, accept: str) -> None:
        """A version, tags and keys are JSON whatever Accept says, as at the registry. Corepack sends one for all."""
        site = sites(NPM, CACHE_TIME="298")
        thing = site.publish(seen=False)
        name = thing.name
        for path in (f"/{name}/1.0", f"/{name}/latest", f"/-/package/{name}/dist-tags", "/-/npm/v1/keys"):
            answer = get(site.daemon.url + path, {"Accept": accept})
            assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json"), path
        site = sites(PYPI, CACHE_TIME="298")
        thing = site.publish(seen=False)
        for path in (f"/pypi/{thing.name}/json", f"/pypi/{thing.name}/1.0/json"):
            answer = get(site.daemon.url + path, {"Accept": accept})
            assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json"), path

    @pytest.mark.parametrize("kind", [PYPI, NPM], ids=["pypi", "npm"])
    @pytest.mark.parametrize("odd", ["abc", 'W/abc, "x', "'abc'", "\xff", ""])
    def test_unreadable_conditions_match_nothing(self, sites: Sites, kind: Kind, odd: str) -> None:
        """Conditions that can't be read get the page and the whole file: not 400, 304, 412 or 416."""
        site = sites(kind, CACHE_TIME="298")
        thing = site.publish(padding=9000)
        for name in ("If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"):
            assert get(site.daemon.url + kind.page_path(thing.name), {name: odd}).status == 200, name
            answer = site.get(thing, {name: odd})
            assert (answer.status, answer.body) == (200, thing.content), name
        for wanted in ("bytes=5-9", "bytes=999999-"):
            answer = site.get(thing, {"If-Range": odd, "Range": wanted})
            assert (answer.status, answer.body) == (200, thing.content), wanted

    def test_upstream_that_refuses_validators_is_still_followed(self, tmp_path: Path) -> None:
        """A page is refreshed though its registry answers 412, 428 or 400 to a conditional request, as JSR's does."""
        env = {"MYPYPI_PACKAGE_TYPE": "npm", "MYPYPI_CACHE_TIME": "0"}
        with Unconditional() as registry, daemons(registry.url, tmp_path / "data") as start:
            url, versions = f"{start(env=env).url}/app", ["1.0.0"]
            registry.add(make_tarball("app", "1.0.0"))
            assert get(url).status == 200
            for registry.code in (412, 428, 400):
                versions.append(f"{len(versions) + 1}.0.0")
                registry.add(make_tarball("app", versions[-1]))
                found = get(url).json()
                assert isinstance(found, dict)
                assert list(found["versions"]) == versions
            assert registry.refused == 3
