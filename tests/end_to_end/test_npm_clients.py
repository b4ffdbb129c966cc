"""Tests npm, which installs through a daemon and sends it other queries.

Many tests repeat the command while the registry refuses connections.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest

from mypypi.settings.settings import default_upstream
from tests.conftest import daemons
from tests.rig.clients import Npm, installed_modules
from tests.rig.daemon import Daemon
from tests.rig.faults import Hang, WrongBytes
from tests.rig.host import FileHost
from tests.rig.packages import Tarball, make_tarball
from tests.rig.registry import FakeRegistry
from tests.support.redis_server import free_port

APP = make_tarball("app", dependencies={"@scope/lib": "^1.0.0", "leaf": "1"}, padding=40_000)
LIB = make_tarball("@scope/lib", "1.1.0", dependencies={"leaf": "1"}, padding=40_000)
OLD_LIB = make_tarball("@scope/lib", "1.0.0")
NEXT_LIB = make_tarball("@scope/lib", "2.0.0-rc.1")
LEAF = make_tarball("leaf")

#: The packages that an install of app results in.
ALL = {"app": "1.0.0", "@scope/lib": "1.1.0", "leaf": "1.0.0"}
WANTED = [APP, LIB, LEAF]

#: Revalidates every page, so that an install without upstream uses stale pages.
SETTINGS = {"MYPYPI_PACKAGE_TYPE": "npm", "MYPYPI_CACHE_TIME": "0"}

#: npm first asks Sigstore's server for the keys of its registry. That server has the keys of the npm registry only, and
#: tests can't reach it. This module gives npm the server's answer: it has no such keys.
NO_KEYS_AT_SIGSTORE = """
const Module = require('node:module')
const load = Module._load
const getTarget = async () => { throw Object.assign(new Error('no such target'), { code: 'TUF_FIND_TARGET_ERROR' }) }
Module._load = function (name, ...rest) {
  return name === '@sigstore/tuf' ? { initTUF: async () => ({ getTarget }) } : load.call(this, name, ...rest)
}
"""


def publish(registry: FakeRegistry, at: FileHost | None = None) -> None:
    """Publish all the packages above, with their tarballs upstream or `at` another host."""
    for tarball in [APP, OLD_LIB, LIB, LEAF]:
        registry.add(tarball, at=at)
    registry.add(NEXT_LIB, at=at, tag="next")


def fetched(host: FileHost) -> list[str]:
    """List the tarballs that were requested from this host, once per request."""
    return sorted(path for request in host.requests if (path := request.path).endswith(".tgz"))


def path_of(tarball: Tarball) -> str:
    """Return a tarball's path on the daemon and upstream."""
    return f"/{tarball.name}/-/{tarball.filename}"


def resolved(project: Path) -> set[str]:
    """Return the addresses of tarballs in a project's lock file."""
    packages = json.loads((project / "package-lock.json").read_bytes())["packages"]
    return {package["resolved"] for package in packages.values() if "resolved" in package}


@pytest.fixture(scope="class")
def registry() -> Iterator[FakeRegistry]:
    """The upstream registry of this class, with all the packages above."""
    with FakeRegistry() as fresh:
        publish(fresh)
        yield fresh


