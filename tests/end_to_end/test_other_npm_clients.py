"""Tests pnpm, yarn and bun with new versions, lock files made elsewhere, slow registries, another server's validators.

Each test does with a client directly what it does through the daemon. Directly it works, so it must work here. The
newest version of each client comes from the npm registry, and all else happens on loopback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from attrs import frozen

from tests.conftest import daemons
from tests.end_to_end.test_clients_as_they_are import WithHeaders
from tests.end_to_end.test_made_elsewhere import ELSEWHERE, EVERYTHING, wait_until_older
from tests.end_to_end.test_strict_clients import public
from tests.rig.clients import Bun, Npm, Pnpm, Yarn
from tests.rig.daemon import Daemon
from tests.rig.faults import Hang
from tests.rig.http import get
from tests.rig.packages import make_tarball
from tests.rig.registry import FakeRegistry

pytestmark = pytest.mark.live

OtherClient = Pnpm | Yarn | Bun
#: Makes a client with empty caches, which works in a directory of this name.
MakeClient = Callable[[str], OtherClient]

CLIENTS: list[type[OtherClient]] = [Pnpm, Yarn, Bun]
NPM = {"MYPYPI_PACKAGE_TYPE": "npm"}

#: How pnpm repeats a request: soon. Yarn and bun do so by themselves.
RETRIES = "fetchRetries: 4\nfetchRetryMintimeout: 500\nfetchRetryMaxtimeout: 1000\n"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the newest pnpm, yarn and bun, installed through a daemon."""
    settings = public("npm", "pnpm")
    npm = Npm(tmp_path_factory.mktemp("programs"), patient=True)
    with daemons("", npm.place / "data") as start:
        project = npm.project(start(env=settings).url)
        npm.run("install", "--prefix", project, "--no-audit", "--ignore-scripts", "pnpm", "@yarnpkg/cli-dist", "bun")
    return project


@pytest.fixture(params=CLIENTS)
def make_client(programs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> MakeClient:
    return lambda name: request.param(tmp_path / name, source=programs, patient=True)


@frozen
class Ecosystem:
    """A registry, and a daemon in front of it."""

    registry: FakeRegistry
    daemon: Daemon


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ecosystem]:
    """A daemon whose fresh pages, one for each client, lack the version 1.1.0."""
    names = [f"for-{client.__name__.lower()}" for client in CLIENTS]
    with FakeRegistry() as registry, daemons(registry.url, tmp_path_factory.mktemp("behind") / "data") as start:
        daemon = start(env=NPM | {"MYPYPI_CACHE_TIME": "300"})
        for name in names:
            registry.add(make_tarball(name))
            assert get(f"{daemon.url}/{name}").status == 200
            registry.add(make_tarball(name, "1.1.0"))
        yield Ecosystem(registry, daemon)


def with_lock(client: OtherClient, made: Path, there: str, server: str) -> dict[str, str]:
    """
    Install exactly what the lock file of the project `made` names, from this server.

    The server's address replaces that of the registry `there`. Returns the versions by name.
    """
    wanted = json.loads((made / "package.json").read_bytes())["dependencies"]
    project = client.project(server, wanted, lock=made)
    lock = project / client.lock_file
    text = lock.read_text().replace(there, server)
    lock.write_text(text.replace(quote(there, safe=""), quote(server, safe="")))  # yarn quotes addresses
    return client.install_project(project, client.frozen)


class TestVersionsThatAppear:
    """Tests a version that upstream publishes while the daemon's page is fresh for minutes."""

    def test_new_version_is_installed(self, behind: Ecosystem, make_client: MakeClient) -> None:
        """A frozen install has the lock file's version. Upstream is asked once more for the page."""
        client, registry = make_client("directly"), behind.registry
        name = f"for-{type(client).__name__.lower()}"
        wanted, new = {name: "^1.0.0"}, {name: "1.1.0"}
        directly = client.project(registry.url, wanted)
        assert client.install_project(directly) == new
        wait_until_older(f"{behind.daemon.url}/{name}")
        before = registry.count(f"/{name}")
        through = with_lock(make_client("through"), directly, registry.url, behind.daemon.url)
        assert through == new
        assert registry.count(f"/{name}") == before + 1
        assert registry.seen(f"/{name}")[-1].headers["If-None-Match"]


