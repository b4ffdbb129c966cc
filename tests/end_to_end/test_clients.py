"""Tests pip and uv, which install through a daemon.

Many tests repeat the install while upstream refuses connections.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import pytest

from mypypi.daemon.embedded_redis import EmbeddedRedis
from mypypi.settings.settings import default_upstream
from tests.conftest import DaemonFactory
from tests.rig.clients import Client, Pip, Uv, installed
from tests.rig.daemon import Daemon
from tests.rig.host import FileHost
from tests.rig.index import FakeIndex
from tests.rig.packages import Artifact, make_sdist, make_wheel
from tests.support.redis_server import free_port

APP = make_wheel("app", requires=["lib>=1", "Some.Tool"], modules={"app.py": "import lib, some_tool\n"}, padding=40_000)
LIB = make_wheel("lib", "1.1", modules={"lib.py": ""}, padding=40_000)
OLD_LIB = make_wheel("lib", "1.0")
YANKED_LIB = make_wheel("lib", "1.5")
FUTURE_LIB = make_wheel("lib", "2.0", requires_python=">=99")
NEXT_LIB = make_wheel("lib", "3.0rc1")
TOOL = make_sdist("Some.Tool", requires=["leaf"], modules={"some_tool.py": ""})
LEAF = make_wheel("leaf")

#: The packages that an install of app results in.
ALL = {"app": "1.0", "lib": "1.1", "Some.Tool": "1.0", "leaf": "1.0"}
WANTED = [APP, LIB, TOOL, LEAF]

#: Revalidates every page, so that an install without upstream uses stale pages.
NO_FRESHNESS = {"MYPYPI_CACHE_TIME": "0"}


def publish(index: FakeIndex, at: FileHost | None = None) -> None:
    """Publish all the packages above, with their files upstream or `at` another host."""
    for artifact in [*WANTED, OLD_LIB, FUTURE_LIB, NEXT_LIB]:
        index.add(artifact, at=at)
    index.add(YANKED_LIB, at=at, yanked="it eats data")


def fetched(index: FakeIndex) -> list[str]:
    """List the files that upstream was asked for, once per request. Metadata files are left out."""
    names = [request.path.rpartition("/")[2] for request in index.seen("/packages/")]
    return sorted(name for name in names if not name.endswith(".metadata"))


def link(server: str, index: FakeIndex, artifact: Artifact) -> str:
    """Return a file's address on this server, which follows from upstream's. The README has the rule."""
    return f"{server}/file/{index.url_of(artifact.filename).replace('://', '/')}"


@pytest.fixture(params=[Pip, Uv])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    make: Callable[[Path], Client] = request.param
    return make(tmp_path)


@pytest.fixture
def pip(tmp_path: Path) -> Pip:
    return Pip(tmp_path)


@pytest.fixture
def uv(tmp_path: Path) -> Uv:
    return Uv(tmp_path)


class TestInstall:
    """Tests installs with pip and with uv."""

    def test_with_dependencies_cold_then_warm(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """
        Installs with and without upstream give the same packages.

        There are wheels and an sdist, and no yanked version, no pre-release and none for a later Python. Each file is
        fetched once. No file is fetched that the page alone rules out.
        """
        publish(index)
        daemon = daemon_factory(env=NO_FRESHNESS)
        assert client.install(daemon.url, "app") == ALL
        with index.refusing():
            assert client.install(daemon.url, "app") == ALL
            daemon.wait_for_log("upstream fails, serving cached pages")
        assert fetched(index) == sorted(artifact.filename for artifact in WANTED)

    def test_a_yanked_version_when_it_is_pinned(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """A pinned yanked version is installed, and its reason is shown (PEP 592)."""
        publish(index)
        assert client.install(daemon_factory().url, "lib==1.5") == {"lib": "1.5"}
        assert "it eats data" in client.last

    def test_a_pre_release_when_it_is_allowed(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """A pre-release is listed like any version, and the client decides."""
        publish(index)
        assert client.install(daemon_factory().url, "--pre", "lib") == {"lib": "3.0rc1"}

    def test_an_sdist_built_without_isolation(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """
        An sdist with a setup.py installs without build isolation.

        A build environment would need further packages.
        """
        index.add(make_sdist("legacy", requires=["leaf"], modules={"legacy.py": ""}, legacy=True))
        index.add(LEAF)
        daemon = daemon_factory()
        assert client.install(daemon.url, "--no-build-isolation", "legacy") == {"legacy": "1.0", "leaf": "1.0"}

    def test_with_hashes_required(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory, tmp_path: Path
    ) -> None:
        """Files match required hashes, cold and warm."""
        publish(index)
        requirements = tmp_path / "requirements.txt"
        lines = [f"{each.project}=={each.version} --hash=sha256:{each.sha256}" for each in WANTED]
        requirements.write_text("\n".join(lines))
        daemon = daemon_factory()
        assert client.install(daemon.url, "--require-hashes", "-r", str(requirements)) == ALL
        with index.refusing():
            assert client.install(daemon.url, "--require-hashes", "-r", str(requirements)) == ALL

    def test_files_on_another_host_than_the_index(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """
        The daemon fetches files from a separate host, as PyPI has.

        The client connects to neither the index nor that host.
        """
        with FileHost() as files:
            publish(index, at=files)
            daemon = daemon_factory()
            assert client.install(daemon.url, "app") == ALL
            asked = [*index.requests, *files.requests]
            assert {request.headers["User-Agent"].partition("/")[0] for request in asked} == {"mypypi"}
            with index.refusing(), files.refusing():
                assert client.install(daemon.url, "app") == ALL

    @pytest.mark.parametrize(
        "make_upstream", [partial(FakeIndex, html_only=True), partial(FakeIndex, plain=True)], ids=["HTML", "bare"]
    )
    def test_upstreams_with_few_features(
        self, client: Client, make_upstream: Callable[[], FakeIndex], daemon_factory: DaemonFactory
    ) -> None:
        """
        Installs work with an upstream that has few features.

        One has only HTML; the other has no validators, metadata or ranges.
        """
        with make_upstream() as index:
            publish(index)
            daemon = daemon_factory(env={"MYPYPI_UPSTREAM_URL": index.url})
            assert client.install(daemon.url, "app") == ALL

    def test_a_project_that_upstream_does_not_have(
        self, client: Client, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """The client reports at once that there is no such project. It does not report a failure."""
        daemon = daemon_factory()
        with pytest.raises(AssertionError, match=r"(?i)no matching distribution|not found in the package registry"):
            client.install(daemon.url, "nothing-of-the-kind")
        assert index.count("/simple/nothing-of-the-kind/") == 1


class TestPip:
    """Tests what pip does and uv does not."""

    def test_download(self, pip: Pip, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """``pip download`` saves upstream's exact bytes."""
        publish(index)
        target = pip.new_directory()
        pip.run("download", "--dest", target, "--index-url", f"{daemon_factory().url}/simple/", "app")
        assert {path.name: path.read_bytes() for path in target.iterdir()} == {
            artifact.filename: artifact.content for artifact in WANTED
        }

    def test_index_versions(self, pip: Pip, index: FakeIndex, daemon_factory: DaemonFactory) -> None:
        """``pip index versions`` lists the installable versions, latest first."""
        publish(index)
        listed = pip.run("index", "versions", "--index-url", f"{daemon_factory().url}/simple/", "lib")
        assert "Available versions: 1.1, 1.0\n" in listed

    def test_its_own_cache_does_not_delay_new_versions(
        self, index: FakeIndex, daemon_factory: DaemonFactory, tmp_path: Path
    ) -> None:
        """
        The cache of pip does not delay a new version.

        pip sees the version as soon as the daemon's page is stale, which is at once in this test.
        """
        index.add(OLD_LIB)
        daemon = daemon_factory(env=NO_FRESHNESS)
        pip = Pip(tmp_path)
        cache = tmp_path / "cache"  # pip caches plain HTTP only from a host that it trusts
        cached = ["--cache-dir", str(cache), "--trusted-host", "127.0.0.1"]
        assert pip.install(daemon.url, *cached, "lib") == {"lib": "1.0"}
        assert list(cache.glob("http-v2/**/*.body"))
        index.add(LIB)
        assert pip.install(daemon.url, *cached, "lib") == {"lib": "1.1"}