@pytest.fixture(scope="class")
def daemon(registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon of this class."""
    with daemons(registry.url, tmp_path_factory.mktemp("npm") / "data") as start:
        yield start(env=SETTINGS)


@pytest.fixture
def npm(tmp_path: Path) -> Npm:
    return Npm(tmp_path)


class TestInstall:
    """Tests npm installs."""

    def test_with_dependencies_cold_then_warm(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """
        Installs with and without upstream give the same packages.

        They are scoped and unscoped packages, and no pre-release. The installs without upstream start with an empty npm
        cache, once in a new project and once from the lock file. Each installed tarball is fetched once, and no other
        tarball is fetched.
        """
        project = npm.project(daemon.url)
        npm.run("install", "--prefix", project, "app")
        assert installed_modules(project) == ALL
        with registry.refusing():
            assert npm.install(daemon.url, "app") == ALL
            daemon.wait_for_log("upstream fails, serving cached pages")
            from_lock = npm.project(daemon.url, {"app": "^1.0.0"}, lock=project)
            npm.run("ci", "--prefix", from_lock)
            assert installed_modules(from_lock) == ALL
        assert fetched(registry) == sorted(path_of(tarball) for tarball in WANTED)

    def test_a_pre_release_by_its_tag(self, npm: Npm, daemon: Daemon) -> None:
        """A pre-release is installed by upstream's tag."""
        assert npm.install(daemon.url, "@scope/lib@next") == {"@scope/lib": "2.0.0-rc.1"}

    def test_a_deprecated_version(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """A deprecated version is installed, and npm shows the warning."""
        registry.add(make_tarball("old"), extra={"deprecated": "it eats data"})
        assert npm.install(daemon.url, "old") == {"old": "1.0.0"}
        assert "it eats data" in npm.last

    def test_a_version_without_integrity(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """
        A version that has only a shasum is installed.

        Versions from before the integrity field have no other digest.
        """
        registry.add(make_tarball("ancient"), dist={"integrity": None})
        assert npm.install(daemon.url, "ancient") == {"ancient": "1.0.0"}

    def test_a_tarball_on_another_host(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """The daemon fetches the tarball from the other host. npm knows only the daemon's address."""
        afar = make_tarball("@far/away")
        with FileHost() as files:
            registry.add(afar, at=files, path="/some/where/else.tgz")
            project = npm.project(daemon.url)
            npm.run("install", "--prefix", project, "@far/away")
            assert resolved(project) == {daemon.url + path_of(afar)}
            (asked,) = files.requests
            assert asked.headers["User-Agent"].startswith("mypypi/")
            with registry.refusing(), files.refusing():
                assert npm.install(daemon.url, "@far/away") == {"@far/away": "1.0.0"}

    def test_a_tarball_with_a_wrong_integrity(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """The install fails, and nothing is stored. It works once upstream is repaired."""
        broken = make_tarball("broken")
        registry.add(broken)
        fault = registry.fault(path_of(broken), WrongBytes())
        npm.fail("install", "--prefix", npm.project(daemon.url), "broken")
        assert fault.served > 0
        daemon.wait_for_log(rf"{broken.filename} was not stored")
        assert not [path for path in daemon.paths if path.name == broken.filename]
        registry.mend()
        assert npm.install(daemon.url, "broken") == {"broken": "1.0.0"}

    def test_a_version_that_does_not_exist(self, npm: Npm, daemon: Daemon) -> None:
        """The error says that no version matches."""
        assert "No matching version found for leaf@9" in npm.fail(
            "install", "--prefix", npm.project(daemon.url), "leaf@9"
        )

    def test_a_package_that_does_not_exist(self, npm: Npm, daemon: Daemon) -> None:
        """The error is E404, and no failure is reported."""
        assert "E404" in npm.fail("install", "--prefix", npm.project(daemon.url), "@scope/nothing-of-the-kind")

    def test_an_unknown_package_while_upstream_is_down(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """The error is E503 with the reason, not that the package is missing."""
        registry.add(make_tarball("unseen"))
        with registry.refusing():
            failure = npm.fail("install", "--prefix", npm.project(daemon.url), "unseen")
        assert "E503" in failure
        assert "upstream can't be reached: connection was refused" in failure
        assert npm.install(daemon.url, "unseen") == {"unseen": "1.0.0"}

    def test_while_upstream_hangs(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """
        An install of a chain of packages waits for a silent registry once.

        npm learns of each package from the one before it, so it requests the pages in turn.
        """
        chain = [
            make_tarball(f"link{number}", dependencies={f"link{number + 1}": "1"} if number < 5 else None)
            for number in range(6)
        ]
        for tarball in chain:
            registry.add(tarball)
        everything = {tarball.name: tarball.version for tarball in chain}
        assert npm.install(daemon.url, "--no-audit", "link0") == everything
        hanging = registry.fault("/", Hang())
        before = len(daemon.log)
        assert npm.install(daemon.url, "--no-audit", "link0") == everything
        registry.mend()
        hanging.wait_served()
        times = re.findall(r" 200 stale page (\d+)\.\d ms .* GET /link\d ", daemon.log[before:])
        assert len(times) == len(chain)
        assert sum(int(milliseconds) > 2000 for milliseconds in times) == 1

    def test_from_a_registry_with_few_features(self, npm: Npm, tmp_path: Path) -> None:
        """
        Installs work with a registry that has few features.

        It has no validators, no abbreviated packuments and no audit.
        """
        with FakeRegistry(plain=True) as plain_registry, daemons(plain_registry.url, tmp_path / "data") as start:
            publish(plain_registry)
            url = start(env=SETTINGS).url
            assert npm.install(url, "app") == ALL
            with plain_registry.refusing():
                assert npm.install(url, "app") == ALL


class TestLockFiles:
    """Tests the lock files that npm writes and reads."""

    def test_have_the_daemons_address(self, npm: Npm, daemon: Daemon) -> None:
        """
        A lock file has the daemon's address in the conventional form.

        The registry's own addresses have the same paths.
        """
        project = npm.project(daemon.url, ALL)
        npm.run("install", "--prefix", project)
        assert resolved(project) == {daemon.url + path_of(tarball) for tarball in WANTED}

    def test_can_omit_the_address(self, npm: Npm, daemon: Daemon) -> None:
        """A lock file without addresses can be installed from any server."""
        project = npm.project(daemon.url, ALL)
        npm.run("install", "--prefix", project, "--omit-lockfile-registry-resolved")
        assert resolved(project) == set()
        other = npm.project(daemon.url, ALL, lock=project)
        npm.run("ci", "--prefix", other)
        assert installed_modules(other) == ALL

    def test_made_with_upstream_work_with_the_daemon(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """
        The daemon has the tarballs that upstream's lock file names.

        An option makes npm request them from the daemon.
        """
        project = npm.project(registry.url, ALL)
        npm.run("install", "--prefix", project)
        assert resolved(project) == {registry.url + path_of(tarball) for tarball in WANTED}
        other = npm.project(daemon.url, ALL, lock=project)
        npm.run("ci", "--prefix", other, "--replace-registry-host=always")
        assert installed_modules(other) == ALL
        with registry.refusing():
            other = npm.project(daemon.url, ALL, lock=project)
            npm.run("ci", "--prefix", other, "--replace-registry-host=always")
            assert installed_modules(other) == ALL


class TestQueries:
    """Tests npm commands that query the registry."""

    def test_view(self, npm: Npm, daemon: Daemon) -> None:
        """``npm view`` shows versions, tags and any field of a version."""
        project = npm.project(daemon.url)
        view = npm.run("view", "--prefix", project, "--json", "@scope/lib", "versions", "dist-tags")
        assert json.loads(view) == {
            "versions": ["1.0.0", "1.1.0", "2.0.0-rc.1"],
            "dist-tags": {"latest": "1.1.0", "next": "2.0.0-rc.1"},
        }
        assert npm.run("view", "--prefix", project, "@scope/lib@next", "version", "dist.integrity").split() == [
            "version", "=", "'2.0.0-rc.1'", "dist.integrity", "=", f"'{NEXT_LIB.integrity}'",
        ]  # fmt: skip

    def test_outdated(self, npm: Npm, daemon: Daemon) -> None:
        """``npm outdated`` finds newer versions by the registry's tags."""
        project = npm.project(daemon.url, {"@scope/lib": "1.0.0", "leaf": "1.0.0"})
        npm.run("install", "--prefix", project)
        outdated = json.loads(npm.fail("outdated", "--prefix", project, "--json"))
        assert {name: each["latest"] for name, each in outdated.items()} == {"@scope/lib": "1.1.0"}

    def test_dist_tag_ls(self, npm: Npm, daemon: Daemon) -> None:
        """``npm dist-tag ls`` lists the registry's tags."""
        tags = npm.run("dist-tag", "ls", "@scope/lib", "--prefix", npm.project(daemon.url))
        assert tags.splitlines() == ["latest: 1.1.0", "next: 2.0.0-rc.1"]

    def test_search(self, npm: Npm, daemon: Daemon) -> None:
        """``npm search`` shows the registry's own result."""
        found = json.loads(npm.run("search", "--prefix", npm.project(daemon.url), "--json", "lib"))
        assert [package["name"] for package in found] == ["@scope/lib"]

    def test_ping(self, npm: Npm, daemon: Daemon) -> None:
        """``npm ping`` gets an answer."""
        assert "PONG" in npm.run("ping", "--prefix", npm.project(daemon.url))

    def test_whoami(self, npm: Npm, daemon: Daemon) -> None:
        """``npm whoami`` fails, even with a token. The token may be valid elsewhere."""
        assert "E401" in npm.fail("whoami", "--prefix", project_with_token(npm, daemon))

    def test_publish(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """``npm publish`` fails with a reason. Upstream gets neither the request nor the token."""
        project = project_with_token(npm, daemon)
        (project / "package.json").write_text(json.dumps({"name": "mine", "version": "1.0.0"}))
        failure = npm.fail("publish", str(project), "--prefix", project)
        assert "E405" in failure
        assert "read-only" in failure
        assert {request.method for request in registry.seen("/mine")} <= {"GET"}
        assert not [request for request in registry.requests if request.headers["Authorization"]]


def project_with_token(npm: Npm, daemon: Daemon) -> Path:
    """Create a project whose user is logged in, as far as npm knows."""
    project = npm.project(daemon.url)
    with (project / ".npmrc").open("a") as settings:
        settings.write(f"//127.0.0.1:{daemon.port}/:_authToken=made-up\n")
    return project


class TestAudit:
    """Tests ``npm audit``."""

    def test_is_answered_by_upstream(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """Upstream gets each audit unchanged and answers it. npm encodes the audit with gzip."""
        registry.add(make_tarball("holey"))
        registry.advise("holey", "<2")
        project = npm.project(daemon.url, {"holey": "1", "leaf": "1"})
        npm.run("install", "--prefix", project, "--no-audit")
        before = len(registry.audits)
        for _ in range(2):
            report = json.loads(npm.fail("audit", "--prefix", project, "--json"))
            assert list(report["vulnerabilities"]) == ["holey"]
        assert registry.audits[before:] == [{"holey": ["1.0.0"], "leaf": ["1.0.0"]}] * 2
        asked = registry.seen("/-/npm/v1/security/advisories/bulk")[-1]
        assert asked.headers["Content-Encoding"] == "gzip"
        assert json.loads(gzip.decompress(asked.body)) == {"holey": ["1.0.0"], "leaf": ["1.0.0"]}

    def test_that_fails_does_not_fail_an_install(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """
        An install works although its audit fails.

        npm sends an audit with each install, which fails while upstream is down.
        """
        assert npm.install(daemon.url, "leaf") == {"leaf": "1.0.0"}
        with registry.refusing():
            assert npm.install(daemon.url, "leaf") == {"leaf": "1.0.0"}


class TestSignatures:
    """Tests ``npm audit signatures``."""

    @pytest.fixture
    def npm(self, tmp_path: Path) -> Npm:
        stand_in = tmp_path / "sigstore.js"
        stand_in.write_text(NO_KEYS_AT_SIGSTORE)
        return Npm(tmp_path, stand_in)

    def test_that_are_valid(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """Signatures are verified with the registry's key, also without upstream."""
        project = npm.project(daemon.url, {"app": "1"})
        npm.run("install", "--prefix", project, "--no-audit")
        assert "3 packages have verified registry signatures" in npm.run("audit", "signatures", "--prefix", project)
        assert registry.count("/-/npm/v1/keys") == 1
        with registry.refusing():
            assert "3 packages have verified registry signatures" in npm.run("audit", "signatures", "--prefix", project)

    def test_that_are_invalid(self, npm: Npm, registry: FakeRegistry, daemon: Daemon) -> None:
        """An invalid signature is reported, since the daemon does not change it."""
        of_another = registry.package("leaf").versions["1.0.0"].signature
        registry.add(make_tarball("forged"), dist={"signatures": [dict(of_another)]})
        project = npm.project(daemon.url, {"forged": "1", "leaf": "1"})
        npm.run("install", "--prefix", project, "--no-audit")
        report = npm.fail("audit", "signatures", "--prefix", project)
        assert "1 package has an invalid registry signature" in report
        assert "forged@1.0.0" in report
        assert "leaf@1.0.0" not in report


@pytest.fixture
def public_registry() -> str:
    """The address of the npm registry. Skips the test if it can't be reached."""
    url = default_upstream("npm")
    try:
        urllib.request.urlopen(f"{url}/ms", timeout=20).close()  # noqa: S310 - it is https
    except URLError as error:
        pytest.skip(f"the npm registry can't be reached: {error.reason}")
    return url


@pytest.mark.live
class TestPublicRegistry:
    """Tests packages from the npm registry."""

    def test_real_packages_cold_then_warm(self, npm: Npm, public_registry: str, tmp_path: Path) -> None:
        """A daemon without upstream installs the same packages from the same data."""
        trust = {name: os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ}
        wanted = ["debug", "@types/ms", "semver"]
        with daemons(public_registry, tmp_path / "data") as start:
            online = start(env=SETTINGS | trust)
            cold = npm.install(online.url, *wanted)
            assert {*wanted, "ms"} <= cold.keys()
            online.stop()
            offline = start(env=SETTINGS | {"MYPYPI_UPSTREAM_URL": f"http://127.0.0.1:{free_port()}"})
            assert npm.install(offline.url, *wanted) == cold
            offline.wait_for_log("upstream fails, serving cached pages")