class TestLockFilesMadeElsewhere:
    """
    Tests lock files with the addresses of another registry, after the daemon's host was put in its place.

    bun.lock always has addresses, yarn.lock where the other registry's paths are unusual, and pnpm-lock.yaml with
    ``lockfileIncludeTarballUrl``. pnpm refuses an address that its registry's page does not list, so its lock file has
    the usual paths here.
    """

    def test_tarballs_are_installed(self, make_client: MakeClient, tmp_path: Path) -> None:
        """
        Frozen installs get the packages of the ordinary registry upstream, also by the paths of eleven others.

        Directly, the lock file works with the registry that it was made with.
        """
        client = make_client("elsewhere")
        usual = isinstance(client, Pnpm)
        with FakeRegistry() as elsewhere, FakeRegistry() as registry, daemons(registry.url, tmp_path / "data") as start:
            urls = [elsewhere.add(tarball, path=None if usual else path) for tarball, path in ELSEWHERE]
            for tarball, _ in ELSEWHERE:
                registry.add(tarball)
            made = client.project(elsewhere.url, EVERYTHING)
            (made / "pnpm-workspace.yaml").write_text("lockfileIncludeTarballUrl: true\n")
            assert client.install_project(made) == EVERYTHING
            lock = unquote((made / client.lock_file).read_text())
            assert [url for url in urls if url not in lock] == []
            assert with_lock(make_client("directly"), made, elsewhere.url, elsewhere.url) == EVERYTHING
            daemon = start(env=NPM)
            before = len(elsewhere.requests)
            assert with_lock(make_client("through"), made, elsewhere.url, daemon.url) == EVERYTHING
            for url in urls:
                daemon.wait_for_log(f" GET {re.escape(url.removeprefix(elsewhere.url))} ")
            assert len(elsewhere.requests) == before


class TestSlowUpstream:
    """Upstream's first byte takes longer than MYPYPI_UPSTREAM_TIMEOUT, which is one second here."""

    def test_packages_are_installed(self, programs: Path, tmp_path: Path) -> None:
        """
        A client that got 503 for a page or a file tries again and installs. Upstream is asked once for each.

        All clients install at the same time, since they mostly wait.
        """
        with FakeRegistry() as registry, daemons(registry.url, tmp_path / "data") as start:
            slow = Ecosystem(registry, start(env=NPM | {"MYPYPI_UPSTREAM_TIMEOUT": "1"}))
            installs: list[tuple[OtherClient, str, str]] = [
                (make(tmp_path / f"{make.__name__.lower()}-{held}-{way}", source=programs, patient=True), held, server)
                for make in CLIENTS
                for held in ("page", "file")
                for way, server in (("directly", registry.url), ("through", slow.daemon.url))
            ]
            with ThreadPoolExecutor(len(installs)) as pool:
                for done in [pool.submit(self.install, slow, *arguments) for arguments in installs]:
                    done.result()

    @staticmethod
    def install(slow: Ecosystem, client: OtherClient, held: str, server: str) -> None:
        """Install a package from this server while upstream holds its page or file back for longer than it may."""
        registry, name = slow.registry, client.place.name
        tarball = registry.add(make_tarball(name)).removeprefix(registry.url)
        path = f"/{name}" if held == "page" else tarball
        project = client.project(server, {name: "1"})
        (project / "pnpm-workspace.yaml").write_text(RETRIES)
        hang = registry.fault(path, Hang())
        with ThreadPoolExecutor(1) as pool:
            installing = pool.submit(client.install_project, project)
            hang.wait_served()
            if server == slow.daemon.url:
                slow.daemon.wait_for_log(rf" 503 .* GET {re.escape(path)} ")
            hang.release()
            assert installing.result() == {name: "1.0.0"}
        assert (hang.served, registry.count(path)) == (1, 1)


class TestValidatorsOfAnotherServer:
    """The daemon takes over the address of a server whose validators are not quoted."""

    def test_clients_go_on_with_their_caches(self, make_client: MakeClient, tmp_path: Path) -> None:
        """A client whose cache has pages of the other server installs what this one has, as it does there."""
        old, new = make_tarball("app", "1.0.0"), make_tarball("app", "1.1.0")
        directly, through = make_client("directly"), make_client("through")
        with FakeRegistry() as before:
            before.add(old)
            odd = before.fault(
                "/app", WithHeaders({"ETag": "abc", "Last-Modified": "then", "Cache-Control": "max-age=0"})
            )
            assert [client.install(before.url, "app") for client in (directly, through)] == [{"app": "1.0.0"}] * 2
            odd.wait_served(2)
            before.mend()
            before.add(new)
            assert directly.install(before.url, "app@1.1.0") == {"app": "1.1.0"}
            assert before.seen("/app")[-1].headers["If-None-Match"] == "abc"
        with FakeRegistry() as registry, daemons(registry.url, tmp_path / "data") as start:
            registry.add(new)
            daemon = start(env=NPM | {"MYPYPI_LISTEN": f"tcp:{before.port}:interface=127.0.0.1"})
            assert through.install(daemon.url, "app@1.1.0") == {"app": "1.1.0"}
            assert " 400 " not in daemon.log