class TestUv:
    """
    Tests lock files and reads by ranges, which pip does not have.

    ``uv sync --frozen`` requests the files in its lock file, and no page.
    """

    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        """A project that needs app."""
        project = tmp_path / "project"
        project.mkdir()
        lines = ["[project]", 'name = "project"', 'version = "1"', 'requires-python = ">=3.10"']
        (project / "pyproject.toml").write_text("\n".join([*lines, 'dependencies = ["app"]']))
        return project

    def test_links_in_the_lock_follow_a_rule(
        self, uv: Uv, project: Path, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """
        Links in uv.lock point to the daemon and follow a rule.

        By the rule, upstream's URL can be derived from each link, and the link from the URL.
        """
        publish(index)
        daemon = daemon_factory()
        lock(uv, project, daemon)
        text = (project / "uv.lock").read_text()
        assert [link(daemon.url, index, artifact) in text for artifact in WANTED] == [True, True, True, True]

    def test_a_frozen_sync_with_an_emptied_catalog(
        self, uv: Uv, project: Path, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """Stored files are found without their record and without upstream."""
        publish(index)
        first = daemon_factory(env=NO_FRESHNESS)
        lock(uv, project, first)
        assert sync(uv, project) == ALL
        second = restarted_without_catalog(first, daemon_factory)
        with index.refusing():
            assert sync(uv, project) == ALL
        assert requests_of(second, "/simple/") == []
        assert len(requests_of(second, "/file/")) == len(WANTED)

    def test_a_frozen_sync_with_an_emptied_catalog_and_no_files(
        self, uv: Uv, project: Path, index: FakeIndex, daemon_factory: DaemonFactory
    ) -> None:
        """The daemon finds a locked file by reading upstream's page again. The client does not request the page."""
        publish(index)
        first = daemon_factory()
        lock(uv, project, first)
        assert index.count(index.path_of(LIB.filename)) == 0
        pages = index.count("/simple/lib/")
        second = restarted_without_catalog(first, daemon_factory)
        assert sync(uv, project) == ALL
        assert requests_of(second, "/simple/") == []
        assert len(requests_of(second, "/file/")) == len(WANTED)
        assert index.count("/simple/lib/") == pages + 1

    def test_an_upstream_without_metadata_is_read_by_ranges(self, uv: Uv, daemon_factory: DaemonFactory) -> None:
        """
        The end of a wheel that is not stored yet can be read, although upstream has no ranges either.

        Upstream is asked for them once, and the wheel is fetched only once, after a HEAD.
        """
        with FakeIndex(plain=True) as index:
            publish(index)
            daemon = daemon_factory(env={"MYPYPI_UPSTREAM_URL": index.url})
            assert uv.install(daemon.url, "app") == ALL
            path = f"/file/{index.url_of(APP.filename).replace('://', '/')}"
            assert requests_of(daemon, path) == [f"HEAD {path} 200", f"GET {path} 206", f"GET {path} 200"]
            asked = [(each.method, each.headers["Range"]) for each in index.seen(index.path_of(APP.filename))]
            assert asked == [("GET", "bytes=-1"), ("HEAD", None), ("GET", None)]


def lock(uv: Uv, project: Path, daemon: Daemon) -> None:
    """Create the project's uv.lock."""
    uv.run("lock", "--project", project, "--default-index", f"{daemon.url}/simple/")


def sync(uv: Uv, project: Path) -> dict[str, str]:
    """Create an environment from the project's uv.lock alone. Return the installed packages."""
    uv.run("venv", "--clear", project / ".venv")
    uv.run("sync", "--project", project, "--frozen", "--no-install-project")
    (site,) = (project / ".venv").glob("lib/python*/site-packages")
    return installed(site)


def restarted_without_catalog(daemon: Daemon, daemon_factory: DaemonFactory) -> Daemon:
    """
    Replace the daemon by one at the same address with an empty catalog.

    It has the same data directory, and nothing in memory.
    """
    with socket.socket(socket.AF_UNIX) as redis:
        redis.connect(str(EmbeddedRedis(None, daemon.data).socket))
        redis.sendall(b"FLUSHALL\r\nDBSIZE\r\n")
        answers = b""
        while answers.count(b"\n") < 2:
            answers += redis.recv(100)
    assert answers == b"+OK\r\n:0\r\n"
    daemon.stop()
    return daemon_factory(env={**NO_FRESHNESS, "MYPYPI_LISTEN": f"tcp:{daemon.port}:interface=127.0.0.1"})


def requests_of(daemon: Daemon, path: str = "/") -> list[str]:
    """
    List the requests that the daemon logged for paths with this prefix.

    Each item has a method, a path and a status. The daemon is stopped first.
    """
    daemon.stop()
    lines = re.findall(rf"\] 127\.0\.0\.1 (\d+) .* B ([A-Z]+ {re.escape(path)}\S*) ", daemon.log)
    return [f"{request} {status}" for status, request in lines]


@pytest.fixture
def public(daemon_factory: DaemonFactory, tmp_path: Path) -> Daemon:
    """A daemon in front of PyPI, whose data directory is ``public``."""
    url = default_upstream("pypi")
    try:
        urllib.request.urlopen(f"{url}/simple/pip/", timeout=20).close()  # noqa: S310 - it is https
    except URLError as error:
        pytest.skip(f"PyPI can't be reached: {error.reason}")
    trust = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
    return daemon_factory(data=tmp_path / "public", env={"MYPYPI_UPSTREAM_URL": "", **trust})


@pytest.mark.live
class TestPublicIndex:
    """Tests packages from PyPI."""

    @pytest.mark.parametrize(("kind", "project", "least"), [(Pip, "flask", 6), (Uv, "httpx", 5)])
    def test_real_packages_cold_then_warm(
        self,
        kind: type[Client],
        project: str,
        least: int,
        public: Daemon,
        daemon_factory: DaemonFactory,
        tmp_path: Path,
    ) -> None:
        """A daemon without upstream installs the same packages from the same data."""
        client = kind(tmp_path)
        cold = client.install(public.url, project)
        assert project in {name.lower() for name in cold}
        assert len(cold) >= least
        public.stop()
        gone = {"MYPYPI_UPSTREAM_URL": f"http://127.0.0.1:{free_port()}", **NO_FRESHNESS}
        offline = daemon_factory(data=public.data, env=gone)
        assert client.install(offline.url, project) == cold
        offline.wait_for_log("upstream fails, serving cached pages")

    @pytest.mark.skipif(sys.version_info >= (3, 12), reason="pip 21 does not run on Python 3.12 and later")
    def test_pip_21(
        self, pip: Pip, public: Daemon, index: FakeIndex, daemon_factory: DaemonFactory, tmp_path: Path
    ) -> None:
        """A pip that reads only HTML installs cold and warm. The old pip itself is downloaded from PyPI."""
        wheels = pip.new_directory()
        pip.run("download", "--no-deps", "--dest", wheels, "--index-url", f"{public.url}/simple/", "pip==21.3.1")
        (wheel,) = wheels.iterdir()
        old = Pip(tmp_path / "old", wheel)
        old.place.mkdir()
        assert old.run("--version").startswith("pip 21.3.1 ")
        publish(index)
        daemon = daemon_factory(env=NO_FRESHNESS)
        assert old.install(daemon.url, "app") == ALL
        with index.refusing():
            assert old.install(daemon.url, "app") == ALL
            daemon.wait_for_log("upstream fails, serving cached pages")
